//! Codes of up to 8 bits of which each stands for a number of a table, or for itself: `W = s · T[q]`, `s · (q − z)`,
//! `s · q + m`.
//!
//! A table of sixteen is a register: a permutation looks up sixteen rows at once.

use fewbit_format::{FloatCodes, GgmlBlocks, Group, IntCodes, Storage, TableCodes, Zeros, packed_len, unpack_bits};
use half::f16;

use super::super::packed::{BLOCK, TILE};
use super::codes::{Codes, each_code};
use super::factors::{Factors, Spread};
use super::lanes::{LANES, Sixteen, at_level};
use super::{Part, Room, levels};
use crate::Level;

/// The rows of a storage.
#[derive(Debug)]
pub(super) struct Table {
    codes: Codes,
    /// Columns of a group, a multiple of four.
    group: usize,
    scales: Factors,
    meaning: Meaning,
}

/// What a code stands for before its group's scale.
#[derive(Debug)]
enum Meaning {
    /// A number of one table; of sixteen, or of as many as there are codes.
    Level(Vec<f32>),
    /// A number of the row's table, which has up to sixteen.
    RowLevel(RowLevels),
    /// Itself, less what is the same for all.
    LessMiddle(f32),
    /// Itself, less an integer of the group.
    LessZero(Codes),
    /// Itself; the product has the group's number added.
    Plus(Factors),
    /// The same, where the number is minus the product of the scale and this.
    LessPoint(Factors),
}

/// Tables of rows, `[tile][code][16]`.
#[derive(Debug)]
enum RowLevels {
    Int8(Vec<i8>),
    Half(Vec<f16>),
}

/// The table of codes that stand for themselves.
static ITSELF: [f32; TILE] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// How a code becomes a number.
const LOOKUP: u8 = 0;
const GATHER: u8 = 1;
const ROWS: u8 = 2;
const NUMBER: u8 = 3;

/// What is done with the number.
const SCALE: u8 = 0;
const LESS: u8 = 1;
const PLUS: u8 = 2;

impl Table {
    /// `None` for other storages, and where groups are no multiples of four columns.
    pub(super) fn new(storage: &Storage) -> Option<Self> {
        match storage {
            Storage::Table(table) => Self::of_table(table),
            Storage::Float(floats) => Self::of_floats(floats),
            Storage::Int(int) => Self::of_integers(int),
            Storage::Ggml(blocks) => Self::of_blocks(blocks),
            _ => None,
        }
    }

    fn of_table(table: &TableCodes) -> Option<Self> {
        let ([rows, cols], grid) = (table.shape(), table.grid());
        let group = whole(grid.group, cols)?;
        let scales = Factors::of(table.scales(), grid.scale, grid.group, rows, cols / group)?;
        let meaning = if table.tables().len() == grid.levels() {
            Meaning::Level(filled(table.tables().to_vec()))
        } else {
            Meaning::RowLevel(RowLevels::of(table)?)
        };
        let row_bytes = packed_len(cols, grid.bits);
        let codes = interleaved([rows, cols], grid.bits, |r, out| {
            unpack_bits(&table.packed()[r * row_bytes..(r + 1) * row_bytes], grid.bits, out);
        });
        Some(Self { codes, group, scales, meaning })
    }

    fn of_floats(floats: &FloatCodes) -> Option<Self> {
        let ([rows, cols], element) = (floats.shape(), floats.grid().element);
        let (group, bits) = (whole(floats.grid().group, cols)?, element.bits());
        let scales = Factors::of_floats(floats)?;
        let levels = (0..=u8::MAX).take(1 << bits).map(|q| element.decode(q)).collect();
        let row_bytes = packed_len(cols, bits);
        let codes = interleaved([rows, cols], bits, |r, out| {
            unpack_bits(&floats.packed()[r * row_bytes..(r + 1) * row_bytes], bits, out);
        });
        Some(Self { codes, group, scales, meaning: Meaning::Level(filled(levels)) })
    }

    fn of_integers(int: &IntCodes) -> Option<Self> {
        let int = &*int.in_rows();
        let ([rows, cols], grid) = (int.shape(), int.grid());
        let group = whole(grid.group, cols).filter(|_| int.group_index().is_none())?;
        let groups = cols / group;
        let scales = Factors::of(int.scales(), grid.scale, grid.group, rows, groups)?;
        let meaning = match int.zeros() {
            Zeros::Middle => Meaning::LessMiddle((1u32 << (grid.bits - 1)) as f32),
            Zeros::Codes(zeros) => {
                let of_row = |r: usize| if grid.group == Group::Tensor { 0 } else { r * groups };
                Meaning::LessZero(interleaved([rows, groups], grid.bits, |r, out| {
                    out.copy_from_slice(&zeros[of_row(r)..][..groups]);
                }))
            }
            Zeros::Offsets(m) => Meaning::Plus(Factors::of(m, grid.scale, grid.group, rows, groups)?),
            Zeros::Points(z) => Meaning::LessPoint(Factors::of(z, grid.scale, grid.group, rows, groups)?),
        };
        let codes = interleaved([rows, cols], grid.bits, |r, out| int.row_codes(r, out));
        Some(Self { codes, group, scales, meaning })
    }

