//! Super-blocks of 256 weights with scales of scales.
//!
//! Each sub-block finds its scale; the scales are rounded under that of the block; then all weights are rounded again
//! under what is stored.

use std::array::from_fn;

use super::super::GgmlType;
use super::search::{NOTHING, Steps, affine, alone, nearest, positive, refined, symmetric};
use super::{Source, extreme, power, put_f16, squares, weighted};

type Block<'a> = Source<'a, 256>;

/// Scales and minima of sub-blocks, as integers of the block's two.
struct Minima<const SUBS: usize> {
    codes: [u8; 256],
    scales: [u8; SUBS],
    mins: [u8; SUBS],
    /// Scale of the scales and of the minima.
    shared: [f32; 2],
}

/// What tells the types with minima apart.
struct Form {
    /// Largest code.
    most: u8,
    /// Largest integer of a scale.
    most_scale: u8,
    /// Without importances.
    steps: Steps,
    /// What the mean square of a block counts for, with importances.
    power: f32,
    /// Errors count by `|w|`; else by `|w|` plus the root of the sub-block's mean square.
    by_magnitude: bool,
}

const Q2: Form = Form {
    most: 3,
    most_scale: 15,
    steps: Steps { first: -0.5, step: 0.1, count: 15, is_absolute: true },
    power: 1.0,
    by_magnitude: true,
};
const Q4: Form = Form {
    most: 15,
    most_scale: 63,
    steps: Steps { first: -1.0, step: 0.1, count: 20, is_absolute: false },
    power: 2.0,
    by_magnitude: false,
};
const Q5: Form = Form { most: 31, steps: Steps { first: -0.5, step: 0.1, count: 15, is_absolute: false }, ..Q4 };

impl<const SUBS: usize> Minima<SUBS> {
    fn of(source: &Block<'_>, form: &Form) -> Self {
        let len = 256 / SUBS;
        let (mut weights, mut sums) = ([0.0; 256], [0.0f32; SUBS]);
        let mean = form.power * power(source.values) / 256.0;
        for (j, weights) in weights.chunks_exact_mut(len).enumerate() {
            let values = &source.values[j * len..(j + 1) * len];
            if let Some(importance) = source.importance {
                weighted(values, &importance[j * len..], mean, weights);
            } else {
                let level = if form.by_magnitude { 0.0 } else { (power(values) / len as f32).sqrt() };
                weights.iter_mut().zip(values).for_each(|(w, v)| *w = level + v.abs());
            }
            sums[j] = weights.iter().fold(0.0, |sum, w| sum + w);
        }
        let steps = if source.importance.is_some() { Steps::FINE } else { form.steps };
        let mut codes = [[0; SUBS]; 32];
        let [scales, mins] = affine(
            &side_by_side(source.values)[..len],
            &side_by_side(&weights)[..len],
            form.most,
            steps,
            &mut codes[..len],
        );
        let mut out = Self { codes: in_order(&codes), scales: [0; SUBS], mins: [0; SUBS], shared: [0.0; 2] };
        let is_searched = source.importance.is_some();
        out.shared = [
            Self::round(&scales, &sums, form.most_scale, is_searched, &mut out.scales),
            Self::round(&mins, &sums, form.most_scale, is_searched, &mut out.mins),
        ];
        out
    }

    /// Integers of numbers that are not negative, and their scale.
    fn round(numbers: &[f32; SUBS], weights: &[f32], most: u8, is_searched: bool, out: &mut [u8; SUBS]) -> f32 {
        if is_searched {
            return positive(numbers, weights, most, out);
        }
        let high = numbers.iter().fold(0.0f32, |m, v| if *v > m { *v } else { m });
        let inverse = if high > 0.0 { f32::from(most) / high } else { 0.0 };
        out.iter_mut().zip(numbers).for_each(|(q, v)| *q = nearest(inverse * v).clamp(0, most.into()) as u8);
        high / f32::from(most)
    }

    /// Rounds the weights again, under the scales as they are stored.
    fn round_again(&mut self, values: &[f32; 256], [d, dmin]: [f32; 2], most: u8) {
        let len = 256 / SUBS;
        for (j, codes) in self.codes.chunks_exact_mut(len).enumerate() {
            let (scale, min) = (d * f32::from(self.scales[j]), dmin * f32::from(self.mins[j]));
            if scale != 0.0 {
                for (q, v) in codes.iter_mut().zip(&values[j * len..]) {
                    *q = nearest((v + min) / scale).clamp(0, most.into()) as u8;
                }
            }
        }
    }
}

pub(super) fn q2_k(source: &Block<'_>, block: &mut [u8; 84]) {
    let mut found = Minima::<16>::of(source, &Q2);
    let stored = [put_f16(block, 80, found.shared[0]), put_f16(block, 82, found.shared[1])];
    for j in 0..16 {
        block[j] = found.scales[j] | found.mins[j] << 4;
    }
    found.round_again(source.values, stored, 3);
    GgmlType::Q2K.put_codes(&found.codes, block);
}

pub(super) fn q4_k(source: &Block<'_>, block: &mut [u8; 144]) {
    let codes = with_six_bits(source, &Q4, &mut block[..16]);
    GgmlType::Q4K.put_codes(&codes, block);
}

