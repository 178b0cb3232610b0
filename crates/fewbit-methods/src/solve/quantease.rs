use std::borrow::Cow;
use std::ops::Range;
use std::sync::Mutex;

use fewbit_engine::kinds::{
    Beside, Entry, InputJob, InputSolver, Keep, LANES, LinearJob, Needs, Place, Rounded, Rounder, Solved, Solver, parse,
};
use fewbit_format::{Error, Mat, Result};
use fewbit_kernel::Team;
use fewbit_kernel::product::{Weights, product_nn, product_nt};
use fewbit_kernel::strip::feedback;
use fewbit_linalg::upper_inverse_factor;
use serde::Deserialize;

use super::gptq::{self, GPTQ, without_dead};
use super::nearest::fit_all;

pub(crate) const ENTRY: Entry<dyn Solver> = Entry {
    name: "quantease",
    cite: "Behdin et al., QuantEase: Optimization-based Quantization for Language Models, 2023 (arXiv:2309.01885)",
    settings: &[
        ("passes = 30", "times that every column, or tile of columns, is chosen anew"),
        ("relax_every = 3", "every third pass, the second first, leaves the grid; 0: none"),
        ("relax_until = 25", "the last pass that may leave the grid"),
        ("start = \"weights\"", "where the descent begins: `weights`, or `gptq`, which it never makes worse"),
    ],
    build: |table| {
        let quantease: QuantEase = parse("solve.quantease", table)?;
        if quantease.passes == 0 {
            return Err(Error::input("`solve.passes` is 0, where a positive number is needed"));
        }
        Ok(Box::new(quantease))
    },
};

/// Cyclic coordinate descent on `tr(Δ H Δᵀ)`, `Δ = W − Ŵ`: no inverse, no factorization, no damping.
///
/// With all other columns fixed the best real value of column `j` is `ŵ_j + (Δ H)[:, j] / H[j, j]`; it is rounded
/// (Algorithm 1). Of a tile of columns it is `ŵ_t + (Δ H)_t H_tt⁻¹` (QuIP#, section 4.3); as the nearest point need not be
/// the best one there, a code that raises the objective is not taken. A pass that leaves the grid keeps the real value: it opens ways out of local minima, and the objective
/// falls from pass to pass only between those.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct QuantEase {
    pub(super) passes: usize,
    relax_every: usize,
    relax_until: usize,
    start: Start,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Start {
    Weights,
    Gptq,
}

impl Default for QuantEase {
    fn default() -> Self {
        Self { passes: 30, relax_every: 3, relax_until: 25, start: Start::Weights }
    }
}

/// Columns between two updates of what follows.
const BLOCK: usize = 128;

impl QuantEase {
    pub(super) fn is_relaxed(&self, pass: usize) -> bool {
        self.start == Start::Weights
            && self.relax_every > 0
            && pass % self.relax_every == 1 % self.relax_every
            && pass <= self.relax_until
            && pass + 1 < self.passes
    }
}

impl Solver for QuantEase {
    fn chooses_kept(&self) -> Option<Beside> {
        Some(Beside::ChosenInTurns)
    }

    fn needs(&self) -> Needs {
        Needs { gram: true, ..Needs::default() }
    }

    fn scratch_bytes(&self, rows: usize, cols: usize) -> u64 {
        // Ŵ, Δ and Δ H, the codes, one block of changes.
        let own = ((3 * 4 + 3) * rows * cols + 4 * rows * BLOCK) as u64;
        if self.start == Start::Gptq { own.max(GPTQ.scratch_bytes(rows, cols)) } else { own }
    }

    fn input_flops(&self, cols: usize) -> f64 {
        if self.start == Start::Gptq { GPTQ.input_flops(cols) } else { 0.0 }
    }

    fn flops(&self, rows: usize, cols: usize) -> f64 {
        3.0 * self.passes as f64 * rows as f64 * (cols as f64).powi(2)
    }

    fn begin<'a>(&'a self, input: InputJob<'a>) -> Result<Box<dyn InputSolver + 'a>> {
        let gram = input.stats.gram.as_ref().ok_or_else(|| Error::internal("QuantEase without XᵀX"))?;
        let start = if self.start == Start::Gptq { Some(GPTQ.of_input(input)?) } else { None };
        Ok(Box::new(OfInput { quantease: self, input, gram, start }))
    }
}

/// QuantEase on the linears of one input.
pub(super) struct OfInput<'a> {
    pub(super) quantease: &'a QuantEase,
    pub(super) input: InputJob<'a>,
    pub(super) gram: &'a Mat,
    /// Makes the values where the descent begins; else it begins at the weights.
    start: Option<gptq::OfInput<'a>>,
}

impl InputSolver for OfInput<'_> {
    fn solve(&self, job: &LinearJob<'_>) -> Result<Solved> {
        let Keep::InTurns { count, is_int8 } = *job.keep else { return self.descend(job) };
        let entries = self.kept_in_turns(job, count)?;
        let keep = Keep::Entries(if is_int8 { entries.in_int8() } else { entries });
        self.descend(&LinearJob { keep: &keep, ..*job })
    }
}

