use fewbit_engine::kinds::{BoundGrid, Entry, Grid, GridJob, LANES, Needs, Params, Place, Weighting, parse};
use fewbit_format::{Dtype, Error, Group, Mat, Result, Storage, Tensor, TwoOfFour};
use half::{bf16, f16};
use toml::Value;

use super::int::IntSettings;
use super::{GroupSetting, ScaleSetting};

pub(crate) const ENTRY: Entry<dyn Grid> = Entry {
    name: "sparse",
    cite: "Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, 2023 (arXiv:2301.00774)",
    settings: &[
        ("bits = 4", "bits of a code of the two weights that are kept in every four columns, 1 to 8"),
        ("floats = false", "they stay floats of 16 bits"),
        ("group = 128", "columns that share a scale, kept or not; `\"row\"` or `\"tensor\"`"),
        ("symmetric = false", "the zero point is the middle of the codes, and is not stored"),
        (
            "scale = \"source\"",
            "type of the stored scales, or of the floats: `f16`, `bf16`; `source` is bf16 for a bf16 checkpoint, else f16",
        ),
        ("clip = \"minmax\"", "how a group's range is chosen: `minmax`, `mse` (least `Σ|w − ŵ|^2.4`)"),
    ],
    build: |mut table| {
        let floats = table.remove("floats").unwrap_or(Value::Boolean(false));
        let Value::Boolean(are_floats) = floats else {
            return Err(Error::input(format!("`grid.floats` is {floats}, where true or false is needed")));
        };
        if !are_floats {
            let mut kept: IntSettings = parse("grid.sparse", table)?;
            kept.check()?;
            if kept.needs() != Needs::default() {
                return Err(Error::input(
                    "`grid.clip` is `minmax` or `mse` where two weights in four columns are kept",
                ));
            }
            if let GroupSetting::Columns(g) = kept.group {
                if !g.is_multiple_of(4) {
                    return Err(Error::input(format!("`grid.group` is {g}, where a multiple of 4 is needed")));
                }
                kept.group = GroupSetting::Columns(g / 2);
            }
            return Ok(Box::new(Sparse { kept: Box::new(kept) }));
        }
        // Floats have neither groups nor ranges.
        ["bits", "group", "symmetric", "clip"].iter().for_each(|key| drop(table.remove(*key)));
        let Floats { scale } = parse("grid.sparse", table)?;
        let dtype = match scale {
            ScaleSetting::F16 => Dtype::F16,
            ScaleSetting::Bf16 => Dtype::BF16,
            _ => return Err(Error::input("`grid.scale` is `f16` or `bf16` where weights stay floats")),
        };
        Ok(Box::new(Sparse { kept: Box::new(Plain { dtype }) }))
    },
};

/// Two weights in every four columns, on another grid; the others are zero.
#[derive(Debug)]
pub(crate) struct Sparse {
    /// The grid of `[rows, cols/2]`.
    kept: Box<dyn Grid>,
}

impl Grid for Sparse {
    fn check(&self, rows: usize, cols: usize) -> Result<()> {
        if !cols.is_multiple_of(4) {
            return Err(Error::input(format!("{cols} columns are no multiple of four, of which two would be kept")));
        }
        self.kept.check(rows, cols / 2)
    }

    fn needs(&self) -> Needs {
        self.kept.needs()
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        8 * (rows * TwoOfFour::mask_bytes(cols)) as u64 + self.kept.stored_bits(rows, cols / 2)
    }

    fn begin(&self, job: &GridJob<'_>) -> Result<Box<dyn BoundGrid>> {
        let (rows, cols) = (job.weight.rows(), job.weight.cols());
        self.check(rows, cols)?;
        let mut weight = Mat::zeros(rows, cols / 2);
        for r in 0..rows {
            for (four, two) in job.weight.row(r).chunks_exact(4).zip(weight.row_mut(r).chunks_exact_mut(2)) {
                let mask = larger(&[four[0], four[1], four[2], four[3]]);
                two.iter_mut().zip(PAIRS[mask]).for_each(|(to, at)| *to = four[at]);
            }
        }
        let kept = self.kept.begin(&GridJob { weight: &weight, ..*job })?;
        Ok(Box::new(Bound { kept, rows, cols }))
    }

