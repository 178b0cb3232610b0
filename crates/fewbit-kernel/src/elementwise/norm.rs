//! Normalisation of rows.

use std::ops::Range;

use crate::lanes::{Simd, vectorised};

/// `out ← gain ⊙ x / √(mean(x²) + eps)` for each row of `x [rows, width]`.
///
/// A head at a time with `width` the size of a head. Without `gain`, it is one. The mean is accumulated in f64.
pub fn rms_norm(x: &[f32], width: usize, gain: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    check(x, width, gain, out);
    rms_norm_rows(x, width, gain, eps, out);
}

/// `out ← gain ⊙ (x − mean(x)) / √(var(x) + eps) + bias` for each row of `x [rows, width]`.
///
/// Without `gain`, it is one; without `bias`, zero. Either may be a table `[heads, width]`, which the rows take in turn.
/// Mean and variance are accumulated in f64, in two passes.
pub fn layer_norm(x: &[f32], width: usize, gain: Option<&[f32]>, bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    for parameter in [gain, bias].into_iter().flatten() {
        assert!(is_table(parameter, width), "parameters for whole rows");
    }
    check(x, width, None, out);
    layer_norm_rows(x, width, gain, bias, eps, out);
}

fn check(x: &[f32], width: usize, parameter: Option<&[f32]>, out: &[f32]) {
    assert!(width > 0 && x.len().is_multiple_of(width), "rows of {width} in {} values", x.len());
    assert_eq!(x.len(), out.len(), "a norm keeps the shape");
    assert!(parameter.is_none_or(|p| p.len() == width), "one parameter per column");
}

/// Whether there are parameters for some rows of `width`.
pub(super) fn is_table(parameter: &[f32], width: usize) -> bool {
    !parameter.is_empty() && parameter.len().is_multiple_of(width)
}

/// Where the parameters of a row of `width` are in a table `[heads, width]` of `len` numbers, which the rows take in turn.
#[inline(always)]
pub(super) fn of_row(row: usize, width: usize, len: usize) -> Range<usize> {
    let first = row * width % len;
    first..first + width
}

vectorised! {
    fn rms_norm_rows(x: &[f32], width: usize, gain: Option<&[f32]>, eps: f32, out: &mut [f32]) = rms_norm_all
}

vectorised! {
    fn layer_norm_rows(
        x: &[f32], width: usize, gain: Option<&[f32]>, bias: Option<&[f32]>, eps: f32, out: &mut [f32],
    ) = layer_norm_all
}

#[inline(always)]
fn rms_norm_all<S: Simd>(s: S, x: &[f32], width: usize, gain: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let squares = sum(
            s,
            x,
            #[inline(always)]
            |x| s.mul(x, x),
            width,
        );
        let factor = 1.0 / (squares / width as f64 + f64::from(eps)).sqrt();
        affine(s, x, 0.0, factor as f32, gain, None, out);
    }
}

#[inline(always)]
fn layer_norm_all<S: Simd>(
    s: S,
    x: &[f32],
    width: usize,
    gain: Option<&[f32]>,
    bias: Option<&[f32]>,
    eps: f32,
    out: &mut [f32],
) {
    for (row, (x, out)) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
        let [gain, bias] = [gain, bias].map(|p| p.map(|p| &p[of_row(row, width, p.len())]));
        let mean = sum(
            s,
            x,
            #[inline(always)]
            |x| x,
            width,
        ) / width as f64;
        let mean = mean as f32;
        let center = s.splat(mean);
        let squares = sum(
            s,
            x,
            #[inline(always)]
            |x| {
                let d = s.sub(x, center);
                s.mul(d, d)
            },
            width,
        );
        let factor = 1.0 / (squares / width as f64 + f64::from(eps)).sqrt();
        affine(s, x, mean, factor as f32, gain, bias, out);
    }
}

/// `Σ f(x)` over the `width` values of a row, in f64.
#[inline(always)]
fn sum<S: Simd>(s: S, x: &[f32], f: impl Fn(S::V) -> S::V, width: usize) -> f64 {
    let mut sum = s.wide_zero();
    let chunks = x.chunks_exact(S::LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        sum = s.wide_add(sum, f(s.load(chunk)));
    }
    let mut total = s.wide_sum(sum);
    if !rest.is_empty() {
        // Lanes past the row would count as f(0): the rest goes through memory.
        let mut last = [0.0; 16];
        s.store(&mut last, f(s.load_partial(rest)));
        total += last[..width % S::LANES].iter().map(|&v| f64::from(v)).sum::<f64>();
    }
    total
}

