//! Searches for the scale, or scale and minimum, under which codes lose least.

use std::array::from_fn;

/// Below this greatest magnitude a group counts as zeros.
pub(super) const NOTHING: f32 = 1e-15;

/// One and a half times 2²³: its neighbours are a whole number apart.
const MAGIC: f32 = 12_582_912.0;

/// Rounds half to even, up to a magnitude that no code has; what is no number becomes 0.
///
/// By an addition, since without SSE 4.1 the compiler would call a function.
#[inline]
pub(super) fn nearest(v: f32) -> i32 {
    const MOST: f32 = 4_194_303.0;
    ((v.clamp(-MOST, MOST) + MAGIC) - MAGIC) as i32
}

/// Rounds half to even and into a range of small whole numbers; what is no number goes to `low`.
///
/// Of comparisons and additions alone, so that the compiler makes vectors of many.
#[inline]
pub(super) fn level(v: f32, low: f32, high: f32) -> f32 {
    let v = if v > low { v } else { low };
    (if v < high { v } else { high } + MAGIC) - MAGIC
}

/// The least squares over candidates, each of which gives codes: the best scale for them follows from `sums`, which are
/// `Σ w x q` and `Σ w q²`.
///
/// The error is `Σ w x² − (Σ w x q)² / Σ w q²`, so that the greatest quotient wins, the first of equal ones. `None` if
/// no candidate has codes that count.
pub(super) fn best_scale<C: Copy>(
    candidates: impl IntoIterator<Item = C>,
    mut sums: impl FnMut(C) -> [f32; 2],
) -> Option<(f32, C)> {
    let (mut found, mut best) = (None, f32::MIN);
    // Not a `for` loop: nested iterators are loops of their own this way.
    candidates.into_iter().for_each(|candidate| {
        let [xq, qq] = sums(candidate);
        if qq > 0.0 && xq * xq > best * qq {
            let scale = xq / qq;
            (found, best) = (Some((scale, candidate)), scale * xq);
        }
    });
    found
}

/// A group by itself.
pub(super) fn alone(values: &[f32]) -> &[[f32; 1]] {
    values.as_chunks().0
}

/// Codes from `−reach` to `reach − 1`, stored plus `reach`, of `L` groups side by side (`values [len][L]`); the first
/// scale puts the extreme value on `−reach`, others lie up to nine tenths of a step from it.
///
/// Gives the scales; codes are all zero, which is not the zero's code, where there is nothing.
///
/// # Panics
/// If there are more than 32 values in a group.
pub(super) fn symmetric<const L: usize>(
    values: &[[f32; L]],
    weights: &[[f32; L]],
    reach: u8,
    codes: &mut [[u8; L]],
) -> [f32; L] {
    let reach = f32::from(reach);
    let extreme =
        values.iter().fold([0.0f32; L], |m, v| from_fn(|l| if v[l].abs() > m[l].abs() { v[l] } else { m[l] }));
    let first = extreme.map(|v| -reach / v);
    let mut room = [[0.0; L]; 32];
    let levels = &mut room[..values.len()];
    let (mut scale, mut inverse, mut best) = ([0.0; L], first, [f32::MIN; L]);
    for i in std::iter::once(0).chain((-9..=9).filter(|i| *i != 0)) {
        let trial = extreme.map(|v| -(reach + 0.1 * i as f32) / v);
        for (q, v) in levels.iter_mut().zip(values) {
            *q = from_fn(|l| level(trial[l] * v[l], -reach, reach - 1.0));
        }
        let (mut xq, mut qq) = ([0.0f32; L], [0.0f32; L]);
        for ((v, w), q) in values.iter().zip(weights).zip(levels.iter()) {
            for l in 0..L {
                xq[l] += w[l] * v[l] * q[l];
                qq[l] += w[l] * q[l] * q[l];
            }
        }
        for l in 0..L {
            if qq[l] > 0.0 && xq[l] * xq[l] > best[l] * qq[l] {
                (scale[l], inverse[l]) = (xq[l] / qq[l], trial[l]);
                best[l] = scale[l] * xq[l];
            }
        }
    }
    let is_nothing = extreme.map(|v| v.abs() < NOTHING);
    for (codes, v) in codes.iter_mut().zip(values) {
        *codes =
            from_fn(|l| if is_nothing[l] { 0 } else { (level(inverse[l] * v[l], -reach, reach - 1.0) + reach) as u8 });
    }
    from_fn(|l| if is_nothing[l] { 0.0 } else { scale[l] })
}

