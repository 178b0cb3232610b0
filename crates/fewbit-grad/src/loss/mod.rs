//! Losses with their gradients.
//!
//! A loss is a weighted sum over tokens: the caller's weights say what counts and by how much (`1 / tokens` for a mean).
//! Rows are summed in f64, in order.

mod squared;
mod vocabulary;

pub use squared::squared_error;
pub use vocabulary::{cross_entropy, divergence, log_softmax};
