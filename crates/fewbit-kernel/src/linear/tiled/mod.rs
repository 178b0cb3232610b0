//! f32 on what no integer kernel takes: tables, small floats, codes with scales of scales, halves that stay unquantized.
//!
//! A *tile* is sixteen rows, one for each lane. A decoder writes some columns of a tile as f32 (`[column][16]`), and few
//! tokens are multiplied with them while they are in the L1 cache; the panels of the products for many tokens are made
//! by the same decoders. The same bits as [`super::dense`] gives, which decodes row by row.

mod codes;
mod eights;
mod factors;
mod halves;
mod lanes;
mod lattice;
mod levels;
mod multiply;
mod signs;
mod small_float;
mod table;
mod trellis;
mod two_of_four;
mod vector;

use std::ops::Range;
use std::sync::Arc;

use fewbit_format::{GgmlType, QuantizedLinear, Storage};
use smallvec::SmallVec;

use self::eights::Eights;
use self::factors::Spread;
use self::halves::Halves;
use self::lanes::Sixteen;
use self::lattice::Lattice;
use self::multiply::multiply_add;
use self::signs::SignTiles;
use self::small_float::SmallFloat;
use self::table::Table;
use self::trellis::Trellis;
use self::two_of_four::Masked;
use self::vector::Vector;
use super::packed::{BLOCK, TILE};
use super::panels::{self, Linear, Tiles};
use super::{Arithmetic, Kernel};
use crate::product::{self, K_BLOCK};
use crate::team::Disjoint;
use crate::{Level, Team};

/// Whether blocks of ggml have a decoder here.
pub(super) fn takes_blocks(kind: GgmlType) -> bool {
    levels::of(kind).is_some() || kind.has_eights()
}

/// Takes linears whose bands all have a decoder; what is dense only where memory may be spent on speed.
pub(super) fn candidate(
    linears: &[Arc<QuantizedLinear>],
    arithmetic: Arithmetic,
    level: Level,
) -> Option<Box<dyn Kernel>> {
    let has_dense = linears.iter().flat_map(|l| &l.bands).any(|b| matches!(b.storage, Storage::Dense(_)));
    if has_dense && arithmetic != Arithmetic::Fast {
        return None;
    }
    let of = |linear: &Arc<QuantizedLinear>| {
        let bands = linear.bands.iter().map(|b| Band::new(&b.storage)).collect::<Option<Vec<Band>>>()?;
        (!bands.is_empty()).then(|| Linear { rows: linear.shape[0], bands, bias: linear.bias.clone() })
    };
    let cols = linears[0].shape[1];
    let linears = linears.iter().map(of).collect::<Option<_>>()?;
    Some(Box::new(Tiled { cols, linears, level }))
}

struct Tiled {
    cols: usize,
    linears: Vec<Linear<Band>>,
    level: Level,
}

/// Some rows in one storage.
struct Band {
    rows: usize,
    decoder: Decoder,
}

/// A kind of storage.
enum Decoder {
    Halves(Halves),
    Table(Table),
    SmallFloat(SmallFloat),
    Signs(SignTiles),
    Lattice(Lattice),
    Eights(Eights),
    Vector(Vector),
    Trellis(Trellis),
    Masked(Masked),
}

impl Decoder {
    fn new(storage: &Storage) -> Option<Self> {
        match storage {
            Storage::Float(_) => {
                SmallFloat::new(storage).map(Self::SmallFloat).or_else(|| Table::new(storage).map(Self::Table))
            }
            Storage::Table(_) | Storage::Int(_) => Table::new(storage).map(Self::Table),
            Storage::Ggml(_) => Eights::new(storage).map(Self::Eights).or_else(|| Table::new(storage).map(Self::Table)),
            Storage::Signs(_) => SignTiles::new(storage).map(Self::Signs),
            Storage::Lattice(_) => Lattice::new(storage).map(Self::Lattice),
            Storage::Vector(_) => Vector::new(storage).map(Self::Vector),
            Storage::Trellis(_) => Trellis::new(storage).map(Self::Trellis),
            Storage::TwoOfFour(_) => Masked::new(storage).map(Self::Masked),
            Storage::Dense(_) => Halves::new(storage).map(Self::Halves),
        }
    }

    /// Decodes a part of a tile.
    fn panel(&self, level: Level, part: Part, room: &mut Room, out: &mut [f32]) {
        match self {
            Self::Halves(d) => d.panel(level, part, room, out),
            Self::Table(d) => d.panel(level, part, room, out),
            Self::SmallFloat(d) => d.panel(level, part, room, out),
            Self::Signs(d) => d.panel(level, part, room, out),
            Self::Lattice(d) => d.panel(level, part, room, out),
            Self::Eights(d) => d.panel(level, part, room, out),
            Self::Vector(d) => d.panel(level, part, room, out),
            Self::Trellis(d) => d.panel(level, part, room, out),
            Self::Masked(d) => d.panel(level, part, room, out),
        }
    }

