//! The kinds of pass, and the narrow waist where grids meet solvers.

mod activation;
mod grid;
mod learner;
mod online;
mod registry;
mod residual;
mod rotation;
mod rounder;
mod solver;
mod transform;

pub use activation::{Activation, Edges};
pub use fewbit_export::{GgufMix, MixTensor};
pub use grid::{BoundGrid, Grid, GridJob, LANES, OfTensor, Params, Place, Strip, WeighBy, Weighting};
pub use learner::{Fake, Leaf, LeafJob, Learner};
pub use online::{End, MapJob, OnlineTransform};
pub(crate) use registry::near;
pub use registry::{Description, Entry, Registry, parse};
pub use residual::{Beside, Residual, ResidualJob, Side};
pub use rotation::{Rotation, RotationJob, Space};
pub use rounder::{Entries, Keep, Rounded, Rounder};
pub use solver::{InputJob, InputSolver, LinearJob, Solved, Solver};
pub use transform::{Element, SiteJob, Transform};

/// What a pass has to know about the inputs of linears before it can work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a statement of its own")]
pub struct Needs {
    /// `XᵀX` of the input.
    pub gram: bool,
    /// `mean |x_j|` of the input.
    pub mean_abs: bool,
    /// `mean x_j²` of the input, which the diagonal of `XᵀX` serves for too.
    pub mean_square: bool,
    /// The extremes of each `x_j`.
    pub range: bool,
    /// Squared gradients of the weights, summed over sequences: the whole model is run backward before anything else.
    pub fisher: bool,
}

impl Needs {
    /// What either needs.
    pub fn and(self, other: Self) -> Self {
        Self {
            gram: self.gram || other.gram,
            mean_abs: self.mean_abs || other.mean_abs,
            mean_square: self.mean_square || other.mean_square,
            range: self.range || other.range,
            fisher: self.fisher || other.fisher,
        }
    }

    /// Whether the inputs of linears are looked at.
    pub fn any(self) -> bool {
        self.gram || self.mean_abs || self.mean_square || self.range
    }
}
