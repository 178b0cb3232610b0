//! Super-blocks of 256 weights: sub-blocks with integer scales, under f16 scales of the scales.

use super::{GgmlType, f16_at};

const _: () = assert!(GgmlType::Q2K.block_bytes() == 16 + 64 + 2 + 2);
const _: () = assert!(GgmlType::Q3K.block_bytes() == 32 + 64 + 12 + 2);
const _: () = assert!(GgmlType::Q4K.block_bytes() == 2 + 2 + 12 + 128);
const _: () = assert!(GgmlType::Q5K.block_bytes() == 2 + 2 + 12 + 32 + 128);
const _: () = assert!(GgmlType::Q6K.block_bytes() == 128 + 64 + 16 + 2);
const _: () = assert!(GgmlType::Q8K.block_bytes() == 4 + 256 + 2 * 16);

/// Where the codes of Q2_K, and the low bits of those of Q3_K, have the 16 weights of sub-block `j`: their first byte
/// and the shift. Of each half of 128, byte `l` holds weights `l, l + 32, l + 64, l + 96` in its bit pairs.
fn two_bits(j: usize) -> (usize, usize) {
    (32 * (j / 8) + 16 * (j % 2), 2 * (j % 8 / 2))
}

/// `scales[16], qs[64], d, dmin`: a scale (low half) and a minimum (high half) for each 16 weights.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (j, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, min) = (d * f32::from(block[j] & 15), dmin * f32::from(block[j] >> 4));
        let (first, shift) = two_bits(j);
        for (v, byte) in values.iter_mut().zip(&block[16 + first..]) {
            *v = scale * f32::from(byte >> shift & 3) - min;
        }
    }
}

/// `hmask[32], qs[64], scales[12], d`: three bits a weight, signed; six bits a scale, offset by 32.
///
/// Bit `i / 32` of `hmask[i % 32]` is the third bit of weight `i`, which counts 4.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 108);
    let packed = &block[96..108];
    for (j, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = if j < 8 { packed[j] & 15 } else { packed[j - 8] >> 4 };
        let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
        let scale = d * f32::from((low | high << 4) as i8 - 32);
        let (first, shift) = two_bits(j);
        let (qs, mask) = (&block[32 + first..][..16], &block[16 * (j % 2)..][..16]);
        for ((v, byte), third) in values.iter_mut().zip(qs).zip(mask) {
            *v = scale * f32::from((byte >> shift & 3 | (third >> (j / 2) & 1) << 2) as i8 - 4);
        }
    }
}

/// Scale and minimum of sub-block `j`, six bits each, from the twelve bytes of Q4_K and Q5_K.
pub(super) fn scale_and_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let halves = packed[j + 4];
        (halves & 15 | packed[j - 4] >> 6 << 4, halves >> 4 | packed[j] >> 6 << 4)
    }
}

/// `d, dmin, scales[12], qs[128]`: of each 64, byte `l` holds weight `l` (low half) and `l + 32` (high half).
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for (j, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], j);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let qs = &block[16 + j / 2 * 32..][..32];
        for (v, byte) in values.iter_mut().zip(qs) {
            *v = scale * f32::from(byte >> (4 * (j % 2)) & 15) - min;
        }
    }
}

/// `d, dmin, scales[12], qh[32], qs[128]`: as Q4_K, with the fifth bit of weight `l` of sub-block `j` at bit `j` of `qh[l]`.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for (j, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], j);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let (qh, qs) = (&block[16..48], &block[48 + j / 2 * 32..][..32]);
        for (l, v) in values.iter_mut().enumerate() {
            let q = qs[l] >> (4 * (j % 2)) & 15 | (qh[l] >> j & 1) << 4;
            *v = scale * f32::from(q) - min;
        }
    }
}

/// `ql[128], qh[64], scales[16], d`: six bits a weight, offset by 32; a signed scale for each 16.
///
/// Of each half of 128, `ql[l]` holds the low four bits of weights `l` and `l + 64`, `qh[l]` the high bit pairs of
/// weights `l, l + 32, l + 64, l + 96`.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = f16_at(block, 208);
    for (j, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (half, quarter, first) = (j / 8, j % 8 / 2, 16 * (j % 2));
        let low = &block[64 * half + 32 * (quarter % 2) + first..][..16];
        let high = &block[128 + 32 * half + first..][..16];
        let scale = d * f32::from(block[192 + j] as i8);
        for ((v, low), high) in values.iter_mut().zip(low).zip(high) {
            let q = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
            *v = scale * f32::from(q as i8 - 32);
        }
    }
}

/// `d, qs[256], sums[16]`: signed bytes under one f32; the sums of sixteen are for products alone.
pub(super) fn q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = q8_k_scale(block);
    for (v, q) in out.iter_mut().zip(&block[4..]) {
        *v = d * f32::from(*q as i8);
    }
}

/// The scale of a block of Q8_K.
pub(super) fn q8_k_scale(block: &[u8]) -> f32 {
    f32::from_le_bytes([block[0], block[1], block[2], block[3]])
}
