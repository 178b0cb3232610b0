//! Blocks of ggml whose codes are points of four or eight magnitudes, with a sign for each weight: IQ2 and IQ3.
//!
//! As for lattices: a point's levels and the signs become eight indices of four bits, and then sixteen rows are looked up
//! at once.

use fewbit_format::{Eight, GgmlBlocks, GgmlType, Storage};

use super::super::packed::TILE;
use super::factors::Factors;
use super::lanes::{Sixteen, at_level, spread_byte};
use super::{Part, Room};
use crate::Level;

/// Weights of an eight.
const LEN: usize = 8;

/// The rows of a storage.
#[derive(Debug)]
pub(super) struct Eights {
    kind: GgmlType,
    /// Eights of a row.
    across: usize,
    /// Columns that share a scale.
    group: usize,
    /// Low bytes of points, `[tile][eight][point][16]`.
    low: Vec<u8>,
    /// Where points have more bits: those of as many neighbours as a byte has room for, `[tile][byte][16]`.
    high: Vec<u8>,
    /// `[tile][eight][16]`: those of even columns in the lower half of a byte.
    signs: Vec<u8>,
    scales: Factors,
    /// The levels of each point, four bits each.
    levels: Vec<u32>,
    /// What an index stands for: bit 3 is the sign.
    numbers: [f32; TILE],
}

/// Points of an eight, and bits of them that a byte has no room for.
const fn form(kind: GgmlType) -> Option<(usize, usize)> {
    Some(match kind {
        GgmlType::Iq2Xxs => (1, 0),
        GgmlType::Iq2Xs => (1, 1),
        GgmlType::Iq2S => (1, 2),
        GgmlType::Iq3Xxs => (2, 0),
        GgmlType::Iq3S => (2, 2),
        _ => return None,
    })
}

impl Eights {
    /// `None` for other storages.
    pub(super) fn new(storage: &Storage) -> Option<Self> {
        let Storage::Ggml(blocks) = storage else { return None };
        let GgmlBlocks { kind, rows, cols, .. } = *blocks;
        let ((points, bits), grid) = (form(kind)?, kind.eight_points()?);
        let (across, group, in_block) = (cols / LEN, LEN * kind.eights_of_a_step(), kind.block_len() / LEN);
        let block =
            |r: usize, eight: usize| &blocks.row(r)[eight / in_block * kind.block_bytes()..][..kind.block_bytes()];
        let tiles = rows.div_ceil(TILE);
        let (mut low, mut signs) = (vec![0; tiles * across * points * TILE], vec![0; tiles * across * TILE]);
        let mut high = vec![0; tiles * across * bits / 8 * TILE];
        for r in 0..rows {
            for i in 0..across {
                let Eight { points: codes, signs: bits_of_signs } = kind.read_eight(block(r, i), i % in_block);
                let (at, lane) = (r / TILE * across + i, r % TILE);
                for (p, code) in codes.into_iter().enumerate().take(points) {
                    low[(at * points + p) * TILE + lane] = code as u8;
                    if bits > 0 {
                        let place = at * bits;
                        high[place / 8 * TILE + lane] |= ((code >> 8) as u8) << (place % 8 + p);
                    }
                }
                signs[at * TILE + lane] = even_first(bits_of_signs);
            }
        }
        let step = |r: usize, k: usize| {
            let eight = k * group / LEN;
            kind.step_of_eight(block(r, eight), eight % in_block)
        };
        let first = |r: usize, b: usize| *block(r, b * in_block).first_chunk().expect("a block begins with its scale");
        let scales = Factors::odd(rows, cols / group, kind.block_len() / group, first, step);
        let unit = kind.unit_of_steps();
        let number = |index: usize| unit * if index < 8 { grid.numbers[index] } else { -grid.numbers[index - 8] };
        let numbers = std::array::from_fn(number);
        assert!(grid.levels.len() >= 1 << (8 + bits / points), "a point for each code");
        Some(Self { kind, across, group, low, high, signs, scales, levels: grid.levels, numbers })
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.low.len() + self.high.len() + self.signs.len() + self.scales.len_bytes()
    }

