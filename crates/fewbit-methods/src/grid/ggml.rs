use std::sync::Mutex;

use fewbit_engine::kinds::{
    BoundGrid, Entry, GgufMix, Grid, GridJob, LANES, MixTensor, Needs, OfTensor, Params, Place, Weighting, parse,
};
use fewbit_format::{CodeMeaning, Eight, Error, GgmlBlocks, GgmlType, Mat, Result, Split, Storage};
use fewbit_kernel::Team;
use fewbit_kernel::strip::{Affine, round_affine};
use serde::Deserialize;

pub(crate) const ENTRY: Entry<dyn Grid> = Entry {
    name: "ggml",
    cite: "ggml's block types, with its encoders' search for scales (ggml-org/ggml, src/ggml-quants.c)",
    settings: &[
        (
            "type = \"Q4_K_M\"",
            "a mix that gives each tensor of a GGUF file its own block type (`Q4_K_M`, `IQ2_XS`, …), or a type (`Q4_K`, …)",
        ),
        (
            "pure = false",
            "one type for all linears, also where a mix has its name; embedding and output stay as they are",
        ),
        (
            "importance = \"none\"",
            "how errors count while scales are searched: `none`, or `input`, by the mean square of what a column is multiplied with (an importance matrix)",
        ),
    ],
    build: |table| {
        let settings: GgmlSettings = parse("grid.ggml", table)?;
        Ok(Box::new(GgmlGrid { kind: settings.kind()?, importance: settings.importance, instead_of: None }))
    },
};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GgmlSettings {
    #[serde(rename = "type")]
    kind: String,
    pure: bool,
    importance: Importance,
}

impl Default for GgmlSettings {
    fn default() -> Self {
        Self { kind: "Q4_K_M".to_owned(), pure: false, importance: Importance::None }
    }
}

