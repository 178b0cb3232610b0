use std::sync::Mutex;

use fewbit_engine::kinds::{
    BoundGrid, Entry, InputJob, InputSolver, LANES, LinearJob, Needs, Params, Solved, Solver, Strip, Weighting, parse,
};
use fewbit_format::{Mat, Result};
use fewbit_kernel::Team;
use serde::Deserialize;

pub(crate) const ENTRY: Entry<dyn Solver> = Entry {
    name: "nearest",
    cite: "the baseline of every paper of the family",
    settings: &[],
    build: |table| Ok(Box::new(parse::<Nearest>("solve.nearest", table)?)),
};

/// Rounds each weight to its nearest grid point.
///
/// The baseline that every other solver must beat in its own objective. One pass over the matrix.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nearest {}

impl Solver for Nearest {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn scratch_bytes(&self, rows: usize, cols: usize) -> u64 {
        // Codes of 16 bits while they are gathered, then bytes while they are packed.
        3 * (rows * cols) as u64
    }

    fn flops(&self, rows: usize, cols: usize) -> f64 {
        10.0 * (rows * cols) as f64
    }

    fn input_flops(&self, _: usize) -> f64 {
        0.0
    }

    fn begin<'a>(&'a self, input: InputJob<'a>) -> Result<Box<dyn InputSolver + 'a>> {
        Ok(Box::new(OfInput(input)))
    }
}

struct OfInput<'a>(InputJob<'a>);

impl InputSolver for OfInput<'_> {
    fn solve(&self, job: &LinearJob<'_>) -> Result<Solved> {
        let bound = job.grid.begin(job.weight)?;
        let blocks = gram_blocks(self.0.stats.gram.as_ref().filter(|_| job.grid.needs().gram), bound.group());
        let rounded = round_all(&*bound, job.weight, &blocks, self.0.team, None);
        let (codes, params) = rounded.into_iter().unzip();
        Ok(Solved { storage: bound.store(codes, params)?, output_mse: None, warning: None })
    }
}

/// The diagonal blocks of `XᵀX` that belong to the groups; empty without `XᵀX`.
pub(crate) fn gram_blocks(gram: Option<&Mat>, group: usize) -> Vec<Mat> {
    let Some(h) = gram else { return Vec::new() };
    (0..h.cols() / group).map(|k| Mat::from_fn(group, group, |r, c| h[(k * group + r, k * group + c)])).collect()
}

/// How group `k` counts.
pub(crate) fn weighting(blocks: &[Mat], k: usize) -> Weighting<'_> {
    blocks.get(k).map_or(Weighting::None, Weighting::Gram)
}

/// The parameters of all groups of one strip.
pub(crate) fn fit_strip(grid: &dyn BoundGrid, strip: &Strip, blocks: &[Mat]) -> Vec<Params> {
    let group = grid.group();
    let groups = strip.data.chunks_exact(group).enumerate();
    groups.map(|(k, values)| grid.fit(k, values, weighting(blocks, k))).collect()
}

/// Codes and parameters of one strip.
pub(crate) type Rounded = (Vec<[u16; LANES]>, Vec<Params>);

/// Fits and rounds all strips; `decoded` receives the values.
pub(crate) fn round_all(
    grid: &dyn BoundGrid,
    w: &Mat,
    blocks: &[Mat],
    team: &Team,
    decoded: Option<&mut Mat>,
) -> Vec<Rounded> {
    let (count, group, cols) = (Strip::count(w.rows()), grid.group(), w.cols());
    let slots: Vec<Mutex<Rounded>> = (0..count).map(|_| Mutex::default()).collect();
    let task = |i: usize, rows: Option<&mut [f32]>| {
        let strip = Strip::of(w, i);
        let mut codes = vec![[0; LANES]; cols];
        let mut values = vec![[0.0; LANES]; cols];
        let params = fit_strip(grid, &strip, blocks);
        for (k, p) in params.iter().enumerate() {
            let at = k * group..(k + 1) * group;
            grid.round(p, &strip.data[at.clone()], &mut codes[at.clone()], &mut values[at]);
        }
        if let Some(rows) = rows {
            for (lane, row) in rows.chunks_exact_mut(cols).enumerate() {
                row.iter_mut().zip(&values).for_each(|(v, lanes)| *v = lanes[lane]);
            }
        }
        *slots[i].lock().expect("no task panics while it holds its slot") = (codes, params);
    };
    match decoded {
        Some(out) => team.for_pieces(out.data_mut(), LANES * cols, &|i, rows| task(i, Some(rows))),
        None => team.run(count, &|i| task(i, None)),
    }
    slots.into_iter().map(|s| s.into_inner().expect("no task panics while it holds its slot")).collect()
}
