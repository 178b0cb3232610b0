//! Gradients through normalisation.

use super::norm::{is_table, of_row};
use crate::lanes::{Simd, vectorised};

/// `d`, the gradient of [`rms_norm`](super::rms_norm)'s output, becomes that of its input `x [rows, width]`.
///
/// With `r = 1 / √(mean(x²) + eps)` and `t = d ⊙ gain`, `dx = r t − r³ x · mean(t ⊙ x)`. Adds `Σ d ⊙ x r` over the rows
/// to `d_gain [width]`, if asked for. Means are accumulated in f64.
pub fn rms_norm_backward(x: &[f32], width: usize, gain: &[f32], eps: f32, d: &mut [f32], d_gain: Option<&mut [f32]>) {
    check(x, width, d);
    assert_eq!(gain.len(), width, "one parameter per column");
    assert!(d_gain.as_ref().is_none_or(|g| g.len() == width), "one sum per column");
    rms_rows(x, width, gain, eps, d, d_gain);
}

/// `d`, the gradient of [`layer_norm`](super::layer_norm)'s output, becomes that of its input `x [rows, width]`.
///
/// With `x̂ = (x − mean(x)) r`, `r = 1 / √(var(x) + eps)` and `t = d ⊙ gain`, `dx = r (t − mean(t) − x̂ · mean(t ⊙ x̂))`.
/// Adds `Σ d ⊙ x̂` and `Σ d` over the rows to the two of `d_gain_bias` (as long as `gain` each), if asked for. `gain` may
/// be a table `[heads, width]`, which the rows take in turn.
pub fn layer_norm_backward(
    x: &[f32],
    width: usize,
    gain: &[f32],
    eps: f32,
    d: &mut [f32],
    d_gain_bias: Option<[&mut [f32]; 2]>,
) {
    check(x, width, d);
    assert!(is_table(gain, width), "parameters for whole rows");
    assert!(d_gain_bias.as_ref().is_none_or(|gs| gs.iter().all(|g| g.len() == gain.len())), "a sum per parameter");
    layer_rows(x, width, gain, eps, d, d_gain_bias);
}

fn check(x: &[f32], width: usize, d: &[f32]) {
    assert!(width > 0 && x.len().is_multiple_of(width), "rows of {width} in {} values", x.len());
    assert_eq!(x.len(), d.len(), "a norm keeps the shape");
}

vectorised! {
    fn rms_rows(
        x: &[f32], width: usize, gain: &[f32], eps: f32, d: &mut [f32], d_gain: Option<&mut [f32]>,
    ) = rms_all
}

vectorised! {
    fn layer_rows(
        x: &[f32], width: usize, gain: &[f32], eps: f32, d: &mut [f32], d_gain_bias: Option<[&mut [f32]; 2]>,
    ) = layer_all
}

#[inline(always)]
fn rms_all<S: Simd>(
    s: S,
    x: &[f32],
    width: usize,
    gain: &[f32],
    eps: f32,
    d: &mut [f32],
    mut d_gain: Option<&mut [f32]>,
) {
    for (x, d) in x.chunks_exact(width).zip(d.chunks_exact_mut(width)) {
        let (mut squares, mut along) = (s.wide_zero(), s.wide_zero());
        for ((x, d), g) in x.chunks(S::LANES).zip(d.chunks(S::LANES)).zip(gain.chunks(S::LANES)) {
            let (x, d, g) = (s.load_partial(x), s.load_partial(d), s.load_partial(g));
            squares = s.wide_add(squares, s.mul(x, x));
            along = s.wide_add(along, s.mul(s.mul(d, g), x));
        }
        let n = width as f64;
        let r = 1.0 / (s.wide_sum(squares) / n + f64::from(eps)).sqrt();
        let back = s.splat(-(r * r * r * s.wide_sum(along) / n) as f32);
        let r = s.splat(r as f32);
        if let Some(sums) = d_gain.as_deref_mut() {
            for ((x, d), sum) in x.chunks(S::LANES).zip(d.chunks(S::LANES)).zip(sums.chunks_mut(S::LANES)) {
                let part = s.mul(s.load_partial(d), s.load_partial(x));
                s.store_partial(sum, s.mul_add(part, r, s.load_partial(sum)));
            }
        }
        for ((x, d), g) in x.chunks(S::LANES).zip(d.chunks_mut(S::LANES)).zip(gain.chunks(S::LANES)) {
            let t = s.mul(s.mul(s.load_partial(d), s.load_partial(g)), r);
            s.store_partial(d, s.mul_add(s.load_partial(x), back, t));
        }
    }
}

