use fewbit_format::Mat;
use fewbit_graph::{Edge, ValueId};
use fewbit_kernel::Team;
use fewbit_kernel::product::{Weights, gram_add, gram_mirror, product_nt};
use fewbit_runtime::Hooks;

use crate::kinds::Needs;

/// What the inputs of a linear were like over the calibration tokens.
#[derive(Clone, Debug, Default)]
pub struct InputStats {
    /// `H = Σ_t w_t x_t x_tᵀ`, `[in, in]`; all weights are one where the recipe does not say otherwise.
    pub gram: Option<Mat>,
    /// `mean_t |X[t, j]|`.
    pub mean_abs: Option<Vec<f32>>,
    /// `mean_t X[t, j]²`, where it was asked for without `gram`, or read from a file.
    pub mean_square: Option<Vec<f32>>,
    /// Least and greatest value of each `x_j`, with zero among the values.
    pub range: Option<Vec<[f32; 2]>>,
    /// Tokens seen, and those that stand in for what an expert did not get.
    pub tokens: usize,
}

impl InputStats {
    /// `tr(M H Mᵀ)` of `m [rows, in]`, or `‖M‖²` where `XᵀX` is unknown; `None` if it is no number.
    pub(crate) fn squared_output(&self, team: &Team, m: &Mat) -> Option<f64> {
        let (rows, n) = (m.rows(), m.cols());
        let dot = |product: &Mat| -> f64 { m.data().iter().zip(product.data()).map(|(d, p)| f64::from(d * p)).sum() };
        let sum = match &self.gram {
            None => dot(m),
            Some(h) => {
                let mut product = Mat::zeros(rows, n);
                product_nt(team, rows, n, n, m.data(), n, Weights::F32(h.data()), product.data_mut(), n, false);
                dot(&product)
            }
        };
        Some(sum).filter(|s| s.is_finite())
    }

    /// Takes in the extremes of others.
    pub(crate) fn widen(&mut self, other: &Self) {
        for (r, [least, most]) in self.range.iter_mut().flatten().zip(other.range.iter().flatten()) {
            *r = [r[0].min(*least), r[1].max(*most)];
        }
    }

    /// How much errors of each column count: `mean_t X[t, j]²`, each token as often as it counts.
    pub fn column_weights(&self) -> Option<Vec<f32>> {
        let of_gram = |h: &Mat| (0..h.cols()).map(|j| h[(j, j)] / self.tokens.max(1) as f32).collect();
        self.mean_square.clone().or_else(|| self.gram.as_ref().map(of_gram))
    }

    /// The greatest magnitude of each `x_j`.
    pub fn reach(&self) -> Option<Vec<f32>> {
        self.range.as_ref().map(|r| r.iter().map(|[least, most]| most.max(-least)).collect())
    }

    /// What the statistics are after `x' = x · diag(factors)`.
    pub fn scale(&mut self, factors: &[f32]) {
        if let Some(h) = &mut self.gram {
            for r in 0..h.rows() {
                let by = factors[r];
                for (v, f) in h.row_mut(r).iter_mut().zip(factors) {
                    *v *= by * f;
                }
            }
        }
        if let Some(m) = &mut self.mean_abs {
            m.iter_mut().zip(factors).for_each(|(v, f)| *v *= f.abs());
        }
        if let Some(m) = &mut self.mean_square {
            m.iter_mut().zip(factors).for_each(|(v, f)| *v *= f * f);
        }
        if let Some(range) = &mut self.range {
            for (r, f) in range.iter_mut().zip(factors) {
                let ends = r.map(|v| v * f);
                *r = [ends[0].min(ends[1]), ends[0].max(ends[1])];
            }
        }
    }
}

/// Collects [`InputStats`] of chosen inputs while a block runs.
pub(crate) struct Collector<'a> {
    team: &'a Team,
    needs: Needs,
    watched: Vec<Watched>,
    /// What each token counts in `XᵀX`.
    weights: Option<&'a [f32]>,
    weighted: Vec<f32>,
    pub(crate) gram_seconds: f64,
}

/// An input, and what was seen of it.
struct Watched {
    edge: Edge,
    gram: Option<Mat>,
    /// `Σ|x|`.
    sums: Vec<f64>,
    /// `Σx²`.
    squares: Vec<f64>,
    range: Vec<[f32; 2]>,
    tokens: usize,
}

