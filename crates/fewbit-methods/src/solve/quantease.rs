use std::ops::Range;
use std::sync::Mutex;

use fewbit_engine::kinds::{
    Entry, InputJob, InputSolver, LANES, LinearJob, Needs, Place, Rounded, Rounder, Solved, Solver, parse,
};
use fewbit_format::{Error, Mat, Result};
use fewbit_kernel::Team;
use fewbit_kernel::product::{Weights, product_nn, product_nt};
use fewbit_kernel::strip::feedback;
use serde::Deserialize;

use super::gptq::GPTQ;
use super::nearest::fit_all;

pub(crate) const ENTRY: Entry<dyn Solver> = Entry {
    name: "quantease",
    cite: "Behdin et al., QuantEase: Optimization-based Quantization for Language Models, 2023 (arXiv:2309.01885)",
    settings: &[
        ("passes = 30", "times that every column is chosen anew"),
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
/// (Algorithm 1). A pass that leaves the grid keeps the real value: it opens ways out of local minima, and the objective
/// falls from pass to pass only between those.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct QuantEase {
    passes: usize,
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
    fn is_relaxed(&self, pass: usize) -> bool {
        self.start == Start::Weights
            && self.relax_every > 0
            && pass % self.relax_every == 1 % self.relax_every
            && pass <= self.relax_until
            && pass + 1 < self.passes
    }
}

impl Solver for QuantEase {
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
        let start = if self.start == Start::Gptq { Some(GPTQ.begin(input)?) } else { None };
        Ok(Box::new(OfInput { quantease: self, input, gram, start }))
    }
}

/// QuantEase on the linears of one input.
struct OfInput<'a> {
    quantease: &'a QuantEase,
    input: InputJob<'a>,
    gram: &'a Mat,
    /// Makes the values where the descent begins; else it begins at the weights.
    start: Option<Box<dyn InputSolver + 'a>>,
}

impl OfInput<'_> {
    fn start(&self, job: &LinearJob<'_>) -> Result<Mat> {
        let Some(start) = &self.start else { return Ok(job.weight.clone()) };
        let solved = start.solve(job)?;
        let mut found = Mat::zeros(job.weight.rows(), job.weight.cols());
        solved.storage.decode_rows(0..found.rows(), found.data_mut());
        if let Some(sparse) = &solved.sparse {
            sparse.add_rows(0..found.rows(), found.data_mut());
        }
        Ok(found)
    }
}

impl InputSolver for OfInput<'_> {
    fn solve(&self, job: &LinearJob<'_>) -> Result<Solved> {
        let (gram, team, quantease) = (self.gram, self.input.team, self.quantease);
        let rounder = Rounder::new(self.input, job, job.weight)?;
        if rounder.width() > 1 {
            return Err(Error::input("`solve.quantease` needs a grid that rounds one column at a time"));
        }
        let (m, n) = (job.weight.rows(), job.weight.cols());
        let params = fit_all(&rounder, job.weight, team);
        let state = params.into_iter().map(|p| Mutex::new((vec![[0; LANES]; n], p))).collect();
        let descent = Descent { rounder: &rounder, gram, team, state };
        let mut found = self.start(job)?;
        for pass in 0..quantease.passes {
            descent.pass(job.weight, &mut found, !quantease.is_relaxed(pass));
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
struct Descent<'a> {
    rounder: &'a Rounder<'a>,
    gram: &'a Mat,
    team: &'a Team,
    /// Per strip the codes of the last rounding pass, and the parameters of the groups.
    state: Vec<Mutex<Rounded>>,
}

impl Descent<'_> {
    /// `Δ = W − Ŵ`, and `Δ H`.
    fn residual(&self, w: &Mat, found: &Mat) -> (Mat, Mat) {
        let (m, n) = (w.rows(), w.cols());
        let mut delta = w.clone();
        delta.data_mut().iter_mut().zip(found.data()).for_each(|(d, f)| *d -= f);
        let mut product = Mat::zeros(m, n);
        let h = Weights::F32(self.gram.data());
        product_nt(self.team, m, n, n, delta.data(), n, h, product.data_mut(), n, false);
        (delta, product)
    }

    /// Chooses every column once.
    fn pass(&self, w: &Mat, found: &mut Mat, rounds: bool) {
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
    fn block(&self, strip: usize, found: &Mat, residual: &Mat, cols: Range<usize>, rounds: bool, changes: &mut [f32]) {
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
        for t in 0..len {
            let j = cols.start + t;
            let h = self.gram.row(j);
            let mut best = values[t];
            if h[j] > 0.0 {
                best.iter_mut().zip(&pulls[t]).for_each(|(b, p)| *b += p / h[j]);
            }
            let mut next = [best];
            if rounds {
                let at = Place { strip, column: j };
                self.rounder.round(at, &params[j / group], &[best], &mut codes[j..=j], &mut next);
            }
            let change: [f32; LANES] = std::array::from_fn(|lane| next[0][lane] - values[t][lane]);
            feedback(pulls[t + 1..].as_flattened_mut(), &change, &h[j + 1..cols.end]);
            for lane in 0..rows {
                changes[lane * len + t] = change[lane];
            }
        }
    }
}