impl GgmlSettings {
    fn kind(&self) -> Result<Kind> {
        let mix = GgufMix::named(&self.kind).filter(|_| !self.pure).map(Kind::Mix);
        let kind = || GgmlType::from_name(&self.kind).filter(|k| k.has_encoder()).map(Kind::One);
        mix.or_else(kind).ok_or_else(|| {
            let mixes: Vec<&str> = GgufMix::ALL.iter().map(|m| m.name()).collect();
            let types: Vec<&str> = GgmlType::ALL.iter().filter(|k| k.has_encoder()).map(|k| k.name()).collect();
            let wanted = if self.pure { "no block type" } else { "neither a mix nor a block type" };
            Error::input(format!("`grid.type` is `{}`, which is {wanted}", self.kind)).hint(format!(
                "mixes are {}; types are {}",
                mixes.join(", "),
                types.join(", ")
            ))
        })
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Importance {
    None,
    Input,
}

/// What a recipe asks for.
#[derive(Clone, Copy, Debug)]
enum Kind {
    One(GgmlType),
    Mix(GgufMix),
}

/// Blocks of ggml: each finds its scales as ggml's encoder does, and codes are the nearest under the scales as stored.
///
/// A mix is asked for the type of each tensor ([`Grid::of_tensor`]); elsewhere it is its commonest type.
#[derive(Clone, Copy, Debug)]
struct GgmlGrid {
    kind: Kind,
    importance: Importance,
    /// What a mix has for such a tensor, where its blocks do not tile the rows.
    instead_of: Option<GgmlType>,
}

impl GgmlGrid {
    fn block_type(&self) -> GgmlType {
        match self.kind {
            Kind::One(kind) => kind,
            Kind::Mix(mix) => mix.base(),
        }
    }
}

impl Grid for GgmlGrid {
    fn check(&self, _: usize, cols: usize) -> Result<()> {
        let kind = self.block_type();
        if kind.needs_importance() && self.importance == Importance::None {
            return Err(Error::input(format!("{} is no use without importances", kind.name()))
                .hint("set `grid.importance=input`, which looks at calibration text, or give an importance matrix by `--stats`"));
        }
        let way_out = "choose a mix, which gives such tensors another type, or `--keep` it";
        GgmlBlocks::new(kind, 0, cols, Vec::new().into()).map(|_| ()).map_err(|e| e.hint(way_out))
    }

    fn needs(&self) -> Needs {
        Needs { mean_square: self.importance == Importance::Input, ..Needs::default() }
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        8 * (rows * self.block_type().row_bytes(cols).unwrap_or(0)) as u64
    }

    fn begin(&self, job: &GridJob<'_>) -> Result<Box<dyn BoundGrid>> {
        /// Scales are f16, and some blocks have one that reaches the greatest weight.
        const MOST: f32 = 65504.0;
        let kind = self.block_type();
        if let Some(v) = job.weight.data().iter().find(|v| !(-MOST..=MOST).contains(*v)) {
            return Err(Error::input(format!("holds the weight {v:e}, which {} does not reach", kind.name()))
                .hint("`--keep` it as it is"));
        }
        let importance = match self.importance {
            Importance::None => None,
            Importance::Input => job.stats.column_weights(),
        };
        if let Some(v) = importance.iter().flatten().find(|v| !(0.0..=f32::MAX).contains(*v)) {
            return Err(Error::input(format!("reads columns of which one has the importance {v}"))
                .hint("check the calibration text, or make the importance matrix again"));
        }
        let blocks = Blocks { kind, importance, rows: job.weight.rows(), cols: job.weight.cols() };
        Ok(match kind.split() {
            Some(split) => Box::new(Codes::new(blocks, split)),
            None if kind.has_eights() => Box::new(Eights(blocks)),
            None => Box::new(Whole(blocks)),
        })
    }

    fn label(&self) -> String {
        match self.kind {
            Kind::One(kind) => kind.name().to_owned(),
            Kind::Mix(mix) => mix.name().to_owned(),
        }
    }

    fn mix(&self) -> Option<GgufMix> {
        if let Kind::Mix(mix) = self.kind { Some(mix) } else { None }
    }

    fn of_tensor(&self, tensor: &MixTensor<'_>) -> OfTensor {
        let Kind::Mix(mix) = self.kind else { return OfTensor::Same };
        let has_importance = self.importance == Importance::Input;
        let Some(kind) = mix.type_of(tensor, has_importance) else { return OfTensor::Kept };
        let instead_of = mix.wanted_type_of(tensor, has_importance).filter(|wanted| *wanted != kind);
        OfTensor::Other(Box::new(Self { kind: Kind::One(kind), instead_of, ..*self }))
    }

    fn instead_of(&self) -> Option<&'static str> {
        self.instead_of.map(GgmlType::name)
    }
}

/// What blocks of all types have in common.
struct Blocks {
    kind: GgmlType,
    /// Of each column.
    importance: Option<Vec<f32>>,
    rows: usize,
    cols: usize,
}

impl Blocks {
    /// The block of one lane that ggml's encoder makes, zeros where it can make none.
    fn encode(&self, column: usize, lane: usize, values: &[[f32; LANES]], by: Weighting<'_>) -> Vec<u8> {
        let own: Vec<f32> = values.iter().map(|column| column[lane]).collect();
        let mut importance = self.importance.as_ref().map(|all| all[column..column + own.len()].to_vec());
        if (0..own.len()).any(|c| by.hides(c, lane)) {
            let importance = importance.get_or_insert_with(|| vec![1.0; own.len()]);
            (0..own.len()).filter(|c| by.hides(*c, lane)).for_each(|c| importance[c] = 0.0);
        }
        let blocks = GgmlBlocks::encode(self.kind, 1, own.len(), &own, importance.as_deref());
        // Weights that are numbers within reach always have a block; what a solver made of them may have left it.
        blocks.map_or_else(|_| vec![0; self.kind.block_bytes()], |b| b.bytes.to_vec())
    }

    /// What is read from each lane's block, and behind it the bytes that hold its scales.
    fn params(
        &self,
        at: Place,
        values: &[[f32; LANES]],
        by: Weighting<'_>,
        read: impl Fn(&[u8]) -> Vec<f32>,
    ) -> Params {
        let mut params = Vec::new();
        for lane in 0..LANES {
            let block = self.encode(at.column, lane, values, by);
            let mut all = read(&block);
            all.extend(self.kind.scale_bytes().map(|i| f32::from(block[i])));
            params.resize(all.len(), [0.0; LANES]);
            params.iter_mut().zip(all).for_each(|(p, v)| p[lane] = v);
        }
        Params(params)
    }

