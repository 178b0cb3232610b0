//! What the user hears, while the work goes on and after it.

use serde::{Deserialize, Serialize};

use crate::allocate::AllocationReport;
use crate::outputs::Format;

/// Who hears how far the work is.
pub trait Progress {
    /// A stage of `total` steps begins.
    fn begin(&mut self, stage: &'static str, total: u64);
    /// So many of them are done.
    fn at(&mut self, done: u64);
    /// Something that the user should know.
    fn note(&mut self, text: &str);
}

/// One block of the report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BlockReport {
    /// Its linears.
    pub linears: Vec<LinearReport>,
    /// Calibration tokens that each expert of the block got; empty where there are none, or nothing was looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens_per_expert: Vec<usize>,
    /// Warnings.
    pub warnings: Vec<String>,
    /// Mean squared error of the block's output per token, before each `learn` pass and after it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learned: Vec<[f64; 2]>,
    /// Seconds in forwards (statistics and step), without the Gram products.
    #[serde(skip)]
    pub forward_seconds: f64,
    /// Seconds in Gram products.
    #[serde(skip)]
    pub gram_seconds: f64,
    /// Seconds in transforms.
    #[serde(skip)]
    pub transform_seconds: f64,
    /// Seconds in solves.
    #[serde(skip)]
    pub solve_seconds: f64,
    /// Seconds in learning.
    #[serde(skip)]
    pub learn_seconds: f64,
    /// Seconds in packing and writing.
    #[serde(skip)]
    pub write_seconds: f64,
}

/// One linear of the report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinearReport {
    /// Module path.
    pub name: String,
    /// The grid, such as `w4 g128`.
    pub grid: String,
    /// Everything stored ÷ weights.
    pub bits_per_weight: f64,
    /// Mean squared error of the outputs over the calibration tokens, where it is known.
    pub output_mse: Option<f64>,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Report {
    /// Per block, the head last where it was compressed.
    pub blocks: Vec<BlockReport>,
    /// The written format.
    pub format: Format,
    /// How bits were spread, where they were.
    pub allocation: Option<AllocationReport>,
}
