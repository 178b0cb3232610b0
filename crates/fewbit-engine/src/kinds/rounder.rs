use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Mutex;

use fewbit_format::{Mat, Result, Sparse, SparseValues, Storage};
use fewbit_kernel::Team;
use half::f16;

use super::{BoundGrid, GridJob, InputJob, LANES, LinearJob, Params, Place, Strip, WeighBy, Weighting};

/// Weights that stay beside the codes, by strip and column: a bit per lane.
#[derive(Clone, Debug, PartialEq)]
pub struct Entries {
    cols: usize,
    lanes: Vec<u16>,
    is_int8: bool,
}

impl Entries {
    /// Adds all of `others`, of a matrix of the same shape.
    pub fn add_all(&mut self, others: &Self) {
        self.lanes.iter_mut().zip(&others.lanes).for_each(|(all, more)| *all |= more);
    }

    /// None of a matrix `[rows, cols]`.
    pub fn none(rows: usize, cols: usize) -> Self {
        Self { cols, lanes: vec![0; Strip::count(rows) * cols], is_int8: false }
    }

    /// The same entries, stored as codes of 8 bits, in the place of f16.
    #[must_use]
    pub fn in_int8(mut self) -> Self {
        self.is_int8 = true;
        self
    }

    /// Adds the weight at `(row, column)`.
    pub fn add(&mut self, row: usize, column: usize) {
        self.lanes[row / LANES * self.cols + column] |= 1 << (row % LANES);
    }

    /// Whether the weight at `(row, column)` is one of them.
    pub fn has(&self, row: usize, column: usize) -> bool {
        self.lanes[row / LANES * self.cols + column] >> (row % LANES) & 1 == 1
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lanes.iter().map(|l| l.count_ones() as usize).sum()
    }

    fn at(&self, place: Place) -> u16 {
        self.lanes[place.strip * self.cols + place.column]
    }
}

/// Which weights stay beside the codes, in f16.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Keep {
    /// None.
    #[default]
    Nothing,
    /// These, whatever the solver.
    Entries(Entries),
    /// Those that a solver finds too costly while it rounds: `e² > threshold · mean ((w − ŵ)² / U[j, j]²)`, with the `e` and
    /// `U` of GPTQ and `ŵ` rounded to nearest (SpQR, Algorithm 1, whose limit does not know how fine the grid is).
    Sensitive {
        /// The threshold, relative to the mean over the matrix.
        threshold: f32,
    },
    /// So many of the matrix, which a solver finds in turns with the codes (QuantEase, Algorithm 3).
    InTurns {
        /// How many.
        count: usize,
        /// Whether they are stored as codes of 8 bits.
        is_int8: bool,
    },
}

impl Keep {
    /// What either keeps; of two rules for the solver the later counts.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Entries(mut all), Self::Entries(more)) => {
                all.add_all(&more);
                Self::Entries(all)
            }
            (some, Self::Nothing) => some,
            (_, other) => other,
        }
    }
}

/// A grid bound to one linear, as solvers use it: it knows how errors count, and which weights stay beside the codes.
///
/// A kept weight is invisible when parameters are fitted; its code is that of zero, and what the solver sees is the
/// code's value plus the f16 that makes up the difference: exactly what is stored.
pub struct Rounder<'a> {
    grid: Box<dyn BoundGrid>,
    weights: Weights<'a>,
    entries: Option<&'a Entries>,
    /// The scale of kept weights of 8 bits, of each row or of all; empty where these are f16.
    scales: Vec<f16>,
    /// Per strip, what is added at `(lane, column)`: a number, or a code of 8 bits.
    kept: Vec<Mutex<BTreeMap<(usize, usize), f32>>>,
    rows: usize,
    cols: usize,
}

/// How errors count.
enum Weights<'a> {
    None,
    /// The diagonal of `XᵀX`.
    Columns(Vec<f32>),
    /// Its diagonal blocks that belong to the groups.
    Blocks(Vec<Mat>),
    /// Squared gradients.
    Each(&'a Mat),
}

