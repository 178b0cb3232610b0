//! Codes of one or two bits, or of three values, under one scale of a block.

use super::{GgmlType, f16_at};

const _: () = assert!(GgmlType::Tq1_0.block_bytes() == 48 + 4 + 2);
const _: () = assert!(GgmlType::Tq2_0.block_bytes() == 64 + 2);
const _: () = assert!(GgmlType::Q1_0.block_bytes() == 2 + 16);
const _: () = assert!(GgmlType::Q2_0.block_bytes() == 2 + 16);

/// How the bytes of TQ1_0 lie: so many bytes, of which each holds so many values, which lie as many columns apart as
/// there are bytes.
pub(super) const TQ1_0_PARTS: [(usize, usize); 3] = [(32, 5), (16, 5), (4, 4)];

/// `qs[48], qh[4], d`: five values in a byte as a fraction of 256 in base three, first the most significant.
pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let d = f16_at(block, 52);
    let (mut bytes, mut rest) = (&block[..], &mut out[..]);
    for (len, count) in TQ1_0_PARTS {
        for (power, values) in POWERS.iter().zip(rest[..len * count].chunks_exact_mut(len)) {
            for (v, byte) in values.iter_mut().zip(bytes) {
                let digit = (3 * u16::from(byte.wrapping_mul(*power))) >> 8;
                *v = (f32::from(digit) - 1.0) * d;
            }
        }
        (bytes, rest) = (&bytes[len..], &mut rest[len * count..]);
    }
}

/// `qs[64], d`: of each half of 128, byte `l` holds weights `l, l + 32, l + 64, l + 96` in its bit pairs.
pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = f16_at(block, 64);
    for (i, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (v, byte) in values.iter_mut().zip(&block[i / 4 * 32..]) {
            *v = (f32::from(byte >> (i % 4 * 2) & 3) - 1.0) * d;
        }
    }
}

/// `d, qs[16]`: a bit for each weight, plus or minus `d`.
pub(super) fn q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let d = f16_at(block, 0);
    for (i, v) in out.iter_mut().enumerate() {
        *v = if block[2 + i / 8] >> (i % 8) & 1 == 1 { d } else { -d };
    }
}

/// `d, qs[16]`: two bits for each weight, from `−d` to `2 d`.
pub(super) fn q2_0(block: &[u8; 18], out: &mut [f32; 64]) {
    let d = f16_at(block, 0);
    for (i, v) in out.iter_mut().enumerate() {
        *v = (f32::from(block[2 + i / 4] >> (i % 4 * 2) & 3) - 1.0) * d;
    }
}