    fn of_blocks(blocks: &GgmlBlocks) -> Option<Self> {
        let levels::Levels { bits, group, table } = levels::of(blocks.kind)?;
        let codes = interleaved(blocks.shape(), bits, |r, out| levels::read(blocks, r, out));
        Some(Self { codes, group, scales: levels::scales(blocks, group), meaning: Meaning::Level(filled(table)) })
    }

    pub(super) fn len_bytes(&self) -> usize {
        let meaning = match &self.meaning {
            Meaning::Level(levels) => 4 * levels.len(),
            Meaning::RowLevel(RowLevels::Int8(levels)) => levels.len(),
            Meaning::RowLevel(RowLevels::Half(levels)) => 2 * levels.len(),
            Meaning::LessMiddle(_) => 0,
            Meaning::LessZero(codes) => codes.len_bytes(),
            Meaning::Plus(factors) | Meaning::LessPoint(factors) => factors.len_bytes(),
        };
        self.codes.len_bytes() + self.scales.len_bytes() + meaning
    }

    /// Decodes a part of a tile.
    pub(super) fn panel(&self, level: Level, part: Part, room: &mut Room, out: &mut [f32]) {
        macro_rules! by_bits {
            ($how:ident, $form:ident: $($bits:literal)*) => {
                match self.codes.bits() {
                    $($bits => panel_at::<$bits, $how, $form>(level, self, part, room, out),)*
                    bits => unreachable!("{bits} bits"),
                }
            };
        }
        let few = self.codes.bits() <= 4;
        match (&self.meaning, few) {
            (Meaning::Level(_), true) => by_bits!(LOOKUP, SCALE: 1 2 3 4),
            (Meaning::Level(_), false) => by_bits!(GATHER, SCALE: 5 6 7 8),
            (Meaning::RowLevel(_), _) => by_bits!(ROWS, SCALE: 1 2 3 4),
            (Meaning::LessMiddle(_) | Meaning::LessZero(_), true) => by_bits!(LOOKUP, LESS: 1 2 3 4),
            (Meaning::LessMiddle(_) | Meaning::LessZero(_), false) => by_bits!(NUMBER, LESS: 5 6 7 8),
            (Meaning::Plus(_) | Meaning::LessPoint(_), true) => by_bits!(LOOKUP, PLUS: 1 2 3 4),
            (Meaning::Plus(_) | Meaning::LessPoint(_), false) => by_bits!(NUMBER, PLUS: 5 6 7 8),
        }
    }

    /// What is subtracted from the codes or added to the products of some groups of a tile, whose scales are known.
    #[inline(always)]
    fn spread_others<S: Sixteen>(
        &self,
        s: S,
        tile: usize,
        first: usize,
        scales: &Spread,
        count: usize,
        out: &mut Spread,
    ) {
        match &self.meaning {
            Meaning::Level(_) | Meaning::RowLevel(_) => {}
            Meaning::LessMiddle(zero) => out[..count].fill([*zero; TILE]),
            Meaning::LessZero(zeros) => {
                for (k, out) in out[..count].iter_mut().enumerate() {
                    let zero = s.number(zeros.column(s, tile, first + k));
                    // SAFETY: there are sixteen places.
                    unsafe { s.store(out.as_mut_ptr(), zero) };
                }
            }
            Meaning::Plus(offsets) => offsets.spread(s, tile, first, count, out),
            Meaning::LessPoint(points) => {
                points.spread(s, tile, first, count, out);
                for (out, scale) in out[..count].iter_mut().zip(scales) {
                    // SAFETY: both are sixteen numbers.
                    unsafe {
                        let product = s.mul(s.load(scale.as_ptr()), s.load(out.as_ptr()));
                        s.store(out.as_mut_ptr(), s.as_number(s.xor(s.bits(product), s.splat_u32(1 << 31))));
                    }
                }
            }
        }
    }
}

/// Columns of a group, if whole quads of columns share one.
pub(super) fn whole(group: Group, cols: usize) -> Option<usize> {
    let width = group.width(cols);
    (width >= cols || width.is_multiple_of(4)).then_some(width)
}

/// Rows of codes in cells.
pub(super) fn interleaved(shape: [usize; 2], bits: u8, read: impl Fn(usize, &mut [u8])) -> Codes {
    let (mut codes, mut row) = (Codes::new(shape, bits), vec![0; shape[1]]);
    for r in 0..shape[0] {
        read(r, &mut row);
        codes.put(r, &row);
    }
    codes
}