/// As [`symmetric`], of one group, with codes that are then moved one by one as long as the error falls, at most five
/// times around; errors count by the square of the value.
pub(super) fn refined(values: &[f32], reach: i32, codes: &mut [u8]) -> f32 {
    let extreme = super::extreme(values);
    if extreme.abs() < NOTHING {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -(reach as f32) / extreme;
    let limit = |q: i32| q.clamp(-reach, reach - 1);
    let mut sums = [0.0f32; 2];
    for (code, v) in codes.iter_mut().zip(values) {
        let q = limit(nearest(inverse * v));
        let (w, level) = (v * v, q as f32);
        sums[0] += w * v * level;
        sums[1] += w * level * level;
        *code = (q + reach) as u8;
    }
    for _ in 0..5 {
        let mut is_changed = false;
        for (code, v) in codes.iter_mut().zip(values) {
            let (w, old) = (v * v, (i32::from(*code) - reach) as f32);
            let mut xq = sums[0] - w * v * old;
            if xq <= 0.0 || xq.is_nan() {
                continue;
            }
            let mut qq = sums[1] - w * old * old;
            let q = limit(nearest(v * qq / xq));
            let level = q as f32;
            if level == old {
                continue;
            }
            xq += w * v * level;
            qq += w * level * level;
            if qq > 0.0 && xq * xq * sums[1] > sums[0] * sums[0] * qq {
                (*code, sums, is_changed) = ((q + reach) as u8, [xq, qq], true);
            }
        }
        if !is_changed {
            break;
        }
    }
    if sums[1] > 0.0 { sums[0] / sums[1] } else { 0.0 }
}

/// Scales that are tried for codes with a minimum: `(first + step · i + most) / range` for `i` from 0 to `count`.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) count: u8,
    /// Whether errors count by their magnitude, not by their square.
    pub(super) is_absolute: bool,
}

impl Steps {
    /// Those with importances.
    pub(super) const FINE: Self = Self { first: -0.9, step: 0.05, count: 36, is_absolute: false };
}

/// Codes from 0 to `most` of `scale · q − min`, where `min` is positive, of `L` groups side by side (`values [len][L]`):
/// gives scales and `min`.
///
/// Each inverse scale gives codes, least squares give scale and minimum for them; the minimum of the best so far is
/// where the next candidates begin.
///
/// # Panics
/// If there are more than 32 values in a group, or none.
pub(super) fn affine<const L: usize>(
    values: &[[f32; L]],
    weights: &[[f32; L]],
    most: u8,
    steps: Steps,
    codes: &mut [[u8; L]],
) -> [[f32; L]; 2] {
    let (mut low, mut high) = (values[0], values[0]);
    let (mut sum_w, mut sum_x) = (weights[0], from_fn(|l| weights[0][l] * values[0][l]));
    for (v, w) in values.iter().zip(weights).skip(1) {
        for l in 0..L {
            (low[l], high[l]) =
                (if v[l] < low[l] { v[l] } else { low[l] }, if v[l] > high[l] { v[l] } else { high[l] });
            sum_w[l] += w[l];
            sum_x[l] += w[l] * v[l];
        }
    }
    low = low.map(|v| if v > 0.0 { 0.0 } else { v });
    let top = f32::from(most);
    let mut room = [[0.0; L]; 32];
    let trial = &mut room[..values.len()];
    let error = |scale: &[f32; L], min: &[f32; L], trial: &[[f32; L]]| {
        let mut sum = [0.0f32; L];
        for ((v, w), q) in values.iter().zip(weights).zip(trial) {
            for l in 0..L {
                let off = scale[l] * q[l] + min[l] - v[l];
                sum[l] += w[l] * if steps.is_absolute { off.abs() } else { off * off };
            }
        }
        sum
    };
    // What the codes of the best are made of.
    let (mut inverse, mut from): ([f32; L], _) = (from_fn(|l| top / (high[l] - low[l])), low);
    let mut scale = inverse.map(|v| 1.0 / v);
    encode(values, weights, &inverse, &low, top, trial);
    let mut best = error(&scale, &low, trial);
    for i in 0..=steps.count {
        let this = from_fn(|l| (steps.first + steps.step * f32::from(i) + top) / (high[l] - low[l]));
        let line = line(&encode(values, weights, &this, &low, top, trial), &sum_w, &sum_x);
        let error = error(&line.scale, &line.min, trial);
        for l in 0..L {
            if line.is_one[l] && error[l] < best[l] {
                (best[l], inverse[l], from[l]) = (error[l], this[l], low[l]);
                (scale[l], low[l]) = (line.scale[l], line.min[l]);
            }
        }
    }
    for (codes, v) in codes.iter_mut().zip(values) {
        *codes = from_fn(|l| level(inverse[l] * (v[l] - from[l]), 0.0, top) as u8);
    }
    [scale, low.map(|v| -v)]
}

/// Scale and minimum of groups side by side.
struct Line<const L: usize> {
    scale: [f32; L],
    min: [f32; L],
    /// Whether there is one.
    is_one: [bool; L],
}

