use fewbit_format::{LowRank, Mat, Result};
use fewbit_kernel::Team;

use super::{Keep, Needs};
use crate::stats::InputStats;

/// One linear beside whose codes something is to stand.
#[derive(Clone, Copy)]
pub struct ResidualJob<'a> {
    /// Module path, for messages.
    pub name: &'a str,
    /// The matrix `[out, in]` before any rounding.
    pub weight: &'a Mat,
    /// What the codes lack of it, `W − Ŵ`; all of it before the first rounding.
    pub missing: &'a Mat,
    /// What its input was like.
    pub stats: &'a InputStats,
    /// Squared gradients of the weights, where a pass asked for them.
    pub fisher: Option<&'a Mat>,
    /// Of everything random.
    pub seed: u64,
    /// The threads.
    pub team: &'a Team,
}

/// What is kept beside the codes of a linear.
#[derive(Clone, Debug)]
pub enum Side {
    /// Weights that the next solver takes out of the codes.
    Keep(Keep),
    /// A correction in the place of the one before; what is rounded after it is the rest.
    LowRank(Box<LowRank>),
}

/// What a residual puts beside the codes, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Weights, before the solver.
    Weights,
    /// Weights that the solver is to choose while it rounds.
    ChosenWhileRounding,
    /// Weights that the solver is to choose in turns with the codes.
    ChosenInTurns,
    /// A correction, at any time.
    Correction,
}

/// Chooses what is kept beside the codes: before the solver what it is to leave out, after it what it left.
pub trait Residual: Send + Sync + std::fmt::Debug {
    /// What it puts beside the codes; a recipe in whose order that makes no sense is refused.
    fn beside(&self) -> Beside;

    /// What has to be known about the input.
    fn needs(&self) -> Needs;

    /// Bits that it stores for a matrix `[rows, cols]`; what depends on the weights is estimated.
    fn stored_bits(&self, rows: usize, cols: usize) -> u64;

    /// Bytes that one fit allocates for a matrix `[rows, cols]`, beside the matrix and what it lacks.
    fn scratch_bytes(&self, rows: usize, cols: usize) -> u64;

    /// Floating-point operations for a matrix `[rows, cols]`.
    fn flops(&self, rows: usize, cols: usize) -> f64;

    /// What stands beside this linear's codes.
    ///
    /// # Errors
    /// If the statistics do not allow it.
    fn fit(&self, job: &ResidualJob<'_>) -> Result<Side>;

    /// How a person calls it, such as `rank 8`.
    fn label(&self) -> String;
}