    fn len_bytes(&self) -> usize {
        match self {
            Self::Halves(d) => d.len_bytes(),
            Self::Table(d) => d.len_bytes(),
            Self::SmallFloat(d) => d.len_bytes(),
            Self::Signs(d) => d.len_bytes(),
            Self::Lattice(d) => d.len_bytes(),
            Self::Eights(d) => d.len_bytes(),
            Self::Vector(d) => d.len_bytes(),
            Self::Trellis(d) => d.len_bytes(),
            Self::Masked(d) => d.len_bytes(),
        }
    }
}

/// Columns `from..to` of a tile; `from` is a multiple of two [`BLOCK`]s (of one for what two of four keep), and there are at most [`K_BLOCK`].
#[derive(Clone, Copy)]
struct Part {
    tile: usize,
    from: usize,
    to: usize,
    /// Column `k` goes to `(k − from) · stride..` of what is written.
    stride: usize,
    /// How many blocks further on will be read soon.
    ahead: usize,
}

/// What decoders spread out on the way, kept by the caller so that it is made once.
#[repr(C, align(64))]
struct Room {
    scales: Spread,
    others: Spread,
    rows: [[f32; TILE]; TILE],
}

impl Room {
    fn new() -> Self {
        let spread = [[0.0; TILE]; factors::MOST];
        Self { scales: spread, others: spread, rows: [[0.0; TILE]; TILE] }
    }
}

/// Where the columns of a block go.
#[derive(Clone, Copy)]
struct Place {
    at: *mut f32,
    stride: usize,
}

impl Place {
    /// # Safety
    /// `c` is a column of the block that was given with this place.
    #[inline(always)]
    unsafe fn put<S: Sixteen>(self, s: S, c: usize, v: S::F) {
        // SAFETY: the caller's promise.
        unsafe { s.store(self.at.add(c * self.stride), v) }
    }
}

impl Part {
    /// # Panics
    /// If `out` has no place for the part.
    #[inline(always)]
    fn check(self, out: &[f32]) {
        let Self { from, to, stride, .. } = self;
        assert!(stride >= TILE && to > from && out.len() >= (to - from - 1) * stride + TILE, "a place for each column");
    }

    /// Calls `decode(k, place)` for each block from column `k` on, of which all columns have a place.
    ///
    /// # Panics
    /// If `out` has no place for the part.
    #[inline(always)]
    fn each_block(self, out: &mut [f32], mut decode: impl FnMut(usize, Place)) {
        self.check(out);
        let Self { from, to, stride, .. } = self;
        let mut rest = [[0.0; TILE]; BLOCK];
        for k in (from..to).step_by(BLOCK) {
            let here = &mut out[(k - from) * stride..];
            let is_whole = to - k >= BLOCK;
            let place = if is_whole {
                Place { at: here.as_mut_ptr(), stride }
            } else {
                Place { at: rest.as_mut_ptr().cast(), stride: TILE }
            };
            decode(k, place);
            if !is_whole {
                here.chunks_mut(stride).zip(&rest[..to - k]).for_each(|(o, column)| o[..TILE].copy_from_slice(column));
            }
        }
    }
}

impl Band {
    fn new(storage: &Storage) -> Option<Self> {
        let [rows, cols] = storage.shape();
        if rows == 0 || cols == 0 {
            return None;
        }
        let decoder = Decoder::new(storage)?;
        Some(Self { rows, decoder })
    }
}

impl Tiles for Band {
    type Room = Room;

    fn room() -> Room {
        Room::new()
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn decode(&self, level: Level, tile: usize, ks: Range<usize>, stride: usize, room: &mut Room, out: &mut [f32]) {
        let part = Part { tile, from: ks.start, to: ks.end, stride, ahead: 0 };
        self.decoder.panel(level, part, room, out);
    }
}

/// Up to so many tokens the decoded columns are multiplied where they were decoded.
const FEW_TOKENS: usize = 8;
/// Tiles of a task of few tokens, at most.
const FEW_TILES: usize = 8;
/// Columns that are decoded at once for them: with all tiles they stay in the L1 cache.
const STEP: usize = 64;

impl Kernel for Tiled {
    fn run(&self, team: &Team, tokens: usize, x: &[f32], outs: &mut [&mut [f32]]) {
        assert_eq!(outs.len(), self.linears.len(), "one output for each linear");
        assert!(x.len() >= tokens * self.cols, "an input [{tokens}, {}] in {} elements", self.cols, x.len());
        for (out, linear) in outs.iter().zip(&self.linears) {
            assert!(out.len() >= tokens * linear.rows, "an output [{tokens}, {}] in {}", linear.rows, out.len());
        }
        if tokens > FEW_TOKENS {
            panels::multiply(team, self.level, tokens, self.cols, &self.linears, x, outs);
        } else {
            self.few(team, tokens, x, outs);
        }
    }

