//! What gradients improve.

use fewbit_engine::kinds::{Entry, Learner};

mod affine;
mod float;
mod round;

/// `learn.*`
pub(crate) const LEARNERS: &[Entry<dyn Learner>] = &[affine::ENTRY];
