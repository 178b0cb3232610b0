//! Paths through a trellis: the sixteen rows of a tile are sixteen pieces of its stream.
//!
//! Rows have as many bits, so that the states of a column end at the same bit of each piece; what a state has before its
//! row's first bit are the last bits of the row above, or of the last row.

use fewbit_format::{Storage, TrellisCode};

use super::super::packed::TILE;
use super::factors::Factors;
use super::lanes::{Sixteen, at_level};
use super::{Part, Room};
use crate::Level;

/// The rows of a storage.
#[derive(Debug)]
pub(super) struct Trellis {
    code: TrellisCode,
    state_bits: u8,
    /// Bytes of a row of a tile.
    row_bytes: usize,
    /// Tiles side by side.
    across: usize,
    group: usize,
    /// `[row of tiles][tile][byte][16]`.
    streams: Vec<u8>,
    scales: Factors,
}

impl Trellis {
    /// `None` for other storages, and where rows of tiles are not of two to eight bytes.
    pub(super) fn new(storage: &Storage) -> Option<Self> {
        let Storage::Trellis(codes) = storage else { return None };
        let ([rows, cols], grid) = (codes.shape(), codes.grid());
        let (row_bytes, group) = (grid.tile_bytes() / TILE, grid.group.width(cols));
        if !grid.tile_bytes().is_multiple_of(TILE) || !(2..=8).contains(&row_bytes) {
            return None;
        }
        let mut streams = vec![0; codes.packed().len()];
        let tiles = codes.packed().chunks_exact(grid.tile_bytes());
        for (from, to) in tiles.zip(streams.chunks_exact_mut(grid.tile_bytes())) {
            for (r, row) in from.chunks_exact(row_bytes).enumerate() {
                to.iter_mut().skip(r).step_by(TILE).zip(row).for_each(|(to, byte)| *to = *byte);
            }
        }
        let scales = Factors::of_scales(codes.scales(), grid.scale, grid.group, rows, cols / group);
        let (code, state_bits) = (grid.code, grid.state_bits);
        Some(Self { code, state_bits, row_bytes, across: cols / TILE, group, streams, scales })
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.streams.len() + self.scales.len_bytes()
    }

    /// Decodes a part of a tile.
    pub(super) fn panel(&self, level: Level, part: Part, room: &mut Room, out: &mut [f32]) {
        macro_rules! by_bytes {
            ($code:literal: $($bytes:literal)*) => {
                match self.row_bytes {
                    $($bytes => panel_at::<$bytes, $code>(level, self, part, room, out),)*
                    bytes => unreachable!("{bytes} bytes of a row"),
                }
            };
        }
        match self.code {
            TrellisCode::OneMad => by_bytes!(false: 2 3 4 5 6 7 8),
            TrellisCode::ThreeInst => by_bytes!(true: 2 3 4 5 6 7 8),
        }
    }
}

at_level! {
    fn panel_at[const BYTES: usize, const THREE: bool](t: &Trellis, part: Part, room: &mut Room, out: &mut [f32]) = panel
}

#[inline(always)]
fn panel<S: Sixteen, const BYTES: usize, const THREE: bool>(
    s: S,
    trellis: &Trellis,
    part: Part,
    room: &mut Room,
    out: &mut [f32],
) {
    let Part { tile, from, to, stride, .. } = part;
    part.check(out);
    let (group, first) = (trellis.group, from / trellis.group);
    trellis.scales.spread(s, tile, first, (to - 1) / group - first + 1, &mut room.scales);
    let mask = s.splat_u32((1 << trellis.state_bits) - 1);
    let tile_bytes = BYTES * TILE;
    for k in (from..to).step_by(TILE) {
        let at = (tile * trellis.across + k / TILE) * tile_bytes;
        let stream = &trellis.streams[at..at + tile_bytes];
        s.fetch(stream.as_ptr().wrapping_add(part.ahead * 2 * tile_bytes));
        // SAFETY: sixteen bytes for each byte of a row; columns have places; groups are those that were spread.
        unsafe {
            let byte = stream.as_ptr();
            let mut window = s.bytes(byte);
            for b in 1..BYTES {
                window = s.or(s.shl(window, 8), s.bytes(byte.add(b * TILE)));
            }
            window = s.rotate(window);
            let scale = s.load(room.scales[k / group - first].as_ptr());
            let mut read = 0;
            for c in 0..TILE {
                // As `TrellisGrid::end`, within the row.
                let end = (c + 1) * BYTES / 2;
                while 8 * read < end {
                    window = s.or(s.shl(window, 8), s.bytes(byte.add(read * TILE)));
                    read += 1;
                }
                let state = s.and(s.shr(window, (8 * read - end) as u32), mask);
                let value = if THREE { three_instructions(s, state) } else { one_mad(s, state) };
                s.store(out.as_mut_ptr().add((k - from + c) * stride), s.mul(scale, value));
            }
        }
    }
}

/// As [`TrellisCode::OneMad`] says.
#[inline(always)]
fn one_mad<S: Sixteen>(s: S, state: S::I) -> S::F {
    let x = s.add_u32(s.mul_u32(state, s.splat_u32(34_038_481)), s.splat_u32(76_625_530));
    s.quotient(s.number(s.sum_bytes(x, -510)), 147.800_5, 1.0 / 147.800_5)
}

/// As [`TrellisCode::ThreeInst`] says.
#[inline(always)]
fn three_instructions<S: Sixteen>(s: S, state: S::I) -> S::F {
    let x = s.add_u32(s.mul_u32(state, s.splat_u32(89_226_354)), s.splat_u32(64_248_484));
    let r = s.xor(s.and(x, s.splat_u32(0x8fff_8fff)), s.splat_u32(0x3b60_3b60));
    s.quotient(s.add(upper_half(s, r), upper_half(s, s.shl(r, 16))), 1.243_7, 1.0 / 1.243_7)
}

/// The f16 in the upper 16 bits, which is a normal number.
#[inline(always)]
fn upper_half<S: Sixteen>(s: S, word: S::I) -> S::F {
    let magnitude = s.shr(s.and(word, s.splat_u32(0x7fff_0000)), 3);
    let number = s.add_u32(magnitude, s.splat_u32((127 - 15) << 23));
    s.as_number(s.select(s.splat_u32(1 << 31), number, word))
}

#[cfg(test)]
mod tests {
    use super::super::lanes::tests::at_every_level;
    use super::*;

    at_level! {
        fn values(out: &mut [f32]) = all_values
    }

    /// What all states of 16 bits stand for, of one code and the other.
    #[inline(always)]
    fn all_values<S: Sixteen>(s: S, out: &mut [f32]) {
        for first in (0..1usize << 16).step_by(TILE) {
            let states: [u32; TILE] = std::array::from_fn(|r| (first + r) as u32);
            // SAFETY: there are sixteen of each.
            unsafe {
                let states = s.words(states.as_ptr().cast());
                s.store(out[first..first + TILE].as_mut_ptr(), one_mad(s, states));
                let there = first + (1 << 16);
                s.store(out[there..there + TILE].as_mut_ptr(), three_instructions(s, states));
            }
        }
    }

    #[test]
    fn every_state_stands_for_its_number() {
        at_every_level(|level| {
            let mut found = vec![f32::NAN; 2 << 16];
            values(level, &mut found);
            for (code, found) in
                [TrellisCode::OneMad, TrellisCode::ThreeInst].into_iter().zip(found.chunks_exact(1 << 16))
            {
                for (state, found) in found.iter().enumerate() {
                    assert_eq!(*found, code.value(state as u32), "{level:?}, {code:?}, state {state}");
                }
            }
        });
    }
}