    /// Decodes a part of a tile.
    pub(super) fn panel(&self, level: Level, part: Part, room: &mut Room, out: &mut [f32]) {
        match form(self.kind) {
            Some((1, 0)) => panel_at::<1, 0>(level, self, part, room, out),
            Some((1, 1)) => panel_at::<1, 1>(level, self, part, room, out),
            Some((1, 2)) => panel_at::<1, 2>(level, self, part, room, out),
            Some((2, 0)) => panel_at::<2, 0>(level, self, part, room, out),
            Some((2, 2)) => panel_at::<2, 2>(level, self, part, room, out),
            other => unreachable!("points and bits {other:?}"),
        }
    }
}

/// Bits 0, 2, 4 and 6, then the others.
fn even_first(bits: u8) -> u8 {
    (0..8).fold(0, |all, i| all | (bits >> i & 1) << (i % 2 * 4 + i / 2))
}

at_level! {
    fn panel_at[const POINTS: usize, const BITS: usize](eights: &Eights, part: Part, room: &mut Room, out: &mut [f32]) = panel
}

/// `BITS` are those of an eight that a byte for each point has no room for.
#[inline(always)]
fn panel<S: Sixteen, const POINTS: usize, const BITS: usize>(
    s: S,
    eights: &Eights,
    part: Part,
    room: &mut Room,
    out: &mut [f32],
) {
    let Part { tile, from, to, stride, .. } = part;
    part.check(out);
    let (group, first) = (eights.group, from / eights.group);
    eights.scales.spread(s, tile, first, (to - 1) / group - first + 1, &mut room.scales);
    // SAFETY: there are sixteen.
    let numbers = unsafe { s.load(eights.numbers.as_ptr()) };
    for k in (from..to).step_by(LEN) {
        let at = tile * eights.across + k / LEN;
        let low = &eights.low[at * POINTS * TILE..(at + 1) * POINTS * TILE];
        let signs = &eights.signs[at * TILE..(at + 1) * TILE];
        s.fetch(low.as_ptr().wrapping_add(part.ahead * 4 * POINTS * TILE));
        s.fetch(signs.as_ptr().wrapping_add(part.ahead * 4 * TILE));
        // SAFETY: a byte and the bits above it are a code that has a point; columns have places; groups are those that
        // were spread.
        unsafe {
            let high = if BITS > 0 {
                let bytes = &eights.high[at * BITS / 8 * TILE..][..TILE];
                s.shr(s.bytes(bytes.as_ptr()), (at * BITS % 8) as u32)
            } else {
                s.splat_u32(0)
            };
            let mut levels = levels_of::<S, POINTS, BITS>(s, eights.levels.as_ptr(), low.as_ptr(), high);
            if POINTS == 2 {
                let second =
                    levels_of::<S, POINTS, BITS>(s, eights.levels.as_ptr(), low[TILE..].as_ptr(), s.shr(high, 1));
                levels = s.or(levels, s.shl(second, 16));
            }
            let indices = s.or(levels, s.shl(spread_byte(s, s.bytes(signs.as_ptr())), 3));
            let scale = s.load(room.scales[k / group - first].as_ptr());
            for i in 0..LEN {
                let number = s.lookup(s.shr(indices, 4 * i as u32), numbers);
                s.store(out.as_mut_ptr().add((k - from + i) * stride), s.mul(scale, number));
            }
        }
    }
}

/// The levels of the points whose low bytes are given, and whose other bits are the lowest of `high`.
///
/// # Safety
/// Sixteen bytes can be read at `low`; there is a point for each code.
#[inline(always)]
unsafe fn levels_of<S: Sixteen, const POINTS: usize, const BITS: usize>(
    s: S,
    points: *const u32,
    low: *const u8,
    high: S::I,
) -> S::I {
    // SAFETY: the caller's promise.
    unsafe {
        let mut code = s.bytes(low);
        if BITS > 0 {
            let mask = (1 << (BITS / POINTS)) - 1;
            code = s.or(code, s.shl(s.and(high, s.splat_u32(mask)), 8));
        }
        s.gather(points, code)
    }
}
