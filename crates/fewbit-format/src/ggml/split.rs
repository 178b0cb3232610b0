//! Blocks as codes and the scales that they stand under, and codes back in their places.

use super::encode::{put_bit_pairs, put_halves};
use super::k_quants::{q8_k_scale, scale_and_min};
use super::levels::{E2M1_TWICE, IQ4_LEVELS, half_of_ue4m3, half_power, iq4_xs_scale};
use super::ternary::TQ1_0_PARTS;
use super::{GgmlType, f16_at};
use crate::{pack_bits, unpack_bits};

/// What the codes of a type stand for, under the scale `s` of their group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeMeaning {
    /// `s (q − z)`, with one `z` for all.
    Middle(u8),
    /// `s q + m`, with an offset `m` for each group.
    Offset,
    /// `s T[q]`.
    Levels(&'static [i8]),
}

/// How blocks of a type split into codes and scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Bits of a code.
    pub bits: u8,
    /// Weights that share a scale.
    pub group: usize,
    /// What a code stands for.
    pub meaning: CodeMeaning,
    /// Whether scales and offsets are small integers times two numbers of the block.
    pub has_shared: bool,
}

/// The codes of Q1_0.
const SIGNS: [i8; 2] = [-1, 1];

impl GgmlType {
    /// How its blocks split; `None` where several weights share a code.
    pub const fn split(self) -> Option<Split> {
        use CodeMeaning::{Levels, Middle, Offset};
        let (bits, group, meaning) = match self {
            Self::Q4_0 => (4, 32, Middle(8)),
            Self::Q4_1 | Self::Q4K => (4, 32, Offset),
            Self::Q5_0 => (5, 32, Middle(16)),
            Self::Q5_1 | Self::Q5K => (5, 32, Offset),
            Self::Q8_0 | Self::Q8_1 => (8, 32, Middle(128)),
            Self::Q8K => (8, 256, Middle(128)),
            Self::Q2K => (2, 16, Offset),
            Self::Q3K => (3, 16, Middle(4)),
            Self::Q6K => (6, 16, Middle(32)),
            Self::Tq1_0 | Self::Tq2_0 => (2, 256, Middle(1)),
            Self::Q2_0 => (2, 64, Middle(1)),
            Self::Iq4Nl | Self::Iq4Xs => (4, 32, Levels(&IQ4_LEVELS)),
            Self::Mxfp4 => (4, 32, Levels(&E2M1_TWICE)),
            Self::Nvfp4 => (4, 16, Levels(&E2M1_TWICE)),
            Self::Q1_0 => (1, 128, Levels(&SIGNS)),
            _ => return None,
        };
        let has_shared = matches!(self, Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K);
        Some(Split { bits, group, meaning, has_shared })
    }

    /// Where the scales lie in a block: the other bytes are codes, which have their place in some of these too.
    ///
    /// # Panics
    /// If the type neither splits nor has [eights](Self::has_eights).
    pub fn scale_bytes(self) -> impl Iterator<Item = usize> {
        let step = match self {
            Self::Iq2Xxs => 8,
            Self::Iq3Xxs => 4,
            _ => 1,
        };
        let (first, second) = match self {
            Self::Q4_1 | Self::Q5_1 | Self::Q8_1 | Self::Nvfp4 => (0..4, 0..0),
            Self::Q2K => (0..16, 80..84),
            Self::Q3K => (96..110, 0..0),
            Self::Q4K | Self::Q5K => (0..16, 0..0),
            Self::Q6K => (192..210, 0..0),
            Self::Q8K => (0..4, 260..292),
            Self::Iq4Xs => (0..8, 0..0),
            Self::Mxfp4 => (0..1, 0..0),
            Self::Tq1_0 => (52..54, 0..0),
            Self::Tq2_0 => (64..66, 0..0),
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 | Self::Iq4Nl | Self::Q1_0 | Self::Q2_0 => (0..2, 0..0),
            Self::Iq2Xxs => (0..2, 9..66),
            Self::Iq2Xs => (0..2, 66..74),
            Self::Iq2S => (0..2, 74..82),
            Self::Iq3Xxs => (0..2, 69..98),
            Self::Iq3S => (0..2, 106..110),
            _ => unreachable!("only some blocks have scales in bytes of their own"),
        };
        first.chain(second.step_by(step))
    }

    /// The greatest code of a type that splits into `bits`.
    pub const fn greatest_code(self) -> u8 {
        match self {
            Self::Tq1_0 | Self::Tq2_0 => 2,
            _ => match self.split() {
                Some(split) => u8::MAX >> (8 - split.bits),
                None => 0,
            },
        }
    }

