use fewbit_format::{Mat, Result};
use fewbit_graph::{Symmetry, Tied};
use fewbit_kernel::Team;

use super::{Grid, Needs};
use crate::stats::InputStats;

/// A map of a site's value: `x' = x M`.
#[derive(Clone, Debug, PartialEq)]
pub enum Element {
    /// `x'[j] = x[order[j]]`.
    Permutation(Vec<usize>),
    /// `x'[j] = x[j] · factors[j]`.
    Diagonal(Vec<f32>),
    /// `x'[j] = x[j] + offsets[j]`.
    Shift(Vec<f32>),
    /// `x' = x M`, with `M` and its inverse.
    Matrix {
        /// `[dim, dim]`, or one `[head, head]` block per head.
        blocks: Vec<Mat>,
        /// Their inverses.
        inverses: Vec<Mat>,
    },
}

/// One site of a block, with what a transform may look at.
pub struct SiteJob<'a> {
    /// Name of the value, for messages.
    pub name: &'a str,
    /// The weights `[out, in]` that read the value, in the graph's order.
    pub weights: Vec<&'a Mat>,
    /// The grid of each.
    pub grids: Vec<&'a dyn Grid>,
    /// What the value was like.
    pub stats: &'a InputStats,
    /// How the element is tied.
    pub tied: Tied,
    /// The threads.
    pub team: &'a Team,
}

/// Chooses an equivalent model that is easier to round; the engine folds what was chosen.
pub trait Transform: Send + Sync + std::fmt::Debug {
    /// What has to be known about the value.
    fn needs(&self) -> Needs;

    /// The symmetry of its elements: sites that do not have it are passed over.
    fn symmetry(&self) -> Symmetry;

    /// Floating-point operations for a site whose readers are `[rows, cols]`.
    fn flops(&self, rows: usize, cols: usize) -> f64;

    /// The element for one site, or `None` to leave it.
    ///
    /// # Errors
    /// If the grid cannot represent a candidate.
    fn choose(&self, job: &SiteJob<'_>) -> Result<Option<Element>>;
}