#[inline(always)]
fn layer_all<S: Simd>(
    s: S,
    x: &[f32],
    width: usize,
    gain: &[f32],
    eps: f32,
    d: &mut [f32],
    mut d_gain_bias: Option<[&mut [f32]; 2]>,
) {
    let n = width as f64;
    for (row, (x, d)) in x.chunks_exact(width).zip(d.chunks_exact_mut(width)).enumerate() {
        let of_row = of_row(row, width, gain.len());
        let gain = &gain[of_row.clone()];
        let mut sum = s.wide_zero();
        for x in x.chunks(S::LANES) {
            sum = s.wide_add(sum, s.load_partial(x));
        }
        let mean = (s.wide_sum(sum) / n) as f32;
        // Lanes past the row would count as −mean: the rest of the row is a sum of its own.
        let mut squares = 0.0f64;
        let mut whole = s.wide_zero();
        let (center, chunks) = (s.splat(mean), x.chunks_exact(S::LANES));
        for x in chunks.remainder() {
            squares += f64::from(x - mean) * f64::from(x - mean);
        }
        for x in chunks {
            let c = s.sub(s.load(x), center);
            whole = s.wide_add(whole, s.mul(c, c));
        }
        let r = 1.0 / ((s.wide_sum(whole) + squares) / n + f64::from(eps)).sqrt();
        let r = s.splat(r as f32);
        // Here lanes past the row are multiplied by a gradient of zero.
        let (mut level, mut along) = (s.wide_zero(), s.wide_zero());
        for ((x, d), g) in x.chunks(S::LANES).zip(d.chunks(S::LANES)).zip(gain.chunks(S::LANES)) {
            let t = s.mul(s.load_partial(d), s.load_partial(g));
            let unit = s.mul(s.sub(s.load_partial(x), center), r);
            level = s.wide_add(level, t);
            along = s.wide_add(along, s.mul(t, unit));
        }
        let level = s.splat((s.wide_sum(level) / n) as f32);
        let back = s.splat(-(s.wide_sum(along) / n) as f32);
        if let Some([gains, biases]) = &mut d_gain_bias {
            let [gains, biases] = [&mut gains[of_row.clone()], &mut biases[of_row]];
            let sums = gains.chunks_mut(S::LANES).zip(biases.chunks_mut(S::LANES));
            for ((x, d), (gain, bias)) in x.chunks(S::LANES).zip(d.chunks(S::LANES)).zip(sums) {
                let d = s.load_partial(d);
                let unit = s.mul(s.sub(s.load_partial(x), center), r);
                s.store_partial(gain, s.mul_add(d, unit, s.load_partial(gain)));
                s.store_partial(bias, s.add(d, s.load_partial(bias)));
            }
        }
        for ((x, d), g) in x.chunks(S::LANES).zip(d.chunks_mut(S::LANES)).zip(gain.chunks(S::LANES)) {
            let t = s.sub(s.mul(s.load_partial(d), s.load_partial(g)), level);
            let unit = s.mul(s.sub(s.load_partial(x), center), r);
            s.store_partial(d, s.mul(s.mul_add(unit, back, t), r));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() * 3.0 + 0.8).collect()
    }

    /// `Σ d ⊙ norm(x)` of one row in f64, whose slopes the gradients are.
    fn value(x: &[f64], gain: &[f64], bias: &[f64], d: &[f32], eps: f64, centered: bool) -> f64 {
        let n = x.len() as f64;
        let mean = if centered { x.iter().sum::<f64>() / n } else { 0.0 };
        let r = 1.0 / (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n + eps).sqrt();
        (0..x.len()).map(|i| f64::from(d[i]) * ((x[i] - mean) * r * gain[i] + bias[i])).sum()
    }

    #[test]
    fn rows_take_a_table_in_turn() {
        let (x, gain, up) = (wave(6 * 11, 0.37), wave(3 * 11, 0.11), wave(6 * 11, 0.71));
        at_every_level(|_| {
            let (mut d, mut sums) = (up.clone(), [vec![0.5; 3 * 11], vec![0.25; 3 * 11]]);
            layer_norm_backward(&x, 11, &gain, 1e-5, &mut d, Some(sums.each_mut().map(|s| &mut s[..])));
            let (mut alone, mut sums_alone) = (up.clone(), [vec![0.5; 3 * 11], vec![0.25; 3 * 11]]);
            for (row, (x, d)) in x.chunks_exact(11).zip(alone.chunks_exact_mut(11)).enumerate() {
                let head = row % 3 * 11..row % 3 * 11 + 11;
                let sums = sums_alone.each_mut().map(|s| &mut s[head.clone()]);
                layer_norm_backward(x, 11, &gain[head], 1e-5, d, Some(sums));
            }
            assert_eq!((d, sums), (alone, sums_alone));
        });
    }

    /// Slopes of `value` by central differences in f64, against gradients in f32.
    #[test]
    fn gradients_are_slopes_at_every_width() {
        const ROWS: usize = 3;
        let eps = 1e-2;
        for width in (1..40).chain([130]) {
            let x = wave(ROWS * width, 0.37);
            let (gain, bias, up) = (wave(width, 0.11), wave(width, 0.23), wave(ROWS * width, 0.71));
            let wide = |v: &[f32]| -> Vec<f64> { v.iter().map(|v| f64::from(*v)).collect() };
            let (xs, gains, biases) = (wide(&x), wide(&gain), wide(&bias));
            for centered in [false, true] {
                let of = |x: &[f64], gain: &[f64], bias: &[f64]| -> f64 {
                    let rows = x.chunks_exact(width).zip(up.chunks_exact(width));
                    rows.map(|(x, d)| value(x, gain, bias, d, eps, centered)).sum()
                };
                let slope = |which: usize, i: usize| {
                    let at = |h: f64| {
                        let mut v = [xs.clone(), gains.clone(), biases.clone()];
                        v[which][i] += h;
                        of(&v[0], &v[1], &v[2])
                    };
                    (at(1e-5) - at(-1e-5)) / 2e-5
                };
                at_every_level(|level| {
                    let mut d = up.clone();
                    let (mut dg, mut db) = (vec![1.0; width], vec![1.0; width]);
                    if centered {
                        layer_norm_backward(&x, width, &gain, eps as f32, &mut d, Some([&mut dg, &mut db]));
                    } else {
                        rms_norm_backward(&x, width, &gain, eps as f32, &mut d, Some(&mut dg));
                    }
                    for (which, got, before) in [(0, &d, 0.0), (1, &dg, 1.0), (2, &db, 1.0)] {
                        if which == 2 && !centered {
                            continue;
                        }
                        for i in (0..got.len()).step_by(1 + width / 20) {
                            let want = slope(which, i);
                            let error = (f64::from(got[i]) - before - want).abs();
                            assert!(error < 3e-5, "{level:?} {centered} {width} {which} {i}: {error} of {want}");
                        }
                    }
                });
            }
        }
    }
}
