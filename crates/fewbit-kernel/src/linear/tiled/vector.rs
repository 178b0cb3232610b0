//! Codes into codebooks of vectors along rows: a column of a tile is put together from a few vectors.

use fewbit_format::{Storage, packed_len};
use half::f16;

use super::super::packed::TILE;
use super::lanes::{Sixteen, at_level};
use super::{Part, Room};
use crate::Level;
use crate::product::K_BLOCK;

/// The rows of a storage.
#[derive(Debug)]
pub(super) struct Vector {
    rows: usize,
    cols: usize,
    /// Rows of a vector.
    len: usize,
    /// The codebook; and the one of what is added, if there is one.
    books: [Book; 2],
    /// The columns' scales, then their offsets; or nothing.
    columns: Vec<f32>,
}

#[derive(Debug)]
struct Book {
    /// Bits of a code; 0: there is none.
    bits: u8,
    /// Bytes of the codes of a row of vectors.
    row_bytes: usize,
    /// Row by row, and three bytes more.
    packed: Vec<u8>,
    /// `[2^bits · len]`.
    vectors: Vec<f16>,
}

impl Book {
    /// Writes the vectors of columns `from..from + count` of row `strip` of vectors to lanes `lane..lane + LEN`.
    #[inline(always)]
    fn copy<const LEN: usize>(&self, strip: usize, from: usize, lane: usize, out: &mut [[f16; TILE]]) {
        let (bits, mask) = (usize::from(self.bits), (1usize << self.bits) - 1);
        let packed = &self.packed[strip * self.row_bytes..];
        let vectors = self.vectors.as_chunks::<LEN>().0;
        for (i, out) in out.iter_mut().enumerate() {
            let bit = (from + i) * bits;
            let bytes = packed[bit / 8..].first_chunk::<4>().expect("three bytes behind the last");
            let code = (u32::from_le_bytes(*bytes) >> (bit % 8)) as usize & mask;
            let out: &mut [f16; LEN] = out[lane..].first_chunk_mut().expect("lanes of a vector");
            *out = vectors[code];
        }
    }
}

impl Vector {
    /// `None` for other storages.
    pub(super) fn new(storage: &Storage) -> Option<Self> {
        let Storage::Vector(codes) = storage else { return None };
        let ([rows, cols], grid, [main, residual]) = (codes.shape(), codes.grid(), codes.packed());
        let len = usize::from(grid.len);
        let (first, second) = codes.codebook().split_at(len << grid.bits);
        let book = |bits, packed: &[u8], vectors: &[f16]| {
            let packed = packed.iter().copied().chain([0; 3]).collect();
            Book { bits, row_bytes: packed_len(cols, bits), packed, vectors: vectors.to_vec() }
        };
        let books = [book(grid.bits, main, first), book(grid.residual_bits, residual, second)];
        let columns = codes.columns().iter().map(|v| v.to_f32()).collect();
        Some(Self { rows, cols, len, books, columns })
    }

    pub(super) fn len_bytes(&self) -> usize {
        let books: usize = self.books.iter().map(|b| b.packed.len() + 2 * b.vectors.len()).sum();
        books + 4 * self.columns.len()
    }

    /// Decodes a part of a tile.
    pub(super) fn panel(&self, level: Level, part: Part, _: &mut Room, out: &mut [f32]) {
        match self.len {
            2 => panel_at::<2>(level, self, part, out),
            4 => panel_at::<4>(level, self, part, out),
            8 => panel_at::<8>(level, self, part, out),
            _ => panel_at::<16>(level, self, part, out),
        }
    }
}

at_level! {
    fn panel_at[const LEN: usize](vector: &Vector, part: Part, out: &mut [f32]) = panel
}

#[inline(always)]
fn panel<S: Sixteen, const LEN: usize>(s: S, vector: &Vector, part: Part, out: &mut [f32]) {
    const STEP: usize = 64;
    const { assert!(K_BLOCK.is_multiple_of(STEP)) };
    let Part { tile, from, to, stride, .. } = part;
    part.check(out);
    let strips = vector.rows.div_ceil(LEN);
    let [main, residual] = &vector.books;
    let (mut first, mut second) = ([[f16::ZERO; TILE]; STEP], [[f16::ZERO; TILE]; STEP]);
    for k in (from..to).step_by(STEP) {
        let count = STEP.min(to - k);
        for lane in (0..TILE).step_by(LEN) {
            let strip = tile * (TILE / LEN) + lane / LEN;
            if strip < strips {
                main.copy::<LEN>(strip, k, lane, &mut first[..count]);
                if residual.bits > 0 {
                    residual.copy::<LEN>(strip, k, lane, &mut second[..count]);
                }
            }
        }
        for i in 0..count {
            let c = k + i;
            // SAFETY: sixteen halves of each; columns have places.
            unsafe {
                let mut v = s.halves(first[i].as_ptr().cast());
                if residual.bits > 0 {
                    v = s.add(v, s.halves(second[i].as_ptr().cast()));
                }
                if !vector.columns.is_empty() {
                    let [scale, offset] = [vector.columns[c], vector.columns[vector.cols + c]];
                    v = s.add(s.mul(s.splat(scale), v), s.splat(offset));
                }
                s.store(out.as_mut_ptr().add((c - from) * stride), v);
            }
        }
    }
}
