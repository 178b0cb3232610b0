//! Memory that a thread keeps between products.

use std::cell::Cell;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// f32 values that begin on a cache line: a vector load that crosses lines costs two.
#[derive(Default)]
pub(crate) struct Aligned(Vec<Line>);

impl Aligned {
    /// `len` values, of any content.
    pub(crate) fn take(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            // A fresh vector rather than a longer one: what is in it need not be copied.
            self.0 = vec![Line([0.0; 16]); lines];
        }
        // SAFETY: `Line` is sixteen f32 without padding, and `len` of them lie in the vector.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast::<f32>(), len) }
    }
}

/// What one product needs on a thread.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The left operand, rearranged (on the thread that called).
    pub(crate) left: Aligned,
    /// One stripe of the right operand, rearranged.
    pub(crate) right: Aligned,
    /// One stripe of the result.
    pub(crate) result: Aligned,
    /// Decoded rows.
    pub(crate) rows: Aligned,
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
