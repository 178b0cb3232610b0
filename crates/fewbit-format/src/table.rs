use std::ops::Range;

use crate::group::pick;
use crate::{Error, Group, Numbers, Result, ScaleType, pack_bits, packed_len, unpack_bits};

/// What codes into tables look like, without their content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableGrid {
    /// Bits of a code, 1 to 8.
    pub bits: u8,
    /// Which weights share a scale.
    pub group: Group,
    /// Type of the stored scales.
    pub scale: ScaleType,
}

impl TableGrid {
    /// Numbers in one table.
    pub fn levels(self) -> usize {
        1 << self.bits
    }
}

/// Codes `[rows, cols]` into tables of numbers: `W[r, c] = s[r, k] · T[q[r, c]]`, `k` the group of column `c`.
///
/// One table `[2^bits]` in f32 serves the matrix, or each row has its own: in 8 bits if all of them are integers from
/// −127 to 127, else in f16. Rows are packed one by one ([`packed_len`]`(cols, bits)` bytes each).
#[derive(Clone, Debug, PartialEq)]
pub struct TableCodes {
    rows: usize,
    cols: usize,
    grid: TableGrid,
    packed: Vec<u8>,
    scales: Numbers,
    tables: Vec<f32>,
}

impl TableCodes {
    /// Takes unpacked codes `[rows · cols]`, scales `[rows · groups]` (`[1]` for [`Group::Tensor`]) that the grid's
    /// scale type holds exactly, and tables `[2^bits]` or `[rows · 2^bits]`.
    ///
    /// # Errors
    /// If a size is wrong, the group does not divide, a code is beyond the bits, or a table holds what is no number.
    pub fn new(
        rows: usize,
        cols: usize,
        grid: TableGrid,
        codes: &[u8],
        scales: impl Into<Numbers>,
        tables: Vec<f32>,
    ) -> Result<Self> {
        let scales = scales.into().held_as(grid.scale);
        if !(1..=8).contains(&grid.bits) {
            return Err(Error::input(format!("{} bits, where 1 to 8 are possible", grid.bits)));
        }
        grid.group.check(cols)?;
        let groups = grid.group.count(rows, cols);
        let per_row = cols / grid.group.width(cols);
        let has_tables = tables.len() == grid.levels() || tables.len() == rows * grid.levels();
        if codes.len() != rows * cols || scales.len() != groups || !has_tables {
            return Err(Error::internal(format!(
                "{} codes, {} scales, {} levels for [{rows}, {cols}] in {groups} groups of {} bits",
                codes.len(),
                scales.len(),
                tables.len(),
                grid.bits
            )));
        }
        if !scales.has_shape(rows, per_row) {
            return Err(Error::input("scales of scales are for rows and groups, and those of another matrix"));
        }
        if codes.iter().fold(0, |all, c| all | c) > (grid.levels() - 1) as u8 {
            return Err(Error::input(format!("holds a code beyond {} bits", grid.bits)));
        }
        if !tables.iter().all(|t| t.is_finite()) {
            return Err(Error::input("a table of levels holds what is no number"));
        }
        if tables.len() != grid.levels() && !tables.iter().all(|t| is_f16(*t)) {
            return Err(Error::input("a table of one row holds what f16 does not"));
        }
        let row_bytes = packed_len(cols, grid.bits);
        let mut packed = vec![0; rows * row_bytes];
        for (row, out) in codes.chunks_exact(cols).zip(packed.chunks_exact_mut(row_bytes)) {
            pack_bits(row, grid.bits, out);
        }
        Ok(Self { rows, cols, grid, packed, scales, tables })
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The grid.
    pub fn grid(&self) -> TableGrid {
        self.grid
    }

    /// The packed codes, row by row.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// All scales, `[rows · groups]` or `[1]`.
    pub fn scales(&self) -> &Numbers {
        &self.scales
    }

    /// One table, or one for each row.
    pub fn tables(&self) -> &[f32] {
        &self.tables
    }

    /// Whether tables of rows are integers of 8 bits.
    pub fn has_integer_tables(&self) -> bool {
        !self.is_shared() && self.tables.iter().all(|t| t.fract() == 0.0 && t.abs() <= 127.0)
    }

    fn is_shared(&self) -> bool {
        self.tables.len() == self.grid.levels()
    }

    /// Decodes rows `rows` into `out[rows.len() · cols]`.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let (levels, width) = (self.grid.levels(), self.grid.group.width(self.cols));
        let (row_bytes, per_row) = (packed_len(self.cols, self.grid.bits), self.cols / width);
        let mut codes = vec![0; self.cols];
        for (r, row) in rows.zip(out.chunks_exact_mut(self.cols)) {
            unpack_bits(&self.packed[r * row_bytes..(r + 1) * row_bytes], self.grid.bits, &mut codes);
            let table = if self.is_shared() { &self.tables } else { &self.tables[r * levels..(r + 1) * levels] };
            for (k, (values, codes)) in row.chunks_exact_mut(width).zip(codes.chunks_exact(width)).enumerate() {
                let scale = self.scales.get(if self.grid.group == Group::Tensor { 0 } else { r * per_row + k });
                values.iter_mut().zip(codes).for_each(|(v, q)| *v = scale * table[usize::from(*q)]);
            }
        }
    }

