//! Vectors of f32 as one trait: a kernel is written once and compiled for each instruction set.
//!
//! A value of an implementing type is a token: it exists only where its instruction set does, so the operations
//! on it are safe. [`Portable`] is the scalar twin. Bodies are `#[inline(always)]` and end up in the
//! `#[target_feature]` functions that [`vectorised!`] writes; a closure in them needs the attribute too.

use half::f16;

mod number;
#[cfg(target_arch = "x86_64")]
mod x86;
pub(crate) use number::Number;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// Operations on vectors of [`LANES`](Simd::LANES) f32.
pub(crate) trait Simd: Copy {
    /// Values per vector.
    const LANES: usize;
    /// A vector.
    type V: Copy;
    /// A choice per lane.
    type Mask: Copy;
    /// As many f64.
    type Wide: Copy;

    fn splat(self, x: f32) -> Self::V;
    /// The first `LANES` values of `x`, which must be there.
    fn load(self, x: &[f32]) -> Self::V;
    /// All of `x`, at most `LANES` values, then zeros.
    fn load_partial(self, x: &[f32]) -> Self::V;
    fn store(self, x: &mut [f32], v: Self::V);
    /// As many lanes as `x` has room for, at most `LANES`.
    fn store_partial(self, x: &mut [f32], v: Self::V);
    /// # Safety
    /// `LANES` values can be read at `x`.
    unsafe fn load_at(self, x: *const f32) -> Self::V;
    /// # Safety
    /// `LANES` values can be written at `x`.
    unsafe fn store_at(self, x: *mut f32, v: Self::V);
    /// # Safety
    /// `LANES` values can be read at `x`.
    unsafe fn load_half_at(self, x: *const f16) -> Self::V;
    /// Rounds to nearest, ties to even; what is too large becomes infinite.
    ///
    /// # Safety
    /// `LANES` values can be written at `x`.
    unsafe fn store_half_at(self, x: *mut f16, v: Self::V);
    /// Fetches the line of `x` into the nearest cache, if there is such an address.
    fn prefetch<T>(self, x: *const T);
    /// Writes the transpose of the `LANES × LANES` values at `from` to `to`.
    ///
    /// # Safety
    /// `LANES` rows, `from_stride` apart, can be read at `from`; as many, `to_stride` apart, can be written at `to`.
    unsafe fn transpose_at(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`, rounded once where the instruction set can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The greater; `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The lesser; `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    /// The magnitude of `a` with the sign of `b`.
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · 2ⁿ` for integers `n` in `-252..=252`.
    fn scale_by_power(self, a: Self::V, n: Self::V) -> Self::V;
    /// `a < b`.
    fn less(self, a: Self::V, b: Self::V) -> Self::Mask;
    fn select(self, mask: Self::Mask, yes: Self::V, no: Self::V) -> Self::V;
    /// The lanes of both in turn: those that come first, and the others.
    fn interleave(self, a: Self::V, b: Self::V) -> [Self::V; 2];
    /// Sum of the lanes in a fixed order.
    fn sum(self, a: Self::V) -> f32;
    /// Greatest lane.
    fn greatest(self, a: Self::V) -> f32;

    fn wide_zero(self) -> Self::Wide;
    fn wide_add(self, sum: Self::Wide, v: Self::V) -> Self::Wide;
    /// Sum of the lanes in a fixed order.
    fn wide_sum(self, sum: Self::Wide) -> f64;
}

/// The level for the kernels called from this thread.
#[cfg(target_arch = "x86_64")]
pub(crate) fn level() -> crate::Level {
    #[cfg(test)]
    if let Some(level) = tests::FORCED.get() {
        return level;
    }
    crate::cpu::detect()
}

/// Writes a function that runs a generic body at the best level of this machine.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $body:path) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::lanes::{Avx2, Avx512};

                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
                fn avx512($($arg: $type),*) $(-> $result)? {
                    // SAFETY: this function runs only where the level was detected.
                    $body(unsafe { Avx512::new() }, $($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $type),*) $(-> $result)? {
                    // SAFETY: this function runs only where the level was detected.
                    $body(unsafe { Avx2::new() }, $($arg),*)
                }
                match $crate::lanes::level() {
                    // SAFETY: the level was detected.
                    $crate::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: the level was detected.
                    $crate::Level::Avx2 | $crate::Level::AvxVnni => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            $body($crate::lanes::Portable, $($arg),*)
        }
    };
}
pub(crate) use vectorised;

/// Plain Rust on eight lanes: the scalar twin.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const PORTABLE_LANES: usize = 8;
type Lanes = [f32; PORTABLE_LANES];

#[inline(always)]
fn lanewise(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(
        #[inline(always)]
        |i| f(a[i], b[i]),
    )
}

