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
    /// Costs of the columns of `weight`, which the factor `u` has in `order`; what an error costs is that of
    /// rounding to nearest, `(w − ŵ)² / U[j, j]²`.
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
        let mut costs = Mat::zeros(weight.rows(), weight.cols());
        round_all(rounder, weight, team, Some(&mut costs));
        for r in 0..weight.rows() {
            for ((q, w), cost) in costs.row_mut(r).iter_mut().zip(weight.row(r)).zip(&stored) {
                *q = cost * (w - *q).powi(2);
            }
        }
        Self { stored, ordered, limit: limit(costs.into_vec(), threshold) }
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

/// The cost above which weights are kept: `threshold` times what those that are not cost on average, where as many are kept
/// as make `ln(cost of the others) + threshold · kept / all` least, a tenth of all at most.
fn limit(mut costs: Vec<f32>, threshold: f32) -> f32 {
    costs.sort_unstable_by(|a, b| b.total_cmp(a));
    let by = f64::from(threshold) / costs.len() as f64;
    let mut rest: f64 = costs.iter().map(|c| f64::from(*c)).sum();
    let sums = costs.iter().enumerate().take(costs.len() / 10 + 1).map(|(kept, cost)| {
        let others = rest.max(0.0);
        rest -= f64::from(*cost);
        (others.ln() + by * kept as f64, others)
    });
    sums.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(f32::INFINITY, |(_, others)| (by * others) as f32)
}

#[cfg(test)]
mod tests {
    use super::limit;

    #[test]
    fn few_weights_that_cost_nearly_all_are_kept_and_many_are_not() {
        let keeps = |count: usize, threshold: f32| {
            let mut costs = vec![1.0; 1000];
            costs[..count].fill(1e4);
            let limit = limit(costs, threshold);
            [1.0, 1e4].map(|cost| cost > limit)
        };
        assert_eq!([0, 10, 100].map(|count| keeps(count, 32.0)), [[false, true]; 3]);
        assert_eq!([keeps(400, 32.0), keeps(10, 1e9)], [[false; 2]; 2]);
    }
}