    /// The same codes with these rows, in this order; `None` if scales of scales would be parted.
    pub fn select_rows(&self, rows: &[usize]) -> Option<Self> {
        let per_row = self.cols / self.grid.group.width(self.cols);
        Some(Self {
            rows: rows.len(),
            packed: pick(&self.packed, rows, packed_len(self.cols, self.grid.bits), false),
            scales: self.scales.select_rows(rows, per_row, self.grid.group == Group::Tensor)?,
            tables: pick(&self.tables, rows, self.grid.levels(), self.is_shared()),
            ..*self
        })
    }

    /// The rows of several matrices in one; `None` where grids or widths differ, or one scale serves a matrix. Rows keep
    /// tables of their own unless one serves all.
    pub fn stack(parts: &[&Self]) -> Option<Self> {
        let (first, rest) = parts.split_first()?;
        let is_alike = |p: &&Self| p.grid == first.grid && p.cols == first.cols && p.grid.group != Group::Tensor;
        if !rest.iter().all(is_alike) {
            return None;
        }
        let is_shared = parts.iter().all(|p| p.is_shared() && p.tables == first.tables);
        if !is_shared && !parts.iter().all(|p| p.tables.iter().all(|t| is_f16(*t))) {
            return None;
        }
        let by_row = |p: &&Self| if p.is_shared() { p.tables.repeat(p.rows) } else { p.tables.clone() };
        Some(Self {
            rows: parts.iter().map(|p| p.rows).sum(),
            packed: parts.iter().flat_map(|p| p.packed.iter().copied()).collect(),
            scales: Numbers::stack(&parts.iter().map(|p| &p.scales).collect::<Vec<_>>())?,
            tables: if is_shared { first.tables.clone() } else { parts.iter().flat_map(by_row).collect() },
            ..**first
        })
    }

    /// Everything stored, in bits: codes, scales, tables (32 bits for a level that all rows share, 8 or 16 for one of a row).
    pub fn stored_bits(&self) -> u64 {
        let level = if self.is_shared() {
            32
        } else if self.has_integer_tables() {
            8
        } else {
            16
        };
        8 * self.packed.len() as u64 + self.scales.stored_bits() + level * self.tables.len() as u64
    }
}

fn is_f16(t: f32) -> bool {
    half::f16::from_f32(t).to_f32() == t
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRID: TableGrid = TableGrid { bits: 2, group: Group::Columns(2), scale: ScaleType::F16 };

    fn codes(tables: Vec<f32>) -> TableCodes {
        TableCodes::new(2, 4, GRID, &[0, 1, 2, 3, 3, 3, 0, 1], vec![1.0, 2.0, 0.5, 4.0], tables).unwrap()
    }

    #[test]
    fn decodes_scale_times_level() {
        let mut out = [0.0; 8];
        codes(vec![-1.0, 0.0, 0.5, 1.0]).decode_rows(0..2, &mut out);
        assert_eq!(out, [-1.0, 0.0, 1.0, 2.0, 0.5, 0.5, -4.0, 0.0]);
        let own = codes(vec![-1.0, 0.0, 0.5, 1.0, 1.0, 2.0, 3.0, 4.0]);
        own.decode_rows(0..2, &mut out);
        assert_eq!(out, [-1.0, 0.0, 1.0, 2.0, 2.0, 2.0, 4.0, 8.0]);
        assert_eq!(own.stored_bits(), 16 + 4 * 16 + 8 * 16);
        let integers = codes(vec![-127.0, 0.0, 5.0, 127.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(integers.stored_bits(), 16 + 4 * 16 + 8 * 8);
    }

    #[test]
    fn rows_are_picked_and_put_together() {
        for tables in [vec![-1.0, 0.0, 0.5, 1.0], vec![-1.0, 0.0, 0.5, 1.0, 1.0, 2.0, 3.0, 4.0]] {
            let all = codes(tables);
            let [upper, lower] = [0, 1].map(|r| all.select_rows(&[r]).unwrap());
            assert_eq!(TableCodes::stack(&[&upper, &lower]).unwrap(), all);
        }
        // Of two tables each row keeps its own.
        let [a, b] = [-1.0, -2.0].map(|low| codes(vec![low, 0.0, 0.5, 1.0]));
        let both = TableCodes::stack(&[&a, &b]).unwrap();
        let mut values = [[0.0; 8]; 4];
        both.decode_rows(0..4, values[..2].as_flattened_mut());
        a.decode_rows(0..2, &mut values[2]);
        b.decode_rows(0..2, &mut values[3]);
        assert_eq!(values[..2], values[2..]);
        let other = TableCodes::new(1, 2, GRID, &[0, 1], vec![1.0], vec![0.0; 4]).unwrap();
        assert!(TableCodes::stack(&[&a, &other]).is_none());
    }
}
