//! Memory that a thread keeps between products.

use std::cell::Cell;

use crate::aligned::Aligned;

/// What one product needs on a thread.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The left operand, rearranged (on the thread that called).
    pub(crate) left: Aligned<f32>,
    /// One stripe of the right operand, rearranged.
    pub(crate) right: Aligned<f32>,
    /// One stripe of the result.
    pub(crate) result: Aligned<f32>,
    /// Decoded rows.
    pub(crate) rows: Aligned<f32>,
}

thread_local! {
    static KEPT: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Calls `work` with this thread's scratch; a nested call gets one of its own.
pub(crate) fn with<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut scratch = KEPT.take().unwrap_or_default();
    let result = work(&mut scratch);
    KEPT.set(Some(scratch));
    result
}
