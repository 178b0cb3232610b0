//! Integer codes in tiles ([`fewbit_format::tiles`]), so that no sum crosses the lanes of a register.

use std::ops::{Range, RangeInclusive};

use bytes::Bytes;
pub(super) use fewbit_format::tiles::{BLOCK, CELL, Plane, ROWS as TILE, planes};
use fewbit_format::{Group, IntCodes, ScaleType, Scales, Storage, tiles};
use half::{bf16, f16};

use super::held::{Held, Own};
use super::rows::{self, Layout, Origin, Row};

/// Where a group's zero lies.
#[derive(Debug)]
pub(super) enum Zeros {
    Middle(u8),
    /// `[tile][group][16]`.
    Codes(Vec<u8>),
    /// `[tile][group][16]`.
    Offsets(Numbers),
}

/// Numbers in the narrowest type that holds all of them exactly.
#[derive(Debug)]
pub(super) enum Numbers {
    F16(Held<u16>),
    Bf16(Held<u16>),
    F32(Held<f32>),
    /// Small integers, each times the f16 that `2^shift` groups of a row share: a division would take longer than the
    /// products of a group.
    Scaled {
        shared: Vec<u16>,
        small: Vec<i8>,
        shift: u32,
    },
}

impl Numbers {
    /// `values [tile][group][16]`, of which `together` groups share a factor `[tile][group / together][16]`.
    fn scaled(values: Vec<f32>, shared: &[f32], together: usize) -> Self {
        let factor = |i: usize| shared[i / TILE / together * TILE + i % TILE];
        let small = |(i, v): (usize, &f32)| {
            let small = if *v == 0.0 { 0.0 } else { (v / factor(i)).round() };
            ((-128.0..=127.0).contains(&small) && factor(i) * small == *v).then_some(small as i8)
        };
        let is_half = shared.iter().all(|s| f16::from_f32(*s).to_f32() == *s);
        match values.iter().enumerate().map(small).collect::<Option<_>>() {
            Some(small) if is_half && together.is_power_of_two() => {
                let shared = shared.iter().map(|s| f16::from_f32(*s).to_bits()).collect();
                Self::Scaled { shared, small, shift: together.ilog2() }
            }
            _ => Self::compact(values),
        }
    }

    fn compact(values: Vec<f32>) -> Self {
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits();
        if values.iter().all(|v| same(f16::from_f32(*v).to_f32(), *v)) {
            Self::F16(values.iter().map(|v| f16::from_f32(*v).to_bits()).collect::<Vec<_>>().into())
        } else if values.iter().all(|v| same(bf16::from_f32(*v).to_f32(), *v)) {
            Self::Bf16(values.iter().map(|v| bf16::from_f32(*v).to_bits()).collect::<Vec<_>>().into())
        } else {
            Self::F32(values.into())
        }
    }

    /// Scales that lie in tiles, read where they are if their type is narrow.
    fn stored(scales: &Scales) -> Self {
        match scales.kind() {
            ScaleType::F16 => Self::F16(Held::new(scales.bytes().clone())),
            ScaleType::BF16 => Self::Bf16(Held::new(scales.bytes().clone())),
            _ => Self::compact(scales.values()),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F16(v) | Self::Bf16(v) => size_of_val(&v[..]),
            Self::F32(v) => size_of_val(&v[..]),
            Self::Scaled { shared, small, .. } => 2 * shared.len() + small.len(),
        }
    }