    /// The scales of a block, and its offsets if it has some, by group; gives what these share, if they do: the number
    /// that the integers of the scales are multiplied by, and that of the offsets.
    ///
    /// # Panics
    /// If the type does not [`split`](Self::split), or there is no room for all groups.
    pub fn read_scales(self, block: &[u8], scales: &mut [f32], offsets: &mut [f32]) -> [f32; 2] {
        match self {
            Self::Q4_1 | Self::Q5_1 => (scales[0], offsets[0]) = (f16_at(block, 0), f16_at(block, 2)),
            Self::Q2K => {
                let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
                for j in 0..16 {
                    (scales[j], offsets[j]) = (d * f32::from(block[j] & 15), -(dmin * f32::from(block[j] >> 4)));
                }
                return [d, dmin];
            }
            Self::Q3K => {
                let (d, packed) = (f16_at(block, 108), &block[96..108]);
                for (j, scale) in scales[..16].iter_mut().enumerate() {
                    let low = if j < 8 { packed[j] & 15 } else { packed[j - 8] >> 4 };
                    let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
                    *scale = d * f32::from((low | high << 4) as i8 - 32);
                }
                return [d, 0.0];
            }
            Self::Q4K | Self::Q5K => {
                let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
                for j in 0..8 {
                    let (scale, min) = scale_and_min(&block[4..16], j);
                    (scales[j], offsets[j]) = (d * f32::from(scale), -(dmin * f32::from(min)));
                }
                return [d, dmin];
            }
            Self::Q6K => {
                let d = f16_at(block, 208);
                scales.iter_mut().zip(&block[192..208]).for_each(|(s, scale)| *s = d * f32::from(*scale as i8));
                return [d, 0.0];
            }
            Self::Iq4Xs => {
                let d = f16_at(block, 0);
                for (j, scale) in scales[..8].iter_mut().enumerate() {
                    *scale = d * f32::from(iq4_xs_scale(block, j));
                }
            }
            Self::Q8K => scales[0] = q8_k_scale(block),
            Self::Tq1_0 => scales[0] = f16_at(block, 52),
            Self::Tq2_0 => scales[0] = f16_at(block, 64),
            Self::Mxfp4 => scales[0] = half_power(block[0]),
            Self::Nvfp4 => scales.iter_mut().zip(&block[..4]).for_each(|(s, byte)| *s = half_of_ue4m3(*byte)),
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 | Self::Q8_1 | Self::Iq4Nl | Self::Q1_0 | Self::Q2_0 => {
                scales[0] = f16_at(block, 0);
            }
            _ => unreachable!("only blocks that split have scales of codes"),
        }
        [0.0; 2]
    }

    /// The codes of a block.
    ///
    /// # Panics
    /// If the type does not [`split`](Self::split), or sizes disagree.
    pub fn read_codes(self, block: &[u8], codes: &mut [u8]) {
        match self {
            Self::Q4_0 | Self::Iq4Nl => halves(&block[2..], codes),
            Self::Q4_1 => halves(&block[4..], codes),
            Self::Q5_0 | Self::Q5_1 => {
                let (high, low) = block[block.len() - 20..].split_at(4);
                halves(low, codes);
                codes.iter_mut().enumerate().for_each(|(j, q)| *q |= (high[j / 8] >> (j % 8) & 1) << 4);
            }
            Self::Q8_0 => signed_bytes(&block[2..], codes),
            Self::Q8_1 | Self::Q8K => signed_bytes(&block[4..], codes),
            Self::Q2K => bit_pairs(&block[16..80], codes),
            Self::Q3K => {
                bit_pairs(&block[32..96], codes);
                high_bits(&block[..32], 2, codes);
            }
            Self::Q4K => block[16..].chunks_exact(32).zip(codes.chunks_exact_mut(64)).for_each(|(b, q)| halves(b, q)),
            Self::Q5K => {
                block[48..].chunks_exact(32).zip(codes.chunks_exact_mut(64)).for_each(|(b, q)| halves(b, q));
                high_bits(&block[16..48], 4, codes);
            }
            Self::Q6K => {
                for (j, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    let (half, quarter) = (j / 4, j % 4);
                    let low = &block[64 * half + 32 * (quarter % 2)..][..32];
                    let high = &block[128 + 32 * half..][..32];
                    for ((q, low), high) in codes.iter_mut().zip(low).zip(high) {
                        *q = low >> (4 * (quarter / 2)) & 15 | (high >> (2 * quarter) & 3) << 4;
                    }
                }
            }
            Self::Tq1_0 => three_values(&block[..52], codes),
            Self::Tq2_0 => bit_pairs(&block[..64], codes),
            Self::Q2_0 => unpack_bits(&block[2..], 2, codes),
            Self::Q1_0 => unpack_bits(&block[2..], 1, codes),
            Self::Iq4Xs => block[8..].chunks_exact(16).zip(codes.chunks_exact_mut(32)).for_each(|(b, q)| halves(b, q)),
            Self::Mxfp4 => halves(&block[1..], codes),
            Self::Nvfp4 => block[4..].chunks_exact(8).zip(codes.chunks_exact_mut(16)).for_each(|(b, q)| halves(b, q)),
            _ => unreachable!("only blocks that split have codes of single weights"),
        }
    }