/// `out ← (x − mean) · factor ⊙ gain + bias`.
#[inline(always)]
fn affine<S: Simd>(
    s: S,
    x: &[f32],
    mean: f32,
    factor: f32,
    gain: Option<&[f32]>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let (mean, factor) = (s.splat(mean), s.splat(factor));
    let mut at = 0;
    while at < x.len() {
        let end = (at + S::LANES).min(x.len());
        let mut y = s.mul(s.sub(s.load_partial(&x[at..end]), mean), factor);
        if let Some(gain) = gain {
            y = s.mul(y, s.load_partial(&gain[at..end]));
        }
        if let Some(bias) = bias {
            y = s.add(y, s.load_partial(&bias[at..end]));
        }
        s.store_partial(&mut out[at..end], y);
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() * 3.0 + 0.8).collect()
    }

    fn reference(x: &[f32], width: usize, centered: bool, eps: f64) -> Vec<f64> {
        let mut out = Vec::new();
        for row in x.chunks_exact(width) {
            let n = width as f64;
            let mean = if centered { row.iter().map(|&v| f64::from(v)).sum::<f64>() / n } else { 0.0 };
            let var = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
            out.extend(row.iter().map(|&v| (f64::from(v) - mean) / (var + eps).sqrt()));
        }
        out
    }

    #[test]
    fn norms_follow_their_formulas_at_every_width() {
        at_every_level(|level| {
            for width in (1..70).chain([576, 2048, 2049]) {
                let x = wave(3 * width, 0.37);
                let (gain, bias) = (wave(width, 0.11), wave(width, 0.23));
                let mut out = vec![0.0; x.len()];
                rms_norm(&x, width, Some(&gain), 1e-5, &mut out);
                for (i, want) in reference(&x, width, false, 1e-5).into_iter().enumerate() {
                    let want = want * f64::from(gain[i % width]);
                    assert!((f64::from(out[i]) - want).abs() < 1e-6 * (1.0 + want.abs()), "{level:?} {width} {i}");
                }
                layer_norm(&x, width, Some(&gain), Some(&bias), 1e-5, &mut out);
                for (i, want) in reference(&x, width, true, 1e-5).into_iter().enumerate() {
                    let (g, b) = (f64::from(gain[i % width]), f64::from(bias[i % width]));
                    let scale = 1.0 + want.abs() * g.abs() + b.abs();
                    // A row of one value has no variance: rounding of the mean is divided by √eps.
                    assert!((f64::from(out[i]) - (want * g + b)).abs() < 3e-6 * scale, "{level:?} {width} {i}");
                }
            }
        });
    }

    #[test]
    fn rows_take_a_table_in_turn() {
        let (x, gain, bias) = (wave(6 * 11, 0.37), wave(3 * 11, 0.11), wave(2 * 11, 0.23));
        at_every_level(|_| {
            let (mut all, mut one) = (vec![0.0; x.len()], vec![0.0; 11]);
            layer_norm(&x, 11, Some(&gain), Some(&bias), 1e-5, &mut all);
            for (row, (x, all)) in x.chunks_exact(11).zip(all.chunks_exact(11)).enumerate() {
                let of = |table: &[f32]| of_row(row, 11, table.len());
                layer_norm(x, 11, Some(&gain[of(&gain)]), Some(&bias[of(&bias)]), 1e-5, &mut one);
                assert_eq!(one, all);
            }
        });
    }

    #[test]
    fn a_row_alone_gives_the_same_bits() {
        at_every_level(|_| {
            let x = wave(5 * 45, 0.7);
            let (mut all, mut one) = (vec![0.0; x.len()], vec![0.0; 45]);
            rms_norm(&x, 45, None, 1e-6, &mut all);
            for r in 0..5 {
                rms_norm(&x[r * 45..(r + 1) * 45], 45, None, 1e-6, &mut one);
                assert_eq!(one, all[r * 45..(r + 1) * 45]);
            }
        });
    }
}
