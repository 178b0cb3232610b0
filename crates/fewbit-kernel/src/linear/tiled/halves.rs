//! f16 and bf16, interleaved: what stays unquantized (often the head) at memory's speed, without transposing on the way.

use std::ops::Range;

use fewbit_format::{Dtype, Storage};

use super::super::held::{Held, Own};
use super::super::packed::{BLOCK, TILE};
use super::lanes::{Sixteen, at_level};
use super::multiply::{self, Columns};
use super::{Part, Room};
use crate::Level;

/// The rows of a storage.
#[derive(Debug)]
pub(super) struct Halves {
    is_bf16: bool,
    cols: usize,
    /// `[tile][column][16]`, columns filled up to whole blocks.
    values: Held<u16>,
}

impl Halves {
    /// `None` for other storages and types.
    pub(super) fn new(storage: &Storage) -> Option<Self> {
        let Storage::Dense(tensor) = storage else { return None };
        if !matches!(tensor.dtype, Dtype::BF16 | Dtype::F16) {
            return None;
        }
        let [rows, cols] = storage.shape();
        let filled = cols.next_multiple_of(BLOCK);
        let mut values = Own::<u16>::zeros(rows.div_ceil(TILE) * filled * TILE);
        let rows = tensor.bytes.chunks(TILE * cols * size_of::<u16>());
        // Read in order first: sixteen rows at once are sixteen streams, which the hardware does not fetch ahead.
        let mut near = Vec::with_capacity(TILE * cols * size_of::<u16>());
        for (tile, rows) in values.chunks_exact_mut(filled * TILE).zip(rows) {
            near.clear();
            near.extend_from_slice(rows);
            interleave(near.as_chunks().0, cols, tile.as_chunks_mut().0);
        }
        Some(Self { is_bf16: tensor.dtype == Dtype::BF16, cols: filled, values: values.into() })
    }

    pub(super) fn len_bytes(&self) -> usize {
        size_of_val(&self.values[..])
    }

    /// Widens a part of a tile.
    pub(super) fn panel(&self, level: Level, part: Part, _: &mut Room, out: &mut [f32]) {
        panel_at(level, self, part, out);
    }
}

/// Columns `[cols][16]` of up to sixteen rows.
fn interleave(rows: &[[u8; 2]], cols: usize, to: &mut [[u16; TILE]]) {
    // A few columns of all rows at once: they stay in the L1 cache, on both sides.
    for (k, to) in to[..cols].chunks_mut(BLOCK).enumerate() {
        for (r, row) in rows.chunks_exact(cols).enumerate() {
            let row = &row[k * BLOCK..][..to.len()];
            to.iter_mut().zip(row).for_each(|(to, value)| to[r] = u16::from_le_bytes(*value));
        }
    }
}

at_level! {
    fn panel_at(halves: &Halves, part: Part, out: &mut [f32]) = panel
}

#[inline(always)]
fn panel<S: Sixteen>(s: S, halves: &Halves, part: Part, out: &mut [f32]) {
    part.each_block(
        out,
        #[inline(always)]
        |k, to| {
            let values = &halves.values[(part.tile * halves.cols + k) * TILE..][..BLOCK * TILE];
            for (pair, values) in values.as_chunks::<{ 2 * TILE }>().0.iter().enumerate() {
                s.fetch(values.as_ptr().wrapping_add(part.ahead * BLOCK * TILE).cast());
                for j in 0..2 {
                    // SAFETY: sixteen values for each of two columns.
                    unsafe {
                        let at = values.as_ptr().add(j * TILE).cast();
                        let v = if halves.is_bf16 { widen::<S, true>(s, at) } else { widen::<S, false>(s, at) };
                        to.put(s, 2 * pair + j, v);
                    }
                }
            }
        },
    );
}

/// # Safety
/// Sixteen values can be read at `at`.
#[inline(always)]
unsafe fn widen<S: Sixteen, const BF16: bool>(s: S, at: *const u8) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { if BF16 { s.as_number(s.shl(s.shorts(at), 16)) } else { s.halves(at) } }
}

/// Bytes from the values in use to those that are fetched.
const AHEAD: usize = 2048;

/// Columns of some tiles as they lie.
#[derive(Clone, Copy)]
struct Stored<const BF16: bool> {
    at: *const u16,
    /// Values of a tile.
    tile: usize,
}

impl<const BF16: bool> Columns for Stored<BF16> {
    #[inline(always)]
    unsafe fn column<S: Sixteen>(self, s: S, i: usize, k: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe {
            let at = self.at.add(i * self.tile + k * TILE).cast::<u8>();
            if k.is_multiple_of(2) {
                s.fetch(at.wrapping_add(AHEAD));
            }
            widen::<S, BF16>(s, at)
        }
    }
}

at_level! {
    /// `sums[t · count + i] += Σ_k W[i][k] x[t · ldx + k − ks.start]` over columns `ks` of tiles `tiles`, `count` of them,
    /// and `tokens` tokens, one chain each.
    ///
    /// # Panics
    /// If a slice is shorter than that, or there are no such tiles.
    pub(super) fn multiply_add(
        halves: &Halves,
        tiles: &Range<usize>,
        ks: Range<usize>,
        x: &[f32],
        ldx: usize,
        tokens: usize,
        sums: &mut [[f32; TILE]],
    ) = stored
}

#[inline(always)]
fn stored<S: Sixteen>(
    s: S,
    halves: &Halves,
    tiles: &Range<usize>,
    ks: Range<usize>,
    x: &[f32],
    ldx: usize,
    tokens: usize,
    sums: &mut [[f32; TILE]],
) {
    let tile = halves.cols * TILE;
    assert!(ks.end <= halves.cols, "columns that are there");
    let values = &halves.values[tiles.start * tile..tiles.end * tile];
    let (at, steps, count) = (values.as_ptr().wrapping_add(ks.start * TILE), ks.len(), tiles.len());
    // SAFETY: the tiles and columns are there, as was checked.
    unsafe {
        if halves.is_bf16 {
            multiply::all(s, Stored::<true> { at, tile }, steps, count, x, ldx, tokens, sums);
        } else {
            multiply::all(s, Stored::<false> { at, tile }, steps, count, x, ldx, tokens, sums);
        }
    }
}
