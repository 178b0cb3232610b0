use fewbit_engine::kinds::{Beside, Entries, Entry, Keep, Needs, Residual, ResidualJob, Side, parse};
use fewbit_format::{Error, Mat, Result, Sparse as Stored};
use fewbit_linalg::upper_inverse_factor;
use serde::Deserialize;

pub(crate) const ENTRY: Entry<dyn Residual> = Entry {
    name: "sparse",
    cite: "Kim et al., SqueezeLLM: Dense-and-Sparse Quantization, 2023 (arXiv:2306.07629)",
    settings: &[
        (
            "fraction = 0.005",
            "share of the weights that stay beside the codes, each in 16 bits and the 8 to 9 that say where it is",
        ),
        (
            "by = \"magnitude\"",
            "which: the largest `magnitude`, distance from the mean in `sigma`, squared gradient (`fisher`), `w² H` with the size of the input (`hessian`), or `w² / U²` with the others making up for it (`obs`)",
        ),
        ("per = \"matrix\"", "where the share counts: over the `matrix`, or in each `row`"),
        (
            "values = \"f16\"",
            "how they are stored: `f16`, or `int8` with a scale for each row, or one for all where rows keep fewer than sixteen",
        ),
        (
            "cut = 0.0",
            "with `by = \"sigma\"`: all weights beyond so many standard deviations, whatever the fraction; 0: none",
        ),
    ],
    build: |table| {
        let sparse: Sparse = parse("residual.sparse", table)?;
        sparse.check()?;
        Ok(Box::new(sparse))
    },
};

/// The most important weights stay beside the codes, in f16: what is left has a smaller range.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Sparse {
    fraction: f64,
    by: By,
    per: Per,
    values: Values,
    cut: f64,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Values {
    F16,
    Int8,
}

