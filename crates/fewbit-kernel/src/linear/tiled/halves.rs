//! f16 and bf16, interleaved: what stays unquantized (often the head) at memory's speed, without transposing on the way.

use fewbit_format::{Dtype, Storage};

use super::super::packed::{BLOCK, TILE};
use super::lanes::{Sixteen, at_level};
use super::{Part, Room};
use crate::Level;
use crate::product::K_BLOCK;

/// The rows of a storage.
#[derive(Debug)]
pub(super) struct Halves {
    is_bf16: bool,
    cols: usize,
    /// `[tile][column][16]`, columns filled up to whole blocks.
    values: Vec<u16>,
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
        let mut values = vec![0; rows.div_ceil(TILE) * filled * TILE];
        let rows = tensor.bytes.chunks(TILE * cols * size_of::<u16>());
        for (tile, rows) in values.chunks_exact_mut(filled * TILE).zip(rows) {
            interleave(rows.as_chunks().0, cols, tile.as_chunks_mut().0);
        }
        Some(Self { is_bf16: tensor.dtype == Dtype::BF16, cols: filled, values })
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

at_level! {
    /// `sums[t · count + i]`: the products of `count` tiles from `first` on with `tokens` tokens, chains over [`K_BLOCK`]
    /// columns, added in order.
    pub(super) fn products(
        halves: &Halves,
        first: usize,
        count: usize,
        x: &[f32],
        cols: usize,
        tokens: usize,
        sums: &mut [[f32; TILE]],
    ) = products_of
}

#[inline(always)]
fn products_of<S: Sixteen>(
    s: S,
    halves: &Halves,
    first: usize,
    count: usize,
    x: &[f32],
    cols: usize,
    tokens: usize,
    sums: &mut [[f32; TILE]],
) {
    assert!(x.len() >= tokens * cols && sums.len() >= tokens * count && cols <= halves.cols, "operands that fit");
    let values = &halves.values[first * halves.cols * TILE..];
    assert!(values.len() >= count * halves.cols * TILE, "tiles that are there");
    let call = Call { values: values.as_ptr(), tile: halves.cols * TILE, cols, count, tokens };
    if halves.is_bf16 { call.all::<S, true>(s, x, sums) } else { call.all::<S, false>(s, x, sums) }
}

/// Some tiles, which exist, times some tokens.
#[derive(Clone, Copy)]
struct Call {
    values: *const u16,
    /// Values of a tile.
    tile: usize,
    cols: usize,
    count: usize,
    tokens: usize,
}

impl Call {
    /// The operands hold all of it.
    #[inline(always)]
    fn all<S: Sixteen, const BF16: bool>(self, s: S, x: &[f32], sums: &mut [[f32; TILE]]) {
        let (mut t, count) = (0, self.count);
        while t < self.tokens {
            let together = if self.tokens - t >= 4 { 4 } else { (self.tokens - t).min(2) };
            let mut i = 0;
            while i < count {
                // As many streams from memory as the sums leave registers for.
                let most = if together == 1 { 4 } else { 2 };
                let tiles = if count - i >= most { most } else { 1 };
                let (x, sums) = (&x[t * self.cols..], &mut sums[t * count + i..]);
                // SAFETY: the tiles and tokens exist.
                unsafe {
                    match (together, tiles) {
                        (1, 4) => self.chains::<S, BF16, 1, 4>(s, i, x, sums),
                        (1, _) => self.chains::<S, BF16, 1, 1>(s, i, x, sums),
                        (2, 2) => self.chains::<S, BF16, 2, 2>(s, i, x, sums),
                        (2, _) => self.chains::<S, BF16, 2, 1>(s, i, x, sums),
                        (_, 2) => self.chains::<S, BF16, 4, 2>(s, i, x, sums),
                        (_, _) => self.chains::<S, BF16, 4, 1>(s, i, x, sums),
                    }
                }
                i += tiles;
            }
            t += together;
        }
    }

    /// `T` tokens times `R` tiles from tile `first` on.
    ///
    /// # Safety
    /// All of them exist, and so do their sums.
    #[inline(always)]
    unsafe fn chains<S: Sixteen, const BF16: bool, const T: usize, const R: usize>(
        self,
        s: S,
        first: usize,
        x: &[f32],
        sums: &mut [[f32; TILE]],
    ) {
        let (x, sums) = (x.as_ptr(), sums.as_mut_ptr());
        // SAFETY: the caller's promise.
        unsafe {
            let tile = self.values.add(first * self.tile);
            for from in (0..self.cols).step_by(K_BLOCK) {
                let to = (from + K_BLOCK).min(self.cols);
                let mut chains = [[s.splat(0.0); R]; T];
                for k in from..to {
                    let mut of_token = [s.splat(0.0); T];
                    for t in 0..T {
                        of_token[t] = s.splat(*x.add(t * self.cols + k));
                    }
                    for r in 0..R {
                        let at = tile.add(r * self.tile + k * TILE).cast::<u8>();
                        if k % 2 == 0 {
                            s.fetch(at.wrapping_add(AHEAD));
                        }
                        let column = widen::<S, BF16>(s, at);
                        for t in 0..T {
                            chains[t][r] = s.fma(of_token[t], column, chains[t][r]);
                        }
                    }
                }
                for t in 0..T {
                    for r in 0..R {
                        let sum = sums.add(t * self.count + r).cast();
                        let chain = if from > 0 { s.add(s.load(sum), chains[t][r]) } else { chains[t][r] };
                        s.store(sum, chain);
                    }
                }
            }
        }
    }
}