/// A table of fewer than sixteen, again and again: what stands above a code does not matter then.
fn filled(table: Vec<f32>) -> Vec<f32> {
    let count = table.len().max(TILE);
    table.into_iter().cycle().take(count).collect()
}

impl RowLevels {
    /// `None` if tables have more than sixteen numbers.
    fn of(table: &TableCodes) -> Option<Self> {
        let ([rows, _], levels) = (table.shape(), table.grid().levels());
        if levels > TILE {
            return None;
        }
        let mut all = vec![0.0; rows.next_multiple_of(TILE) * levels];
        for (r, row) in table.tables().chunks_exact(levels).enumerate() {
            for (q, level) in row.iter().enumerate() {
                all[(r / TILE * levels + q) * TILE + r % TILE] = *level;
            }
        }
        Some(if table.has_integer_tables() {
            Self::Int8(all.into_iter().map(|v| v as i8).collect())
        } else {
            Self::Half(all.into_iter().map(f16::from_f32).collect())
        })
    }

    /// The numbers of code `q` of a tile's rows, of `levels` codes.
    #[inline(always)]
    fn sixteen<S: Sixteen>(&self, s: S, tile: usize, levels: usize, q: usize) -> S::F {
        let at = (tile * levels + q) * TILE;
        match self {
            Self::Int8(all) => {
                let at = all[at..at + TILE].as_ptr().cast();
                // SAFETY: there are sixteen.
                let byte = unsafe { s.bytes(at) };
                // A byte with a sign: its first 128 are positive.
                s.sub(s.number(s.xor(byte, s.splat_u32(128))), s.splat(128.0))
            }
            // SAFETY: there are sixteen.
            Self::Half(all) => unsafe { s.halves(all[at..at + TILE].as_ptr().cast()) },
        }
    }
}

at_level! {
    fn panel_at[const BITS: u8, const HOW: u8, const FORM: u8](table: &Table, part: Part, room: &mut Room, out: &mut [f32]) = panel
}

#[inline(always)]
fn panel<S: Sixteen, const BITS: u8, const HOW: u8, const FORM: u8>(
    s: S,
    table: &Table,
    part: Part,
    room: &mut Room,
    out: &mut [f32],
) {
    let (group, first) = (table.group, part.from / table.group);
    let last = (part.to - 1) / group - first;
    let Room { scales, others, rows } = room;
    table.scales.spread(s, part.tile, first, last + 1, scales);
    if FORM != SCALE {
        table.spread_others(s, part.tile, first, scales, last + 1, others);
    }
    let levels: &[f32] = match &table.meaning {
        Meaning::Level(levels) => levels,
        _ => &ITSELF,
    };
    assert!(levels.len() >= if HOW == GATHER { 1 << BITS } else { TILE }, "a table of all codes");
    if let Meaning::RowLevel(all) = &table.meaning {
        for (q, row) in rows.iter_mut().enumerate().take(1 << BITS) {
            // SAFETY: there are sixteen places.
            unsafe { s.store(row.as_mut_ptr(), all.sixteen(s, part.tile, 1 << BITS, q)) };
        }
    }
    // SAFETY: there are sixteen levels and lanes.
    let (lookup, lanes) = unsafe { (s.load(levels.as_ptr()), s.words(LANES.as_ptr().cast())) };
    let mask = s.splat_u32((1 << BITS) - 1);
    let (mut which, mut left) = (0, group - part.from % group);
    let (mut scale, mut other) = (s.splat(0.0), s.splat(0.0));
    part.each_block(
        out,
        #[inline(always)]
        |k, to| {
            let at = table.codes.block(part.tile, k / BLOCK);
            table.codes.fetch(s, at, part.ahead);
            // SAFETY: the block is in the tile; a table has a number for each code; groups are those that were spread.
            unsafe {
                each_code::<S, BITS>(
                    s,
                    at,
                    #[inline(always)]
                    |c, word| {
                        if c % 4 == 0 {
                            if left == 0 {
                                (which, left) = ((which + 1).min(last), group);
                            }
                            left = left.saturating_sub(4);
                            scale = s.load(scales[which].as_ptr());
                            if FORM != SCALE {
                                other = s.load(others[which].as_ptr());
                            }
                        }
                        let number = match HOW {
                            LOOKUP => s.lookup(word, lookup),
                            GATHER => s.as_number(s.gather(levels.as_ptr().cast(), s.and(word, mask))),
                            ROWS => {
                                let index = s.or(s.shl(s.and(word, mask), 4), lanes);
                                s.as_number(s.gather(rows.as_ptr().cast(), index))
                            }
                            _ => s.number(s.and(word, mask)),
                        };
                        let value = match FORM {
                            SCALE => s.mul(scale, number),
                            LESS => s.mul(scale, s.sub(number, other)),
                            _ => s.add(s.mul(scale, number), other),
                        };
                        to.put(s, c, value);
                    },
                );
            }
        },
    );
}