    fn bytes(&self) -> usize {
        self.linears.iter().flat_map(|l| &l.bands).map(|b| b.decoder.len_bytes()).sum()
    }

    fn name(&self) -> &'static str {
        "tiled"
    }
}

impl Tiled {
    fn few(&self, team: &Team, tokens: usize, x: &[f32], outs: &mut [&mut [f32]]) {
        let outs: SmallVec<[Disjoint<'_, f32>; 4]> = outs.iter_mut().map(|o| Disjoint::new(o)).collect();
        let tiles: usize = self.linears.iter().flat_map(|l| &l.bands).map(Band::tiles).sum();
        // Small matrices leave a task for each thread.
        let together = tiles.div_ceil(4 * team.threads()).clamp(1, FEW_TILES);
        let tasks = self.linears.iter().flat_map(|l| &l.bands).map(|b| b.tiles().div_ceil(together)).sum();
        team.run(tasks, &|task| {
            let (which, first, band, tiles) = self.locate(task, together);
            let linear = &self.linears[which];
            let mut sums = [[0.0; TILE]; FEW_TOKENS * FEW_TILES];
            self.sums(band, tiles.clone(), tokens, x, &mut sums);
            for (i, sums) in sums.chunks_exact(tiles.len()).take(tokens).enumerate() {
                for (tile, sums) in tiles.clone().zip(sums) {
                    let row = first + tile * TILE;
                    let rows = TILE.min(band.rows - tile * TILE);
                    let at = i * linear.rows + row;
                    // SAFETY: these rows are this task's alone.
                    let out = unsafe { outs[which].slice(at..at + rows) };
                    out.copy_from_slice(&sums[..rows]);
                    if let Some(bias) = &linear.bias {
                        out.iter_mut().zip(&bias[row..]).for_each(|(y, b)| *y += b);
                    }
                }
            }
        });
    }

    /// The linear, the first row of the band in it, the band and its tiles of a task.
    fn locate(&self, mut task: usize, together: usize) -> (usize, usize, &Band, Range<usize>) {
        for (which, linear) in self.linears.iter().enumerate() {
            let mut first = 0;
            for band in &linear.bands {
                let tasks = band.tiles().div_ceil(together);
                if task < tasks {
                    return (which, first, band, task * together..((task + 1) * together).min(band.tiles()));
                }
                task -= tasks;
                first += band.rows;
            }
        }
        unreachable!("the caller counts the tasks")
    }

    /// The products of some tiles with all tokens, `[token][tile]`: chains over [`K_BLOCK`] columns, added in order.
    fn sums(&self, band: &Band, tiles: Range<usize>, tokens: usize, x: &[f32], sums: &mut [[f32; TILE]]) {
        let count = tiles.len();
        product::scratch::with(|scratch| {
            let panels = scratch.right.take(FEW_TILES * STEP * TILE);
            let (mut room, mut chains) = (Room::new(), [[0.0; TILE]; FEW_TOKENS * FEW_TILES]);
            let step = if matches!(band.decoder, Decoder::Halves(_)) { K_BLOCK } else { STEP };
            for from in (0..self.cols).step_by(step) {
                let to = (from + step).min(self.cols);
                let x = &x[from..];
                if let Decoder::Halves(halves) = &band.decoder {
                    halves::multiply_add(self.level, halves, &tiles, from..to, x, self.cols, tokens, &mut chains);
                } else {
                    let each = (to - from) * TILE;
                    let ahead = STEP / BLOCK;
                    for (tile, panel) in tiles.clone().zip(panels.chunks_exact_mut(each)) {
                        band.decoder.panel(self.level, Part { tile, from, to, stride: TILE, ahead }, &mut room, panel);
                    }
                    multiply_add(self.level, &panels[..count * each], count, x, self.cols, tokens, &mut chains);
                }
                if to.is_multiple_of(K_BLOCK) || to == self.cols {
                    for (sum, chain) in sums.iter_mut().zip(&mut chains).take(count * tokens) {
                        if to <= K_BLOCK {
                            *sum = *chain;
                        } else {
                            sum.iter_mut().zip(&*chain).for_each(|(s, c)| *s += c);
                        }
                        *chain = [0.0; TILE];
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;
