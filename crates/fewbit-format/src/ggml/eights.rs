//! Blocks whose codes are points of a grid for four or eight magnitudes (IQ2 and IQ3), eight weights at a time.

use super::encode::near::{self, Near};
use super::grids::{self, Grid, even_signs};
use super::iq::u32_at;
use super::{GgmlType, f16_at};

// d, qs[64]: of each 32 weights four bytes of points, then four times seven signs and a scale of four bits.
const _: () = assert!(GgmlType::Iq2Xxs.block_bytes() == 2 + 64);
// d, qs[64], scales[8]: a point of nine bits and seven signs for each eight; four bits of scale for each 16.
const _: () = assert!(GgmlType::Iq2Xs.block_bytes() == 2 + 64 + 8);
// d, qs[32], signs[32], qh[8], scales[8]: a point of ten bits and eight signs for each eight; four bits of scale for
// each 16.
const _: () = assert!(GgmlType::Iq2S.block_bytes() == 2 + 32 + 32 + 8 + 8);
// d, qs[64], signs[32]: a byte for each four; of each 32 four times seven signs and a scale of four bits.
const _: () = assert!(GgmlType::Iq3Xxs.block_bytes() == 2 + 64 + 32);
// d, qs[64], qh[8], signs[32], scales[4]: a point of nine bits for each four, a sign each; four bits of scale for each
// 32.
const _: () = assert!(GgmlType::Iq3S.block_bytes() == 2 + 64 + 8 + 32 + 4);

/// What stands for eight weights: one point, or two of four each, and a sign each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Eight {
    /// The second is none where the first covers all eight.
    pub points: [u16; 2],
    /// A bit is set where the weight is negative.
    pub signs: u8,
}

/// The points of a type with eights.
#[derive(Clone, Debug)]
pub struct EightPoints {
    /// Weights of a point: four or eight.
    pub len: usize,
    /// The levels of each point, four bits each, the first weight's lowest.
    pub levels: Vec<u32>,
    /// What the levels stand for.
    pub numbers: [f32; 8],
}

impl EightPoints {
    fn of<const N: usize>(grid: &Grid<N>, count: usize) -> Self {
        let spread = |i: usize| grid.levels(i).iter().rev().fold(0, |all, level| all << 4 | u32::from(*level));
        let numbers = std::array::from_fn(|level| grid.number(level as u8));
        Self { len: N, levels: (0..count).map(spread).collect(), numbers }
    }
}

/// Signs that are tried where an even number has to be negative and an odd one is.
const FLIPS: usize = 3;

impl GgmlType {
    /// Whether eight weights at a time have points and signs of their own, under scales that others share.
    pub const fn has_eights(self) -> bool {
        matches!(self, Self::Iq2Xxs | Self::Iq2Xs | Self::Iq2S | Self::Iq3Xxs | Self::Iq3S)
    }

    /// The scale that eight weights of a block stand under: the block's own, times a [step](Self::step_of_eight), times
    /// the [unit](Self::unit_of_steps).
    ///
    /// # Panics
    /// If the type has no [eights](Self::has_eights), or there is no such one.
    #[inline]
    pub fn scale_of_eight(self, block: &[u8], eight: usize) -> f32 {
        // Powers of two and a few bits: no product is rounded.
        f16_at(block, 0) * f32::from(self.step_of_eight(block, eight)) * self.unit_of_steps()
    }

    /// The scale of eight weights of a block as an odd integer, up to 31.
    ///
    /// # Panics
    /// As [`scale_of_eight`](Self::scale_of_eight).
    #[inline]
    pub fn step_of_eight(self, block: &[u8], eight: usize) -> u8 {
        let (group, pair) = (eight / 4, eight % 4 / 2 * 4);
        let four_bits = match self {
            Self::Iq2Xxs => block[9 + 8 * group] >> 4,
            Self::Iq2Xs => block[66 + group] >> pair & 15,
            Self::Iq2S => block[74 + group] >> pair & 15,
            Self::Iq3Xxs => block[69 + 4 * group] >> 4,
            Self::Iq3S => block[106 + eight / 8] >> (eight % 8 / 4 * 4) & 15,
            _ => unreachable!("only blocks with eights have scales of them"),
        };
        2 * four_bits + 1
    }

