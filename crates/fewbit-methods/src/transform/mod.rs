//! Which equivalent model is easier to round.

use fewbit_engine::kinds::{Entry, OnlineTransform, Rotation, Transform};

mod fence;
mod hadamard;
mod incoherence;
mod rotate;
mod scale;
mod smooth;

/// `transform.*` that work on sites of a block.
pub(crate) const TRANSFORMS: &[Entry<dyn Transform>] = &[scale::ENTRY, smooth::ENTRY, fence::ENTRY];

/// `transform.*` that work on the whole model.
pub(crate) const ROTATIONS: &[Entry<dyn Rotation>] = &[rotate::ENTRY];

/// `transform.*` that run with the model.
pub(crate) const ONLINES: &[Entry<dyn OnlineTransform>] = &[incoherence::ENTRY, hadamard::ENTRY];
