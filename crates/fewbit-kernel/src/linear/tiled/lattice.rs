//! Codes into the lattice E8: eight columns of a row by one code.
//!
//! A pattern's coordinates have three magnitudes, so that magnitude, sign and the move by a quarter are an index of four
//! bits: a code becomes eight of them, from a table of patterns and its bits of signs, and then sixteen rows are looked up
//! at once.

use std::sync::LazyLock;

use fewbit_format::{LATTICE_DIM, PATTERNS, SHORT, SecondStage, Storage};

use super::super::packed::TILE;
use super::factors::Factors;
use super::lanes::{Sixteen, at_level, spread_byte};
use super::{Part, Room};
use crate::Level;

/// The rows of a storage.
#[derive(Debug)]
pub(super) struct Lattice {
    stage: SecondStage,
    /// Codes of a row.
    across: usize,
    group: usize,
    /// `[tile][code of a row][16]`.
    codes: Vec<u16>,
    /// The same of the second stage, one byte each or two.
    second: Vec<u8>,
    scales: Factors,
}

/// Eight indices of four bits for each pattern: the magnitude, and in bit 2 of the last whether its sign is turned.
static PATTERN_INDICES: LazyLock<[u32; 256]> = LazyLock::new(|| {
    std::array::from_fn(|p| {
        let pattern = &PATTERNS[p];
        let turned = u32::from(pattern.iter().sum::<f32>() % 2.0 == 1.0) << 30;
        pattern.iter().enumerate().fold(turned, |all, (i, v)| all | ((v - 0.5) as u32) << (4 * i))
    })
});

/// The number of an index of four bits: magnitude (0 to 2), its sign, and whether all were moved down or up.
static POINTS: LazyLock<[f32; TILE]> = LazyLock::new(|| {
    std::array::from_fn(|i| {
        let magnitude = 0.5 + (i % 4) as f32;
        let shift = if i & 8 == 0 { 0.25 } else { -0.25 };
        if i & 4 == 0 { magnitude + shift } else { -magnitude + shift }
    })
});

/// The coordinates of short vectors, and their places in it for each of them.
const SHORT_NUMBERS: [f32; 7] = [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0];
static SHORT_INDICES: LazyLock<[u32; 256]> = LazyLock::new(|| {
    let index = |v: f32| SHORT_NUMBERS.iter().position(|n| *n == v).expect("a coordinate of a short vector") as u32;
    std::array::from_fn(|c| SHORT[c].iter().enumerate().fold(0, |all, (i, v)| all | index(*v) << (4 * i)))
});

impl Lattice {
    /// `None` for other storages.
    pub(super) fn new(storage: &Storage) -> Option<Self> {
        let Storage::Lattice(lattice) = storage else { return None };
        let ([rows, cols], grid) = (lattice.shape(), lattice.grid());
        let (across, group) = (cols / LATTICE_DIM, grid.group.width(cols));
        let count = rows.next_multiple_of(TILE) * across;
        let size = usize::from(grid.second.bits()) / 8;
        let (mut codes, mut second) = (vec![0; count], vec![0; count * size]);
        for (i, code) in lattice.codes().iter().enumerate() {
            let (r, j) = (i / across, i % across);
            let at = (r / TILE * across + j) * TILE + r % TILE;
            codes[at] = *code;
            second[at * size..(at + 1) * size].copy_from_slice(&lattice.second()[i * size..(i + 1) * size]);
        }
        let scales = Factors::of_scales(lattice.scales(), grid.scale, grid.group, rows, cols / group);
        Some(Self { stage: grid.second, across, group, codes, second, scales })
    }

    pub(super) fn len_bytes(&self) -> usize {
        2 * self.codes.len() + self.second.len() + self.scales.len_bytes()
    }

    /// Decodes a part of a tile.
    pub(super) fn panel(&self, level: Level, part: Part, room: &mut Room, out: &mut [f32]) {
        match self.stage {
            SecondStage::None => panel_at::<0>(level, self, part, room, out),
            SecondStage::E8Short => panel_at::<1>(level, self, part, room, out),
            SecondStage::E8P => panel_at::<2>(level, self, part, room, out),
        }
    }
}

at_level! {
    fn panel_at[const SECOND: usize](lattice: &Lattice, part: Part, room: &mut Room, out: &mut [f32]) = panel
}

/// `SECOND` are the bytes of a code of the second stage.
#[inline(always)]
fn panel<S: Sixteen, const SECOND: usize>(s: S, lattice: &Lattice, part: Part, room: &mut Room, out: &mut [f32]) {
    let Part { tile, from, to, stride, .. } = part;
    part.check(out);
    let (group, first) = (lattice.group, from / lattice.group);
    lattice.scales.spread(s, tile, first, (to - 1) / group - first + 1, &mut room.scales);
    let by = lattice.stage.divisor();
    let added: [f32; TILE] = if SECOND == 1 {
        std::array::from_fn(|i| SHORT_NUMBERS.get(i).map_or(0.0, |v| v / by))
    } else {
        POINTS.map(|v| v / by)
    };
    // SAFETY: there are sixteen of each.
    let (points, added) = unsafe { (s.load(POINTS.as_ptr()), s.load(added.as_ptr())) };
    let (patterns, short) = (PATTERN_INDICES.as_ptr(), SHORT_INDICES.as_ptr());
    for k in (from..to).step_by(LATTICE_DIM) {
        let at = (tile * lattice.across + k / LATTICE_DIM) * TILE;
        let (codes, second) = (&lattice.codes[at..at + TILE], &lattice.second[at * SECOND..(at + TILE) * SECOND]);
        s.fetch(codes.as_ptr().wrapping_add(part.ahead * 4 * TILE).cast());
        if SECOND > 0 {
            s.fetch(second.as_ptr().wrapping_add(part.ahead * 4 * TILE * SECOND));
        }
        // SAFETY: sixteen codes, whose tables have 256 entries; columns have places; groups are those that were spread.
        unsafe {
            let indices = e8p(s, patterns, s.shorts(codes.as_ptr().cast()));
            let others = match SECOND {
                0 => indices,
                1 => s.gather(short, s.bytes(second.as_ptr())),
                _ => e8p(s, patterns, s.shorts(second.as_ptr())),
            };
            let scale = s.load(room.scales[k / group - first].as_ptr());
            for i in 0..LATTICE_DIM {
                let mut point = s.lookup(s.shr(indices, 4 * i as u32), points);
                if SECOND > 0 {
                    point = s.add(point, s.lookup(s.shr(others, 4 * i as u32), added));
                }
                s.store(out.as_mut_ptr().add((k - from + i) * stride), s.mul(scale, point));
            }
        }
    }
}

/// Eight indices of four bits for each code of E8P: as [`fewbit_format::e8p_point`] reads it.
///
/// # Safety
/// `patterns` has 256 entries, and codes have 16 bits.
#[inline(always)]
unsafe fn e8p<S: Sixteen>(s: S, patterns: *const u32, codes: S::I) -> S::I {
    // SAFETY: the caller's promise.
    let magnitudes = unsafe { s.gather(patterns, s.shr(codes, 8)) };
    let signs = spread_byte(s, codes);
    // The product has their sum in its upper four bits; an odd one moves all down, and turns the first sign.
    let odd = s.spread_sign(s.shl(s.mul_u32(signs, s.splat_u32(0x1111_1111)), 3));
    let moved = s.and(odd, s.splat_u32(0x8888_888c));
    s.xor(s.xor(magnitudes, s.shl(signs, 2)), moved)
}
