//! Which grid point stands for which weight.

use fewbit_engine::kinds::{Entry, Solver};

mod gptq;
mod nearest;
mod quantease;
mod sensitive;
mod thresholding;

pub(crate) use nearest::round_all;

/// `solve.*`
pub(crate) const SOLVERS: &[Entry<dyn Solver>] = &[nearest::ENTRY, gptq::ENTRY, quantease::ENTRY];