    /// Where sixteen numbers from `16 · index` on would lie, to be fetched ahead: they need not be there.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn at(&self, index: usize) -> *const u8 {
        match self {
            Self::F16(v) | Self::Bf16(v) => v.as_ptr().wrapping_add(index * TILE).cast(),
            Self::F32(v) => v.as_ptr().wrapping_add(index * TILE).cast(),
            Self::Scaled { small, .. } => small.as_ptr().wrapping_add(index * TILE).cast(),
        }
    }

    /// Sixteen numbers from `16 · index` on.
    #[inline]
    pub(super) fn sixteen(&self, index: usize) -> [f32; TILE] {
        let at = index * TILE;
        match self {
            Self::F16(v) => std::array::from_fn(|i| f16::from_bits(v[at + i]).to_f32()),
            Self::Bf16(v) => std::array::from_fn(|i| bf16::from_bits(v[at + i]).to_f32()),
            Self::F32(v) => std::array::from_fn(|i| v[at + i]),
            Self::Scaled { shared, small, shift } => std::array::from_fn(|i| {
                f16::from_bits(shared[(index >> shift) * TILE + i]).to_f32() * f32::from(small[at + i])
            }),
        }
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Cell(pub(super) [u8; CELL]);

impl Cell {
    pub(super) const ZERO: Self = Self([0; CELL]);
}

pub(super) fn bytes_of(cells: &mut [Cell]) -> &mut [u8] {
    let bytes = size_of_val(cells);
    // SAFETY: a cell is bytes and nothing else.
    unsafe { std::slice::from_raw_parts_mut(cells.as_mut_ptr().cast(), bytes) }
}

/// Columns of a wide span: half of the arithmetic around the products.
pub(super) const WIDE: usize = 2 * BLOCK;
/// Bits of weights whose own error hides what wide spans add to it. One token of 2 bits, which takes nearly all that the
/// arithmetic can do, is 7 % slower with them.
const COARSE: RangeInclusive<u8> = 3..=5;

/// The rows of one storage.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) rows: usize,
    /// Blocks of a row.
    blocks: usize,
    pub(super) bits: u8,
    /// Columns that share a scale of the activations: [`WIDE`] where the weights are coarse, else 32, or 16 where groups
    /// do not begin at multiples of 32.
    pub(super) span: usize,
    /// Spans of a group.
    pub(super) group_spans: usize,
    /// Groups of a row.
    pub(super) groups: usize,
    cells: Held<Cell>,
    /// `[tile][group][16]`.
    pub(super) scales: Numbers,
    pub(super) zeros: Zeros,
    /// The column of the input that stands at each place, where they are not in order.
    pub(super) order: Option<Vec<u32>>,
}

impl Packed {
    /// Takes tiles as they are stored, and repacks any other storage; `None` if its groups do not suit.
    pub(super) fn new(storage: &Storage) -> Option<Self> {
        let layout = rows::layout(storage)?;
        let Layout { rows, cols, group, .. } = layout;
        if rows == 0 || cols == 0 || (group != cols && group % 16 != 0) {
            return None;
        }
        if let Storage::Int(int) = storage
            && let Some(cells) = int.cells()
        {
            return Some(Self::of_tiles(&layout, int, cells));
        }
        Self::repack(&layout, storage)
    }

    /// Spans, and how many of them are a group.
    fn spans(&Layout { cols, bits, group, .. }: &Layout) -> (usize, usize) {
        let span = match group {
            _ if COARSE.contains(&bits) && group.is_multiple_of(WIDE) => WIDE,
            _ if group == cols || group.is_multiple_of(BLOCK) => BLOCK,
            _ => 16,
        };
        let padded = if group == cols { cols.next_multiple_of(BLOCK) } else { group };
        (span, padded.div_ceil(span))
    }

    fn of_tiles(layout: &Layout, int: &IntCodes, cells: &Bytes) -> Self {
        let &Layout { rows, cols, bits, group, origin, .. } = layout;
        let (groups, tiles) = (cols / group, rows.div_ceil(TILE));
        let is_shared = int.grid().group == Group::Tensor;
        let each = |numbers: &fewbit_format::Numbers| match numbers.plain() {
            Some(plain) if !is_shared => Numbers::stored(plain),
            _ => Numbers::compact(vec![numbers.get(0); tiles * groups * TILE]),
        };
        let zeros = match (origin, int.zeros()) {
            (Origin::Middle(z), _) => Zeros::Middle(z),
            (_, fewbit_format::Zeros::Codes(z)) if is_shared => Zeros::Codes(vec![z[0]; tiles * groups * TILE]),
            (_, fewbit_format::Zeros::Codes(z)) => Zeros::Codes(z.clone()),
            (_, fewbit_format::Zeros::Offsets(m)) => Zeros::Offsets(each(m)),
            (_, fewbit_format::Zeros::Points(z)) => {
                let (scales, points) = (int.scales().values(), z.values());
                let offsets = scales.iter().zip(points).map(|(s, z)| -(s * z));
                Zeros::Offsets(each(&offsets.collect()))
            }
            (_, fewbit_format::Zeros::Middle) => unreachable!("the layout says where the zero is"),
        };
        let (span, group_spans) = Self::spans(layout);
        let (cells, scales) = (Held::new(cells.clone()), each(int.scales()));
        Self { rows, blocks: cols.div_ceil(BLOCK), bits, span, group_spans, groups, cells, scales, zeros, order: None }
    }

