//! Codes as kernels read them, interleaved so that no sum crosses the lanes of a register.
//!
//! A *tile* is 16 rows. A *block* is 32 columns. A *cell* is 64 bytes, `[16 rows][4 columns]`: one register of AVX-512.
//! A block takes as many cells as a code has bits. Codes of eight bits lie in bytes, cell `c` holds columns `4c..4c + 4`.
//! Others are cut into *planes* of four bits, two and one, lower bits first ([`planes`]): with four, the low halves of
//! cell `c` hold columns `4c..4c + 4`, the high halves columns `16 + 4c..`. Rows and columns are filled up with zeros.

use crate::bits::by_bits;

/// Rows of a tile.
pub const ROWS: usize = 16;
/// Columns of a block.
pub const BLOCK: usize = 32;
/// Bytes of a cell.
pub const CELL: usize = 64;

/// Some bits of the codes of four columns, as they lie in the four bytes of a row of a cell.
#[derive(Clone, Copy, Debug)]
pub struct Plane {
    /// The cell of the block.
    pub cell: usize,
    /// The place of the lowest of these bits in each byte.
    pub shift: u32,
    /// Where they are in each byte once they are moved to its end.
    pub mask: u32,
    /// The place of the lowest of these bits in the code.
    pub to: u32,
}

/// Where the codes of columns `4 quad..4 quad + 4` of a block lie.
#[inline]
pub fn planes(bits: u8, quad: usize) -> impl Iterator<Item = Plane> {
    let (c, high) = (quad % 4, 4 * (quad as u32 / 4));
    let (mut cell, mut to) = (0, 0);
    [8, 4, 2, 1].into_iter().filter(move |width| bits & width != 0).map(move |width| {
        let (within, shift) = match width {
            8 => (quad, 0),
            4 => (c, high),
            2 => (c / 2, 2 * (c as u32 % 2) + high),
            _ => (0, c as u32 + high),
        };
        let mask = 0x0101_0101 * ((1u32 << width) - 1);
        let plane = Plane { cell: cell + within, shift, mask, to };
        (cell, to) = (cell + usize::from(width), to + u32::from(width));
        plane
    })
}

/// Bytes of a tile with `cols` columns: whole cells.
pub fn tile_bytes(cols: usize, bits: u8) -> usize {
    cols.div_ceil(BLOCK) * usize::from(bits) * CELL
}

/// Where the numbers of a matrix of `groups` groups a row lie in tiles: `[tile][group][16]`.
#[inline]
pub fn param(r: usize, k: usize, groups: usize) -> usize {
    (r / ROWS * groups + k) * ROWS + r % ROWS
}

/// Writes the codes of a row of a tile, its last columns filled up with zeros.
///
/// # Panics
/// If `lane` is not below 16, or `tile` has not [`tile_bytes`] bytes.
#[inline(always)]
pub fn write_row(codes: &[u8], bits: u8, lane: usize, tile: &mut [u8]) {
    assert!(lane < ROWS && tile.len() == tile_bytes(codes.len(), bits), "a row of the tile");
    by_bits!(bits, write(codes, lane, tile));
}

/// Reads the codes of a row of a tile.
///
/// # Panics
/// As [`write_row`].
#[inline(always)]
pub fn read_row(tile: &[u8], bits: u8, lane: usize, codes: &mut [u8]) {
    assert!(lane < ROWS && tile.len() == tile_bytes(codes.len(), bits), "a row of the tile");
    by_bits!(bits, read(tile, lane, codes));
}

#[inline(always)]
fn write<const BITS: usize>(codes: &[u8], lane: usize, tile: &mut [u8]) {
    let blocks = tile.as_chunks_mut::<CELL>().0.chunks_exact_mut(BITS);
    for (codes, cells) in codes.chunks(BLOCK).zip(blocks) {
        let words = if let Some(codes) = codes.first_chunk::<BLOCK>() {
            interleave::<BITS>(codes)
        } else {
            let mut padded = [0; BLOCK];
            padded[..codes.len()].copy_from_slice(codes);
            interleave::<BITS>(&padded)
        };
        for (cell, word) in cells.iter_mut().zip(words) {
            cell.as_chunks_mut::<4>().0[lane] = word.to_le_bytes();
        }
    }
}

