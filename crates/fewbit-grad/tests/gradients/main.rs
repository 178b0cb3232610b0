//! Gradients of each operation and of a block of every family, against central differences in f64.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

mod blocks;
mod check;
mod operations;
mod twin;