    /// What a [step](Self::step_of_eight) is of a block's scale: a power of two.
    pub const fn unit_of_steps(self) -> f32 {
        match self {
            Self::Iq3S => 1.0,
            Self::Iq3Xxs => 0.25,
            _ => 0.125,
        }
    }

    /// How many eights share a step.
    pub const fn eights_of_a_step(self) -> usize {
        if matches!(self, Self::Iq2Xs | Self::Iq2S) { 2 } else { 4 }
    }

    /// The points that eights are made of; `None` for types without [eights](Self::has_eights).
    pub fn eight_points(self) -> Option<EightPoints> {
        Some(match self {
            Self::Iq2Xxs => EightPoints::of(&grids::IQ2_XXS, 256),
            Self::Iq2Xs => EightPoints::of(&grids::IQ2_XS, 512),
            Self::Iq2S => EightPoints::of(&grids::IQ2_S, 1024),
            Self::Iq3Xxs => EightPoints::of(&grids::IQ3_XXS, 256),
            Self::Iq3S => EightPoints::of(&grids::IQ3_S, 512),
            _ => return None,
        })
    }

    /// What stands for eight weights of a block, all signs given.
    ///
    /// # Panics
    /// As [`scale_of_eight`](Self::scale_of_eight).
    #[inline]
    pub fn read_eight(self, block: &[u8], index: usize) -> Eight {
        let (group, place) = (index / 4, index % 4);
        let byte = |at: usize| u16::from(block[at]);
        let seven = |at: usize| even_signs(u32_at(block, at) >> (7 * place));
        let high = || byte(66 + group) >> (2 * place) & 3;
        let (points, signs) = match self {
            Self::Iq2Xxs => ([byte(2 + 8 * group + place), 0], seven(6 + 8 * group)),
            Self::Iq2Xs => {
                let code = byte(2 + 2 * index) | byte(3 + 2 * index) << 8;
                ([code & 511, 0], even_signs(u32::from(code >> 9)))
            }
            Self::Iq2S => ([byte(2 + index) | high() << 8, 0], block[34 + index]),
            Self::Iq3Xxs => ([byte(2 + 2 * index), byte(3 + 2 * index)], seven(66 + 4 * group)),
            Self::Iq3S => {
                let points = [byte(2 + 2 * index) | (high() & 1) << 8, byte(3 + 2 * index) | (high() >> 1) << 8];
                (points, block[74 + index])
            }
            _ => unreachable!("only some blocks have eights"),
        };
        Eight { points, signs }
    }

    /// What eight weights become.
    #[inline]
    pub fn decode_eight(self, scale: f32, eight: Eight) -> [f32; 8] {
        let [first, second] = eight.points.map(usize::from);
        let mut out = [0.0; 8];
        let signs = if self.has_even_signs() { even_signs(eight.signs.into()) } else { eight.signs };
        let halves = |out: &mut [f32; 8], grid: &Grid<4>| {
            let [low, high] = out.as_chunks_mut::<4>().0 else { return };
            signed(low, scale, grid.point(first), signs);
            signed(high, scale, grid.point(second), signs >> 4);
        };
        match self {
            Self::Iq2Xxs => signed(&mut out, scale, grids::IQ2_XXS.point(first), signs),
            Self::Iq2Xs => signed(&mut out, scale, grids::IQ2_XS.point(first), signs),
            Self::Iq2S => signed(&mut out, scale, grids::IQ2_S.point(first), signs),
            Self::Iq3Xxs => halves(&mut out, &grids::IQ3_XXS),
            Self::Iq3S => halves(&mut out, &grids::IQ3_S),
            _ => unreachable!("only some blocks have eights"),
        }
        out
    }

    /// Puts what stands for eight weights into a block that has its scales.
    pub fn put_eight(self, eight: Eight, index: usize, block: &mut [u8]) {
        let [first, second] = eight.points;
        let (group, place) = (index / 4, index % 4);
        let put_seven = |block: &mut [u8], at: usize| {
            let others = u32_at(block, at) & !(127 << (7 * place));
            block[at..at + 4].copy_from_slice(&(others | u32::from(eight.signs & 127) << (7 * place)).to_le_bytes());
        };
        match self {
            Self::Iq2Xxs => {
                block[2 + 8 * group + place] = first as u8;
                put_seven(block, 6 + 8 * group);
            }
            Self::Iq2Xs => {
                let code = first | u16::from(eight.signs & 127) << 9;
                block[2 + 2 * index..4 + 2 * index].copy_from_slice(&code.to_le_bytes());
            }
            Self::Iq2S => {
                block[2 + index] = first as u8;
                block[34 + index] = eight.signs;
                put_bits(&mut block[66 + group], 2 * place, 3, first >> 8);
            }
            Self::Iq3Xxs => {
                (block[2 + 2 * index], block[3 + 2 * index]) = (first as u8, second as u8);
                put_seven(block, 66 + 4 * group);
            }
            Self::Iq3S => {
                (block[2 + 2 * index], block[3 + 2 * index]) = (first as u8, second as u8);
                block[74 + index] = eight.signs;
                put_bits(&mut block[66 + group], 2 * place, 3, first >> 8 | second >> 8 << 1);
            }
            _ => unreachable!("only some blocks have eights"),
        }
    }