#[inline(always)]
fn read<const BITS: usize>(tile: &[u8], lane: usize, codes: &mut [u8]) {
    let blocks = tile.as_chunks::<CELL>().0.chunks_exact(BITS);
    for (codes, cells) in codes.chunks_mut(BLOCK).zip(blocks) {
        let words = std::array::from_fn(|i| u32::from_le_bytes(cells[i].as_chunks::<4>().0[lane]));
        let block = deinterleave::<BITS>(words);
        match codes.first_chunk_mut::<BLOCK>() {
            Some(codes) => *codes = block,
            None => codes.copy_from_slice(&block[..codes.len()]),
        }
    }
}

/// The widths of the planes of codes of fewer than eight bits.
const WIDTHS: [usize; 3] = [4, 2, 1];

/// The codes of a row's block as its word of each cell: [`planes`] for all columns at once.
#[inline(always)]
fn interleave<const BITS: usize>(codes: &[u8; BLOCK]) -> [u32; BITS] {
    let quads = codes.as_chunks::<4>().0;
    let quad = |i: usize| u32::from_le_bytes(quads[i]);
    if BITS == 8 {
        return std::array::from_fn(quad);
    }
    let (mut words, mut cell) = ([0; BITS], 0);
    for width in WIDTHS.into_iter().filter(|width| BITS & width != 0) {
        // As many cells as bits went before.
        let (to, mask) = (cell, 0x0101_0101 * ((1u32 << width) - 1));
        for c in 0..4 {
            let pair = quad(c) >> to & mask | (quad(c + 4) >> to & mask) << 4;
            words[cell + c * width / 4] |= pair << (width * (c % (4 / width)));
        }
        cell += width;
    }
    words
}

/// The inverse of [`interleave`].
#[inline(always)]
fn deinterleave<const BITS: usize>(words: [u32; BITS]) -> [u8; BLOCK] {
    let mut quads = [0u32; BLOCK / 4];
    if BITS == 8 {
        quads.copy_from_slice(&words);
    } else {
        let mut cell = 0;
        for width in WIDTHS.into_iter().filter(|width| BITS & width != 0) {
            let (to, mask) = (cell, 0x0101_0101 * ((1u32 << width) - 1));
            for c in 0..4 {
                let pair = words[cell + c * width / 4] >> (width * (c % (4 / width)));
                quads[c] |= (pair & mask) << to;
                quads[c + 4] |= (pair >> 4 & mask) << to;
            }
            cell += width;
        }
    }
    let mut codes = [0; BLOCK];
    codes.as_chunks_mut::<4>().0.iter_mut().zip(quads).for_each(|(to, quad)| *to = quad.to_le_bytes());
    codes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn four_bits_are_halves_of_bytes() {
        let codes: Vec<u8> = (0..32).map(|c| c % 16).collect();
        let mut tile = vec![0; tile_bytes(32, 4)];
        write_row(&codes, 4, 3, &mut tile);
        // Cell 1, row 3: columns 4 to 7 below, 20 to 23 above.
        assert_eq!(tile[CELL + 12..CELL + 16], [0x44, 0x55, 0x66, 0x77]);
    }

    proptest! {
        /// Bit by bit, as [`planes`] says; whole rows, back again; other rows stay, and what pads is zero.
        #[test]
        fn rows_lie_where_planes_say(bits in 1u8..=8, cols in 1usize..150, lane in 0usize..16, seed: u32) {
            let mut state = seed;
            let mut code = || {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                (state >> 16 & ((1 << bits) - 1)) as u8
            };
            let (codes, other): (Vec<u8>, Vec<u8>) = (0..cols).map(|_| (code(), code())).unzip();
            let mut tile = vec![0; tile_bytes(cols, bits)];
            write_row(&other, bits, (lane + 5) % ROWS, &mut tile);
            write_row(&codes, bits, lane, &mut tile);
            let mut back = vec![0; cols];
            read_row(&tile, bits, lane, &mut back);
            prop_assert_eq!(&back, &codes);
            read_row(&tile, bits, (lane + 5) % ROWS, &mut back);
            prop_assert_eq!(&back, &other);
            for c in 0..cols.next_multiple_of(BLOCK) {
                let planes = planes(bits, c % BLOCK / 4).map(|p| {
                    let cell = c / BLOCK * usize::from(bits) + p.cell;
                    (tile[cell * CELL + 4 * lane + c % 4] >> p.shift & p.mask as u8) << p.to
                });
                prop_assert_eq!(planes.sum::<u8>(), codes.get(c).copied().unwrap_or(0));
            }
        }
    }
}
