//! Which equivalent model is easier to round.

use fewbit_engine::kinds::{Entry, Transform};

mod scale;

/// `transform.*`
pub(crate) const TRANSFORMS: &[Entry<dyn Transform>] = &[scale::ENTRY];
