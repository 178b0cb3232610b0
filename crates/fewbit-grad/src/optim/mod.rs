//! Optimizers on flat slices: elementwise, so that a step's result does not depend on the number of threads.
//!
//! One optimizer belongs to one slice of parameters; the rate of a step comes from a [`Schedule`].

mod adamw;
mod clip;
mod schedule;
mod sgd;
mod sign;

pub use adamw::AdamW;
pub use clip::{clip_global_norm, global_norm};
pub use schedule::{Decay, Schedule};
pub use sgd::Sgd;
pub use sign::SignSgd;

use fewbit_kernel::Team;

/// Numbers of one task of a step.
const PIECE: usize = 1 << 14;

/// A rule that moves parameters against their gradient.
pub trait Optimizer {
    /// Step `number` (the first is 1) with learning rate `rate`.
    ///
    /// # Panics
    /// If `parameters` or `gradient` are not of the length that the optimizer was made for.
    fn step(&mut self, team: &Team, number: u64, rate: f32, parameters: &mut [f32], gradient: &[f32]);

    /// What must be kept, beside the number of the step, for training to go on after a stop.
    fn state(&self) -> &[f32];

    /// As [`state`](Self::state), to be put back.
    fn state_mut(&mut self) -> &mut [f32];
}