/// Codes `[column][lane]` and parameters `[group]` of one strip.
pub type Rounded = (Vec<[u16; LANES]>, Vec<Params>);

impl<'a> Rounder<'a> {
    /// Binds the job's grid to `weight`, which may be another than the job's.
    ///
    /// # Errors
    /// If the grid cannot represent the matrix.
    pub fn new(input: InputJob<'_>, job: &LinearJob<'a>, weight: &Mat) -> Result<Self> {
        let entries = if let Keep::Entries(e) = job.keep { Some(e) } else { None };
        // What all groups share is fitted with zeros in the place of kept weights.
        let mut seen = Cow::Borrowed(weight);
        if let Some(entries) = entries {
            let seen = seen.to_mut();
            for r in 0..seen.rows() {
                (0..seen.cols()).filter(|c| entries.has(r, *c)).for_each(|c| seen[(r, c)] = 0.0);
            }
        }
        let grid = job.grid.begin(&GridJob { weight: &seen, stats: input.stats, seed: job.seed, team: input.team })?;
        let weights = match (job.grid.weigh_by(), input.stats.gram.as_ref()) {
            (WeighBy::Columns, Some(h)) => Weights::Columns((0..h.cols()).map(|j| h[(j, j)]).collect()),
            (WeighBy::Blocks, Some(h)) => Weights::Blocks(diagonal_blocks(h, grid.group())),
            (WeighBy::Fisher, _) => job.fisher.map_or(Weights::None, Weights::Each),
            _ => Weights::None,
        };
        let kept = if *job.keep == Keep::Nothing { 0 } else { Strip::count(weight.rows()) };
        let kept = (0..kept).map(|_| Mutex::default()).collect();
        let scales = entries.filter(|e| e.is_int8).map_or_else(Vec::new, |e| side_scales(weight, e));
        Ok(Self { grid, weights, entries, scales, kept, rows: weight.rows(), cols: weight.cols() })
    }

    /// All of the matrix rounded to nearest in the grid's own way, if it has one and nothing stays beside the codes.
    ///
    /// # Errors
    /// If something is beyond what the layout holds.
    pub fn round_rows(&self, weight: &Mat, team: &Team) -> Result<Option<Storage>> {
        if self.keeps_entries() {
            return Ok(None);
        }
        self.grid.round_rows(weight, team).transpose()
    }

    /// Columns that are rounded together.
    pub fn width(&self) -> usize {
        self.grid.width()
    }

    /// Consecutive lanes that one code covers.
    pub fn height(&self) -> usize {
        self.grid.height()
    }

