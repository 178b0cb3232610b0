//! Sums and products of equal shapes.

use crate::lanes::{Simd, vectorised};

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
    fn bias_is_added_to_each_row() {
        let mut x = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        add_bias(&mut x, &[10.0, 20.0, 30.0]);
        assert_eq!(x, [11.0, 22.0, 33.0, 14.0, 25.0, 36.0]);
        add_bias(&mut [], &[]);
    }
}