    /// A block that has the scales of [`params`](Self::params), and no codes yet.
    fn with_scales(&self, params: &Params, lane: usize) -> Vec<u8> {
        let mut block = vec![0; self.kind.block_bytes()];
        let first = params.0.len() - self.kind.scale_bytes().count();
        for (i, byte) in self.kind.scale_bytes().zip(&params.0[first..]) {
            block[i] = byte[lane] as u8;
        }
        block
    }

    /// All rows, as ggml's encoder rounds them.
    fn encode_rows(&self, w: &Mat, team: &Team) -> Result<Storage> {
        let row_bytes = self.cols / self.kind.block_len() * self.kind.block_bytes();
        let mut bytes = vec![0; self.rows * row_bytes];
        let failed = Mutex::new(None);
        team.for_pieces(&mut bytes, row_bytes.max(1), &|r, out| match GgmlBlocks::encode(
            self.kind,
            1,
            self.cols,
            w.row(r),
            self.importance.as_deref(),
        ) {
            Ok(blocks) => out.copy_from_slice(&blocks.bytes),
            Err(e) => _ = failed.lock().expect("no task panics while it holds the error").get_or_insert(e),
        });
        match failed.into_inner().expect("as above") {
            Some(e) => Err(e),
            None => self.storage(bytes),
        }
    }

    /// The blocks of all rows, given one by one.
    fn collect(&self, block: impl Fn(usize, usize) -> Vec<u8>) -> Result<Storage> {
        let per_row = self.cols / self.kind.block_len();
        let blocks = (0..self.rows).flat_map(|r| (0..per_row).map(move |k| (r, k)));
        self.storage(blocks.flat_map(|(r, k)| block(r, k)).collect())
    }

    fn storage(&self, bytes: Vec<u8>) -> Result<Storage> {
        GgmlBlocks::new(self.kind, self.rows, self.cols, bytes.into()).map(Storage::Ggml)
    }
}

/// Blocks in which each weight has a code of its own.
///
/// Parameters of a group are those of a block: its scales, its offsets, and the bytes that say both.
struct Codes {
    blocks: Blocks,
    split: Split,
    /// Levels in ascending order, each with its code, for types that have a table.
    levels: Vec<(f32, u16)>,
}

impl Codes {
    fn new(blocks: Blocks, split: Split) -> Self {
        let mut levels: Vec<(f32, u16)> = match split.meaning {
            CodeMeaning::Levels(levels) => levels.iter().zip(0..).map(|(l, q)| (f32::from(*l), q)).collect(),
            _ => Vec::new(),
        };
        levels.sort_by(|a, b| a.0.total_cmp(&b.0));
        levels.dedup_by_key(|(level, _)| *level);
        Self { blocks, split, levels }
    }

    /// Groups of a block.
    fn groups(&self) -> usize {
        self.blocks.kind.block_len() / self.split.group
    }

    /// Rounds columns of one group.
    fn round_group(
        &self,
        [scale, offset]: [&[f32; LANES]; 2],
        w: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        let most = f32::from(self.blocks.kind.greatest_code());
        let zero = match self.split.meaning {
            CodeMeaning::Middle(z) => [f32::from(z); LANES],
            CodeMeaning::Offset => *offset,
            CodeMeaning::Levels(_) => return self.round_to_levels(scale, w, codes, decoded),
        };
        let has_offsets = self.split.meaning == CodeMeaning::Offset;
        round_affine(Affine { scale, zero: &zero, most, has_offsets }, w, codes, decoded);
        for lane in (0..LANES).filter(|lane| scale[*lane] == 0.0) {
            let (code, value) = if has_offsets { (0, zero[lane]) } else { (zero[lane] as u16, 0.0) };
            codes.iter_mut().for_each(|c| c[lane] = code);
            decoded.iter_mut().for_each(|d| d[lane] = value);
        }
    }

