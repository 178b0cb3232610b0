//! How good a model still is: perplexity and bits per byte of a text, divergence to the original, intervals, true bits.
//!
//! [`windows`] cuts a text by a [`Protocol`]; [`evaluate`] runs a model over the windows, beside its [`Original`] where
//! one is given; [`bits_per_weight`] counts what a checkpoint stores.

mod bits;
mod bootstrap;
mod cache;
mod evaluate;
mod forward;
mod likelihood;
mod original;
mod recording;
mod row;
mod text;
mod windows;

pub use bits::{Bits, bits_per_weight, stored_tensors};
pub use bootstrap::{Interval, intervals, quantile};
pub use cache::Cache;
pub use evaluate::{Divergence, Measured, WindowSums, evaluate};
pub use likelihood::{ChoiceScore, choice_logprobs, token_logprobs};
pub use original::Original;
pub use text::read_text;
pub use windows::{Protocol, Window, Windows, documents, windows};
