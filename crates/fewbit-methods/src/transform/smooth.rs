use fewbit_engine::kinds::{Element, Entry, Needs, SiteJob, Transform, parse};
use fewbit_format::{Error, Mat, Result};
use fewbit_graph::{Symmetry, Tied};
use serde::Deserialize;

pub(crate) const ENTRY: Entry<dyn Transform> = Entry {
    name: "smooth",
    cite: "Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models, 2022 (arXiv:2211.10438)",
    settings: &[("alpha = 0.5", "how much of the range of the inputs goes to the weights: 0 none, 1 all")],
    build: |table| {
        let smooth: Smooth = parse("transform.smooth", table)?;
        if !(0.0..=1.0).contains(&smooth.alpha) {
            return Err(Error::input(format!("`transform.alpha` is {}, where 0 to 1 are possible", smooth.alpha)));
        }
        Ok(Box::new(smooth))
    },
};

/// A factor per input channel that shares its range between input and weights: `s_j = max|x_j|^α / max|W_·j|^(1−α)`.
///
/// `x' = x / s`, `W' = W diag(s)` (equation 4), the greatest weight over all linears that read the value. A channel that
/// calibration never reached, or that no weight reads, stays as it is.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Smooth {
    alpha: f32,
}

impl Default for Smooth {
    fn default() -> Self {
        Self { alpha: 0.5 }
    }
}

impl Transform for Smooth {
    fn needs(&self) -> Needs {
        Needs { range: true, ..Needs::default() }
    }

    fn symmetry(&self) -> Symmetry {
        Symmetry::Diagonal
    }

    fn flops(&self, rows: usize, cols: usize) -> f64 {
        (rows * cols) as f64
    }

    fn choose(&self, job: &SiteJob<'_>) -> Result<Option<Element>> {
        let reach = job.stats.reach().ok_or_else(|| Error::internal("smoothing without statistics"))?;
        let (inputs, weights) = (shared(&reach, job.tied), shared(&columns(&job.weights, reach.len()), job.tied));
        let factor = |(x, w): (&f32, &f32)| {
            let s = x.powf(self.alpha) / w.powf(1.0 - self.alpha);
            if *x > 0.0 && *w > 0.0 && s.is_normal() { 1.0 / s.max(1e-5) } else { 1.0 }
        };
        Ok(Some(Element::Diagonal(inputs.iter().zip(&weights).map(factor).collect())))
    }
}

/// The greatest magnitude of each column over all weights.
fn columns(weights: &[&Mat], cols: usize) -> Vec<f32> {
    let mut reach = vec![0f32; cols];
    for w in weights {
        for r in 0..w.rows() {
            reach.iter_mut().zip(w.row(r)).for_each(|(m, v)| *m = m.max(v.abs()));
        }
    }
    reach
}

/// One number per element of the site: the greatest over the query heads that read one key-value head.
pub(super) fn shared(reach: &[f32], tied: Tied) -> Vec<f32> {
    let Tied::PerKvGroup { head_dim, group } = tied else { return reach.to_vec() };
    let of_heads = |heads: &[f32]| -> Vec<f32> {
        (0..head_dim).map(|i| heads.iter().skip(i).step_by(head_dim).fold(0.0, |m: f32, v| m.max(*v))).collect()
    };
    reach.chunks_exact(head_dim * group).flat_map(of_heads).collect()
}

#[cfg(test)]
mod tests {
    use fewbit_engine::InputStats;
    use fewbit_kernel::Team;

    use super::*;

    fn choose(alpha: f32, range: Vec<[f32; 2]>, weights: &[&Mat], tied: Tied) -> Vec<f32> {
        let stats = InputStats { range: Some(range), ..InputStats::default() };
        let team = Team::new(1);
        let job = SiteJob { name: "x", weights: weights.to_vec(), grids: Vec::new(), stats: &stats, tied, team: &team };
        let Some(Element::Diagonal(factors)) = (Smooth { alpha }).choose(&job).unwrap() else { unreachable!() };
        factors
    }

    #[test]
    fn all_of_the_range_or_none_makes_one_side_even() {
        let w = Mat::from_vec(2, 3, vec![1.0, -4.0, 0.5, 0.5, 2.0, -0.25]);
        let range = vec![[-8.0, 1.0], [0.0, 2.0], [-0.5, 0.25]];
        // Inputs become 1 each; columns of the weight become 1 each.
        assert_eq!(choose(1.0, range.clone(), &[&w], Tied::No), [1.0 / 8.0, 0.5, 2.0]);
        assert_eq!(choose(0.0, range.clone(), &[&w], Tied::No), [1.0, 4.0, 0.5]);
        let half = choose(0.5, range.clone(), &[&w], Tied::No);
        for (j, (f, weight)) in half.iter().zip([1.0f32, 4.0, 0.5]).enumerate() {
            let input = range[j][1].max(-range[j][0]) * f;
            assert!((input / (weight / f) - 1.0).abs() < 1e-6, "both sides have the same reach");
        }
    }

    /// Section 4: half of the difficulty is the weights', and the channels that stand out do so by its root.
    #[test]
    fn outlier_channels_stand_out_less() {
        let w = Mat::from_fn(8, 32, |r, c| ((r * 37 + c * 11) % 17) as f32 / 8.0 - 1.0);
        let reach: Vec<f32> = (0..32).map(|c| if c % 10 == 3 { 60.0 } else { 1.0 + c as f32 / 32.0 }).collect();
        let factors = choose(0.5, reach.iter().map(|a| [-a, 0.5 * a]).collect(), &[&w], Tied::No);
        let stands_out = |values: &mut Vec<f32>| {
            values.sort_by(f32::total_cmp);
            values[31] / values[16]
        };
        let mut after = reach.iter().zip(&factors).map(|(a, f)| a * f).collect();
        let [before, after] = [stands_out(&mut reach.clone()), stands_out(&mut after)];
        assert!(before > 30.0 && after < 1.3 * before.sqrt(), "{before} became {after}");
    }

    #[test]
    fn channels_that_are_never_used_stay() {
        let w = Mat::from_vec(1, 3, vec![1.0, 0.0, 1.0]);
        assert_eq!(choose(0.5, vec![[0.0, 0.0], [-1.0, 1.0], [0.0, 4.0]], &[&w], Tied::No), [1.0, 1.0, 0.5]);
    }
}
