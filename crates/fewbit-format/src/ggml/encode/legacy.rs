//! Blocks of 32 weights with one scale.
//!
//! Without importances the divisor is the scale before it is rounded to f16, and each division is a product with its
//! reciprocal; with them scales are searched for.

use super::super::GgmlType;
use super::search::{Steps, affine, alone, symmetric};
use super::{Source, extreme, put_f16, reciprocal, weighted};

type Block<'a> = Source<'a, 32>;

/// `d = v / −8` of the weight `v` of largest magnitude, `q = min(15, ⌊w/d + 8.5⌋)`.
pub(super) fn q4_0(source: &Block<'_>, block: &mut [u8; 18]) {
    let (d, codes) = around_zero(source, 8);
    put_f16(block, 0, d);
    GgmlType::Q4_0.put_codes(&codes, block);
}

/// `d = (max − min) / 15`, `m = min`, `q = min(15, ⌊(w − m)/d + ½⌋)`.
pub(super) fn q4_1(source: &Block<'_>, block: &mut [u8; 20]) {
    let ([d, m], codes) = with_minimum(source, 15);
    put_f16(block, 0, d);
    put_f16(block, 2, m);
    GgmlType::Q4_1.put_codes(&codes, block);
}

/// As [`q4_0`] with 16 for 8.
pub(super) fn q5_0(source: &Block<'_>, block: &mut [u8; 22]) {
    let (d, codes) = around_zero(source, 16);
    put_f16(block, 0, d);
    GgmlType::Q5_0.put_codes(&codes, block);
}

/// As [`q4_1`] with 31 for 15.
pub(super) fn q5_1(source: &Block<'_>, block: &mut [u8; 24]) {
    let ([d, m], codes) = with_minimum(source, 31);
    put_f16(block, 0, d);
    put_f16(block, 2, m);
    GgmlType::Q5_1.put_codes(&codes, block);
}

/// `d = max|w| / 127`, `q = w/d` rounded half away from zero.
pub(super) fn q8_0(source: &Block<'_>, block: &mut [u8; 34]) {
    let d = extreme(source.values).abs() / 127.0;
    let id = reciprocal(d);
    put_f16(block, 0, d);
    for (q, v) in block[2..].iter_mut().zip(source.values) {
        *q = (v * id).round() as i8 as u8;
    }
}

/// The scale and the codes, offset by `reach`.
fn around_zero(source: &Block<'_>, reach: u8) -> (f32, [u8; 32]) {
    let mut codes = [0; 32];
    if let Some(importance) = source.importance {
        let mut weights = [0.0; 32];
        weighted(source.values, importance, source.row_power, &mut weights);
        let [d] = symmetric(alone(source.values), alone(&weights), reach, codes.as_chunks_mut().0);
        return (d, codes);
    }
    // The sign of the extreme makes the grid reach it exactly.
    let d = extreme(source.values) / -f32::from(reach);
    let id = reciprocal(d);
    let code = |v: f32| ((v * id + (f32::from(reach) + 0.5)) as i8).min((2 * reach - 1) as i8) as u8;
    codes.iter_mut().zip(source.values).for_each(|(q, v)| *q = code(*v));
    (d, codes)
}

/// Scale and minimum, and the codes.
fn with_minimum(source: &Block<'_>, most: u8) -> ([f32; 2], [u8; 32]) {
    let mut codes = [0; 32];
    if let Some(importance) = source.importance {
        let mut weights = [0.0; 32];
        weighted(source.values, importance, source.row_power, &mut weights);
        let [[d], [min]] = affine(alone(source.values), alone(&weights), most, Steps::FINE, codes.as_chunks_mut().0);
        return ([d, -min], codes);
    }
    let (min, max) = source.values.iter().fold((f32::MAX, f32::MIN), |(lo, hi), v| (v.min(lo), v.max(hi)));
    let d = (max - min) / f32::from(most);
    let id = reciprocal(d);
    let code = |v: f32| (((v - min) * id + 0.5) as i8).min(most as i8) as u8;
    codes.iter_mut().zip(source.values).for_each(|(q, v)| *q = code(*v));
    ([d, min], codes)
}
