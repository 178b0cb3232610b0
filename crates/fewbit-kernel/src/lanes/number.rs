use half::f16;

use super::Simd;

/// A number as it lies in memory, from which vectors of f32 are loaded: f32 or f16, so that any bits are one.
pub(crate) trait Number: Copy + Default + Send + Sync + 'static {
    /// `LANES` numbers as f32.
    ///
    /// # Safety
    /// They can be read at `x`.
    unsafe fn load_at<S: Simd>(s: S, x: *const Self) -> S::V;

    /// The lanes of `v`, rounded, in front of what is none.
    fn lanes<S: Simd>(s: S, v: S::V) -> [Self; 16];
}

impl Number for f32 {
    #[inline(always)]
    unsafe fn load_at<S: Simd>(s: S, x: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_at(x) }
    }

    #[inline(always)]
    fn lanes<S: Simd>(s: S, v: S::V) -> [Self; 16] {
        let mut lanes = [0.0; 16];
        s.store(&mut lanes, v);
        lanes
    }
}

impl Number for f16 {
    #[inline(always)]
    unsafe fn load_at<S: Simd>(s: S, x: *const Self) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_half_at(x) }
    }

    #[inline(always)]
    fn lanes<S: Simd>(s: S, v: S::V) -> [Self; 16] {
        let mut lanes = [f16::ZERO; 16];
        // SAFETY: no instruction set has more than sixteen lanes.
        unsafe { s.store_half_at(lanes.as_mut_ptr(), v) };
        lanes
    }
}
