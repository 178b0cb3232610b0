//! Copies that pass the caches by: results that no cache holds would be read into one only to be written over, and push
//! out what is read next.

#[cfg(target_arch = "x86_64")]
use crate::aligned::LINE_BYTES;

/// Bytes of a result from which on no cache keeps it until it is read.
pub(crate) const LARGE: usize = 1 << 20;

/// Copies `from` to `to`, past the caches where both are whole cache lines. Other threads see it after a [`fence`].
///
/// # Panics
/// If they differ in length.
pub(crate) fn copy(from: &[f32], to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if to.as_ptr().addr().is_multiple_of(LINE_BYTES)
        && from.len() == to.len()
        && size_of_val(to).is_multiple_of(LINE_BYTES)
    {
        use std::arch::x86_64::{_mm_loadu_ps, _mm_stream_ps};
        for (from, to) in from.as_chunks::<4>().0.iter().zip(to.as_chunks_mut::<4>().0) {
            // SAFETY: four numbers each; `to` begins on a line, and so all of these at sixteen bytes.
            unsafe { _mm_stream_ps(to.as_mut_ptr(), _mm_loadu_ps(from.as_ptr())) };
        }
        return;
    }
    to.copy_from_slice(from);
}

/// Puts what was copied before what this thread does next.
pub(crate) fn fence() {
    // SAFETY: every such machine has the instruction.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aligned::Aligned;

    #[test]
    fn copies_whole_lines_and_parts_of_them() {
        let from: Vec<f32> = (0..64).map(|i| i as f32).collect();
        for (at, len) in [(0, 48), (16, 16), (0, 17), (3, 32), (5, 0)] {
            let mut to = Aligned::<f32>::zeros(64);
            copy(&from[at..at + len], &mut to.as_mut_slice()[at..at + len]);
            fence();
            let is_copied = |i: usize| (at..at + len).contains(&i);
            assert!(to.as_slice().iter().enumerate().all(|(i, v)| *v == if is_copied(i) { i as f32 } else { 0.0 }));
        }
    }
}
