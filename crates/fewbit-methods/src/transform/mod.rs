//! Which equivalent model is easier to round.

use fewbit_engine::kinds::{Entry, OnlineTransform, Rotation, Transform};
use fewbit_format::{Error, Result};
use fewbit_kernel::hadamard::Hadamard;

mod fence;
mod hadamard;
mod incoherence;
mod rotate;
mod scale;
mod smooth;

/// `transform.*` that work on sites of a block.
pub(crate) const TRANSFORMS: &[Entry<dyn Transform>] = &[scale::ENTRY, smooth::ENTRY, fence::ENTRY];

/// `transform.*` that work on the whole model.
pub(crate) const ROTATIONS: &[Entry<dyn Rotation>] = &[rotate::ENTRY];

/// `transform.*` that run with the model.
pub(crate) const ONLINES: &[Entry<dyn OnlineTransform>] = &[incoherence::ENTRY, hadamard::ENTRY];

/// The setting that members share.
const BLOCK: (&str, &str) =
    ("block = 0", "values that a Hadamard matrix mixes; 0: the greatest known order that divides the row");

/// Refuses blocks without a matrix.
fn check_block(block: usize) -> Result<()> {
    if block > 0 && Hadamard::of_order(block).is_none() {
        let reason = format!("`transform.block` is {block}, an order without a Hadamard matrix");
        return Err(Error::input(reason).hint("powers of two have one"));
    }
    Ok(())
}

/// The matrix of a block, where it divides the row; else that of the greatest known order that does.
fn matrix(dim: usize, block: usize) -> Hadamard {
    let of_block = Hadamard::of_order(block).filter(|h| dim.is_multiple_of(h.order()));
    of_block.unwrap_or_else(|| Hadamard::of_greatest_order(dim))
}