    /// Whether some weights stay beside the codes: then a rounding cannot be taken back.
    pub fn keeps_entries(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Columns that share parameters.
    pub fn group(&self) -> usize {
        self.grid.group()
    }

    /// Parameters of the group that begins at `at`, from the values `[group][lane]`.
    pub fn fit(&self, at: Place, values: &[[f32; LANES]]) -> Params {
        if let Some(entries) = self.entries {
            let seen: Vec<[f32; LANES]> = (at.column..at.column + values.len())
                .map(|column| {
                    let kept = entries.at(Place { column, ..at });
                    std::array::from_fn(|lane| if kept >> lane & 1 == 1 { 0.0 } else { 1.0 })
                })
                .collect();
            if seen.iter().any(|lanes| lanes.contains(&0.0)) {
                return self.fit_seen(at, values, &seen);
            }
        }
        let columns = at.column..at.column + values.len();
        match &self.weights {
            Weights::None => self.grid.fit(at, values, Weighting::None),
            Weights::Columns(w) => self.grid.fit(at, values, Weighting::Column(&w[columns])),
            Weights::Blocks(blocks) => {
                let block = blocks.get(at.column / self.group()).map_or(Weighting::None, Weighting::Gram);
                self.grid.fit(at, values, block)
            }
            Weights::Each(_) => self.fit_seen(at, values, &vec![[1.0; LANES]; values.len()]),
        }
    }

    /// Parameters of the group that begins at `at`, from the values `[group][lane]` that are `seen`, with how much each
    /// counts; 0 is out of sight.
    pub fn fit_seen(&self, at: Place, values: &[[f32; LANES]], seen: &[[f32; LANES]]) -> Params {
        let weight = |column: usize, lane: usize| match &self.weights {
            Weights::None | Weights::Blocks(_) => 1.0,
            Weights::Columns(w) => w[column],
            Weights::Each(m) if at.strip * LANES + lane < m.rows() => m[(at.strip * LANES + lane, column)],
            Weights::Each(_) => 0.0,
        };
        let weights: Vec<[f32; LANES]> = (seen.iter().enumerate())
            .map(|(c, seen)| std::array::from_fn(|lane| seen[lane] * weight(at.column + c, lane)))
            .collect();
        self.grid.fit(at, values, Weighting::Element(&weights))
    }

    /// The parameters of all groups of one strip.
    pub fn fit_strip(&self, index: usize, strip: &Strip) -> Vec<Params> {
        let group = self.group();
        let groups = strip.data.chunks_exact(group).enumerate();
        groups.map(|(k, values)| self.fit(Place { strip: index, column: k * group }, values)).collect()
    }

    /// Rounds the parameters of all strips, once all of them are fitted.
    pub fn seal(&self, params: &mut [Vec<Params>]) {
        self.grid.seal(params);
    }

    /// Rounds tiles of one group, one or several, the first of which begins at `at`.
    pub fn round(
        &self,
        at: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        match self.entries {
            None => self.grid.round(at, params, tile, codes, decoded),
            Some(entries) => {
                let kept = |c: usize| entries.at(Place { column: at.column + c, ..at });
                self.round_beside(at, params, tile, kept, codes, decoded);
            }
        }
    }

    /// Rounds one tile whose columns are coupled by `u` ([`BoundGrid::round_coupled`]).
    pub fn round_coupled(
        &self,
        at: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        u: &[f32],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        if self.entries.is_none() {
            self.grid.round_coupled(at, params, tile, u, codes, decoded);
        } else {
            self.round(at, params, tile, codes, decoded);
        }
    }

    /// What tiles would become if none of their weights were kept; nothing is recorded.
    pub fn round_plain(
        &self,
        at: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        self.grid.round(at, params, tile, codes, decoded);
    }

    /// Takes the weights of some lanes (a bit each) out of the codes of the column `at`, after all.
    ///
    /// # Panics
    /// If the job keeps nothing, or the grid rounds several columns together.
    pub fn keep(
        &self,
        at: Place,
        params: &Params,
        column: &[f32; LANES],
        lanes: u16,
        code: &mut [u16; LANES],
        decoded: &mut [f32; LANES],
    ) {
        let (codes, values) = (std::slice::from_mut(code), std::slice::from_mut(decoded));
        self.round_beside(at, params, &[*column], |_| lanes, codes, values);
    }

    /// Rounds zeros in the place of the weights that are `kept` (a bit for each lane of a column), and records what makes
    /// up the difference.
    fn round_beside(
        &self,
        at: Place,
        params: &Params,
        tile: &[[f32; LANES]],
        kept: impl Fn(usize) -> u16,
        codes: &mut [[u16; LANES]],
        decoded: &mut [[f32; LANES]],
    ) {
        let mut rest = tile.to_vec();
        for (c, lanes) in rest.iter_mut().enumerate() {
            let kept = kept(c);
            (0..LANES).filter(|lane| kept >> lane & 1 == 1).for_each(|lane| lanes[lane] = 0.0);
        }
        self.grid.round(at, params, &rest, codes, decoded);
        let mut all = self.kept[at.strip].lock().expect("no task panics while it holds its strip");
        for (c, lanes) in decoded.iter_mut().enumerate() {
            let kept = kept(c);
            for lane in (0..LANES).filter(|lane| kept >> lane & 1 == 1) {
                let missing = tile[c][lane] - lanes[lane];
                let side = if let Some(scale) = self.side_scale(at.strip * LANES + lane) {
                    let code = (missing / scale).round_ties_even().clamp(-127.0, 127.0);
                    lanes[lane] += scale * code;
                    code
                } else {
                    // What f16 does not reach is cut, since an infinity would spoil the row.
                    let side = f16::from_f32(missing.clamp(f16::MIN.to_f32(), f16::MAX.to_f32())).to_f32();
                    lanes[lane] += side;
                    side
                };
                all.insert((lane, at.column + c), side);
            }
        }
    }

    /// What codes of 8 bits in this row are multiplied by.
    fn side_scale(&self, row: usize) -> Option<f32> {
        self.scales.get(if self.scales.len() == 1 { 0 } else { row }).map(|s| s.to_f32())
    }

    /// The values of all strips, as they will be stored.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn decode(&self, strips: &[Rounded]) -> Result<Mat> {
        let (codes, params) = strips.iter().cloned().unzip();
        let mut values = Mat::zeros(self.rows, self.cols);
        self.grid.store(codes, params)?.decode_rows(0..self.rows, values.data_mut());
        for (index, strip) in self.kept.iter().enumerate() {
            for ((lane, column), side) in strip.lock().expect("no task panics while it holds its strip").iter() {
                let row = index * LANES + lane;
                values[(row, *column)] += self.side_scale(row).unwrap_or(1.0) * side;
            }
        }
        Ok(values)
    }

