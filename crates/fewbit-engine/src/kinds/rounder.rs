use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Mutex;

use fewbit_format::{Mat, Result, Sparse, Storage};
use half::f16;

use super::{BoundGrid, GridJob, InputJob, LANES, LinearJob, Params, Place, Strip, Weighting};

/// Weights that stay beside the codes, by strip and column: a bit per lane.
#[derive(Clone, Debug, PartialEq)]
pub struct Entries {
    cols: usize,
    lanes: Vec<u16>,
}

impl Entries {
    /// None of a matrix `[rows, cols]`.
    pub fn none(rows: usize, cols: usize) -> Self {
        Self { cols, lanes: vec![0; Strip::count(rows) * cols] }
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
    /// Those that a solver finds too costly while it rounds: `e² > threshold · mean_j (Var_r W[r, j] / U[j, j]²)`, with the
    /// `e` and `U` of GPTQ (SpQR, Algorithm 1).
    Sensitive {
        /// The threshold, relative to the mean over the matrix.
        threshold: f32,
    },
}

/// A grid bound to one linear, as solvers use it: it knows how errors count, and which weights stay beside the codes.
///
/// A kept weight is invisible when parameters are fitted; its code is that of zero, and what the solver sees is the
/// code's value plus the f16 that makes up the difference: exactly what is stored.
pub struct Rounder<'a> {
    grid: Box<dyn BoundGrid>,
    /// The diagonal blocks of `XᵀX` that belong to the groups; empty where the grid does not ask for them.
    blocks: Vec<Mat>,
    entries: Option<&'a Entries>,
    /// Per strip, what is added at `(lane, column)`.
    kept: Vec<Mutex<BTreeMap<(usize, usize), f16>>>,
    rows: usize,
    cols: usize,
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
        let gram = input.stats.gram.as_ref().filter(|_| job.grid.needs().gram);
        let blocks = gram.map_or_else(Vec::new, |h| diagonal_blocks(h, grid.group()));
        let kept = if *job.keep == Keep::Nothing { 0 } else { Strip::count(weight.rows()) };
        let kept = (0..kept).map(|_| Mutex::default()).collect();
        Ok(Self { grid, blocks, entries, kept, rows: weight.rows(), cols: weight.cols() })
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
        let by = self.blocks.get(at.column / self.group()).map_or(Weighting::None, Weighting::Gram);
        self.grid.fit(at, values, by)
    }

    /// Parameters of the group that begins at `at`, from the values `[group][lane]` that are `seen`, with how much each
    /// counts; 0 is out of sight.
    pub fn fit_seen(&self, at: Place, values: &[[f32; LANES]], seen: &[[f32; LANES]]) -> Params {
        self.grid.fit(at, values, Weighting::Element(seen))
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
                // What f16 does not reach is cut, since an infinity would spoil the row.
                let missing = (tile[c][lane] - lanes[lane]).clamp(f16::MIN.to_f32(), f16::MAX.to_f32());
                let side = f16::from_f32(missing);
                lanes[lane] += side.to_f32();
                all.insert((lane, at.column + c), side);
            }
        }
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
                values[(index * LANES + lane, *column)] += side.to_f32();
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
        let (mut starts, mut columns, mut values) = (vec![0], Vec::new(), Vec::new());
        let mut strips: Vec<_> = self.kept.into_iter().collect();
        for r in 0..self.rows {
            let strip = strips[r / LANES].get_mut().expect("no task panics while it holds its strip");
            for ((_, column), side) in strip.range((r % LANES, 0)..(r % LANES + 1, 0)) {
                columns.push(*column as u16);
                values.push(*side);
            }
            starts.push(columns.len() as u32);
        }
        Ok((storage, Some(Sparse::new(self.cols, starts, columns, values)?)))
    }
}

fn diagonal_blocks(h: &Mat, group: usize) -> Vec<Mat> {
    (0..h.cols() / group).map(|k| Mat::from_fn(group, group, |r, c| h[(k * group + r, k * group + c)])).collect()
}
