//! Which weights cost too much to round (SpQR, section 3.3 and Algorithm 1).

use fewbit_engine::kinds::{LANES, Params, Place, Rounder};
use fewbit_format::Mat;
use fewbit_kernel::Team;

use super::nearest::round_all;

/// What errors cost in the loop of GPTQ.
pub(crate) struct Costs {
    /// `1 / U[j, j]²` of each column, where it lies in the matrix and where it is in order.
    stored: Vec<f32>,
    ordered: Vec<f32>,
    /// Above it a weight stays beside the codes.
    limit: f32,
}

impl Costs {
    /// Costs of the columns of `weight`, which the factor `u` has in `order`; the limit is `threshold` times what rounding
    /// to nearest costs a weight, `(w − ŵ)² / U[j, j]²` on average.
    pub(crate) fn new(
        rounder: &Rounder<'_>,
        weight: &Mat,
        team: &Team,
        (order, u): (&[usize], &Mat),
        threshold: f32,
    ) -> Self {
        let ordered: Vec<f32> = (0..weight.cols()).map(|i| u[(i, i)].powi(-2)).collect();
        let mut stored = vec![0.0; weight.cols()];
        order.iter().zip(&ordered).for_each(|(c, cost)| stored[*c] = *cost);
        let mut rounded = Mat::zeros(weight.rows(), weight.cols());
        round_all(rounder, weight, team, Some(&mut rounded));
        let cost = |r: usize, c: usize| f64::from(stored[c] * (weight[(r, c)] - rounded[(r, c)]).powi(2));
        let all: f64 = (0..weight.rows()).map(|r| (0..weight.cols()).map(|c| cost(r, c)).sum::<f64>()).sum();
        let mean = all / weight.data().len().max(1) as f64;
        Self { stored, ordered, limit: (f64::from(threshold) * mean) as f32 }
    }

    /// The lanes, a bit each, whose error in column `column` (in order) is above the limit.
    pub(crate) fn kept(&self, column: usize, w: &[f32; LANES], decoded: &[f32; LANES], rows: usize) -> u16 {
        let cost = self.ordered[column];
        (0..rows).filter(|l| cost * (w[*l] - decoded[*l]).powi(2) > self.limit).fold(0, |lanes, l| lanes | 1 << l)
    }

    /// Which weights `[column][lane]` of a group are seen when its parameters are fitted: not those without which the
    /// others' errors cost less by more than the limit. `None` if all are.
    pub(crate) fn likely(
        &self,
        rounder: &Rounder<'_>,
        at: Place,
        values: &[[f32; LANES]],
    ) -> Option<Vec<[f32; LANES]>> {
        let costs = &self.stored[at.column..at.column + values.len()];
        let (mut codes, mut decoded) = (vec![[0; LANES]; values.len()], vec![[0.0; LANES]; values.len()]);
        let mut errors = |params: &Params, without: Option<usize>| {
            rounder.round_plain(at, params, values, &mut codes, &mut decoded);
            let mut sums = [0f32; LANES];
            for (c, (w, d)) in values.iter().zip(&decoded).enumerate().filter(|(c, _)| Some(*c) != without) {
                (0..LANES).for_each(|l| sums[l] += costs[c] * (w[l] - d[l]).powi(2));
            }
            sums
        };
        let all = errors(&rounder.fit(at, values), None);
        if all.iter().all(|e| *e <= self.limit) {
            return None;
        }
        let mut seen = vec![[1.0; LANES]; values.len()];
        let mut likely = seen.clone();
        for c in 0..values.len() {
            seen[c] = [0.0; LANES];
            let without = errors(&rounder.fit_seen(at, values, &seen), Some(c));
            seen[c] = [1.0; LANES];
            for l in (0..LANES).filter(|l| all[*l] - without[*l] > self.limit) {
                likely[c][l] = 0.0;
            }
        }
        likely.iter().flatten().any(|s| *s == 0.0).then_some(likely)
    }
}