    fn repack(layout: &Layout, storage: &Storage) -> Option<Self> {
        let &Layout { rows, cols, bits, group, origin, shared } = layout;
        let order = order(storage, layout)?;
        let (blocks, groups, tiles) = (cols.div_ceil(BLOCK), cols / group, rows.div_ceil(TILE));
        let cells_per_block = usize::from(bits);
        let cells_per_tile = blocks * cells_per_block;
        let mut placed = vec![0; blocks * BLOCK];
        let mut all = Own::<Cell>::zeros(tiles * cells_per_tile);
        let params = tiles * groups * TILE;
        let (mut scales, mut zeros, mut offsets) = (vec![0.0; params], vec![0; params], vec![0.0; params]);
        let mut all_shared = [(); 2].map(|()| vec![0.0; shared.map_or(0, |s| params / s)]);
        let mut row = Row::of(layout);
        for r in 0..rows {
            rows::read(storage, r, &mut row);
            let (tile, lane) = (r / TILE, r % TILE);
            for k in 0..groups {
                let at = (tile * groups + k) * TILE + lane;
                (scales[at], zeros[at], offsets[at]) = (row.scales[k], row.zeros[k], row.offsets[k]);
            }
            for (k, of_row) in row.shared.iter().enumerate() {
                for (all, of_row) in all_shared.iter_mut().zip(of_row) {
                    all[(tile * row.shared.len() + k) * TILE + lane] = *of_row;
                }
            }
            let cells = &mut all[tile * cells_per_tile..(tile + 1) * cells_per_tile];
            match &order {
                Some(order) => placed.iter_mut().zip(order).for_each(|(p, c)| *p = row.codes[*c as usize]),
                None => placed[..cols].copy_from_slice(&row.codes),
            }
            tiles::write_row(&placed, bits, lane, bytes_of(cells));
        }
        let numbers = |values, of: &[f32]| match shared {
            Some(together) => Numbers::scaled(values, of, together),
            None => Numbers::compact(values),
        };
        let zeros = match origin {
            Origin::Middle(z) => Zeros::Middle(z),
            Origin::Codes => Zeros::Codes(zeros),
            Origin::Offsets => Zeros::Offsets(numbers(offsets, &all_shared[1])),
        };
        let (span, group_spans) = Self::spans(layout);
        let (cells, scales) = (all.into(), numbers(scales, &all_shared[0]));
        Some(Self { rows, blocks, bits, span, group_spans, groups, cells, scales, zeros, order })
    }

    /// Blocks of a span, where it is not half of one.
    pub(super) fn span_blocks(&self) -> usize {
        self.span / BLOCK
    }

    /// The zero that all codes share, if they do.
    pub(super) fn middle(&self) -> Option<f32> {
        if let Zeros::Middle(z) = self.zeros { Some(f32::from(z)) } else { None }
    }

    /// How many groups lie within so many columns: at least one, and whole blocks.
    pub(super) fn groups_within(&self, columns: usize) -> usize {
        let whole = if (self.span * self.group_spans).is_multiple_of(BLOCK) { 1 } else { 2 };
        (columns / (self.span * self.group_spans)).next_multiple_of(whole).max(whole)
    }

    /// The blocks of some groups.
    pub(super) fn blocks_of(&self, groups: &Range<usize>) -> Range<usize> {
        let columns = self.span * self.group_spans;
        groups.start * columns / BLOCK..(groups.end * columns).div_ceil(BLOCK)
    }

