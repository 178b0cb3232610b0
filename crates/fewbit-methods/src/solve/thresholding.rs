//! Which weights stay beside the codes, found in turns with them (QuantEase, Algorithm 3).

use fewbit_engine::kinds::{Entries, Keep, LinearJob, Rounder};
use fewbit_format::{Mat, Result};
use fewbit_kernel::Team;

use super::quantease::{Descent, OfInput};

impl OfInput<'_> {
    /// The places of the `count` weights `S` of the least `tr((W − Ŵ − S) H (W − Ŵ − S)ᵀ)` that is found by a pass of the
    /// descent on `Ŵ`, with `W − S` in the place of `W`, and a step on `S`, in turns.
    pub(super) fn kept_in_turns(&self, job: &LinearJob<'_>, count: usize) -> Result<Entries> {
        let (team, gram) = (self.input.team, self.gram);
        let bounds = bounds(gram);
        let mut sides = largest(job.weight, &vec![1.0; gram.cols()], count);
        // Ranges are those of what the largest leave.
        let first = difference(job.weight, &sides);
        let rounder = Rounder::new(self.input, &LinearJob { weight: &first, keep: &Keep::Nothing, ..*job }, &first)?;
        let descent = Descent::from_weights(&rounder, &first, gram, team);
        let (mut found, mut rest) = (first.clone(), first.clone());
        let mut is_coded = false;
        for pass in 0..self.quantease.passes {
            let rounds = !self.quantease.is_relaxed(pass);
            descent.pass(&rest, &mut found, rounds.then_some(is_coded));
            is_coded = rounds;
            if rounds {
                let (_, product) = descent.residual(&rest, &found);
                step(team, &mut sides, &product, &bounds);
                sides = largest(&sides, &bounds, count);
                rest = difference(job.weight, &sides);
            }
        }
        let (rows, cols) = (job.weight.rows(), job.weight.cols());
        let mut entries = Entries::none(rows, cols);
        let places = sides.data().iter().enumerate().filter(|(_, s)| **s != 0.0);
        places.for_each(|(i, _)| entries.add(i / cols, i % cols));
        Ok(entries)
    }
}

/// `D` with `H ⪯ diag(D)`, `D_j = Σ_k |H_jk|`: the objective is nowhere above `Σ D_j (s_j − v_j)²` plus what does not
/// depend on `s`, if `v` is a step of `1/D` against the gradient. Columns that no token reaches are left alone.
fn bounds(gram: &Mat) -> Vec<f32> {
    (0..gram.cols()).map(|j| gram.row(j).iter().map(|h| h.abs()).sum()).collect()
}

/// `S ← S + Δ H diag(D)⁻¹`.
fn step(team: &Team, sides: &mut Mat, product: &Mat, bounds: &[f32]) {
    let cols = product.cols();
    team.for_pieces(sides.data_mut(), cols, &|r, row| {
        for ((s, p), d) in row.iter_mut().zip(product.row(r)).zip(bounds) {
            *s += if *d > 0.0 { p / d } else { 0.0 };
        }
    });
}

/// The `count` values with the largest `D v²`, the others 0.
fn largest(values: &Mat, bounds: &[f32], count: usize) -> Mat {
    let cols = values.cols();
    let size = |i: &usize| bounds[i % cols] * values.data()[*i].powi(2);
    let mut order: Vec<usize> = (0..values.data().len()).collect();
    if count < order.len() {
        order.select_nth_unstable_by(count, |a, b| size(b).total_cmp(&size(a)).then(a.cmp(b)));
    }
    let mut kept = Mat::zeros(values.rows(), cols);
    order[..count.min(order.len())].iter().for_each(|i| kept.data_mut()[*i] = values.data()[*i]);
    kept
}

fn difference(a: &Mat, b: &Mat) -> Mat {
    let values = a.data().iter().zip(b.data()).map(|(a, b)| a - b);
    Mat::from_vec(a.rows(), a.cols(), values.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(rows: usize, cols: usize, seed: usize) -> Mat {
        Mat::from_fn(rows, cols, |r, c| (((r * cols + c) * 7919 + seed * 104_729) as f32 * 0.618).sin())
    }

    /// `tr(Δ H Δᵀ)`, `Δ = W − S`.
    fn loss(w: &Mat, s: &Mat, h: &Mat) -> f64 {
        let d = difference(w, s);
        let term = |r: usize, a: usize, b: usize| f64::from(d[(r, a)]) * f64::from(h[(a, b)]) * f64::from(d[(r, b)]);
        let row = |r: usize| (0..h.cols()).map(|a| (0..h.cols()).map(|b| term(r, a, b)).sum::<f64>()).sum::<f64>();
        (0..w.rows()).map(row).sum()
    }

    #[test]
    fn every_step_lowers_the_loss_and_leaves_weights_that_no_input_reaches() {
        let (team, x) = (Team::new(1), noise(60, 20, 1));
        // Large weights in columns with hardly any input.
        let scale = |c: usize| if c < 4 { 0.01 } else { 1.0 + c as f32 };
        let h = Mat::from_fn(20, 20, |a, b| (0..60).map(|t| x[(t, a)] * x[(t, b)]).sum::<f32>() * scale(a) * scale(b));
        let mut w = noise(16, 20, 2);
        (0..16).for_each(|r| w[(r, r % 4)] = 3.0);
        let bounds = bounds(&h);
        let mut sides = largest(&w, &[1.0; 20], 16);
        assert!((0..16).all(|r| sides[(r, r % 4)] == 3.0), "the largest are not the largest");
        let mut least = loss(&w, &sides, &h);
        for _ in 0..40 {
            let rest = difference(&w, &sides);
            let product = Mat::from_fn(16, 20, |r, c| (0..20).map(|k| rest[(r, k)] * h[(k, c)]).sum());
            step(&team, &mut sides, &product, &bounds);
            sides = largest(&sides, &bounds, 16);
            let now = loss(&w, &sides, &h);
            assert!(now <= least * (1.0 + 1e-5), "{now} after {least}");
            least = now;
        }
        assert!(least < 0.9 * loss(&w, &largest(&w, &[1.0; 20], 16), &h), "{least}");
        assert!((0..16).all(|r| sides[(r, r % 4)] == 0.0), "large, and of no use");
    }
}