pub(super) fn q5_k(source: &Block<'_>, block: &mut [u8; 176]) {
    let codes = with_six_bits(source, &Q5, &mut block[..16]);
    GgmlType::Q5K.put_codes(&codes, block);
}

/// The codes; `head` takes both scales and the twelve bytes of scales and minima of six bits.
fn with_six_bits(source: &Block<'_>, form: &Form, head: &mut [u8]) -> [u8; 256] {
    let mut found = Minima::<8>::of(source, form);
    let stored = [put_f16(head, 0, found.shared[0]), put_f16(head, 2, found.shared[1])];
    let packed = &mut head[4..];
    for j in 0..4 {
        let (scale, min) = (found.scales[j + 4], found.mins[j + 4]);
        packed[j] = found.scales[j] | scale >> 4 << 6;
        packed[j + 4] = found.mins[j] | min >> 4 << 6;
        packed[j + 8] = scale & 15 | min << 4;
    }
    found.round_again(source.values, stored, form.most);
    found.codes
}

/// Scales and codes of each 16 weights.
fn symmetric_groups(values: &[f32; 256], weights: &[f32; 256], reach: u8) -> ([f32; 16], [u8; 256]) {
    let mut codes = [[0; 16]; 32];
    let scales = symmetric(&side_by_side(values)[..16], &side_by_side(weights)[..16], reach, &mut codes[..16]);
    (scales, in_order(&codes))
}

/// The `L` groups of a block as columns of its first `256 / L` rows.
fn side_by_side<const L: usize>(values: &[f32; 256]) -> [[f32; L]; 32] {
    let len = 256 / L;
    from_fn(|i| from_fn(|l| if i < len { values[l * len + i] } else { 0.0 }))
}

/// The way back from [`side_by_side`].
fn in_order<const L: usize>(codes: &[[u8; L]; 32]) -> [u8; 256] {
    let len = 256 / L;
    from_fn(|i| codes[i % len][i / len])
}

/// Rounds again under the scales `d · scales[j]` of each 16, codes offset by `reach`.
fn round_again(values: &[f32; 256], d: f32, scales: impl Iterator<Item = i8>, reach: i32, codes: &mut [u8; 256]) {
    let groups = values.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
    for ((values, codes), scale) in groups.zip(scales) {
        let d = d * f32::from(scale);
        if d != 0.0 {
            for (q, v) in codes.iter_mut().zip(values) {
                *q = (nearest(v / d).clamp(-reach, reach - 1) + reach) as u8;
            }
        }
    }
}

pub(super) fn q3_k(source: &Block<'_>, block: &mut [u8; 110]) {
    let (mut codes, mut scales, mut sums) = ([0; 256], [0.0; 16], [0.0; 16]);
    if let Some(importance) = source.importance {
        let mean = 2.0 * power(source.values) / 256.0;
        let mut weights = [0.0; 256];
        weighted(source.values, importance, mean, &mut weights);
        sums = from_fn(|j| weights[16 * j..][..16].iter().fold(0.0, |sum, w| sum + w));
        (scales, codes) = symmetric_groups(source.values, &weights, 4);
    } else {
        let groups = source.values.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
        for ((values, codes), scale) in groups.zip(&mut scales) {
            *scale = refined(values, 4, codes);
        }
    }
    let mut steps = [0u8; 16];
    let shared = if source.importance.is_some() {
        symmetric(alone(&scales), alone(&sums), 32, steps.as_chunks_mut().0)[0]
    } else {
        let largest = extreme(&scales);
        let inverse = -32.0 / largest;
        if largest == 0.0 {
            0.0
        } else {
            steps.iter_mut().zip(scales).for_each(|(q, s)| *q = (nearest(inverse * s).clamp(-32, 31) + 32) as u8);
            1.0 / inverse
        }
    };
    for (j, step) in steps.into_iter().enumerate() {
        block[96 + j % 8] |= (step & 15) << (j / 8 * 4);
        block[104 + j % 4] |= step >> 4 << (j / 4 * 2);
    }
    let d = put_f16(block, 108, shared);
    round_again(source.values, d, steps.into_iter().map(|q| q as i8 - 32), 4, &mut codes);
    GgmlType::Q3K.put_codes(&codes, block);
}

pub(super) fn q6_k(source: &Block<'_>, block: &mut [u8; 210]) {
    let mut weights = [0.0; 256];
    match source.importance {
        Some(importance) => weights = *importance,
        None => squares(source.values, &mut weights),
    }
    let (scales, mut codes) = symmetric_groups(source.values, &weights, 32);
    let largest = extreme(&scales);
    if largest.abs() < NOTHING {
        return;
    }
    let inverse = -128.0 / largest;
    let steps = scales.map(|s| nearest(inverse * s).clamp(-128, 127) as i8);
    let d = put_f16(block, 208, 1.0 / inverse);
    round_again(source.values, d, steps.into_iter(), 32, &mut codes);
    for (byte, step) in block[192..208].iter_mut().zip(steps) {
        *byte = step as u8;
    }
    GgmlType::Q6K.put_codes(&codes, block);
}
