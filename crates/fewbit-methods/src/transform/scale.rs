use fewbit_engine::InputStats;
use fewbit_engine::kinds::{
    Element, Entry, Grid, InputJob, Keep, LinearJob, Needs, Rounder, SiteJob, Transform, parse,
};
use fewbit_format::{Error, Mat, Result};
use fewbit_graph::{Symmetry, Tied};
use fewbit_kernel::product::{Weights, product_nt};
use serde::Deserialize;

use crate::solve::round_all;

pub(crate) const ENTRY: Entry<dyn Transform> = Entry {
    name: "scale",
    cite: "Lin et al., AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration, 2023 (arXiv:2306.00978)",
    settings: &[("steps = 20", "exponents α that are tried, 0 to 1")],
    build: |table| {
        let scale: Scale = parse("transform.scale", table)?;
        if !(1..=1000).contains(&scale.steps) {
            return Err(Error::input(format!("`transform.steps` is {}, where 1 to 1000 are possible", scale.steps)));
        }
        Ok(Box::new(scale))
    },
};

/// A factor per input channel, `s = mean|x|^α / √(max · min)`, with the α whose rounded weights change the outputs least.
///
/// `W' = W diag(s)`, `x' = x / s` (section 3.2). The loss is `Σ tr(Δ H Δᵀ)` over the linears that share the input,
/// `Δ = Q(W diag(s)) diag(1/s) − W`. α = 0 is among the candidates, so that the loss never exceeds that of no scaling.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Scale {
    steps: u32,
}

impl Default for Scale {
    fn default() -> Self {
        Self { steps: 20 }
    }
}

impl Transform for Scale {
    fn needs(&self) -> Needs {
        Needs { gram: true, mean_abs: true, ..Needs::default() }
    }

    fn symmetry(&self) -> Symmetry {
        Symmetry::Diagonal
    }

    fn flops(&self, rows: usize, cols: usize) -> f64 {
        f64::from(self.steps) * 2.0 * rows as f64 * (cols as f64).powi(2)
    }

    fn choose(&self, job: &SiteJob<'_>) -> Result<Option<Element>> {
        let (Some(h), Some(mean_abs)) = (&job.stats.gram, &job.stats.mean_abs) else {
            return Err(Error::internal("a scale search without statistics"));
        };
        let shared = shared(mean_abs, job.tied);
        let (mut best, mut least) = (None, f64::INFINITY);
        for i in 0..self.steps {
            let own = factors(&shared, i as f32 / self.steps as f32);
            let s = spread(&own, job.tied);
            let mut loss = 0.0;
            for (w, grid) in job.weights.iter().zip(&job.grids) {
                loss += output_error(w, *grid, &s, h, job)?;
            }
            if loss < least {
                (best, least) = (Some((i, own)), loss);
            }
        }
        Ok(best.filter(|(i, _)| *i > 0).map(|(_, s)| Element::Diagonal(s.iter().map(|f| 1.0 / f).collect())))
    }
}

/// One number per element of the site: the mean over the query heads that read one key-value head.
fn shared(mean_abs: &[f32], tied: Tied) -> Vec<f32> {
    let Tied::PerKvGroup { head_dim, group } = tied else { return mean_abs.to_vec() };
    let of_heads = |heads: &[f32]| -> Vec<f32> {
        (0..head_dim).map(|i| heads.iter().skip(i).step_by(head_dim).sum::<f32>() / group as f32).collect()
    };
    mean_abs.chunks_exact(head_dim * group).flat_map(of_heads).collect()
}

/// The factors of the whole row.
fn spread(own: &[f32], tied: Tied) -> Vec<f32> {
    let Tied::PerKvGroup { head_dim, group } = tied else { return own.to_vec() };
    own.chunks_exact(head_dim).flat_map(|head| std::iter::repeat_n(head, group).flatten().copied()).collect()
}

/// `mean|x|^α`, at least 1e-4, divided by the geometric mean of its extremes.
fn factors(mean_abs: &[f32], alpha: f32) -> Vec<f32> {
    let mut s: Vec<f32> = mean_abs.iter().map(|m| m.powf(alpha).max(1e-4)).collect();
    let (least, most) = s.iter().fold((f32::MAX, 0f32), |(a, b), v| (a.min(*v), b.max(*v)));
    let middle = (least * most).sqrt();
    s.iter_mut().for_each(|v| *v /= middle);
    s
}

