use fewbit_format::{Mat, Result, Sparse, Storage};
use fewbit_kernel::Team;

use super::{Beside, BoundGrid, Grid, Keep, Needs};
use crate::stats::InputStats;

/// What linears that read one value have in common.
#[derive(Clone, Copy)]
pub struct InputJob<'a> {
    /// Module path of the first of them, for messages.
    pub name: &'a str,
    /// What the value was like.
    pub stats: &'a InputStats,
    /// The threads.
    pub team: &'a Team,
}

/// One linear to compress.
pub struct LinearJob<'a> {
    /// Module path, for messages.
    pub name: &'a str,
    /// `[out, in]`.
    pub weight: &'a Mat,
    /// Which numbers can be stored.
    pub grid: &'a dyn Grid,
    /// Which weights stay beside the codes.
    pub keep: &'a Keep,
    /// Squared gradients of the weights, where a pass asked for them.
    pub fisher: Option<&'a Mat>,
    /// Of everything random.
    pub seed: u64,
}

/// A compressed linear.
#[derive(Debug)]
pub struct Solved {
    /// Its stored form.
    pub storage: Storage,
    /// The weights that stay beside the codes.
    pub sparse: Option<Sparse>,
    /// Mean squared error of the outputs over the calibration tokens, `tr(Δ H Δᵀ) / (tokens · out)`, where it is known.
    pub output_mse: Option<f64>,
    /// What the user should hear, such as a raised damping.
    pub warning: Option<String>,
}

/// Decides which grid point stands for which weight.
///
/// The engine calls `begin` once per input, after every transform and with the statistics that `needs` asked for, and
/// `solve` for each linear that reads it: what depends on the input alone, such as a factorization, is made once.
pub trait Solver: Send + Sync + std::fmt::Debug {
    /// What has to be known about the inputs.
    fn needs(&self) -> Needs;

    /// How it can choose which weights stay beside the codes, if it can: [`Beside::ChosenWhileRounding`] is
    /// [`Keep::Sensitive`], [`Beside::ChosenInTurns`] is [`Keep::InTurns`].
    fn chooses_kept(&self) -> Option<Beside> {
        None
    }

    /// Whether it can round to a grid, and choose what stays beside its codes where it is asked to.
    ///
    /// # Errors
    /// If it cannot.
    fn check(&self, _grid: &dyn BoundGrid, _beside: Option<Beside>) -> Result<()> {
        Ok(())
    }

    /// Bytes that one solve allocates for a matrix `[rows, cols]`, beside the matrix and its statistics.
    fn scratch_bytes(&self, rows: usize, cols: usize) -> u64;

    /// Floating-point operations for an input of `cols` columns, without the linears that read it.
    fn input_flops(&self, cols: usize) -> f64;

    /// Floating-point operations of one solve.
    fn flops(&self, rows: usize, cols: usize) -> f64;

    /// Prepares for the linears that read one value.
    ///
    /// # Errors
    /// If the statistics do not allow it.
    fn begin<'a>(&'a self, input: InputJob<'a>) -> Result<Box<dyn InputSolver + 'a>>;
}

/// A solver that knows its input.
pub trait InputSolver {
    /// Compresses one linear.
    ///
    /// # Errors
    /// If the grid cannot represent the matrix.
    fn solve(&self, job: &LinearJob<'_>) -> Result<Solved>;
}
