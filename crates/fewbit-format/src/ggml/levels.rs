//! Codes of four bits that stand for one of sixteen levels, times a scale.

use super::{GgmlType, f16_at};

const _: () = assert!(GgmlType::Iq4Nl.block_bytes() == 2 + 16);
const _: () = assert!(GgmlType::Iq4Xs.block_bytes() == 2 + 2 + 4 + 128);
const _: () = assert!(GgmlType::Mxfp4.block_bytes() == 1 + 16);
const _: () = assert!(GgmlType::Nvfp4.block_bytes() == 4 + 32);

/// The levels of IQ4_NL and IQ4_XS.
pub const IQ4_LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The levels of MXFP4 and NVFP4: twice the numbers of E2M1, under half the stored scale; there is no negative zero.
pub const E2M1_TWICE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Byte `j` holds weight `j` (low half) and the one that is half a group further on (high half).
#[inline]
fn halves(levels: &[i8; 16], scale: f32, qs: &[u8], out: &mut [f32]) {
    let (low, high) = out.split_at_mut(qs.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(qs) {
        *low = scale * f32::from(levels[usize::from(byte & 15)]);
        *high = scale * f32::from(levels[usize::from(byte >> 4)]);
    }
}

/// `d, qs[16]`.
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    halves(&IQ4_LEVELS, f16_at(block, 0), &block[2..], out);
}

/// `d, high[2], low[4], qs[128]`: a scale of six bits for each 32, offset by 32: its low four bits in `low`, the upper
/// two in `high`.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        halves(&IQ4_LEVELS, d * f32::from(iq4_xs_scale(block, i)), &block[8 + 16 * i..][..16], values);
    }
}

/// The integer scale of 32 weights of a block of IQ4_XS.
pub(super) fn iq4_xs_scale(block: &[u8], i: usize) -> i8 {
    let low = block[4 + i / 2] >> (i % 2 * 4) & 15;
    let high = block[2 + i / 4] >> (i % 4 * 2) & 3;
    (low | high << 4) as i8 - 32
}

/// `e, qs[16]`: a power of two.
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    halves(&E2M1_TWICE, half_power(block[0]), &block[1..], out);
}

/// `2^(e − 128)`.
pub(super) fn half_power(e: u8) -> f32 {
    f32::from_bits(match e {
        0 | 1 => 0x0020_0000 << e,
        _ => u32::from(e - 1) << 23,
    })
}

/// `scales[4], qs[32]`: one scale for each 16.
pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    for (i, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        halves(&E2M1_TWICE, half_of_ue4m3(block[i]), &block[4 + 8 * i..][..8], values);
    }
}

/// Half of an unsigned small float: four bits of exponent, three of mantissa; the NaN of E4M3 counts as zero, and the
/// sign is not looked at.
pub(super) fn half_of_ue4m3(byte: u8) -> f32 {
    if byte == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = (byte >> 3 & 15, f32::from(byte & 7));
    match exponent {
        0 => mantissa * f32::from_bits((127 - 10) << 23),
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((u32::from(exponent) + 127 - 8) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_half_of_what_is_stored() {
        assert_eq!([0, 1, 2, 127, 128, 254].map(half_power), [-128, -127, -126, -1, 0, 126].map(|e| 2f32.powi(e)));
        let halved = [0x00, 0x01, 0x07, 0x08, 0x38, 0x7e, 0x7f].map(half_of_ue4m3);
        assert_eq!(halved, [0.0, 0.000_976_562_5, 0.006_835_937_5, 0.007_812_5, 0.5, 224.0, 0.0]);
    }
}
