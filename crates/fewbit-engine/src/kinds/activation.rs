use fewbit_format::{ActivationFormat, ActivationGrid, Result};

use super::Needs;
use crate::stats::InputStats;

/// What is rounded while the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edges {
    /// The inputs of the linears that are compressed.
    Inputs,
    /// Keys and values, before they are remembered.
    Cache,
}

/// Says how values are rounded while the model runs, and finds the numbers that are stored for it.
///
/// The engine calls `format` once for each input or cache, with the statistics that `needs` asked for, after every
/// transform.
pub trait Activation: Send + Sync + std::fmt::Debug {
    /// What has to be known about the values.
    fn needs(&self) -> Needs;

    /// Which values.
    fn edges(&self) -> Edges;

    /// To which numbers.
    fn grid(&self) -> ActivationGrid;

    /// Share of the greatest magnitude that is kept.
    fn clip(&self) -> f32 {
        1.0
    }

    /// The format of one input or cache.
    ///
    /// # Errors
    /// If the statistics do not allow it.
    fn format(&self, stats: &InputStats) -> Result<ActivationFormat>;
}
