//! Super-blocks of 256 weights whose codes are points of a grid of eight numbers, moved up or down, with small integer
//! scales beside them (IQ1).

use half::f16;

use super::grids;
use super::{GgmlType, f16_at};

const _: () = assert!(GgmlType::Iq1S.block_bytes() == 2 + 32 + 16);
const _: () = assert!(GgmlType::Iq1M.block_bytes() == 32 + 16 + 8);

/// How far the points of IQ1 are moved, up or down.
const DELTA: f32 = 0.125;

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

pub(super) fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
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