    /// Bytes of the cells of a tile.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn tile_bytes(&self) -> usize {
        self.blocks * usize::from(self.bits) * CELL
    }

    /// The cells of a tile: `blocks · bits` of 64 bytes, aligned.
    #[inline]
    pub(super) fn cells(&self, tile: usize) -> *const u8 {
        self.cells[tile * self.blocks * usize::from(self.bits)..].as_ptr().cast()
    }

    /// The weights of a tile in columns `ks` (which begin at a block), as stored in the format's meaning:
    /// `out[(k − ks.start) · stride + r]` for the tile's row `r`.
    ///
    /// # Panics
    /// If `out` has no place for them.
    #[inline(always)]
    pub(super) fn decode(&self, tile: usize, ks: Range<usize>, stride: usize, out: &mut [f32]) {
        debug_assert!(ks.start.is_multiple_of(BLOCK) && stride >= TILE);
        let per_block = usize::from(self.bits);
        let cells = &self.cells[tile * self.blocks * per_block..];
        let step = self.span.min(BLOCK);
        for from in ks.clone().step_by(step) {
            let index = tile * self.groups + from / self.span / self.group_spans;
            let scales = self.scales.sixteen(index);
            let (mut zeros, mut offsets) = ([0; TILE], None);
            match &self.zeros {
                Zeros::Middle(z) => zeros = [i32::from(*z); TILE],
                Zeros::Codes(z) => {
                    let z = &z[index * TILE..][..TILE];
                    zeros.iter_mut().zip(z).for_each(|(o, z)| *o = i32::from(*z));
                }
                Zeros::Offsets(m) => offsets = Some(m.sixteen(index)),
            }
            for (c, four) in (from..(from + step).min(ks.end)).step_by(4).enumerate() {
                let (block, column) = (from / BLOCK, from % BLOCK + 4 * c);
                // Lane r holds row r; byte j of a lane column j.
                let mut words = [0; TILE];
                for Plane { cell, shift, mask, to } in planes(self.bits, column / 4) {
                    let cell = cells[block * per_block + cell].0.as_chunks::<4>().0;
                    words.iter_mut().zip(cell).for_each(|(w, c)| *w |= (u32::from_le_bytes(*c) >> shift & mask) << to);
                }
                for (j, out) in
                    out[(four - ks.start) * stride..].chunks_mut(stride).take((ks.end - four).min(4)).enumerate()
                {
                    let out: &mut [f32; TILE] = out.first_chunk_mut().expect("a place for each row of the tile");
                    for r in 0..TILE {
                        let code = (words[r] >> (8 * j) & 255) as i32;
                        out[r] = scales[r] * (code - zeros[r]) as f32;
                    }
                    if let Some(offsets) = &offsets {
                        out.iter_mut().zip(offsets).for_each(|(o, m)| *o += m);
                    }
                }
            }
        }
    }

    /// Where the scales and zeros of `[tile][group]` number `index` would lie, to be fetched ahead.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn params_at(&self, index: usize, fetch: impl Fn(*const u8)) {
        fetch(self.scales.at(index));
        match &self.zeros {
            Zeros::Middle(_) => {}
            Zeros::Codes(z) => fetch(z.as_ptr().wrapping_add(index * TILE)),
            Zeros::Offsets(m) => fetch(m.at(index)),
        }
    }

    /// Everything that is read for one token.
    pub(super) fn bytes(&self) -> usize {
        let zeros = match &self.zeros {
            Zeros::Middle(_) => 0,
            Zeros::Codes(z) => z.len(),
            Zeros::Offsets(m) => m.bytes(),
        };
        self.cells.len() * CELL + self.scales.bytes() + zeros
    }
}

/// The columns sorted by group, where a group index scatters them; `None` if it does not fill groups evenly.
#[expect(clippy::option_option, reason = "outside: whether it can be packed; inside: whether an order is needed")]
fn order(storage: &Storage, layout: &Layout) -> Option<Option<Vec<u32>>> {
    let Storage::Int(int) = storage else { return Some(None) };
    let Some(index) = int.group_index() else { return Some(None) };
    let mut order: Vec<u32> = (0..layout.cols as u32).collect();
    order.sort_by_key(|c| index[*c as usize]);
    let even = order.iter().enumerate().all(|(place, c)| index[*c as usize] as usize == place / layout.group);
    even.then_some(Some(order))
}