/// Writes the codes under an inverse scale; gives their `Σ w q`, `Σ w q²` and `Σ w q x`.
fn encode<const L: usize>(
    values: &[[f32; L]],
    weights: &[[f32; L]],
    inverse: &[f32; L],
    low: &[f32; L],
    top: f32,
    codes: &mut [[f32; L]],
) -> [[f32; L]; 3] {
    for (q, v) in codes.iter_mut().zip(values) {
        *q = from_fn(|l| level(inverse[l] * (v[l] - low[l]), 0.0, top));
    }
    let [mut sum_q, mut sum_qq, mut sum_xq] = [[0.0f32; L]; 3];
    for ((q, v), w) in codes.iter().zip(values).zip(weights) {
        for l in 0..L {
            sum_q[l] += w[l] * q[l];
            sum_qq[l] += w[l] * q[l] * q[l];
            sum_xq[l] += w[l] * q[l] * v[l];
        }
    }
    [sum_q, sum_qq, sum_xq]
}

/// Scale and minimum, not above zero, with the least weighted squares for codes with these sums of [`encode`]; the other
/// sums are of the weights, and of the weighted values.
fn line<const L: usize>([sum_q, sum_qq, sum_xq]: &[[f32; L]; 3], sum_w: &[f32; L], sum_x: &[f32; L]) -> Line<L> {
    let mut out = Line { scale: [0.0; L], min: [0.0; L], is_one: [false; L] };
    for l in 0..L {
        let determinant = sum_w[l] * sum_qq[l] - sum_q[l] * sum_q[l];
        let min = (sum_qq[l] * sum_x[l] - sum_q[l] * sum_xq[l]) / determinant;
        let scale = (sum_w[l] * sum_xq[l] - sum_x[l] * sum_q[l]) / determinant;
        out.is_one[l] = determinant > 0.0;
        (out.scale[l], out.min[l]) = if min > 0.0 { (sum_xq[l] / sum_qq[l], 0.0) } else { (scale, min) };
    }
    out
}

/// Codes from 0 to `most` of values that are not negative, moved one by one at the end: gives the scale.
///
/// The code of a value that is negative after all wraps around, as ggml's does.
pub(super) fn positive(values: &[f32], weights: &[f32], most: u8, codes: &mut [u8]) -> f32 {
    let high = values.iter().fold(0.0f32, |m, v| m.max(*v));
    if high < NOTHING {
        codes.fill(0);
        return 0.0;
    }
    let top = f32::from(most);
    let code = |inverse: f32, v: f32| nearest(inverse * v).min(i32::from(most));
    let error = |inverse: f32, stored: fn(i32) -> i32| {
        let scale = 1.0 / inverse;
        values.iter().zip(weights).fold(0.0f32, |sum, (v, w)| {
            let off = v - scale * stored(code(inverse, *v)) as f32;
            sum + w * off * off
        })
    };
    let mut chosen = top / high;
    let mut best = error(chosen, |q| i32::from(q as u8));
    for i in (-4..=4).filter(|i| *i != 0) {
        let inverse = (0.1 * i as f32 + top) / high;
        let this = error(inverse, |q| q);
        if this < best {
            (best, chosen) = (this, inverse);
        }
    }
    let mut sums = [0.0f32; 2];
    for ((q, v), w) in codes.iter_mut().zip(values).zip(weights) {
        let level = code(chosen, *v) as f32;
        *q = code(chosen, *v) as u8;
        sums[0] += w * v * level;
        sums[1] += w * level * level;
    }
    for _ in 0..5 {
        let mut is_changed = false;
        for ((code, v), w) in codes.iter_mut().zip(values).zip(weights) {
            let old = f32::from(*code);
            let (mut xq, mut qq) = (sums[0] - w * v * old, sums[1] - w * old * old);
            if !(xq > 0.0 && qq > 0.0) {
                continue;
            }
            let q = nearest(v * qq / xq).min(i32::from(most));
            if q == i32::from(*code) {
                continue;
            }
            let level = q as f32;
            xq += w * v * level;
            qq += w * level * level;
            if xq * xq * sums[1] > sums[0] * sums[0] * qq {
                (*code, sums, is_changed) = (q as u8, [xq, qq], true);
            }
        }
        if !is_changed {
            break;
        }
    }
    if sums[1] > 0.0 { sums[0] / sums[1] } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_go_to_the_even_number() {
        for v in (-40..40).map(|i| i as f32 * 0.25).chain([1e6, -1e6, 4_194_302.5, 0.499_999_97, f32::MIN_POSITIVE]) {
            assert_eq!(nearest(v), v.round_ties_even() as i32, "{v}");
        }
        assert_eq!([f32::NAN, f32::INFINITY, -1e30].map(nearest), [0, 4_194_303, -4_194_303]);
    }
}
