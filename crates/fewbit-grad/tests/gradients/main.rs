//! Gradients of each operation and of a block of every family, against central differences in f64.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "what fails here fails the test, which says what it saw")]

mod blocks;
mod check;
mod edges;
mod inputs;
mod models;
mod operations;
mod training;
mod twin;
