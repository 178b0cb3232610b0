//! What is kept beside the codes.

use fewbit_engine::kinds::{Entry, Residual};

mod lowrank;
mod sensitive;
mod sparse;
mod thresholded;

/// `residual.*`
pub(crate) const RESIDUALS: &[Entry<dyn Residual>] =
    &[sparse::ENTRY, lowrank::ENTRY, sensitive::ENTRY, thresholded::ENTRY];