impl Values {
    /// Bits of `count` of them in so many rows.
    pub(super) fn stored_bits(self, rows: usize, count: usize) -> u64 {
        let scales = if Stored::has_scales_of_rows(rows, count) { rows } else { 1 };
        match self {
            Self::F16 => 16 * count as u64,
            Self::Int8 => (8 * count + 16 * scales) as u64,
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum By {
    Magnitude,
    Sigma,
    Fisher,
    Hessian,
    Obs,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Per {
    Matrix,
    Row,
}

impl Default for Sparse {
    fn default() -> Self {
        Self { fraction: 0.005, by: By::Magnitude, per: Per::Matrix, values: Values::F16, cut: 0.0 }
    }
}

/// Of the mean diagonal of H, added to it where the importance asks for its inverse.
const DAMPING: f32 = 0.01;

impl Sparse {
    fn check(&self) -> Result<()> {
        if !(self.fraction > 0.0 && self.fraction <= 0.5) {
            return Err(Error::input(format!(
                "`residual.fraction` is {}, where more than 0 and at most 0.5 is possible",
                self.fraction
            )));
        }
        if !(self.cut >= 0.0 && self.cut.is_finite()) || (self.cut > 0.0 && self.by != By::Sigma) {
            return Err(Error::input(
                "`residual.cut` is a number of standard deviations, and needs `residual.by=sigma`",
            ));
        }
        Ok(())
    }

    fn count(&self, rows: usize, cols: usize) -> usize {
        match self.per {
            Per::Matrix => (self.fraction * (rows * cols) as f64).round() as usize,
            Per::Row => rows * (self.fraction * cols as f64).round() as usize,
        }
    }

    /// How important each weight is: only the order counts.
    fn importance(&self, job: &ResidualJob<'_>) -> Result<Vec<f32>> {
        let (w, unknown) = (job.weight, || Error::internal("an importance without its statistics"));
        let by_column = |factors: &[f32]| {
            let row = |r| w.row(r).iter().zip(factors).map(|(w, f)| w * w * f).collect::<Vec<f32>>();
            (0..w.rows()).flat_map(row).collect::<Vec<f32>>()
        };
        Ok(match self.by {
            By::Magnitude => w.data().iter().map(|w| w.abs()).collect(),
            By::Sigma => {
                let (mean, deviation) = moments(w);
                w.data().iter().map(|v| ((f64::from(*v) - mean) / deviation).abs() as f32).collect()
            }
            By::Fisher => job.fisher.ok_or_else(unknown)?.data().to_vec(),
            By::Hessian => {
                let h = job.stats.gram.as_ref().ok_or_else(unknown)?;
                by_column(&(0..h.cols()).map(|j| h[(j, j)]).collect::<Vec<f32>>())
            }
            By::Obs => by_column(&inverse_pivots(job)?),
        })
    }
}

/// Mean and standard deviation.
fn moments(w: &Mat) -> (f64, f64) {
    let count = w.data().len().max(1) as f64;
    let mean = w.data().iter().map(|v| f64::from(*v)).sum::<f64>() / count;
    let variance = w.data().iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt().max(f64::MIN_POSITIVE))
}

/// `1 / U[j, j]²` with `(H + λI)⁻¹ = UᵀU` (SparseGPT, section 3.2).
fn inverse_pivots(job: &ResidualJob<'_>) -> Result<Vec<f32>> {
    let h = job.stats.gram.as_ref().ok_or_else(|| Error::internal("an importance without its statistics"))?;
    let n = h.cols();
    let mean = (0..n).map(|j| h[(j, j)]).sum::<f32>() / n as f32;
    let mut damping = DAMPING;
    for _ in 0..12 {
        let mut damped = h.clone();
        (0..n).for_each(|j| damped[(j, j)] = (damped[(j, j)] + damping * mean).max(f32::MIN_POSITIVE));
        if let Ok(u) = upper_inverse_factor(job.team, damped) {
            return Ok((0..n).map(|j| u[(j, j)].powi(-2)).collect());
        }
        damping *= 10.0;
    }
    Err(Error::input("XᵀX cannot be factored, whatever the damping")
        .tensor(job.name)
        .hint("check the calibration text"))
}

impl Residual for Sparse {
    fn beside(&self) -> Beside {
        Beside::Weights
    }

    fn needs(&self) -> Needs {
        let gram = matches!(self.by, By::Hessian | By::Obs);
        Needs { gram, fisher: self.by == By::Fisher, ..Needs::default() }
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        let count = self.count(rows, cols);
        self.values.stored_bits(rows, count) + Stored::expected_gap_bits(rows * cols, count)
    }

    fn scratch_bytes(&self, rows: usize, cols: usize) -> u64 {
        // An importance and a place for each weight; H and its factor.
        (12 * rows * cols + if self.by == By::Obs { 8 * cols * cols } else { 0 }) as u64
    }

    fn flops(&self, rows: usize, cols: usize) -> f64 {
        let factor = if self.by == By::Obs { (cols as f64).powi(3) * 2.0 / 3.0 } else { 0.0 };
        10.0 * (rows * cols) as f64 + factor
    }

    fn fit(&self, job: &ResidualJob<'_>) -> Result<Side> {
        let (rows, cols) = (job.weight.rows(), job.weight.cols());
        let importance = self.importance(job)?;
        let none = Entries::none(rows, cols);
        let mut entries = if self.values == Values::Int8 { none.in_int8() } else { none };
        if self.cut > 0.0 {
            let beyond = importance.iter().enumerate().filter(|(_, d)| f64::from(**d) > self.cut);
            beyond.for_each(|(i, _)| entries.add(i / cols, i % cols));
            return Ok(Side::Keep(Keep::Entries(entries)));
        }
        let (piece, count) = match self.per {
            Per::Matrix => (rows * cols, self.count(rows, cols)),
            Per::Row => (cols, self.count(1, cols)),
        };
        let mut order: Vec<usize> = (0..rows * cols).collect();
        let more = |a: &usize, b: &usize| importance[*b].total_cmp(&importance[*a]).then(a.cmp(b));
        for order in order.chunks_mut(piece) {
            if count < order.len() {
                order.select_nth_unstable_by(count, more);
            }
            order[..count].iter().for_each(|i| entries.add(i / cols, i % cols));
        }
        Ok(Side::Keep(Keep::Entries(entries)))
    }

    fn label(&self) -> String {
        format!("{} % sparse", 100.0 * self.fraction)
    }
}
