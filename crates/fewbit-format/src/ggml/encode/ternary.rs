//! Codes of one or two bits, or of three values: nothing is searched for.

use super::super::ternary::TQ1_0_PARTS;
use super::{Source, extreme, put_bit_pairs, put_f16, reciprocal};

/// `max|w|`, and `w/d` rounded half away from zero, plus one.
fn three_values(values: &[f32; 256]) -> (f32, [u8; 256]) {
    let d = extreme(values).abs();
    let id = reciprocal(d);
    (d, values.map(|v| (((v * id).round() as i8).clamp(-1, 1) + 1) as u8))
}

pub(super) fn tq1_0(source: &Source<'_, 256>, block: &mut [u8; 54]) {
    let (d, codes) = three_values(source.values);
    put_f16(block, 52, d);
    let (mut bytes, mut rest) = (&mut block[..52], &codes[..]);
    for (len, count) in TQ1_0_PARTS {
        let (these, later) = std::mem::take(&mut bytes).split_at_mut(len);
        for (l, byte) in these.iter_mut().enumerate() {
            // Five digits in base three, those that are missing zero; as a fraction of 256, rounded up.
            let number = (0..5).fold(0, |n, i| 3 * n + if i < count { u16::from(rest[i * len + l]) } else { 0 });
            *byte = (number * 256).div_ceil(243) as u8;
        }
        (bytes, rest) = (later, &rest[len * count..]);
    }
}

pub(super) fn tq2_0(source: &Source<'_, 256>, block: &mut [u8; 66]) {
    let (d, codes) = three_values(source.values);
    put_f16(block, 64, d);
    put_bit_pairs(&codes, &mut block[..64]);
}

/// `d = mean|w|`, and the signs.
pub(super) fn q1_0(source: &Source<'_, 128>, block: &mut [u8; 18]) {
    let sum = source.values.iter().fold(0.0, |sum, v| sum + v.abs());
    put_f16(block, 0, sum / 128.0);
    for (i, v) in source.values.iter().enumerate() {
        block[2 + i / 8] |= u8::from(*v >= 0.0) << (i % 8);
    }
}

/// `d = max|w|`, `w/d` rounded half away from zero, plus one.
pub(super) fn q2_0(source: &Source<'_, 64>, block: &mut [u8; 18]) {
    let d = extreme(source.values).abs();
    let id = reciprocal(d);
    put_f16(block, 0, d);
    for (i, v) in source.values.iter().enumerate() {
        let code = (((v * id).round() as i8).clamp(-1, 2) + 1) as u8;
        block[2 + i / 4] |= code << (i % 4 * 2);
    }
}
