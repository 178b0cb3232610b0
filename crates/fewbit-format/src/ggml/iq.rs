//! Super-blocks of 256 weights whose codes are points of a grid of four or eight magnitudes, with signs and small
//! integer scales beside them.

use half::f16;

use super::grids::{self, even_signs};
use super::{GgmlType, f16_at};

const _: () = assert!(GgmlType::Iq2Xxs.block_bytes() == 2 + 64);
const _: () = assert!(GgmlType::Iq2Xs.block_bytes() == 2 + 64 + 8);
const _: () = assert!(GgmlType::Iq2S.block_bytes() == 2 + 32 + 32 + 8 + 8);
const _: () = assert!(GgmlType::Iq3Xxs.block_bytes() == 2 + 64 + 32);
const _: () = assert!(GgmlType::Iq3S.block_bytes() == 2 + 64 + 8 + 32 + 4);
const _: () = assert!(GgmlType::Iq1S.block_bytes() == 2 + 32 + 16);
const _: () = assert!(GgmlType::Iq1M.block_bytes() == 32 + 16 + 8);

/// How far the points of IQ1 are moved, up or down.
const DELTA: f32 = 0.125;

/// `out = scale · point`, negative where the bit of `signs` is set.
#[inline]
pub(super) fn signed<const N: usize>(out: &mut [f32; N], scale: f32, point: [f32; N], signs: u8) {
    for (j, (v, magnitude)) in out.iter_mut().zip(point).enumerate() {
        let product = scale * magnitude;
        *v = if signs >> j & 1 == 1 { -product } else { product };
    }
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

pub(super) fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// The scale of the halves of 32 weights, four bits each, in steps of a quarter from an eighth on.
#[inline]
pub(super) fn quarter_steps(d: f32, scale: u8) -> f32 {
    d * (0.5 + f32::from(scale)) * 0.25
}

/// `d, qs[64]`: of each 32 weights four bytes of points, then four times seven signs and a scale of four bits.
pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let points = &block[2 + 8 * i..][..4];
        let signs = u32_at(block, 6 + 8 * i);
        let scale = quarter_steps(d, (signs >> 28) as u8);
        for (l, values) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            signed(values, scale, grids::IQ2_XXS.point(points[l].into()), even_signs(signs >> (7 * l)));
        }
    }
}

/// `d, qs[64], scales[8]`: a point of nine bits and seven signs for each eight; four bits of scale for each 16.
pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let code = u16_at(block, 2 + 2 * i);
        let scale = quarter_steps(d, block[66 + i / 4] >> (i % 4 / 2 * 4) & 15);
        let point = grids::IQ2_XS.point(usize::from(code & 511));
        signed(values, scale, point, even_signs(u32::from(code >> 9)));
    }
}

/// `d, qs[32], signs[32], qh[8], scales[8]`: a point of ten bits and eight signs for each eight; four bits of scale for
/// each 16.
pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = usize::from(block[66 + i / 4] >> (i % 4 * 2) & 3);
        let scale = quarter_steps(d, block[74 + i / 4] >> (i % 4 / 2 * 4) & 15);
        let point = grids::IQ2_S.point(usize::from(block[2 + i]) | high << 8);
        signed(values, scale, point, block[34 + i]);
    }
}

/// `d, qs[64], signs[32]`: a byte for each four; of each 32 four times seven signs and a scale of four bits.
pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let points = &block[2 + 8 * i..][..8];
        let signs = u32_at(block, 66 + 4 * i);
        let scale = d * (0.5 + (signs >> 28) as f32) * 0.5;
        for (l, values) in values.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let eight = even_signs(signs >> (7 * (l / 2)));
            signed(values, scale, grids::IQ3_XXS.point(points[l].into()), eight >> (l % 2 * 4));
        }
    }
}

/// `d, qs[64], qh[8], signs[32], scales[4]`: a point of nine bits for each four, a sign each; four bits of scale for
/// each 32.
pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, values) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let high = usize::from(block[66 + i / 8] >> (i % 8) & 1);
        let scale = block[106 + i / 16] >> (i % 16 / 8 * 4) & 15;
        let point = grids::IQ3_S.point(usize::from(block[2 + i]) | high << 8);
        signed(values, d * f32::from(1 + 2 * scale), point, block[74 + i / 2] >> (i % 2 * 4));
    }
}

#[inline]
fn moved(out: &mut [f32; 8], scale: f32, point: [f32; 8], is_down: bool) {
    let delta = if is_down { -DELTA } else { DELTA };
    out.iter_mut().zip(point).for_each(|(v, p)| *v = scale * (p + delta));
}

/// `d, qs[32], qh[16]`: a point of eleven bits for each eight; of each 32 a scale of three bits and a direction.
pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (i, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = u16_at(block, 34 + 2 * (i / 4));
        let scale = d * f32::from(2 * (high >> 12 & 7) + 1);
        let point = usize::from(block[i + 2]) | usize::from(high >> (3 * (i % 4)) & 7) << 8;
        moved(values, scale, grids::IQ1.point(point), high >> 15 == 1);
    }
}

/// `qs[32], qh[16], scales[8]`: a point of eleven bits and a direction for each eight; three bits of scale for each 16;
/// the f16 scale is in the upper four bits of each 16 bits of scales.
pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let d = iq1_m_scale(block).to_f32();
    for (i, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let scales = u16_at(block, 48 + 2 * (i / 8));
        let scale = d * f32::from(2 * (scales >> (3 * (i % 8 / 2)) & 7) + 1);
        let high = block[32 + i / 2] >> (i % 2 * 4);
        let point = usize::from(block[i]) | usize::from(high & 7) << 8;
        moved(values, scale, grids::IQ1.point(point), high >> 3 & 1 == 1);
    }
}

/// The scale of a block of IQ1_M.
pub(super) fn iq1_m_scale(block: &[u8]) -> f16 {
    let quarter = |i: usize| u16_at(block, 48 + 2 * i) >> 12 << (4 * i);
    f16::from_bits(quarter(0) | quarter(1) | quarter(2) | quarter(3))
}