    /// What is stored, from the codes and parameters of all strips.
    ///
    /// # Errors
    /// If something is beyond what the layouts hold.
    pub fn finish(self, strips: Vec<Rounded>) -> Result<(Storage, Option<Sparse>)> {
        let (codes, params) = strips.into_iter().unzip();
        let storage = self.grid.store(codes, params)?;
        if self.kept.is_empty() {
            return Ok((storage, None));
        }
        let (mut places, mut values) = (Vec::new(), Vec::new());
        let mut strips: Vec<_> = self.kept.into_iter().collect();
        for r in 0..self.rows {
            let strip = strips[r / LANES].get_mut().expect("no task panics while it holds its strip");
            for ((_, column), side) in strip.range((r % LANES, 0)..(r % LANES + 1, 0)) {
                places.push(r * self.cols + column);
                values.push(*side);
            }
        }
        let values = if self.entries.is_some_and(|e| e.is_int8) {
            SparseValues::Int8 { codes: values.iter().map(|v| *v as i8).collect(), scales: self.scales }
        } else {
            SparseValues::F16(values.iter().copied().map(f16::from_f32).collect())
        };
        Ok((storage, Some(Sparse::new([self.rows, self.cols], &places, values)?)))
    }
}

/// Scales for what kept weights have more than the code of zero: their greatest magnitude and the row's mean one, with
/// room for what solvers add to them. Few in a row share the matrix's, which is the greatest.
fn side_scales(weight: &Mat, entries: &Entries) -> Vec<f16> {
    const ROOM: f32 = 1.1;
    let of_row = |r: usize| {
        let row = weight.row(r);
        let kept = row.iter().enumerate().filter(|(c, _)| entries.has(r, *c)).map(|(_, w)| w.abs());
        let mean = row.iter().map(|w| w.abs()).sum::<f32>() / row.len().max(1) as f32;
        let scale = f16::from_f32((ROOM * kept.fold(0.0, f32::max) + mean) / 127.0);
        if scale > f16::ZERO && scale.is_finite() { scale } else { f16::ONE }
    };
    let scales: Vec<f16> = (0..weight.rows()).map(of_row).collect();
    if Sparse::has_scales_of_rows(weight.rows(), entries.count()) {
        return scales;
    }
    vec![scales.into_iter().fold(f16::ZERO, |most, s| if s > most { s } else { most })]
}

fn diagonal_blocks(h: &Mat, group: usize) -> Vec<Mat> {
    (0..h.cols() / group).map(|k| Mat::from_fn(group, group, |r, c| h[(k * group + r, k * group + c)])).collect()
}