    fn label(&self) -> String {
        format!("2:4 {}", self.kept.label())
    }
}

/// The masks of four columns: which two are kept.
const PAIRS: [[usize; 2]; 6] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];

/// The code of a weight that is not kept; no grid of single weights has as many.
const ZERO: u16 = u16::MAX;

/// The mask of the two values of the largest squares.
fn larger(values: &[f32; 4]) -> usize {
    let squares = values.map(|v| v * v);
    let sum = |mask: usize| PAIRS[mask].iter().map(|i| squares[*i]).sum::<f32>();
    (1..PAIRS.len()).fold(0, |best, mask| if sum(mask) > sum(best) { mask } else { best })
}

struct Bound {
    kept: Box<dyn BoundGrid>,
    rows: usize,
    cols: usize,
}

impl Bound {
    /// Of all masks the one under which `Σ e²` is least, each with its values rounded one behind the other.
    fn best(
        &self,
        at: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        u: &[f32],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        let mut least = [f32::INFINITY; LANES];
        for pair in PAIRS {
            let mut rest = [tile[0], tile[1], tile[2], tile[3]];
            let (mut code, mut value, mut cost) = ([[ZERO; LANES]; 4], [[0.0; LANES]; 4], [0.0; LANES]);
            for i in 0..4 {
                if let Some(k) = pair.iter().position(|p| *p == i) {
                    let place = Place { column: at.column / 2 + k, ..at };
                    self.kept.round(place, params, &rest[i..=i], &mut code[i..=i], &mut value[i..=i]);
                }
                let e: [f32; LANES] = std::array::from_fn(|l| (rest[i][l] - value[i][l]) / u[4 * i + i]);
                (0..LANES).for_each(|l| cost[l] += e[l] * e[l]);
                for (j, later) in rest.iter_mut().enumerate().skip(i + 1) {
                    (0..LANES).for_each(|l| later[l] -= e[l] * u[4 * i + j]);
                }
            }
            for l in 0..LANES {
                // Weights that are no number have been refused, but a lane has to have some mask.
                if cost[l] < least[l] || pair == PAIRS[0] {
                    least[l] = cost[l];
                    (0..4).for_each(|i| (codes[i][l], decoded[i][l]) = (code[i][l], value[i][l]));
                }
            }
        }
    }
}

impl BoundGrid for Bound {
    fn width(&self) -> usize {
        4
    }

    fn group(&self) -> usize {
        2 * self.kept.group()
    }

    /// From the larger two of every four, which are likely to stay.
    fn fit(&self, at: Place, values: &[[f32; LANES]], by: Weighting<'_>) -> Params {
        let weight = |c: usize, l: usize| match by {
            Weighting::None | Weighting::Gram(_) => 1.0,
            Weighting::Column(w) => w[c],
            Weighting::Element(w) => w[c][l],
        };
        let (mut kept, mut weights) = (vec![[0.0; LANES]; values.len() / 2], vec![[0.0; LANES]; values.len() / 2]);
        for l in 0..LANES {
            for c in (0..values.len()).step_by(4) {
                let mask =
                    larger(&std::array::from_fn(|i| if weight(c + i, l) > 0.0 { values[c + i][l] } else { 0.0 }));
                for (k, i) in PAIRS[mask].into_iter().enumerate() {
                    (kept[c / 2 + k][l], weights[c / 2 + k][l]) = (values[c + i][l], weight(c + i, l));
                }
            }
        }
        let by = if matches!(by, Weighting::None) { by } else { Weighting::Element(&weights) };
        self.kept.fit(Place { column: at.column / 2, ..at }, &kept, by)
    }