/// `tr(Δ H Δᵀ)` of rounding `W diag(s)`.
fn output_error(w: &Mat, grid: &dyn Grid, s: &[f32], h: &Mat, site: &SiteJob<'_>) -> Result<f64> {
    let n = w.cols();
    let scaled = Mat::from_fn(w.rows(), n, |r, c| w[(r, c)] * s[c]);
    let mut delta = Mat::zeros(w.rows(), n);
    // Ranges as they are: the search for the clip comes after the scale.
    let (stats, team) = (&InputStats::default(), site.team);
    let linear = LinearJob { name: site.name, weight: &scaled, grid, keep: &Keep::Nothing, fisher: None, seed: 0 };
    let rounder = Rounder::new(InputJob { name: site.name, stats, team }, &linear, &scaled)?;
    round_all(&rounder, &scaled, team, Some(&mut delta));
    for r in 0..w.rows() {
        for ((d, v), s) in delta.row_mut(r).iter_mut().zip(w.row(r)).zip(s) {
            *d = *d / s - v;
        }
    }
    let mut product = scaled;
    product_nt(team, w.rows(), n, n, delta.data(), n, Weights::F32(h.data()), product.data_mut(), n, false);
    let rows =
        (0..w.rows()).map(|r| -> f64 { product.row(r).iter().zip(delta.row(r)).map(|(p, d)| f64::from(p * d)).sum() });
    Ok(rows.sum())
}

#[cfg(test)]
mod tests {
    use fewbit_kernel::Team;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn random(seed: u64) -> Mat {
        let mut r = ChaCha8Rng::seed_from_u64(seed);
        Mat::from_fn(16, 64, |_, _| r.random::<f32>() * 2.0 - 1.0)
    }

    /// Factors for weights whose inputs are independent, of these mean magnitudes; and each column's error in the
    /// weights, without them and with them.
    fn chosen(w: &Mat, mean_abs: Vec<f32>) -> (Vec<f32>, [Vec<f64>; 2], [f64; 2]) {
        let gram = Mat::from_fn(64, 64, |a, b| if a == b { mean_abs[a].powi(2) } else { 0.0 });
        let stats = InputStats { gram: Some(gram.clone()), mean_abs: Some(mean_abs), ..InputStats::default() };
        let entry = crate::REGISTRY.grids.iter().find(|e| e.name == "int").unwrap();
        let grid = (entry.build)("bits = 3\ngroup = \"row\"".parse().unwrap()).unwrap();
        let team = Team::new(1);
        let job =
            SiteJob { name: "x", weights: vec![w], grids: vec![&*grid], stats: &stats, tied: Tied::No, team: &team };
        let s = match Scale::default().choose(&job).unwrap() {
            Some(Element::Diagonal(factors)) => factors.iter().map(|f| 1.0 / f).collect(),
            _ => vec![1.0; 64],
        };
        let columns = |s: &[f32]| -> Vec<f64> {
            let one = |c: usize| {
                let only = Mat::from_fn(64, 64, |a, b| f32::from(u8::from(a == c && b == c)));
                output_error(w, &*grid, s, &only, &job).unwrap()
            };
            (0..64).map(one).collect()
        };
        let all = |s: &[f32]| output_error(w, &*grid, s, &gram, &job).unwrap();
        (s.clone(), [columns(&[1.0; 64]), columns(&s)], [all(&[1.0; 64]), all(&s)])
    }

    /// AWQ, section 3.2: a channel whose input is a hundred times as large is protected, at little cost to the others.
    #[test]
    fn a_loud_channel_is_protected_by_its_factor() {
        let mut mean_abs = vec![1.0; 64];
        mean_abs[5] = 100.0;
        let (s, [before, after], [plain, scaled]) = chosen(&random(1), mean_abs);
        let factor = f64::from(s[5] / s[6]);
        assert!(factor > 1.5, "{factor}");
        // By as much, but for the range of the row, which it widens.
        assert!((before[5] / after[5]).sqrt() > 0.5 * factor, "{} {} by {factor}", before[5], after[5]);
        assert!(scaled < 0.5 * plain, "{plain} became {scaled}");
    }

    #[test]
    fn no_choice_is_worse_than_none() {
        let mut r = ChaCha8Rng::seed_from_u64(2);
        for seed in 0..8 {
            let mean_abs = (0..64).map(|_| 3f32.powf(4.0 * r.random::<f32>())).collect();
            let (_, _, [plain, scaled]) = chosen(&random(seed), mean_abs);
            assert!(scaled <= plain, "{plain} became {scaled}");
        }
        // Inputs that are all alike ask for nothing.
        assert_eq!(chosen(&random(9), vec![1.0; 64]).0, vec![1.0; 64]);
    }
}
