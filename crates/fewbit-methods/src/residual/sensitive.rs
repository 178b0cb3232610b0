use fewbit_engine::kinds::{Beside, Entry, Keep, Needs, Residual, ResidualJob, Side, parse};
use fewbit_format::{Error, Result, Sparse};
use serde::Deserialize;

pub(crate) const ENTRY: Entry<dyn Residual> = Entry {
    name: "sensitive",
    cite: "Dettmers et al., SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression, 2023 (arXiv:2306.03078)",
    settings: &[(
        "threshold = 32.0",
        "a weight stays beside the codes if its error costs more than so many times what the others' cost on average; lower keeps more",
    )],
    build: |table| {
        let sensitive: Sensitive = parse("residual.sensitive", table)?;
        if !(sensitive.threshold.is_finite() && sensitive.threshold > 0.0) {
            return Err(Error::input(format!(
                "`residual.threshold` is {}, where a positive number is needed",
                sensitive.threshold
            )));
        }
        Ok(Box::new(sensitive))
    },
};

/// The 24 bits of a kept weight, spent on finer codes for all, would take `24 ln 4 ≈ 33` times a weight's mean cost away,
/// since a bit for each weight takes three quarters: what costs more is kept with profit, whatever the codes' bits.
const THRESHOLD: f32 = 32.0;

/// Weights that the solver finds too costly to round, at the moment when it would.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Sensitive {
    threshold: f32,
}

impl Default for Sensitive {
    fn default() -> Self {
        Self { threshold: THRESHOLD }
    }
}

impl Residual for Sensitive {
    fn beside(&self) -> Beside {
        Beside::ChosenWhileRounding
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn stored_bits(&self, rows: usize, cols: usize) -> u64 {
        // At the default one in five hundred; twice as many at half the threshold.
        let share = (0.002 * f64::from(THRESHOLD / self.threshold)).min(1.0);
        let count = ((rows * cols) as f64 * share) as usize;
        16 * count as u64 + Sparse::expected_gap_bits(rows * cols, count)
    }

    fn scratch_bytes(&self, _: usize, _: usize) -> u64 {
        0
    }

    fn flops(&self, rows: usize, cols: usize) -> f64 {
        // Parameters of a group are fitted without each of its weights.
        200.0 * (rows * cols) as f64
    }

    fn fit(&self, _: &ResidualJob<'_>) -> Result<Side> {
        Ok(Side::Keep(Keep::Sensitive { threshold: self.threshold }))
    }

    fn label(&self) -> String {
        "sensitive weights".to_owned()
    }
}