    /// Whether the last of eight signs follows from the others.
    const fn has_even_signs(self) -> bool {
        matches!(self, Self::Iq2Xxs | Self::Iq2Xs | Self::Iq3Xxs)
    }

    /// What stands for eight weights with the least error under a scale, of the points that are near.
    ///
    /// `error` says how much the differences to the weights, each less what it becomes, count together; `weights` how much
    /// each counts about, to choose which sign is wrong where one has to be.
    pub fn nearest_eight(
        self,
        scale: f32,
        values: &[f32; 8],
        weights: &[f32; 8],
        error: &impl Fn(&[f32; 8]) -> f32,
    ) -> Eight {
        let signs = (0..8).fold(0u8, |bits, i| bits | u8::from(values[i] < 0.0) << i);
        let (mut tries, mut count) = ([signs; FLIPS], 1);
        if self.has_even_signs() && signs.count_ones() % 2 == 1 {
            let mut order: [usize; 8] = std::array::from_fn(|i| i);
            let cost = |i: &usize| weights[*i] * values[*i] * values[*i];
            order.sort_by(|a, b| cost(a).total_cmp(&cost(b)));
            (tries, count) = (std::array::from_fn(|i| signs ^ 1 << order[i]), FLIPS);
        }
        let mut best = (Eight::default(), f32::INFINITY);
        for signs in tries.into_iter().take(count) {
            let points = self.near_points(scale, values, signs, weights, error);
            let found = Eight { points, signs };
            let decoded = self.decode_eight(scale, found);
            let off = error(&std::array::from_fn(|i| values[i] - decoded[i]));
            if off < best.1 {
                best = (found, off);
            }
        }
        best.0
    }

    /// The points for given signs.
    fn near_points(
        self,
        scale: f32,
        values: &[f32; 8],
        signs: u8,
        weights: &[f32; 8],
        error: &impl Fn(&[f32; 8]) -> f32,
    ) -> [u16; 2] {
        let turned = |i: usize, v: f32| if signs >> i & 1 == 1 { -v } else { v };
        let magnitudes: [f32; 8] = std::array::from_fn(|i| turned(i, values[i]));
        let whole = |near: &Near<8>, grid: &Grid<8>| {
            let off = |point: [f32; 8]| error(&std::array::from_fn(|i| turned(i, magnitudes[i] - scale * point[i])));
            [near.nearest(grid, scale, &magnitudes, off), 0]
        };
        // Each half for itself: pairs of points would be thousands.
        let halves = |near: &Near<4>, grid: &Grid<4>| {
            [0, 4].map(|first| {
                let magnitudes: [f32; 4] = std::array::from_fn(|i| magnitudes[first + i]);
                let square = |i: usize, p: f32| weights[first + i] * (magnitudes[i] - scale * p).powi(2);
                near.nearest(grid, scale, &magnitudes, |point| (0..4).map(|i| square(i, point[i])).sum())
            })
        };
        match self {
            Self::Iq2Xxs => whole(&near::IQ2_XXS, &grids::IQ2_XXS),
            Self::Iq2Xs => whole(&near::IQ2_XS, &grids::IQ2_XS),
            Self::Iq2S => whole(&near::IQ2_S, &grids::IQ2_S),
            Self::Iq3Xxs => halves(&near::IQ3_XXS, &grids::IQ3_XXS),
            Self::Iq3S => halves(&near::IQ3_S, &grids::IQ3_S),
            _ => unreachable!("only some blocks have eights"),
        }
    }
}