    /// Puts codes into a block that has its scales, in the place of those that are there.
    ///
    /// # Panics
    /// If the type does not [`split`](Self::split) or has no encoder, or sizes disagree.
    pub fn put_codes(self, codes: &[u8], block: &mut [u8]) {
        match self {
            Self::Q4_0 | Self::Iq4Nl => put_halves(codes, &mut block[2..]),
            Self::Q4_1 => put_halves(codes, &mut block[4..]),
            Self::Q5_0 | Self::Q5_1 => {
                let at = block.len() - 20;
                let (high, low) = block[at..].split_at_mut(4);
                let bits = codes.iter().enumerate().fold(0u32, |bits, (j, q)| bits | u32::from(q >> 4) << j);
                high.copy_from_slice(&bits.to_le_bytes());
                put_halves(codes, low);
            }
            Self::Q8_0 => block[2..].iter_mut().zip(codes).for_each(|(b, q)| *b = q ^ 0x80),
            Self::Q2K => put_bit_pairs(codes, &mut block[16..80]),
            Self::Q3K => {
                put_high_bits(codes, 2, &mut block[..32]);
                put_bit_pairs(codes, &mut block[32..96]);
            }
            Self::Q4K => put_in_halves::<64>(codes, &mut block[16..]),
            Self::Q5K => {
                put_high_bits(codes, 4, &mut block[16..48]);
                put_in_halves::<64>(codes, &mut block[48..]);
            }
            Self::Q6K => {
                block[..192].fill(0);
                for (i, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
                    let (half, quarter) = (i / 4, i % 4);
                    for (l, q) in codes.iter().enumerate() {
                        block[64 * half + 32 * (quarter % 2) + l] |= (q & 15) << (quarter / 2 * 4);
                        block[128 + 32 * half + l] |= q >> 4 << (2 * quarter);
                    }
                }
            }
            Self::Tq1_0 => put_three_values(codes, &mut block[..52]),
            Self::Tq2_0 => put_bit_pairs(codes, &mut block[..64]),
            Self::Q2_0 => pack_bits(codes, 2, &mut block[2..]),
            Self::Q1_0 => pack_bits(codes, 1, &mut block[2..]),
            Self::Iq4Xs => put_in_halves::<32>(codes, &mut block[8..]),
            Self::Mxfp4 => put_halves(codes, &mut block[1..]),
            Self::Nvfp4 => put_in_halves::<16>(codes, &mut block[4..]),
            _ => unreachable!("only blocks that split have codes of single weights"),
        }
    }
}

