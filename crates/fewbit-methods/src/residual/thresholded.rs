use fewbit_engine::kinds::{Beside, Entry, Keep, Needs, Residual, ResidualJob, Side, parse};
use fewbit_format::{Error, Result, Sparse};
use serde::Deserialize;

use super::sparse::Values;

pub(crate) const ENTRY: Entry<dyn Residual> = Entry {
    name: "thresholded",
    cite: "Behdin et al., QuantEase: Optimization-based Quantization for Language Models, 2023 (arXiv:2309.01885)",
    settings: &[
        ("fraction = 0.01", "share of the weights that stay beside the codes"),
        ("values = \"f16\"", "how they are stored: `f16`, or `int8` with a scale"),
    ],
    build: |table| {
        let thresholded: Thresholded = parse("residual.thresholded", table)?;
        if !(thresholded.fraction > 0.0 && thresholded.fraction < 1.0) {
            return Err(Error::input(format!(
                "`residual.fraction` is {}, where a number between 0 and 1 is needed",
                thresholded.fraction
            )));
        }
        Ok(Box::new(thresholded))
    },
};

/// Weights that the solver chooses in turns with the codes, by iterative hard thresholding (QuantEase, section 4).
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Thresholded {
    fraction: f64,
    values: Values,
}

impl Default for Thresholded {
    fn default() -> Self {
        Self { fraction: 0.01, values: Values::F16 }
    }
}

impl Thresholded {
    fn count(&self, rows: usize, cols: usize) -> usize {
        ((rows * cols) as f64 * self.fraction).round() as usize
    }
}

impl Residual for Thresholded {
    fn beside(&self) -> Beside {
        Beside::ChosenInTurns
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        let count = self.count(rows, cols);
        self.values.stored_bits(rows, count) + Sparse::expected_gap_bits(rows * cols, count)
    }

    fn scratch_bytes(&self, rows: usize, cols: usize) -> u64 {
        // What stays, what it leaves, and magnitudes.
        12 * (rows * cols) as u64
    }

    fn flops(&self, rows: usize, cols: usize) -> f64 {
        // Thirty passes of the solver, each with a product of its own.
        120.0 * rows as f64 * (cols as f64).powi(2)
    }

    fn fit(&self, job: &ResidualJob<'_>) -> Result<Side> {
        let count = self.count(job.weight.rows(), job.weight.cols());
        Ok(Side::Keep(if count == 0 {
            Keep::Nothing
        } else {
            Keep::InTurns { count, is_int8: self.values == Values::Int8 }
        }))
    }

    fn label(&self) -> String {
        format!("{} % of the weights", 100.0 * self.fraction)
    }
}
