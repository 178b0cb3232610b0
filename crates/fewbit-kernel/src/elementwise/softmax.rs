//! Probabilities from logits.

use super::arithmetic::each;
use super::transcendental::exp_lanes;
use crate::lanes::{Simd, vectorised};

vectorised! {
    /// `x ← e^(x − max x) / Σ e^(x − max x)` over one row; the sum is accumulated in f64.
    pub fn softmax_in_place(x: &mut [f32]) = softmax_all
}

vectorised! {
    /// The greatest logit and `ln Σ eˣ` of one row; the sum is accumulated in f64.
    ///
    /// The log-probability of entry `i` is `logits[i] − ln Σ eˣ`.
    pub fn log_softmax_stats(logits: &[f32]) -> (f32, f64) = log_softmax_all
}

vectorised! {
    /// `x ← e^((x − top) · factor)`; `sums[b]` is what the `b`-th `block` values became together, accumulated in f64.
    pub fn exp_sums(x: &mut [f32], top: f32, factor: f32, block: usize, sums: &mut [f64]) = exp_sums_all
}

vectorised! {
    /// `maxima[b]` is the greatest of the `b`-th `block` values of `x`.
    pub fn block_maxima(x: &[f32], block: usize, maxima: &mut [f32]) = block_maxima_all
}

vectorised! {
    fn greatest(x: &[f32]) -> f32 = greatest_all
}

/// The first position of the greatest value; NaN counts as the least. Zero for an empty row.
pub fn argmax(x: &[f32]) -> usize {
    let greatest = greatest(x);
    x.iter().position(|&v| v == greatest).unwrap_or(0)
}

#[inline(always)]
fn greatest_all<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut greatest = s.splat(f32::NEG_INFINITY);
    let chunks = x.chunks_exact(S::LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        // `max` takes its second operand at a NaN.
        greatest = s.max(s.load(chunk), greatest);
    }
    rest.iter().fold(s.greatest(greatest), |a, &b| a.max(b))
}

#[inline(always)]
fn block_maxima_all<S: Simd>(s: S, x: &[f32], block: usize, maxima: &mut [f32]) {
    assert_eq!(maxima.len(), x.len().div_ceil(block), "one for each block");
    for (x, greatest) in x.chunks(block).zip(maxima) {
        *greatest = greatest_all(s, x);
    }
}

#[inline(always)]
fn exp_sums_all<S: Simd>(s: S, x: &mut [f32], top: f32, factor: f32, block: usize, sums: &mut [f64]) {
    assert_eq!(sums.len(), x.len().div_ceil(block), "one for each block");
    let (top, factor) = (s.splat(top), s.splat(factor));
    for (x, total) in x.chunks_mut(block).zip(sums) {
        each(
            s,
            x,
            #[inline(always)]
            |x| exp_lanes(s, s.mul(s.sub(x, top), factor)),
        );
        let mut sum = s.wide_zero();
        for chunk in x.chunks(S::LANES) {
            sum = s.wide_add(sum, s.load_partial(chunk));
        }
        *total = s.wide_sum(sum);
    }
}

#[inline(always)]
fn softmax_all<S: Simd>(s: S, x: &mut [f32]) {
    let top = s.splat(greatest_all(s, x));
    each(
        s,
        x,
        #[inline(always)]
        |x| exp_lanes(s, s.sub(x, top)),
    );
    let mut sum = s.wide_zero();
    for chunk in x.chunks(S::LANES) {
        sum = s.wide_add(sum, s.load_partial(chunk));
    }
    let factor = s.splat((1.0 / s.wide_sum(sum)) as f32);
    each(
        s,
        x,
        #[inline(always)]
        |x| s.mul(x, factor),
    );
}

#[inline(always)]
fn log_softmax_all<S: Simd>(s: S, logits: &[f32]) -> (f32, f64) {
    let greatest = greatest_all(s, logits);
    let top = s.splat(greatest);
    let mut sum = s.wide_zero();
    let chunks = logits.chunks_exact(S::LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        sum = s.wide_add(sum, exp_lanes(s, s.sub(s.load(chunk), top)));
    }
    let mut last = [0.0; 16];
    s.store(&mut last, exp_lanes(s, s.sub(s.load_partial(rest), top)));
    s.store_partial(&mut last[rest.len()..S::LANES], s.splat(0.0));
    sum = s.wide_add(sum, s.load(&last));
    (greatest, f64::from(greatest) + s.wide_sum(sum).ln())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;

    fn row(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 1.3).sin() * 9.0 + 2.0).collect()
    }

    #[test]
    fn probabilities_and_their_logarithms_agree_with_f64() {
        at_every_level(|level| {
            for n in (1..50).chain([1000, 32_003]) {
                let x = row(n);
                let sum: f64 = x.iter().map(|&v| f64::from(v).exp()).sum();
                let mut p = x.clone();
                softmax_in_place(&mut p);
                for (p, x) in p.iter().zip(&x) {
                    let want = f64::from(*x).exp() / sum;
                    assert!((f64::from(*p) - want).abs() < 2e-6 * want, "{level:?} {n}");
                }
                let (greatest, log_sum) = log_softmax_stats(&x);
                assert_eq!(greatest, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                assert!((log_sum - sum.ln()).abs() < 2e-7, "{level:?} {n}: {log_sum} {}", sum.ln());
            }
        });
    }

    #[test]
    fn blocks_have_their_greatest_and_their_sum() {
        at_every_level(|level| {
            for n in (0..50).chain([1000, 32_003]) {
                let x = row(n);
                let mut maxima = vec![0.0; n.div_ceil(48)];
                block_maxima(&x, 48, &mut maxima);
                let (mut weights, mut sums) = (x.clone(), vec![0.0; n.div_ceil(48)]);
                exp_sums(&mut weights, 9.5, 0.7, 48, &mut sums);
                for (b, block) in x.chunks(48).enumerate() {
                    assert_eq!(maxima[b], block.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                    let exact = |x: f32| ((f64::from(x) - 9.5) * f64::from(0.7_f32)).exp();
                    let sum: f64 = block.iter().map(|&x| exact(x)).sum();
                    assert!((sums[b] - sum).abs() < 2e-6 * sum, "{level:?} {n} {b}");
                    for (&w, &x) in weights[b * 48..].iter().zip(block) {
                        assert!((f64::from(w) - exact(x)).abs() < 4e-6 * exact(x), "{level:?} {n} {b}");
                    }
                }
            }
        });
    }

    #[test]
    fn argmax_is_the_first_greatest() {
        at_every_level(|_| {
            for n in 1..50 {
                for at in 0..n {
                    let mut x = vec![-1.0; n];
                    x[at..].fill(2.0);
                    assert_eq!(argmax(&x), at);
                }
            }
            assert_eq!(argmax(&[f32::NAN, 1.0, f32::NAN, 3.0]), 3);
            assert_eq!(argmax(&[f32::NAN; 20]), 0);
            assert_eq!(argmax(&[]), 0);
        });
    }
}