/// `out = scale · point`, negative where the bit of `signs` is set.
#[inline]
fn signed<const N: usize>(out: &mut [f32; N], scale: f32, point: [f32; N], signs: u8) {
    for (j, (v, magnitude)) in out.iter_mut().zip(point).enumerate() {
        let product = scale * magnitude;
        *v = if signs >> j & 1 == 1 { -product } else { product };
    }
}

/// Decodes a block of a type with [eights](GgmlType::has_eights), a function for each.
#[inline(always)]
pub(super) fn decode(kind: GgmlType, block: &[u8], out: &mut [f32; 256]) {
    for (i, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *values = kind.decode_eight(kind.scale_of_eight(block, i), kind.read_eight(block, i));
    }
}

/// Puts the low bits of a number, as many as the mask has, into a byte.
fn put_bits(byte: &mut u8, at: usize, mask: u8, bits: u16) {
    *byte = *byte & !(mask << at) | (bits as u8 & mask) << at;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{GgmlBlocks, decode_row};
    use super::*;

    /// Weights of a block.
    const LEN: usize = 256;

    fn kinds() -> impl Iterator<Item = GgmlType> {
        GgmlType::ALL.into_iter().filter(|k| k.has_eights())
    }

    /// A block with the scales of another alone.
    fn scales_of(kind: GgmlType, block: &[u8]) -> Vec<u8> {
        let mut out = vec![0; block.len()];
        kind.scale_bytes().for_each(|i| out[i] = block[i]);
        out
    }

    proptest! {
        /// Any codes, whatever was there before.
        #[test]
        fn eights_decode_as_the_block_does(seed: u64) {
            let mut state = seed;
            let mut byte = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            };
            for kind in kinds() {
                let mut block: Vec<u8> = (0..kind.block_bytes()).map(|_| byte()).collect();
                block[1] &= 0xbf;
                let most = match kind {
                    GgmlType::Iq2Xxs | GgmlType::Iq3Xxs => 256,
                    GgmlType::Iq2S => 1024,
                    _ => 512,
                };
                let has_two = matches!(kind, GgmlType::Iq3Xxs | GgmlType::Iq3S);
                let mut eights = Vec::new();
                for i in 0..LEN / 8 {
                    let mut point = || u16::from_le_bytes([byte(), byte()]) % most;
                    let points = [point(), if has_two { point() } else { 0 }];
                    eights.push(Eight { points, signs: byte() });
                    kind.put_eight(eights[i], i, &mut block);
                }
                let mut whole = vec![0.0; LEN];
                decode_row(kind, &block, &mut whole);
                for (i, eight) in eights.iter().enumerate() {
                    let own = kind.decode_eight(kind.scale_of_eight(&block, i), *eight);
                    prop_assert_eq!(&own[..], &whole[8 * i..8 * i + 8], "{}", kind.name());
                }
            }
        }

        /// Under the scales that ggml found, over some blocks: a point that is near by levels is not always the nearest.
        #[test]
        fn the_nearest_lose_no_more_than_ggmls(seed: u64) {
            let mut state = seed;
            let mut uniform = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            };
            let values: Vec<f32> = (0..8 * LEN).map(|_| uniform() + uniform() + uniform()).collect();
            for kind in kinds() {
                let stored = GgmlBlocks::encode(kind, 1, 8 * LEN, &values, Some(&[1.0; 8 * LEN])).unwrap();
                let square = |off: &[f32; 8]| off.iter().map(|v| v * v).sum::<f32>();
                let (mut ours, mut theirs) = (0.0, 0.0);
                for (values, stored) in values.chunks_exact(LEN).zip(stored.bytes.chunks_exact(kind.block_bytes())) {
                    let mut block = scales_of(kind, stored);
                    for (i, eight) in values.as_chunks::<8>().0.iter().enumerate() {
                        let scale = kind.scale_of_eight(stored, i);
                        kind.put_eight(kind.nearest_eight(scale, eight, &[1.0; 8], &square), i, &mut block);
                    }
                    let error = |bytes: &[u8]| -> f32 {
                        let mut out = vec![0.0; LEN];
                        decode_row(kind, bytes, &mut out);
                        out.iter().zip(values).map(|(a, b)| (a - b).powi(2)).sum()
                    };
                    (ours, theirs) = (ours + error(&block), theirs + error(stored));
                }
                prop_assert!(ours <= 1.02 * theirs, "{}: {ours}, ggml {theirs}", kind.name());
            }
        }
    }
}
