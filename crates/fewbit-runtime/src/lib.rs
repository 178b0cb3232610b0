//! The graph's interpreter: dense or packed weights, whole batches or one token at a time, with hooks on any edge.
//!
//! Calibration, evaluation and generation are the same code: a [`Layer`] runs one graph over a [`Batch`] of sequences;
//! a [`Runtime`] runs a whole model; [`Generation`] samples from it.

mod batch;
mod cache;
mod cost;
mod distribution;
mod generate;
mod hooks;
pub mod language;
mod layer;
mod reader;
mod routing;
mod rowwise;
mod runtime;
mod sample;
mod seen;
mod speculate;
mod steps;

pub use batch::{Batch, Span};
pub use cache::{LayerCache, ModelCache};
pub use cost::Linears;
pub use distribution::Distribution;
pub use fewbit_kernel::linear::Arithmetic;
pub use generate::{Finish, Generated, Generation, Limits};
pub use hooks::{Hooks, NoHooks};
pub use layer::{Layer, Rotations, Workspace, add_positions};
pub use reader::PROMPT_CHUNK;
pub use routing::Dispatched;
pub use rowwise::{fit_heads, run_rowwise};
pub use runtime::{Runtime, check_ids, embed};
pub use sample::{Sampler, Sampling};
pub use seen::Seen;
pub use speculate::{DraftLength, Drafter, Drafts};
pub use steps::kept_between;