impl OfInput<'_> {
    fn descend(&self, job: &LinearJob<'_>) -> Result<Solved> {
        let (gram, team, quantease) = (self.gram, self.input.team, self.quantease);
        let weight = if self.start.is_some() { without_dead(job.weight, gram) } else { Cow::Borrowed(job.weight) };
        let rounder = Rounder::new(self.input, job, &weight)?;
        let m = weight.rows();
        let mut found = weight.clone().into_owned();
        let descent = match &self.start {
            None => Descent::from_weights(&rounder, &weight, gram, team),
            Some(start) => {
                let strips = start.round(job, &rounder, &weight)?.0;
                found = rounder.decode(&strips)?;
                Descent::new(&rounder, gram, team, strips)
            }
        };
        let mut is_coded = self.start.is_some();
        for pass in 0..quantease.passes {
            let rounds = !quantease.is_relaxed(pass);
            descent.pass(job.weight, &mut found, rounds.then_some(is_coded));
            is_coded = rounds;
        }
        let (delta, product) = descent.residual(job.weight, &found);
        let loss: f64 = delta.data().iter().zip(product.data()).map(|(d, p)| f64::from(d * p)).sum();
        let strips = descent.state.into_iter();
        let strips = strips.map(|s| s.into_inner().expect("no task panics while it holds its strip")).collect();
        let (storage, sparse) = rounder.finish(strips)?;
        let output_mse = Some(loss / (self.input.stats.tokens.max(1) * m) as f64);
        Ok(Solved { storage, sparse, output_mse, warning: None })
    }
}

/// What all passes share.
pub(super) struct Descent<'a> {
    rounder: &'a Rounder<'a>,
    gram: &'a Mat,
    /// Of each tile's diagonal block of `H`.
    inverses: Vec<Mat>,
    team: &'a Team,
    /// Per strip the codes of the last rounding pass, and the parameters of the groups.
    state: Vec<Mutex<Rounded>>,
}

impl<'a> Descent<'a> {
    /// From the weights, with parameters of their own.
    pub(super) fn from_weights(rounder: &'a Rounder<'a>, weight: &Mat, gram: &'a Mat, team: &'a Team) -> Self {
        let params = fit_all(rounder, weight, team).into_iter();
        let strips = params.map(|params| (vec![[0; LANES]; weight.cols()], params));
        Self::new(rounder, gram, team, strips.collect())
    }

    fn new(rounder: &'a Rounder<'a>, gram: &'a Mat, team: &'a Team, strips: Vec<Rounded>) -> Self {
        let inverses = tile_inverses(gram, rounder.width());
        Self { rounder, gram, inverses, team, state: strips.into_iter().map(Mutex::new).collect() }
    }

    /// `Δ = W − Ŵ`, and `Δ H`.
    pub(super) fn residual(&self, w: &Mat, found: &Mat) -> (Mat, Mat) {
        let (m, n) = (w.rows(), w.cols());
        let mut delta = w.clone();
        delta.data_mut().iter_mut().zip(found.data()).for_each(|(d, f)| *d -= f);
        let mut product = Mat::zeros(m, n);
        let h = Weights::F32(self.gram.data());
        product_nt(self.team, m, n, n, delta.data(), n, h, product.data_mut(), n, false);
        (delta, product)
    }

    /// Chooses every column once: real values, or codes, which may replace those that there are.
    pub(super) fn pass(&self, w: &Mat, found: &mut Mat, rounds: Option<bool>) {
        let (_, mut residual) = self.residual(w, found);
        let (m, n) = (w.rows(), w.cols());
        let mut changes = vec![0.0f32; m * BLOCK.min(n)];
        for first in (0..n).step_by(BLOCK) {
            let cols = first..(first + BLOCK).min(n);
            let len = cols.len();
            let changes = &mut changes[..m * len];
            let (values, pulls) = (&*found, &residual);
            self.team.for_pieces(changes, LANES * len, &|i, changes| {
                self.block(i, values, pulls, cols.clone(), rounds, changes);
            });
            for (row, change) in found.data_mut().chunks_exact_mut(n).zip(changes.chunks_exact(len)) {
                row[cols.clone()].iter_mut().zip(change).for_each(|(v, c)| *v += c);
            }
            if cols.end < n {
                let (h, rest) = (&self.gram.data()[first * n + cols.end..], n - cols.end);
                let later = &mut residual.data_mut()[cols.end..];
                product_nn(self.team, m, rest, len, -1.0, changes, len, h, n, later, n);
            }
        }
    }

