use fewbit_format::{Mat, Result, Storage};
use fewbit_kernel::Team;

use super::{Grid, Needs};
use crate::stats::InputStats;

/// One linear to compress.
pub struct LinearJob<'a> {
    /// Module path, for messages.
    pub name: &'a str,
    /// `[out, in]`.
    pub weight: &'a Mat,
    /// What the linear's inputs were like.
    pub stats: &'a InputStats,
    /// Which numbers can be stored.
    pub grid: &'a dyn Grid,
    /// The threads.
    pub team: &'a Team,
}

/// A compressed linear.
#[derive(Debug)]
pub struct Solved {
    /// Its stored form.
    pub storage: Storage,
    /// Mean squared error of the outputs over the calibration tokens, `tr(Δ H Δᵀ) / (tokens · out)`, where it is known.
    pub output_mse: Option<f64>,
    /// What the user should hear, such as a raised damping.
    pub warning: Option<String>,
}

/// Decides which grid point stands for which weight.
///
/// The engine calls `solve` once per linear, after every transform and with the statistics that `needs` asked for.
pub trait Solver: Send + Sync + std::fmt::Debug {
    /// What has to be known about the inputs.
    fn needs(&self) -> Needs;

    /// Bytes that one solve allocates for a matrix `[rows, cols]`, beside the matrix and its statistics.
    fn scratch_bytes(&self, rows: usize, cols: usize) -> u64;

    /// Floating-point operations of one solve.
    fn flops(&self, rows: usize, cols: usize) -> f64;

    /// Compresses one linear.
    ///
    /// # Errors
    /// If the grid cannot represent the matrix.
    fn solve(&self, job: &LinearJob<'_>) -> Result<Solved>;
}
