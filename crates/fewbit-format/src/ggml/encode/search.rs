//! Searches for the scale, or scale and minimum, under which codes lose least.

/// Below this greatest magnitude a group counts as zeros.
pub(super) const NOTHING: f32 = 1e-15;

/// Rounds half to even, up to a magnitude that no code has; what is no number becomes 0.
///
/// By an addition, since without SSE 4.1 the compiler would call a function.
#[inline]
pub(super) fn nearest(v: f32) -> i32 {
    /// One and a half times 2²³: its neighbours are a whole number apart.
    const MAGIC: f32 = 12_582_912.0;
    const MOST: f32 = 4_194_303.0;
    ((v.clamp(-MOST, MOST) + MAGIC) - MAGIC) as i32
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
    for candidate in candidates {
        let [xq, qq] = sums(candidate);
        if qq > 0.0 && xq * xq > best * qq {
            let scale = xq / qq;
            (found, best) = (Some((scale, candidate)), scale * xq);
        }
    }
    found
}

/// Codes from `−reach` to `reach − 1`, stored plus `reach`; the first scale puts the extreme value on `−reach`, others
/// lie up to nine tenths of a step from it.
///
/// Gives the scale; codes are all zero, which is not the zero's code, where there is nothing.
pub(super) fn symmetric(values: &[f32], weights: &[f32], reach: i32, codes: &mut [u8]) -> f32 {
    let extreme = super::extreme(values);
    if extreme.abs() < NOTHING {
        codes.fill(0);
        return 0.0;
    }
    let code = |inverse: f32, v: f32| nearest(inverse * v).clamp(-reach, reach - 1);
    let first = -(reach as f32) / extreme;
    let others = (-9..=9).filter(|i| *i != 0).map(|i| -(reach as f32 + 0.1 * i as f32) / extreme);
    let found = best_scale(std::iter::once(first).chain(others), |inverse| {
        let mut sums = [0.0; 2];
        for (v, w) in values.iter().zip(weights) {
            let q = code(inverse, *v) as f32;
            sums[0] += w * v * q;
            sums[1] += w * q * q;
        }
        sums
    });
    let (scale, inverse) = found.unwrap_or((0.0, first));
    codes.iter_mut().zip(values).for_each(|(q, v)| *q = (code(inverse, *v) + reach) as u8);
    scale
}

/// The same, with codes that are then moved one by one as long as the error falls, at most five times around; errors
/// count by the square of the value.
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

/// Codes from 0 to `most` of `scale · q − min`, where `min` is positive: gives scale and `min`.
///
/// Each inverse scale gives codes, least squares give scale and minimum for them; the minimum of the best so far is
/// where the next candidates begin.
///
/// # Panics
/// If there are more than 32 values, or none.
pub(super) fn affine(values: &[f32], weights: &[f32], most: u8, steps: Steps, codes: &mut [u8]) -> [f32; 2] {
    let (mut low, mut high) = (values[0], values[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * values[0]);
    for (v, w) in values.iter().zip(weights).skip(1) {
        (low, high) = (if *v < low { *v } else { low }, if *v > high { *v } else { high });
        sum_w += w;
        sum_x += w * v;
    }
    if low > 0.0 {
        low = 0.0;
    }
    if high <= low {
        codes.fill(0);
        return [0.0, -low];
    }
    let top = f32::from(most);
    let encode = |inverse: f32, low: f32, out: &mut [u8]| {
        let code = |v: f32| nearest(inverse * (v - low)).clamp(0, i32::from(most)) as u8;
        out.iter_mut().zip(values).for_each(|(q, v)| *q = code(*v));
    };
    let error = |scale: f32, min: f32, codes: &[u8]| {
        values.iter().zip(weights).zip(codes).fold(0.0f32, |sum, ((v, w), q)| {
            let off = scale * f32::from(*q) + min - v;
            sum + w * if steps.is_absolute { off.abs() } else { off * off }
        })
    };
    let inverse = top / (high - low);
    let mut scale = 1.0 / inverse;
    encode(inverse, low, codes);
    let mut best = error(scale, low, codes);
    let mut room = [0; 32];
    let trial = &mut room[..values.len()];
    for i in 0..=steps.count {
        encode((steps.first + steps.step * f32::from(i) + top) / (high - low), low, trial);
        let Some((this_scale, this_min)) = line(values, weights, trial, [sum_w, sum_x]) else { continue };
        let this = error(this_scale, this_min, trial);
        if this < best {
            (best, scale, low) = (this, this_scale, this_min);
            codes.copy_from_slice(trial);
        }
    }
    [scale, -low]
}

/// Scale and minimum, not above zero, with the least weighted squares for these codes; the sums are of the weights, and
/// of the weighted values.
fn line(values: &[f32], weights: &[f32], codes: &[u8], [sum_w, sum_x]: [f32; 2]) -> Option<(f32, f32)> {
    let (mut sum_q, mut sum_qq, mut sum_xq) = (0.0f32, 0.0f32, 0.0f32);
    for ((v, w), q) in values.iter().zip(weights).zip(codes) {
        let q = f32::from(*q);
        sum_q += w * q;
        sum_qq += w * q * q;
        sum_xq += w * q * v;
    }
    let determinant = sum_w * sum_qq - sum_q * sum_q;
    if determinant <= 0.0 || determinant.is_nan() {
        return None;
    }
    let min = (sum_qq * sum_x - sum_q * sum_xq) / determinant;
    if min > 0.0 {
        return Some((sum_xq / sum_qq, 0.0));
    }
    Some(((sum_w * sum_xq - sum_x * sum_q) / determinant, min))
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