    fn round_to_levels(
        &self,
        scale: &[f32; LANES],
        w: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        for ((w, codes), decoded) in w.iter().zip(codes).zip(decoded) {
            for lane in 0..LANES {
                let x = if scale[lane] == 0.0 { 0.0 } else { w[lane] / scale[lane] };
                let above = self.levels.windows(2).filter(|pair| x > 0.5 * (pair[0].0 + pair[1].0)).count();
                let (level, code) = self.levels[above];
                (codes[lane], decoded[lane]) = (code, scale[lane] * level);
            }
        }
    }
}

impl BoundGrid for Codes {
    fn width(&self) -> usize {
        1
    }

    fn group(&self) -> usize {
        self.blocks.kind.block_len()
    }

    fn fit(&self, at: Place, values: &[[f32; LANES]], by: Weighting<'_>) -> Params {
        self.blocks.params(at, values, by, |block| {
            let mut numbers = vec![0.0; 2 * self.groups()];
            let (scales, offsets) = numbers.split_at_mut(self.groups());
            self.blocks.kind.read_scales(block, scales, offsets);
            numbers
        })
    }

    fn round(
        &self,
        at: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        let (groups, width) = (self.groups(), self.split.group);
        let first = at.column % self.group();
        let mut c = 0;
        while c < tile.len() {
            let group = (first + c) / width;
            let end = ((group + 1) * width - first).min(tile.len());
            let numbers = [&params.0[group], &params.0[groups + group]];
            self.round_group(numbers, &tile[c..end], &mut codes[c..end], &mut decoded[c..end]);
            c = end;
        }
    }

    fn round_rows(&self, w: &Mat, team: &Team) -> Option<Result<Storage>> {
        Some(self.blocks.encode_rows(w, team))
    }

    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, params: Vec<Vec<Params>>) -> Result<Storage> {
        let (kind, len) = (self.blocks.kind, self.group());
        self.blocks.collect(|r, k| {
            let (strip, lane) = (r / LANES, r % LANES);
            let mut block = self.blocks.with_scales(&params[strip][k], lane);
            let codes: Vec<u8> = codes[strip][k * len..(k + 1) * len].iter().map(|c| c[lane] as u8).collect();
            kind.put_codes(&codes, &mut block);
            block
        })
    }
}

/// Columns that points and signs stand for together.
const EIGHT: usize = 8;

/// Blocks in which eight weights share points of a grid, and signs.
///
/// Parameters of a group are those of a block: the scale of each eight, and the bytes that hold the scales.
struct Eights(Blocks);

impl Eights {
    /// Rounds tiles; `error` says how much differences count together, `weights` how much each does about.
    fn round_by(
        &self,
        at: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
        weights: &impl Fn(usize) -> [f32; EIGHT],
        error: &impl Fn(&[f32; EIGHT], &[f32; EIGHT]) -> f32,
    ) {
        let tiles = tile.as_chunks::<EIGHT>().0.iter().zip(codes.as_chunks_mut::<EIGHT>().0);
        for (i, ((tile, codes), decoded)) in tiles.zip(decoded.as_chunks_mut::<EIGHT>().0).enumerate() {
            let column = at.column + i * EIGHT;
            let (weights, scales) = (weights(column), &params.0[column % self.group() / EIGHT]);
            for lane in 0..LANES {
                let values = std::array::from_fn(|c| tile[c][lane]);
                let error = |off: &[f32; EIGHT]| error(off, &weights);
                let found = self.0.kind.nearest_eight(scales[lane], &values, &weights, &error);
                let [first, second] = found.points;
                (codes[0][lane], codes[1][lane], codes[2][lane]) = (first, second, found.signs.into());
                let value = self.0.kind.decode_eight(scales[lane], found);
                (0..EIGHT).for_each(|c| decoded[c][lane] = value[c]);
            }
        }
    }
}

impl BoundGrid for Eights {
    fn width(&self) -> usize {
        EIGHT
    }

    fn group(&self) -> usize {
        self.0.kind.block_len()
    }

