//! Which numbers can be stored.

use fewbit_engine::kinds::{Entry, Grid};

mod int;

/// `grid.*`
pub(crate) const GRIDS: &[Entry<dyn Grid>] = &[int::ENTRY];
