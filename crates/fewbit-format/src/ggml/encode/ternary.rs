//! Codes of one or two bits, or of three values: nothing is searched for.

use super::super::GgmlType;
use super::{Source, extreme, put_f16, reciprocal};

/// `max|w|`, and `w/d` rounded half away from zero, plus one.
fn three_values(values: &[f32; 256]) -> (f32, [u8; 256]) {
    let d = extreme(values).abs();
    let id = reciprocal(d);
    (d, values.map(|v| (((v * id).round() as i8).clamp(-1, 1) + 1) as u8))
}

pub(super) fn tq1_0(source: &Source<'_, 256>, block: &mut [u8; 54]) {
    let (d, codes) = three_values(source.values);
    put_f16(block, 52, d);
    GgmlType::Tq1_0.put_codes(&codes, block);
}

pub(super) fn tq2_0(source: &Source<'_, 256>, block: &mut [u8; 66]) {
    let (d, codes) = three_values(source.values);
    put_f16(block, 64, d);
    GgmlType::Tq2_0.put_codes(&codes, block);
}

/// `d = mean|w|`, and the signs.
pub(super) fn q1_0(source: &Source<'_, 128>, block: &mut [u8; 18]) {
    let sum = source.values.iter().fold(0.0, |sum, v| sum + v.abs());
    put_f16(block, 0, sum / 128.0);
    GgmlType::Q1_0.put_codes(&source.values.map(|v| u8::from(v >= 0.0)), block);
}

/// `d = max|w|`, `w/d` rounded half away from zero, plus one.
pub(super) fn q2_0(source: &Source<'_, 64>, block: &mut [u8; 18]) {
    let d = extreme(source.values).abs();
    let id = reciprocal(d);
    put_f16(block, 0, d);
    GgmlType::Q2_0.put_codes(&source.values.map(|v| (((v * id).round() as i8).clamp(-1, 2) + 1) as u8), block);
}
