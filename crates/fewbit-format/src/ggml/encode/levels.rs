//! Codes of four bits into sixteen levels.

use super::super::levels::{E2M1_TWICE, IQ4_LEVELS, half_of_ue4m3, half_power};
use super::search::{NOTHING, best_scale, nearest};
use super::{Source, extreme, power, put_f16, put_halves, reciprocal, squares, weighted};

const IQ4_BETWEEN: [f32; 15] = between(&IQ4_LEVELS);
const E2M1_BETWEEN: [f32; 7] = between(&E2M1_TWICE);

/// Halfway between the first `N + 1` levels, which rise.
const fn between<const N: usize>(levels: &[i8; 16]) -> [f32; N] {
    let (mut out, mut i) = ([0.0; N], 0);
    while i < N {
        out[i] = 0.5 * (levels[i] as f32 + levels[i + 1] as f32);
        i += 1;
    }
    out
}

/// The index of the level of IQ4 that is nearest, the upper of two.
fn nearest_level(x: f32) -> u8 {
    IQ4_BETWEEN.iter().map(|between| u8::from(x >= *between)).sum()
}

/// The levels of IQ4 that are nearest, without a table: the steps below are added.
fn nearest_levels(x: &[f32; 32]) -> [f32; 32] {
    let mut out = [f32::from(IQ4_LEVELS[0]); 32];
    for (i, between) in IQ4_BETWEEN.iter().enumerate() {
        let step = f32::from(IQ4_LEVELS[i + 1]) - f32::from(IQ4_LEVELS[i]);
        out.iter_mut().zip(x).for_each(|(level, x)| *level += if x >= between { step } else { 0.0 });
    }
    out
}

/// The best scale of 32 weights among sixteen: one puts the extreme value on the lowest level, others lie up to seven
/// levels' units from it.
fn scale(values: &[f32; 32], importance: Option<&[f32]>, mean: f32) -> f32 {
    let mut weights = [0.0; 32];
    match importance {
        Some(importance) => weighted(values, importance, mean, &mut weights),
        None => squares(values, &mut weights),
    }
    let extreme = extreme(values);
    if extreme.abs() < NOTHING {
        return 0.0;
    }
    let lowest = f32::from(IQ4_LEVELS[0]);
    let first = 1.0 / (-extreme / lowest);
    let others = (-7..=7).map(|i| (i as f32 + lowest) / extreme);
    let found = best_scale(std::iter::once(first).chain(others), |inverse| {
        let mut sums = [0.0; 2];
        let levels = nearest_levels(&values.map(|v| inverse * v));
        for ((v, w), q) in values.iter().zip(&weights).zip(levels) {
            sums[0] += w * q * v;
            sums[1] += w * q * q;
        }
        sums
    });
    found.map_or(0.0, |(scale, _)| scale)
}

fn put_levels(values: &[f32; 32], inverse: f32, qs: &mut [u8]) {
    put_halves(&values.map(|v| nearest_level(inverse * v)), qs);
}

pub(super) fn iq4_nl(source: &Source<'_, 32>, block: &mut [u8; 18]) {
    let mean = power(source.values) * (2.0 / 32.0);
    let d = scale(source.values, source.importance.map(|i| &i[..]), mean);
    put_f16(block, 0, d);
    put_levels(source.values, reciprocal(d), &mut block[2..]);
}

pub(super) fn iq4_xs(source: &Source<'_, 256>, block: &mut [u8; 136]) {
    let mean = power(source.values) * (2.0 / 256.0);
    let mut scales = [0.0; 8];
    let groups = source.values.as_chunks::<32>().0;
    for (j, values) in groups.iter().enumerate() {
        scales[j] = scale(values, source.importance.map(|i| &i[32 * j..]), mean);
    }
    let d = -extreme(&scales) / 32.0;
    let inverse = reciprocal(d);
    put_f16(block, 0, d);
    for (j, values) in groups.iter().enumerate() {
        let step = nearest(inverse * scales[j]).clamp(-32, 31);
        put_levels(values, reciprocal(d * step as f32), &mut block[8 + 16 * j..][..16]);
        let step = (step + 32) as u8;
        block[4 + j / 2] |= (step & 15) << (j % 2 * 4);
        block[2 + j / 4] |= step >> 4 << (j % 4 * 2);
    }
}

/// The level of E2M1 with the least error under a scale, of two the one nearer to zero; zero has no sign.
fn nearest_e2m1(v: f32, d: f32) -> u8 {
    let magnitude: u8 = E2M1_BETWEEN.iter().map(|between| u8::from(v.abs() > between * d)).sum();
    if d == 0.0 || magnitude == 0 { 0 } else { magnitude | u8::from(v < 0.0) << 3 }
}

fn put_e2m1<const N: usize>(values: &[f32; N], d: f32, qs: &mut [u8]) {
    put_halves(&values.map(|v| nearest_e2m1(v, d)), qs);
}

/// `e = ⌊log₂ max|w|⌋ − 2`, offset by 127: the exact floor, where ggml's goes through a rounded logarithm.
pub(super) fn mxfp4(source: &Source<'_, 32>, block: &mut [u8; 17]) {
    let exponent = (extreme(source.values).abs().to_bits() >> 23) as u8;
    block[0] = exponent.saturating_sub(2);
    put_e2m1(source.values, half_power(block[0]), &mut block[1..]);
}

/// Each 16 weights under `max|w| / 6`.
pub(super) fn nvfp4(source: &Source<'_, 64>, block: &mut [u8; 36]) {
    for (i, values) in source.values.as_chunks::<16>().0.iter().enumerate() {
        block[i] = to_ue4m3(extreme(values).abs() / 6.0);
        put_e2m1(values, half_of_ue4m3(block[i]), &mut block[4 + 8 * i..][..8]);
    }
}

/// Four bits of exponent and three of mantissa, rounded half up, at most 448, which ggml takes from 256 on.
fn to_ue4m3(x: f32) -> u8 {
    if x >= 448.0 {
        return 0x7e;
    }
    let exponent = (x.to_bits() >> 23) as i32 - 127 + 7;
    if exponent <= 0 {
        return ((x * 512.0 + 0.5) as u8).min(7);
    }
    // A carry of the mantissa goes into the exponent.
    let rounded = ((x.to_bits() >> 19 & 0xf) + 1) >> 1;
    ((exponent as u32) * 8 + rounded).min(0x7e) as u8
}