    /// Columns `cols` of one strip; writes what is added to each value, `[row][column]`.
    fn block(
        &self,
        strip: usize,
        found: &Mat,
        residual: &Mat,
        cols: Range<usize>,
        rounds: Option<bool>,
        changes: &mut [f32],
    ) {
        let (len, group) = (cols.len(), self.rounder.group());
        let rows = changes.len() / len;
        let load = |from: &Mat| {
            let mut data = vec![[0.0f32; LANES]; len];
            for lane in 0..rows {
                let row = &from.row(strip * LANES + lane)[cols.clone()];
                data.iter_mut().zip(row).for_each(|(d, v)| d[lane] = *v);
            }
            data
        };
        let (values, mut pulls) = (load(found), load(residual));
        let mut state = self.state[strip].lock().expect("no task panics while it holds its strip");
        let (codes, params) = &mut *state;
        let width = self.rounder.width();
        let (mut chosen, mut next) = (vec![[0; LANES]; width], vec![[0.0; LANES]; width]);
        for t in (0..len).step_by(width) {
            let (j, tile) = (cols.start + t, t..t + width);
            let pull = &pulls[tile.clone()];
            let steps = self.steps(j / width, pull);
            next.iter_mut().zip(&steps).zip(&values[tile.clone()]).for_each(|((n, s), v)| {
                (0..LANES).for_each(|lane| n[lane] = v[lane] + s[lane]);
            });
            let mut changes_now = steps;
            if let Some(is_coded) = rounds {
                let best = next.clone();
                chosen.copy_from_slice(&codes[j..j + width]);
                let at = Place { strip, column: j };
                self.rounder.round(at, &params[j / group], &best, &mut chosen, &mut next);
                for (change, (n, v)) in changes_now.iter_mut().zip(next.iter().zip(&values[tile.clone()])) {
                    (0..LANES).for_each(|lane| change[lane] = n[lane] - v[lane]);
                }
                // Lanes without a row may share a code with rows, but count nowhere.
                changes_now.iter_mut().for_each(|change| change[rows..].fill(0.0));
                let keeps = if width > 1 && is_coded && !self.rounder.keeps_entries() {
                    self.raises(j, pull, &changes_now)
                } else {
                    [false; LANES]
                };
                for lane in 0..LANES {
                    for i in 0..width {
                        if keeps[lane] {
                            changes_now[i][lane] = 0.0;
                        } else {
                            codes[j + i][lane] = chosen[i][lane];
                        }
                    }
                }
            }
            for (i, change) in changes_now.iter().enumerate() {
                let (c, at) = (j + i, t + i);
                feedback(pulls[at + 1..].as_flattened_mut(), change, &self.gram.row(c)[c + 1..cols.end]);
                for lane in 0..rows {
                    changes[lane * len + at] = change[lane];
                }
            }
        }
    }

    /// The real steps of a tile to where its objective is least, from its part of `Δ H`.
    fn steps(&self, tile: usize, pull: &[[f32; LANES]]) -> Vec<[f32; LANES]> {
        let inverse = &self.inverses[tile];
        let mut steps = vec![[0.0; LANES]; pull.len()];
        for (i, step) in steps.iter_mut().enumerate() {
            for (by, pull) in inverse.row(i).iter().zip(pull) {
                step.iter_mut().zip(pull).for_each(|(s, p)| *s += by * p);
            }
        }
        steps
    }

    /// For which lanes a change of the tile at column `first` raises the objective: `δ H_tt δᵀ > 2 δ (Δ H)_tᵀ`, summed over
    /// the lanes that one code covers.
    fn raises(&self, first: usize, pull: &[[f32; LANES]], change: &[[f32; LANES]]) -> [bool; LANES] {
        let mut rise = [0.0f32; LANES];
        for (i, (own, pull)) in change.iter().zip(pull).enumerate() {
            let mut inner = pull.map(|p| -2.0 * p);
            for (by, other) in self.gram.row(first + i)[first..].iter().zip(change) {
                inner.iter_mut().zip(other).for_each(|(s, o)| *s += by * o);
            }
            rise.iter_mut().zip(own).zip(&inner).for_each(|((r, o), s)| *r += o * s);
        }
        let height = self.rounder.height();
        let mut raises = [false; LANES];
        for (raises, rise) in raises.chunks_exact_mut(height).zip(rise.chunks_exact(height)) {
            raises.fill(rise.iter().sum::<f32>() > 0.0);
        }
        raises
    }
}

/// `H_tt⁻¹` for each tile of `width` columns; of single columns `1 / H_jj`, 0 where no token reaches.
fn tile_inverses(gram: &Mat, width: usize) -> Vec<Mat> {
    let tile = |first: usize| {
        if width == 1 {
            let h = gram[(first, first)];
            return Mat::from_vec(1, 1, vec![if h > 0.0 { 1.0 / h } else { 0.0 }]);
        }
        let mean = (first..first + width).map(|c| gram[(c, c)]).sum::<f32>() / width as f32;
        let ridge = if mean > 0.0 { 1e-4 * mean } else { 1.0 };
        let block = Mat::from_fn(width, width, |r, c| gram[(first + r, first + c)] + if r == c { ridge } else { 0.0 });
        let u = upper_inverse_factor(&Team::new(1), block);
        let place = |r: usize, c: usize| u.as_ref().map_or(0.0, |u| (0..width).map(|k| u[(k, r)] * u[(k, c)]).sum());
        Mat::from_fn(width, width, place)
    };
    (0..gram.cols() / width).map(|t| tile(t * width)).collect()
}