    fn seal(&self, params: &mut [Vec<Params>]) {
        self.kept.seal(params);
    }

    fn is_sealed_as_a_whole(&self) -> bool {
        self.kept.is_sealed_as_a_whole()
    }

    fn round(
        &self,
        at: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        const ALONE: [f32; 16] = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        let tiles = tile.chunks_exact(4).zip(codes.chunks_exact_mut(4).zip(decoded.chunks_exact_mut(4)));
        for (i, (tile, (codes, decoded))) in tiles.enumerate() {
            self.best(Place { column: at.column + 4 * i, ..at }, params, tile, &ALONE, codes, decoded);
        }
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
        self.best(at, params, tile, u, codes, decoded);
    }

    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, params: Vec<Vec<Params>>) -> Result<Storage> {
        let row_bytes = TwoOfFour::mask_bytes(self.cols);
        let mut mask = vec![0u8; self.rows * row_bytes];
        let mut kept = vec![vec![[0u16; LANES]; self.cols / 2]; codes.len()];
        for (strip, (codes, kept)) in codes.iter().zip(&mut kept).enumerate() {
            let rows = strip * LANES..((strip + 1) * LANES).min(self.rows);
            for (l, r) in rows.enumerate() {
                let there = codes.iter().enumerate().filter(|(_, code)| code[l] != ZERO);
                for ((c, code), to) in there.zip(kept.iter_mut()) {
                    mask[r * row_bytes + c / 8] |= 1 << (c % 8);
                    to[l] = code[l];
                }
            }
        }
        TwoOfFour::new(self.cols, mask, self.kept.store(kept, params)?).map(Storage::TwoOfFour)
    }
}

/// What floats leave to be set.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Floats {
    scale: ScaleSetting,
}

impl Default for Floats {
    fn default() -> Self {
        Self { scale: ScaleSetting::F16 }
    }
}

/// Floats of 16 bits: a code is their bits.
#[derive(Clone, Copy, Debug)]
struct Plain {
    dtype: Dtype,
}

impl Grid for Plain {
    fn check(&self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        16 * (rows * cols) as u64
    }

    fn begin(&self, job: &GridJob<'_>) -> Result<Box<dyn BoundGrid>> {
        Ok(Box::new(BoundPlain { dtype: self.dtype, rows: job.weight.rows(), cols: job.weight.cols() }))
    }

    fn label(&self) -> String {
        self.dtype.name().to_lowercase()
    }
}

struct BoundPlain {
    dtype: Dtype,
    rows: usize,
    cols: usize,
}

impl BoundGrid for BoundPlain {
    fn width(&self) -> usize {
        1
    }

    fn group(&self) -> usize {
        Group::Row.width(self.cols)
    }

    fn fit(&self, _: Place, _: &[[f32; LANES]], _: Weighting<'_>) -> Params {
        Params::default()
    }

    fn round(
        &self,
        _: Place,
        _: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        let most = f16::MAX.to_f32();
        for ((w, code), out) in tile.iter().zip(codes).zip(decoded) {
            for l in 0..LANES {
                // What f16 does not reach is cut, since an infinity would spoil the row.
                (code[l], out[l]) = if self.dtype == Dtype::F16 {
                    let v = f16::from_f32(w[l].clamp(-most, most));
                    (v.to_bits(), v.to_f32())
                } else {
                    let v = bf16::from_f32(w[l]);
                    (v.to_bits(), v.to_f32())
                };
            }
        }
    }

    fn store(&self, codes: Vec<Vec<[u16; LANES]>>, _: Vec<Vec<Params>>) -> Result<Storage> {
        let code = |i: usize| codes[i / self.cols / LANES][i % self.cols][i / self.cols % LANES];
        let bytes: Vec<u8> = (0..self.rows * self.cols).flat_map(|i| code(i).to_le_bytes()).collect();
        Ok(Storage::Dense(Tensor { dtype: self.dtype, shape: vec![self.rows, self.cols], bytes: bytes.into() }))
    }
}