    fn fit(&self, at: Place, values: &[[f32; LANES]], by: Weighting<'_>) -> Params {
        let eights = self.group() / EIGHT;
        self.0.params(at, values, by, |block| (0..eights).map(|e| self.0.kind.scale_of_eight(block, e)).collect())
    }

    fn round(
        &self,
        at: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        let weights = |column: usize| match &self.0.importance {
            Some(importance) => std::array::from_fn(|c| importance[column + c]),
            None => [1.0; EIGHT],
        };
        let error = |off: &[f32; EIGHT], weights: &[f32; EIGHT]| off.iter().zip(weights).map(|(d, w)| w * d * d).sum();
        self.round_by(at, params, tile, codes, decoded, &weights, &error);
    }

    fn round_coupled(
        &self,
        at: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        u: &[f32],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        let weights = |_: usize| std::array::from_fn(|c| (u[c * EIGHT + c] * u[c * EIGHT + c]).recip());
        // What is left of each column once those before it are made up for, over its diagonal.
        let error = |off: &[f32; EIGHT], _: &[f32; EIGHT]| {
            let (mut off, mut sum) = (*off, 0.0);
            for i in 0..EIGHT {
                let e = off[i] / u[i * EIGHT + i];
                sum += e * e;
                (i + 1..EIGHT).for_each(|j| off[j] -= e * u[i * EIGHT + j]);
            }
            sum
        };
        self.round_by(at, params, tile, codes, decoded, &weights, &error);
    }

    fn round_rows(&self, w: &Mat, team: &Team) -> Option<Result<Storage>> {
        Some(self.0.encode_rows(w, team))
    }

    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, params: Vec<Vec<Params>>) -> Result<Storage> {
        let (kind, len) = (self.0.kind, self.group());
        self.0.collect(|r, k| {
            let (strip, lane) = (r / LANES, r % LANES);
            let mut block = self.0.with_scales(&params[strip][k], lane);
            for (e, codes) in codes[strip][k * len..(k + 1) * len].as_chunks::<EIGHT>().0.iter().enumerate() {
                let [first, second, signs] = [0, 1, 2].map(|i| codes[i][lane]);
                kind.put_eight(Eight { points: [first, second], signs: signs as u8 }, e, &mut block);
            }
            block
        })
    }
}

/// Blocks in which weights share more than that (IQ1): one is rounded as a whole.
struct Whole(Blocks);

impl BoundGrid for Whole {
    fn width(&self) -> usize {
        self.0.kind.block_len()
    }

    fn group(&self) -> usize {
        self.0.kind.block_len()
    }

    fn fit(&self, _: Place, _: &[[f32; LANES]], _: Weighting<'_>) -> Params {
        Params(Vec::new())
    }

    /// The codes of a block are its bytes, as many as there are, then zeros.
    fn round(
        &self,
        at: Place,
        _: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        let len = self.width();
        let tiles = tile.chunks_exact(len).zip(codes.chunks_exact_mut(len)).zip(decoded.chunks_exact_mut(len));
        let mut values = vec![0.0; len];
        for (i, ((tile, codes), decoded)) in tiles.enumerate() {
            codes.fill([0; LANES]);
            for lane in 0..LANES {
                let block = self.0.encode(at.column + i * len, lane, tile, Weighting::None);
                codes.iter_mut().zip(&block).for_each(|(code, byte)| code[lane] = u16::from(*byte));
                self.0.kind.decode_block(&block, &mut values);
                decoded.iter_mut().zip(&values).for_each(|(d, v)| d[lane] = *v);
            }
        }
    }

    fn round_rows(&self, w: &Mat, team: &Team) -> Option<Result<Storage>> {
        Some(self.0.encode_rows(w, team))
    }

    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, _: Vec<Vec<Params>>) -> Result<Storage> {
        let (len, bytes) = (self.width(), self.0.kind.block_bytes());
        self.0.collect(|r, k| {
            let block = &codes[r / LANES][k * len..][..bytes];
            block.iter().map(|byte| byte[r % LANES] as u8).collect()
        })
    }
}
