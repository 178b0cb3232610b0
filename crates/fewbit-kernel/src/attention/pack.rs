use std::ops::Range;

use super::pages::PAGE;
use crate::lanes::Simd;

/// Writes the keys `block` of one head as columns of `packed [padded, PAGE]`, zeros where there are none.
#[inline(always)]
pub(super) fn pack_transposed<S: Simd>(
    s: S,
    keys: &[f32],
    stride: usize,
    column: usize,
    block: &Range<usize>,
    dim: usize,
    packed: &mut [f32],
) {
    let mut square = [0.0; 16 * 16];
    for j in (0..PAGE).step_by(S::LANES) {
        for d in (0..dim).step_by(S::LANES) {
            let to = &mut packed[d * PAGE + j..][..(S::LANES - 1) * PAGE + S::LANES];
            let whole = block.start + j + S::LANES <= block.end && d + S::LANES <= dim;
            let (from, stride) = if whole {
                let at = (block.start + j) * stride + column + d;
                (&keys[at..][..(S::LANES - 1) * stride + S::LANES], stride)
            } else {
                for (i, to) in square.chunks_exact_mut(S::LANES).take(S::LANES).enumerate() {
                    let key = block.start + j + i;
                    let width = if key < block.end { S::LANES.min(dim - d) } else { 0 };
                    // A key that is not there has no place either.
                    let at = if width > 0 { key * stride + column + d } else { 0 };
                    s.store(to, s.load_partial(&keys[at..at + width]));
                }
                (&square[..S::LANES * S::LANES], S::LANES)
            };
            // SAFETY: both slices hold LANES rows of LANES values at their strides.
            unsafe { s.transpose_at(from.as_ptr(), stride, to.as_mut_ptr(), PAGE) };
        }
    }
}
