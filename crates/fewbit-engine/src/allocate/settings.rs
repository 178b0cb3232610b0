use fewbit_format::{Error, Result};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::Changes;

/// How many bits each linear gets: `[allocate]` of a recipe.
///
/// Every linear is rounded with each candidate as the recipe rounds it, all else original; what that costs is measured,
/// and of all assignments within the budget the one with the least sum of costs is taken.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AllocateSettings {
    /// Most bits per weight of the compressed linears, everything stored.
    pub bits: f64,
    /// Settings of the grid among which each unit has its choice.
    pub candidates: Vec<Table>,
    /// What a candidate costs.
    pub sensitivity: Sensitivity,
    /// What is chosen alike.
    pub granularity: Granularity,
    /// Sequences of the calibration text that costs are measured on.
    pub samples: usize,
}

/// What rounding one linear costs. `Δ = Ŵ − W`; all but `error` estimate the mean KL divergence per token.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Sensitivity {
    /// Measured: `KL(original ‖ original with this linear rounded)` at the logits, mean over tokens (ZeroQ, 2020, eq. 3).
    #[default]
    Kl,
    /// `½ Σ F ⊙ Δ² / tokens`, `F = Σ_sequences (∂ℒ/∂W)²` of the text's own next tokens, a gradient for each sequence
    /// (LQ-LoRA, 2023).
    Fisher,
    /// `½ (Tr F / n) ‖Δ‖² / tokens` (HAWQ-V2, 2019): `F` as in `fisher`, but for tokens that the model draws, whose
    /// expectation is the Gauss-Newton Hessian of the loss.
    Trace,
    /// Of each row: `Σ_sequences |d + ½ d²|` with `d = Σ_j G_j Δ_j` and `G` the gradient of a sequence's mean loss: the first
    /// two terms of what the row's rounding changes, errors within a row cancelling (MixLLM, 2024, equation 4).
    Taylor,
    /// The output's error as a share of the output, `tr(Δ H Δᵀ) / tr(W H Wᵀ)`: needs no gradients and one block alone.
    Error,
}

/// What is chosen alike.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// Each linear by itself (those that share a tensor together).
    #[default]
    Matrix,
    /// All linears of a block.
    Block,
    /// Each row of each linear, between two candidates.
    Row,
}

impl Sensitivity {
    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kl => "kl",
            Self::Fisher => "fisher",
            Self::Trace => "trace",
            Self::Taylor => "taylor",
            Self::Error => "error",
        }
    }

    /// Whether it needs gradients.
    pub(crate) fn is_backward(self) -> bool {
        matches!(self, Self::Fisher | Self::Trace | Self::Taylor)
    }
}

impl Default for AllocateSettings {
    fn default() -> Self {
        let bits = |b: i64| Table::from_iter([("bits".to_owned(), Value::Integer(b))]);
        Self {
            bits: 4.0,
            candidates: [2, 3, 4, 8].map(bits).to_vec(),
            sensitivity: Sensitivity::default(),
            granularity: Granularity::default(),
            samples: 16,
        }
    }
}

impl AllocateSettings {
    /// Settings for people: `name = default`, and what it means.
    pub const SETTINGS: &[(&str, &str)] = &[
        ("bits = 4.0", "most bits per weight of the compressed linears, everything stored"),
        ("candidates = [{bits=2},{bits=3},{bits=4},{bits=8}]", "settings of the grid among which is chosen"),
        (
            "sensitivity = \"kl\"",
            "cost of a candidate: `kl` (measured at the logits), `fisher` (gradients² times errors²), `trace` (HAWQ-V2: mean trace of the Hessian), `error` (share of the linear's output), `taylor` (of rows: gradients times errors, MixLLM)",
        ),
        ("granularity = \"matrix\"", "what is chosen alike: `matrix`, `block`, or `row` (between two candidates)"),
        ("samples = 16", "sequences of the calibration text that costs are measured on"),
    ];

    pub(crate) fn check(&self) -> Result<()> {
        if !(self.bits.is_finite() && self.bits > 0.0) {
            let error = Error::input(format!("`allocate.bits` is {}, where a positive number is needed", self.bits));
            return Err(error);
        }
        if self.candidates.is_empty() || self.candidates.len() > 256 {
            let count = self.candidates.len();
            return Err(Error::input(format!(
                "`allocate.candidates` has {count} entries, where 1 to 256 are possible"
            ))
            .hint("such as `allocate.candidates=[{bits=2},{bits=4}]`"));
        }
        let is_row = self.granularity == Granularity::Row;
        if is_row != (self.sensitivity == Sensitivity::Taylor) {
            return Err(Error::input("`allocate.sensitivity = \"taylor\"` is for rows, and rows are for it")
                .hint("set `allocate.granularity=row` too, or another sensitivity"));
        }
        if is_row && self.candidates.len() != 2 {
            let count = self.candidates.len();
            return Err(Error::input(format!(
                "`allocate.candidates` has {count} entries, where rows choose between 2"
            ))
            .hint("such as `allocate.candidates=[{bits=4},{bits=8}]`"));
        }
        if self.samples == 0 {
            return Err(Error::input("`allocate.samples` is 0, where a positive number is needed"));
        }
        Ok(())
    }

    /// The keys that each candidate sets.
    pub(crate) fn changes(&self) -> impl Iterator<Item = Changes> {
        self.candidates.iter().map(|c| c.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}
