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