impl<'a> Collector<'a> {
    pub(crate) fn new(
        team: &'a Team,
        needs: Needs,
        inputs: impl Iterator<Item = (Edge, usize)>,
        weights: Option<&'a [f32]>,
    ) -> Self {
        let watched = inputs.map(|(edge, dim)| Watched {
            edge,
            gram: needs.gram.then(|| Mat::zeros(dim, dim)),
            sums: vec![0.0; if needs.mean_abs { dim } else { 0 }],
            squares: vec![0.0; if needs.mean_square && !needs.gram { dim } else { 0 }],
            range: vec![[0.0; 2]; if needs.range { dim } else { 0 }],
            tokens: 0,
        });
        Self { team, needs, watched: watched.collect(), weights, weighted: Vec::new(), gram_seconds: 0.0 }
    }

    pub(crate) fn finish(self) -> Vec<(Edge, InputStats)> {
        (self.watched.into_iter())
            .map(|Watched { edge, mut gram, sums, squares, range, tokens }| {
                if let Some(h) = &mut gram {
                    gram_mirror(self.team, h.cols(), h.data_mut());
                }
                let mean = |sums: Vec<f64>| sums.iter().map(|s| (s / tokens.max(1) as f64) as f32).collect();
                let mean_abs = self.needs.mean_abs.then(|| mean(sums));
                let mean_square = (!squares.is_empty()).then(|| mean(squares));
                let range = self.needs.range.then_some(range);
                (edge, InputStats { gram, mean_abs, mean_square, range, tokens })
            })
            .collect()
    }
}

impl Hooks for Collector<'_> {
    fn wants(&self, value: ValueId) -> bool {
        self.watched.iter().any(|w| w.edge.value == value)
    }

    fn edge(&mut self, edge: Edge, rows: &mut [f32], dim: usize) {
        let tokens = rows.len() / dim;
        for watched in self.watched.iter_mut().filter(|w| w.edge == edge) {
            if let Some(h) = &mut watched.gram {
                let clock = std::time::Instant::now();
                // The rows of an expert are some of the tokens: which, is not known here.
                let mut x = &*rows;
                if let (Some(weights), None) = (self.weights, edge.expert) {
                    self.weighted.clear();
                    for (row, w) in rows.chunks_exact(dim).zip(&weights[watched.tokens..]) {
                        let root = w.sqrt();
                        self.weighted.extend(row.iter().map(|v| v * root));
                    }
                    x = &self.weighted;
                }
                gram_add(self.team, dim, tokens, x, dim, h.data_mut());
                self.gram_seconds += clock.elapsed().as_secs_f64();
            }
            if self.needs.mean_abs {
                for row in rows.chunks_exact(dim) {
                    watched.sums.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(x.abs()));
                }
            }
            if !watched.squares.is_empty() {
                for (t, row) in rows.chunks_exact(dim).enumerate() {
                    let weights = self.weights.filter(|_| edge.expert.is_none());
                    let counts = weights.map_or(1.0, |w| f64::from(w[watched.tokens + t]));
                    watched.squares.iter_mut().zip(row).for_each(|(s, x)| *s += counts * f64::from(*x) * f64::from(*x));
                }
            }
            if self.needs.range {
                for row in rows.chunks_exact(dim) {
                    for ([least, most], x) in watched.range.iter_mut().zip(row) {
                        (*least, *most) = (least.min(*x), most.max(*x));
                    }
                }
            }
            watched.tokens += tokens;
        }
    }
}

/// Two hooks, one after the other.
pub(crate) struct Both<'a>(pub(crate) &'a mut dyn Hooks, pub(crate) &'a mut dyn Hooks);

impl Hooks for Both<'_> {
    fn wants(&self, value: ValueId) -> bool {
        self.0.wants(value) || self.1.wants(value)
    }

    fn edge(&mut self, edge: Edge, rows: &mut [f32], dim: usize) {
        for hooks in [&mut *self.0, &mut *self.1] {
            if hooks.wants(edge.value) {
                hooks.edge(edge, rows, dim);
            }
        }
    }
}
