//! Blocks of 32 weights with one scale: `d (q − middle)`, or `d q + m`.

use super::{GgmlType, f16_at};

const _: () = assert!(GgmlType::Q4_0.block_bytes() == 2 + 16);
const _: () = assert!(GgmlType::Q4_1.block_bytes() == 2 + 2 + 16);
const _: () = assert!(GgmlType::Q5_0.block_bytes() == 2 + 4 + 16);
const _: () = assert!(GgmlType::Q5_1.block_bytes() == 2 + 2 + 4 + 16);
const _: () = assert!(GgmlType::Q8_0.block_bytes() == 2 + 32);
const _: () = assert!(GgmlType::Q8_1.block_bytes() == 2 + 2 + 32);

/// `d, qs[16]`: byte `j` holds weight `j` (low half) and `j + 16` (high half).
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (j, byte) in block[2..].iter().enumerate() {
        out[j] = f32::from((byte & 15) as i8 - 8) * d;
        out[j + 16] = f32::from((byte >> 4) as i8 - 8) * d;
    }
}

/// `d, m, qs[16]`.
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (j, byte) in block[4..].iter().enumerate() {
        out[j] = f32::from(byte & 15) * d + m;
        out[j + 16] = f32::from(byte >> 4) * d + m;
    }
}

/// `d, qh[4], qs[16]`: bit `j` of `qh` is the fifth bit of weight `j`.
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (j, byte) in block[6..].iter().enumerate() {
        out[j] = f32::from((byte & 15 | fifth_bit(high, j)) as i8 - 16) * d;
        out[j + 16] = f32::from((byte >> 4 | fifth_bit(high, j + 16)) as i8 - 16) * d;
    }
}

/// `d, m, qh[4], qs[16]`.
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (j, byte) in block[8..].iter().enumerate() {
        out[j] = f32::from(byte & 15 | fifth_bit(high, j)) * d + m;
        out[j + 16] = f32::from(byte >> 4 | fifth_bit(high, j + 16)) * d + m;
    }
}

fn fifth_bit(high: u32, j: usize) -> u8 {
    ((high >> j & 1) << 4) as u8
}

/// `d, qs[32]`, signed.
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (v, q) in out.iter_mut().zip(&block[2..]) {
        *v = f32::from(*q as i8) * d;
    }
}

/// `d, s, qs[32]`: as Q8_0; `s` is the sum of the weights, which products use and decoding does not.
pub(super) fn q8_1(block: &[u8; 36], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (v, q) in out.iter_mut().zip(&block[4..]) {
        *v = f32::from(*q as i8) * d;
    }
}