/// Byte `j` holds code `j` (low half) and the one that is half a group further on (high half).
fn halves(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(bytes.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// [`put_halves`] of each `N` codes.
fn put_in_halves<const N: usize>(codes: &[u8], bytes: &mut [u8]) {
    codes.as_chunks::<N>().0.iter().zip(bytes.chunks_exact_mut(N / 2)).for_each(|(q, b)| put_halves(q, b));
}

/// Bytes with a sign, offset by 128.
fn signed_bytes(bytes: &[u8], codes: &mut [u8]) {
    codes.iter_mut().zip(bytes).for_each(|(q, b)| *q = b ^ 0x80);
}

/// Codes of two bits: each 32 bytes hold four times 32 of them.
fn bit_pairs(bytes: &[u8], codes: &mut [u8]) {
    for (codes, bytes) in codes.as_chunks_mut::<128>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
        for (j, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            codes.iter_mut().zip(bytes).for_each(|(q, b)| *q = b >> (2 * j) & 3);
        }
    }
}

/// Bit `i / 32` of byte `i % 32` is bit `place` of code `i`.
fn high_bits(bytes: &[u8], place: u8, codes: &mut [u8]) {
    for (j, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        codes.iter_mut().zip(bytes).for_each(|(q, high)| *q |= (high >> j & 1) << place);
    }
}

fn put_high_bits(codes: &[u8], place: u8, bytes: &mut [u8]) {
    bytes.fill(0);
    for (j, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
        bytes.iter_mut().zip(codes).for_each(|(high, q)| *high |= (q >> place & 1) << j);
    }
}

/// The values of TQ1_0, five in a byte as a fraction of 256 in base three.
fn three_values(bytes: &[u8], codes: &mut [u8]) {
    let (mut bytes, mut codes) = (bytes, codes);
    for (len, count) in TQ1_0_PARTS {
        let (these, later) = std::mem::take(&mut codes).split_at_mut(len * count);
        for (power, codes) in [1u8, 3, 9, 27, 81].into_iter().zip(these.chunks_exact_mut(len)) {
            for (q, byte) in codes.iter_mut().zip(bytes) {
                *q = ((3 * u16::from(byte.wrapping_mul(power))) >> 8) as u8;
            }
        }
        (bytes, codes) = (&bytes[len..], later);
    }
}

fn put_three_values(codes: &[u8], bytes: &mut [u8]) {
    let (mut bytes, mut codes) = (bytes, codes);
    for (len, count) in TQ1_0_PARTS {
        let (these, later) = std::mem::take(&mut bytes).split_at_mut(len);
        for (l, byte) in these.iter_mut().enumerate() {
            // Five digits in base three, those that are missing zero; as a fraction of 256, rounded up.
            let number = (0..5).fold(0, |n, i| 3 * n + if i < count { u16::from(codes[i * len + l]) } else { 0 });
            *byte = (number * 256).div_ceil(243) as u8;
        }
        (bytes, codes) = (later, &codes[len * count..]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{GgmlBlocks, decode_row};
    use super::*;

    /// The value of each weight of a block, from its parts.
    fn put_together(kind: GgmlType, block: &[u8]) -> Vec<f32> {
        let split = kind.split().unwrap();
        let (mut codes, groups) = (vec![0; kind.block_len()], kind.block_len() / split.group);
        let (mut scales, mut offsets) = (vec![0.0; groups], vec![0.0; groups]);
        kind.read_scales(block, &mut scales, &mut offsets);
        kind.read_codes(block, &mut codes);
        let value = |(i, q): (usize, &u8)| {
            let (s, q) = (scales[i / split.group], *q);
            match split.meaning {
                CodeMeaning::Middle(z) => s * (f32::from(q) - f32::from(z)),
                CodeMeaning::Offset => s * f32::from(q) + offsets[i / split.group],
                CodeMeaning::Levels(levels) => s * f32::from(levels[usize::from(q)]),
            }
        };
        codes.iter().enumerate().map(value).collect()
    }

    proptest! {
        #[test]
        fn blocks_are_their_codes_under_their_scales(seed: u64) {
            let mut state = seed;
            let mut byte = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            };
            let mut count = 0;
            for kind in GgmlType::ALL.into_iter().filter(|k| k.split().is_some()) {
                let mut block: Vec<u8> = (0..kind.block_bytes()).map(|_| byte()).collect();
                kind.f16_fields().iter().for_each(|at| block[at + 1] &= 0xbf);
                if kind == GgmlType::Q8K {
                    block[3] &= 0xbf;
                }
                let mut want = vec![0.0; kind.block_len()];
                decode_row(kind, &block, &mut want);
                prop_assert_eq!(put_together(kind, &block), want, "{}", kind.name());
                count += 1;
            }
            prop_assert_eq!(count, 20);
        }

        /// Whatever codes were there before.
        #[test]
        fn codes_come_back_from_their_places(values in prop::collection::vec(-1.0f32..1.0, 256), others in prop::collection::vec(any::<u8>(), 256)) {
            for kind in GgmlType::ALL.into_iter().filter(|k| k.split().is_some() && k.has_encoder()) {
                let (split, len) = (kind.split().unwrap(), kind.block_len());
                let stored = GgmlBlocks::encode(kind, 1, len, &values[..len], None).unwrap();
                let mut codes = vec![0; len];
                kind.read_codes(&stored.bytes, &mut codes);
                let mut block = stored.bytes.to_vec();
                let count = u16::from(kind.greatest_code()) + 1;
                prop_assert!(count <= 1 << split.bits);
                let others: Vec<u8> = others[..len].iter().map(|q| (u16::from(*q) % count) as u8).collect();
                // Nothing but the scales is needed.
                (0..block.len()).filter(|i| kind.scale_bytes().all(|place| place != *i)).for_each(|i| block[i] = 0);
                kind.put_codes(&others, &mut block);
                let mut read = vec![0; len];
                kind.read_codes(&block, &mut read);
                prop_assert_eq!(&read, &others, "{}", kind.name());
                kind.put_codes(&codes, &mut block);
                prop_assert_eq!(&block[..], &stored.bytes[..], "{}", kind.name());
            }
        }
    }
}
