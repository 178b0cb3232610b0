//! Codes of few bits in tiles ([`fewbit_format::tiles`]): a register holds those of sixteen rows.

use fewbit_format::tiles;

use super::super::held::Own;
use super::super::packed::{BLOCK, CELL, Cell, Plane, TILE, bytes_of, planes};
use super::lanes::Sixteen;

/// Codes `[rows, cols]` of up to 8 bits, interleaved.
#[derive(Debug)]
pub(super) struct Codes {
    bits: u8,
    /// Blocks of a row.
    blocks: usize,
    /// One more than there are, since words are read from anywhere in a cell.
    cells: Own<Cell>,
}

impl Codes {
    /// Zeros.
    pub(super) fn new([rows, cols]: [usize; 2], bits: u8) -> Self {
        let blocks = cols.div_ceil(BLOCK);
        let cells = Own::zeros(rows.div_ceil(TILE) * blocks * usize::from(bits) + 1);
        Self { bits, blocks, cells }
    }

    /// Takes the codes of row `r`, which must have none yet.
    pub(super) fn put(&mut self, r: usize, codes: &[u8]) {
        let per_tile = self.blocks * usize::from(self.bits);
        let tile = &mut self.cells[r / TILE * per_tile..][..per_tile];
        tiles::write_row(codes, self.bits, r % TILE, bytes_of(tile));
    }

    pub(super) fn bits(&self) -> u8 {
        self.bits
    }

    /// The block that is `ahead` of the one at `at` will be read soon.
    #[inline(always)]
    pub(super) fn fetch<S: Sixteen>(&self, s: S, at: *const u8, ahead: usize) {
        for line in 0..usize::from(self.bits) {
            s.fetch(at.wrapping_add((ahead * usize::from(self.bits) + line) * CELL));
        }
    }

    /// Bytes of all cells.
    pub(super) fn len_bytes(&self) -> usize {
        self.cells.len() * CELL
    }

    /// The cells of a tile from block `block` on; those of a row fill up to whole blocks.
    ///
    /// # Panics
    /// If there is no such block.
    #[inline(always)]
    pub(super) fn block(&self, tile: usize, block: usize) -> *const u8 {
        assert!(block < self.blocks, "block {block} of {}", self.blocks);
        self.cells[(tile * self.blocks + block) * usize::from(self.bits)..].as_ptr().cast()
    }

    /// The codes of column `c` of a tile: for the few that are read one by one.
    ///
    /// # Panics
    /// If there is no such column.
    #[inline(always)]
    pub(super) fn column<S: Sixteen>(&self, s: S, tile: usize, c: usize) -> S::I {
        let at = self.block(tile, c / BLOCK);
        let mut code = s.splat_u32(0);
        for Plane { cell, shift, mask, to } in planes(self.bits, c % BLOCK / 4) {
            // SAFETY: a block has a cell for each bit.
            let word = unsafe { s.words(at.wrapping_add(cell * CELL)) };
            let bits = s.and(s.shr(word, shift + 8 * (c as u32 % 4)), s.splat_u32(mask & 255));
            code = s.or(code, s.shl(bits, to));
        }
        code
    }
}

/// Calls `each(c, word)` for the 32 columns of a block, in order: the lowest `BITS` bits of a lane are a row's code, what
/// lies above them is anything.
///
/// # Safety
/// The block's cells, and three bytes behind them, can be read at `at`.
#[inline(always)]
pub(super) unsafe fn each_code<S: Sixteen, const BITS: u8>(s: S, at: *const u8, mut each: impl FnMut(usize, S::I)) {
    // SAFETY: the caller's promise.
    unsafe {
        each_of_quad::<S, BITS, 0>(s, at, &mut each);
        each_of_quad::<S, BITS, 1>(s, at, &mut each);
        each_of_quad::<S, BITS, 2>(s, at, &mut each);
        each_of_quad::<S, BITS, 3>(s, at, &mut each);
        each_of_quad::<S, BITS, 4>(s, at, &mut each);
        each_of_quad::<S, BITS, 5>(s, at, &mut each);
        each_of_quad::<S, BITS, 6>(s, at, &mut each);
        each_of_quad::<S, BITS, 7>(s, at, &mut each);
    }
}

/// Columns `4Q..4Q + 4`; as [`planes`] has them.
#[inline(always)]
unsafe fn each_of_quad<S: Sixteen, const BITS: u8, const Q: usize>(
    s: S,
    at: *const u8,
    each: &mut impl FnMut(usize, S::I),
) {
    let (c, high) = (Q % 4, 4 * (Q as u32 / 4));
    if matches!(BITS, 4 | 8) {
        let cell = if BITS == 8 { Q } else { c };
        for j in 0..4 {
            // SAFETY: the caller's promise. A byte further on is a shift by eight.
            let word = unsafe { s.words(at.add(cell * CELL + j)) };
            each(4 * Q + j, if BITS == 4 && high > 0 { s.shr(word, 4) } else { word });
        }
        return;
    }
    let (c, four) = (c as u32, u32::from(BITS & 4));
    // SAFETY: the caller's promise.
    let all = unsafe {
        let mut all = if four > 0 { plane(s, at, c, high, 0, 15) } else { s.splat_u32(0) };
        if BITS & 2 != 0 {
            all = s.or(all, plane(s, at, four + c / 2, 2 * (c % 2) + high, four, 3));
        }
        if BITS & 1 != 0 {
            let below = u32::from(BITS & 6);
            all = s.or(all, plane(s, at, below, c + high, below, 1));
        }
        all
    };
    for j in 0..4 {
        each(4 * Q + j as usize, if j > 0 { s.shr(all, 8 * j) } else { all });
    }
}

/// The bits of `mask` from bit `from` on of each byte of a cell, at bit `to`.
///
/// # Safety
/// The cell can be read.
#[inline(always)]
unsafe fn plane<S: Sixteen>(s: S, at: *const u8, cell: u32, from: u32, to: u32, mask: u32) -> S::I {
    // SAFETY: the caller's promise.
    let word = unsafe { s.words(at.add(cell as usize * CELL)) };
    let word = if from >= to { s.shr(word, from - to) } else { s.shl(word, to - from) };
    s.and(word, s.splat_u32((mask << to) * 0x0101_0101))
}
