//! Sums and products of equal shapes.

use half::f16;

use crate::lanes::{Number, Simd, vectorised};

vectorised! {
    /// `x ← x ⊙ y`.
    pub fn mul(x: &mut [f32], y: &[f32]) = mul_all
}

vectorised! {
    /// `x ← x + y`.
    pub fn add(x: &mut [f32], y: &[f32]) = add_all
}

vectorised! {
    /// `x ← factor · x`.
    pub fn scale(x: &mut [f32], factor: f32) = scale_all
}

vectorised! {
    /// `x` to the nearest that f16 holds, ties to even; finite numbers stay finite: they become 65504 at most.
    pub fn round_to_f16(x: &mut [f32]) = round_to_f16_all
}

/// Adds `bias [width]` to each row of `x [rows, width]`.
pub fn add_bias(x: &mut [f32], bias: &[f32]) {
    assert!(x.len().is_multiple_of(bias.len().max(1)), "rows of {} in {} values", bias.len(), x.len());
    for row in x.chunks_exact_mut(bias.len().max(1)) {
        add(row, bias);
    }
}

#[inline(always)]
fn mul_all<S: Simd>(s: S, x: &mut [f32], y: &[f32]) {
    each_pair(
        s,
        x,
        y,
        #[inline(always)]
        |x, y| s.mul(x, y),
    );
}

#[inline(always)]
fn add_all<S: Simd>(s: S, x: &mut [f32], y: &[f32]) {
    each_pair(
        s,
        x,
        y,
        #[inline(always)]
        |x, y| s.add(x, y),
    );
}

#[inline(always)]
fn round_to_f16_all<S: Simd>(s: S, x: &mut [f32]) {
    let (most, infinity) = (s.splat(f16::MAX.to_f32()), s.splat(f32::INFINITY));
    each(
        s,
        x,
        #[inline(always)]
        |x| {
            let limited = s.copysign(s.min(s.abs(x), most), x);
            // Neither infinity nor NaN is hidden.
            let x = s.select(s.less(s.abs(x), infinity), limited, x);
            let halves = f16::lanes(s, x);
            // SAFETY: no instruction set has more than sixteen lanes.
            unsafe { f16::load_at(s, halves.as_ptr()) }
        },
    );
}

#[inline(always)]
fn scale_all<S: Simd>(s: S, x: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    each(
        s,
        x,
        #[inline(always)]
        |x| s.mul(x, factor),
    );
}

/// `x ← f(x)`, a vector at a time.
#[inline(always)]
pub(super) fn each<S: Simd>(s: S, x: &mut [f32], f: impl Fn(S::V) -> S::V) {
    let mut chunks = x.chunks_exact_mut(S::LANES);
    for chunk in &mut chunks {
        s.store(chunk, f(s.load(chunk)));
    }
    let rest = chunks.into_remainder();
    if !rest.is_empty() {
        s.store_partial(rest, f(s.load_partial(rest)));
    }
}

/// `x ← f(x, y)`, a vector at a time.
#[inline(always)]
pub(super) fn each_pair<S: Simd>(s: S, x: &mut [f32], y: &[f32], f: impl Fn(S::V, S::V) -> S::V) {
    assert_eq!(x.len(), y.len(), "two sides of one shape");
    let mut xs = x.chunks_exact_mut(S::LANES);
    let mut ys = y.chunks_exact(S::LANES);
    for (x, y) in (&mut xs).zip(&mut ys) {
        s.store(x, f(s.load(x), s.load(y)));
    }
    let (x, y) = (xs.into_remainder(), ys.remainder());
    if !x.is_empty() {
        s.store_partial(x, f(s.load_partial(x), s.load_partial(y)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;

    #[test]
    fn every_length_is_plain_arithmetic() {
        at_every_level(|_| {
            for n in 0..70 {
                let x: Vec<f32> = (0..n).map(|i| i as f32 * 0.7 - 9.1).collect();
                let y: Vec<f32> = (0..n).map(|i| 3.3 - i as f32 * 0.3).collect();
                let run = |f: fn(&mut [f32], &[f32])| {
                    let mut out = x.clone();
                    f(&mut out, &y);
                    out
                };
                assert_eq!(run(mul), x.iter().zip(&y).map(|(x, y)| x * y).collect::<Vec<_>>());
                assert_eq!(run(add), x.iter().zip(&y).map(|(x, y)| x + y).collect::<Vec<_>>());
                let mut out = x.clone();
                scale(&mut out, -1.7);
                assert_eq!(out, x.iter().map(|x| x * -1.7).collect::<Vec<_>>());
            }
        });
    }

    #[test]
    fn halves_are_those_of_scalar_code() {
        at_every_level(|level| {
            // All exponents, among them those of denormals, and ties.
            let mut x: Vec<f32> = (0..1 << 16).map(|i| f32::from_bits((i << 16) | ((i * 37) & 0x3000))).collect();
            x.retain(|x| !x.is_nan());
            x.extend([65519.0, 65520.0, -1e30, 0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY]);
            let want = |x: f32| if x.is_finite() { f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32() } else { x };
            let mut out = x.clone();
            round_to_f16(&mut out);
            for (x, out) in x.iter().zip(out) {
                assert_eq!(out.to_bits(), want(*x).to_bits(), "{level:?}: {x}");
            }
            let mut none = [f32::NAN];
            round_to_f16(&mut none);
            assert!(none[0].is_nan());
        });
    }

    #[test]
    fn bias_is_added_to_each_row() {
        let mut x = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        add_bias(&mut x, &[10.0, 20.0, 30.0]);
        assert_eq!(x, [11.0, 22.0, 33.0, 14.0, 25.0, 36.0]);
        add_bias(&mut [], &[]);
    }
}
