use fewbit_engine::kinds::{
    Entry, InputJob, InputSolver, LANES, LinearJob, Needs, Params, Place, Rounded, Rounder, Solved, Solver, Strip,
    parse,
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
        let rounder = Rounder::new(self.0, job, job.weight)?;
        if let Some(storage) = rounder.round_rows(job.weight, self.0.team)? {
            return Ok(Solved { storage, sparse: None, output_mse: None, warning: None });
        }
        let strips = round_all(&rounder, job.weight, self.0.team, None);
        let (storage, sparse) = rounder.finish(strips)?;
        Ok(Solved { storage, sparse, output_mse: None, warning: None })
    }
}

/// The parameters of all strips.
pub(crate) fn fit_all(rounder: &Rounder<'_>, w: &Mat, team: &Team) -> Vec<Vec<Params>> {
    let mut params = vec![Vec::new(); Strip::count(w.rows())];
    team.for_pieces(&mut params, 1, &|i, params| params[0] = rounder.fit_strip(i, &Strip::of(w, i)));
    rounder.seal(&mut params);
    params
}

/// Fits and rounds all strips; `decoded` receives the values.
pub(crate) fn round_all(rounder: &Rounder<'_>, w: &Mat, team: &Team, decoded: Option<&mut Mat>) -> Vec<Rounded> {
    let (group, cols) = (rounder.group(), w.cols());
    let params = fit_all(rounder, w, team);
    let mut strips: Vec<Rounded> = params.into_iter().map(|p| (vec![[0; LANES]; cols], p)).collect();
    let round = |i: usize, (codes, params): &mut Rounded, rows: Option<&mut [f32]>| {
        let strip = Strip::of(w, i);
        let mut values = vec![[0.0; LANES]; cols];
        for (k, p) in params.iter().enumerate() {
            let (at, columns) = (Place { strip: i, column: k * group }, k * group..(k + 1) * group);
            rounder.round(at, p, &strip.data[columns.clone()], &mut codes[columns.clone()], &mut values[columns]);
        }
        if let Some(rows) = rows {
            for (lane, row) in rows.chunks_exact_mut(cols).enumerate() {
                row.iter_mut().zip(&values).for_each(|(v, lanes)| *v = lanes[lane]);
            }
        }
    };
    match decoded {
        None => team.for_pieces(&mut strips, 1, &|i, strip| round(i, &mut strip[0], None)),
        Some(out) => {
            let mut both: Vec<_> = strips.iter_mut().zip(out.data_mut().chunks_mut(LANES * cols)).collect();
            team.for_pieces(&mut both, 1, &|i, both| {
                let (strip, rows) = &mut both[0];
                round(i, strip, Some(rows));
            });
        }
    }
    strips
}