impl Simd for Portable {
    const LANES: usize = PORTABLE_LANES;
    type V = Lanes;
    type Mask = [bool; PORTABLE_LANES];
    type Wide = [f64; PORTABLE_LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; PORTABLE_LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> Lanes {
        std::array::from_fn(|i| x[i])
    }

    #[inline(always)]
    fn load_partial(self, x: &[f32]) -> Lanes {
        std::array::from_fn(|i| x.get(i).copied().unwrap_or(0.0))
    }

    #[inline(always)]
    fn store(self, x: &mut [f32], v: Lanes) {
        x[..PORTABLE_LANES].copy_from_slice(&v);
    }

    #[inline(always)]
    fn store_partial(self, x: &mut [f32], v: Lanes) {
        x.copy_from_slice(&v[..x.len()]);
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> Lanes {
        // SAFETY: the caller's promise; f32 arrays have the alignment of f32.
        unsafe { x.cast::<Lanes>().read() }
    }

    #[inline(always)]
    unsafe fn store_at(self, x: *mut f32, v: Lanes) {
        // SAFETY: the caller's promise; f32 arrays have the alignment of f32.
        unsafe { x.cast::<Lanes>().write(v) }
    }

    #[inline(always)]
    unsafe fn load_half_at(self, x: *const f16) -> Lanes {
        // SAFETY: the caller's promise; f16 arrays have the alignment of f16.
        unsafe { x.cast::<[f16; PORTABLE_LANES]>().read() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn store_half_at(self, x: *mut f16, v: Lanes) {
        // SAFETY: the caller's promise; f16 arrays have the alignment of f16.
        unsafe { x.cast::<[f16; PORTABLE_LANES]>().write(v.map(f16::from_f32)) }
    }

    #[inline(always)]
    fn prefetch<T>(self, _: *const T) {}

    #[inline(always)]
    unsafe fn transpose_at(self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for r in 0..PORTABLE_LANES {
            for c in 0..PORTABLE_LANES {
                // SAFETY: the caller's promise.
                unsafe { *to.add(c * to_stride + r) = *from.add(r * from_stride + c) };
            }
        }
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        lanewise(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        lanewise(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        lanewise(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        lanewise(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        // Where plain Rust has an instruction for it.
        if cfg!(target_arch = "aarch64") {
            return std::array::from_fn(|i| a[i].mul_add(b[i], c[i]));
        }
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        lanewise(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        lanewise(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn abs(self, a: Lanes) -> Lanes {
        a.map(f32::abs)
    }

    #[inline(always)]
    fn copysign(self, a: Lanes, b: Lanes) -> Lanes {
        lanewise(a, b, f32::copysign)
    }

    #[inline(always)]
    fn scale_by_power(self, a: Lanes, n: Lanes) -> Lanes {
        // In two steps, since 2ⁿ alone may not be a normal number.
        lanewise(a, n, |a, n| {
            let half = n as i32 >> 1;
            let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
            a * power(half) * power(n as i32 - half)
        })
    }

    #[inline(always)]
    fn less(self, a: Lanes, b: Lanes) -> Self::Mask {
        std::array::from_fn(|i| a[i] < b[i])
    }

    #[inline(always)]
    fn select(self, mask: Self::Mask, yes: Lanes, no: Lanes) -> Lanes {
        std::array::from_fn(|i| if mask[i] { yes[i] } else { no[i] })
    }

    #[inline(always)]
    fn interleave(self, a: Lanes, b: Lanes) -> [Lanes; 2] {
        let half = PORTABLE_LANES / 2;
        [0, half].map(
            #[inline(always)]
            |first| std::array::from_fn(|i| if i % 2 == 0 { a[first + i / 2] } else { b[first + i / 2] }),
        )
    }

    #[inline(always)]
    fn sum(self, a: Lanes) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }

    #[inline(always)]
    fn greatest(self, a: Lanes) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn wide_zero(self) -> Self::Wide {
        [0.0; PORTABLE_LANES]
    }

    #[inline(always)]
    fn wide_add(self, sum: Self::Wide, v: Lanes) -> Self::Wide {
        std::array::from_fn(|i| sum[i] + f64::from(v[i]))
    }

    #[inline(always)]
    fn wide_sum(self, a: Self::Wide) -> f64 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::Level;

    thread_local! {
        pub(super) static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
    }

    /// Runs `f` at each level of this machine.
    pub(crate) fn at_every_level(f: impl Fn(Level)) {
        for level in Level::of_machine() {
            FORCED.set(Some(level));
            f(level);
        }
        FORCED.set(None);
    }

    vectorised! {
        fn transpose(from: &[f32], to: &mut [f32]) -> usize = transpose_lanes
    }

    #[inline(always)]
    fn transpose_lanes<S: Simd>(s: S, from: &[f32], to: &mut [f32]) -> usize {
        // SAFETY: both hold 20 × 20 values, more than any number of lanes.
        unsafe { s.transpose_at(from.as_ptr(), 20, to.as_mut_ptr(), 20) };
        S::LANES
    }

    #[test]
    fn tiles_transpose() {
        at_every_level(|level| {
            let from: Vec<f32> = (0..400).map(|i| i as f32).collect();
            let mut to = vec![-1.0; 400];
            let lanes = transpose(&from, &mut to);
            for r in 0..20 {
                for c in 0..20 {
                    let want = if r < lanes && c < lanes { from[c * 20 + r] } else { -1.0 };
                    assert_eq!(to[r * 20 + c], want, "{level:?} {r} {c}");
                }
            }
        });
    }
}
