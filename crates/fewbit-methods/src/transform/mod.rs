//! Which equivalent model is easier to round.

use fewbit_engine::kinds::{Entry, Rotation, Transform};

mod rotate;
mod scale;

/// `transform.*` that work on sites of a block.
pub(crate) const TRANSFORMS: &[Entry<dyn Transform>] = &[scale::ENTRY];

/// `transform.*` that work on the whole model.
pub(crate) const ROTATIONS: &[Entry<dyn Rotation>] = &[rotate::ENTRY];
