use std::ops::Range;

use half::f16;

use crate::group::pick;
use crate::{Error, Result};

/// Few entries of a matrix `[rows, cols]`, by rows: what is added to the decoded codes.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse {
    cols: usize,
    /// Where each row's entries begin, and where the last's end: `[rows + 1]`.
    starts: Vec<u32>,
    index: SparseIndex,
    values: SparseValues,
}

/// Where the entries are.
#[derive(Clone, Debug, PartialEq)]
pub enum SparseIndex {
    /// A column of 16 bits for each, rising within a row, and 32 bits a row for where they begin.
    Columns(Vec<u16>),
    /// A bit for each weight, rows padded to bytes, the first column in the lowest bit. Smaller where more than one
    /// weight in sixteen is an entry.
    Bitmap(Vec<u8>),
}

/// What the entries are.
#[derive(Clone, Debug, PartialEq)]
pub enum SparseValues {
    /// 16 bits each.
    F16(Vec<f16>),
    /// 8 bits each, times a scale for each row.
    Int8 {
        /// By entry.
        codes: Vec<i8>,
        /// By row.
        scales: Vec<f16>,
    },
}

impl SparseValues {
    /// How many there are.
    fn len(&self) -> usize {
        match self {
            Self::F16(values) => values.len(),
            Self::Int8 { codes, .. } => codes.len(),
        }
    }
}

impl Sparse {
    /// Takes the entries of all rows in f16, in order: `starts [rows + 1]`, columns that rise within a row.
    ///
    /// # Errors
    /// As [`with`](Self::with).
    pub fn new(cols: usize, starts: Vec<u32>, columns: Vec<u16>, values: Vec<f16>) -> Result<Self> {
        Self::with(cols, starts, SparseIndex::Columns(columns), SparseValues::F16(values))
    }

    /// Takes the entries of all rows, in order; `starts [rows + 1]` says how many each row has.
    ///
    /// # Errors
    /// If a column is beyond the matrix or out of order, a value is no number, or sizes differ.
    pub fn with(cols: usize, starts: Vec<u32>, index: SparseIndex, values: SparseValues) -> Result<Self> {
        let is_ordered = starts.first() == Some(&0)
            && starts.windows(2).all(|w| w[0] <= w[1])
            && starts.last().is_some_and(|n| *n as usize == values.len());
        let rows = starts.len().saturating_sub(1);
        let has_size = match &index {
            SparseIndex::Columns(columns) => columns.len() == values.len(),
            SparseIndex::Bitmap(bits) => {
                bits.len() == rows * cols.div_ceil(8) && starts[..] == Self::starts_of(bits, rows, cols)[..]
            }
        };
        if !is_ordered || !has_size {
            return Err(Error::input("the rows of the sparse entries do not add up"));
        }
        let sparse = Self { cols, starts, index, values };
        if !(0..rows).all(|r| sparse.is_in_order(r)) {
            return Err(Error::input("the columns of the sparse entries are out of order or beyond the matrix"));
        }
        let is_finite = match &sparse.values {
            SparseValues::F16(values) => values.iter().all(|v| v.is_finite()),
            SparseValues::Int8 { scales, .. } => scales.len() == rows && scales.iter().all(|s| s.is_finite()),
        };
        if !is_finite {
            return Err(Error::input("a sparse entry is no number that f16 holds"));
        }
        Ok(sparse)
    }

    /// Where the rows of a bitmap begin.
    ///
    /// # Panics
    /// If the bitmap is shorter than `rows · ⌈cols/8⌉` bytes.
    pub fn starts_of(bitmap: &[u8], rows: usize, cols: usize) -> Vec<u32> {
        let (width, mut starts) = (cols.div_ceil(8), vec![0u32]);
        for r in 0..rows {
            let count: u32 = bitmap[r * width..(r + 1) * width].iter().map(|b| b.count_ones()).sum();
            starts.push(starts[r].saturating_add(count));
        }
        starts
    }

    fn is_in_order(&self, r: usize) -> bool {
        let at = self.starts[r] as usize..self.starts[r + 1] as usize;
        match &self.index {
            SparseIndex::Columns(columns) => {
                let columns = &columns[at];
                columns.windows(2).all(|w| w[0] < w[1]) && columns.last().is_none_or(|c| usize::from(*c) < self.cols)
            }
            // No bit is set in the padding.
            SparseIndex::Bitmap(bits) => {
                let width = self.cols.div_ceil(8);
                let last = bits[r * width..(r + 1) * width].last();
                self.cols.is_multiple_of(8) || last.is_none_or(|b| *b >> (self.cols % 8) == 0)
            }
        }
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// Columns of the matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How many entries there are.
    pub fn count(&self) -> usize {
        self.values.len()
    }

    /// Where each row begins among the entries, and where the last ends.
    pub fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Where the entries are, and what they are.
    pub fn parts(&self) -> (&SparseIndex, &SparseValues) {
        (&self.index, &self.values)
    }

    /// Calls `f(column, value)` for each entry of row `r`, columns rising.
    #[inline]
    pub fn for_row(&self, r: usize, mut f: impl FnMut(usize, f32)) {
        let at = self.starts[r] as usize..self.starts[r + 1] as usize;
        match &self.values {
            SparseValues::F16(values) => self.columns_of(r, at, |i, c| f(c, values[i].to_f32())),
            SparseValues::Int8 { codes, scales } => {
                let scale = scales[r].to_f32();
                self.columns_of(r, at, |i, c| f(c, scale * f32::from(codes[i])));
            }
        }
    }

    /// Calls `f(entry, column)` for each entry of row `r`.
    #[inline]
    fn columns_of(&self, r: usize, at: Range<usize>, mut f: impl FnMut(usize, usize)) {
        match &self.index {
            SparseIndex::Columns(columns) => at.for_each(|i| f(i, usize::from(columns[i]))),
            SparseIndex::Bitmap(bits) => {
                let (width, mut i) = (self.cols.div_ceil(8), at.start);
                for (b, byte) in bits[r * width..(r + 1) * width].iter().enumerate() {
                    let mut rest = *byte;
                    while rest != 0 {
                        f(i, 8 * b + rest.trailing_zeros() as usize);
                        i += 1;
                        rest &= rest - 1;
                    }
                }
            }
        }
    }

    /// Adds rows `rows` to `out[rows.len() · cols]`.
    pub fn add_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        for (r, row) in rows.zip(out.chunks_exact_mut(self.cols)) {
            self.for_row(r, |c, v| row[c] += v);
        }
    }

    /// The same entries with these rows, in this order.
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        let mut starts = vec![0];
        for r in rows {
            starts.push(starts[starts.len() - 1] + (self.starts[r + 1] - self.starts[*r]));
        }
        let entries = || rows.iter().flat_map(|r| self.starts[*r] as usize..self.starts[r + 1] as usize);
        let index = match &self.index {
            SparseIndex::Columns(columns) => SparseIndex::Columns(entries().map(|i| columns[i]).collect()),
            SparseIndex::Bitmap(bits) => SparseIndex::Bitmap(pick(bits, rows, self.cols.div_ceil(8), false)),
        };
        let values = match &self.values {
            SparseValues::F16(values) => SparseValues::F16(entries().map(|i| values[i]).collect()),
            SparseValues::Int8 { codes, scales } => SparseValues::Int8 {
                codes: entries().map(|i| codes[i]).collect(),
                scales: pick(scales, rows, 1, false),
            },
        };
        Self { cols: self.cols, starts, index, values }
    }

    /// Everything stored, in bits.
    pub fn stored_bits(&self) -> u64 {
        let index = match &self.index {
            SparseIndex::Columns(columns) => 32 * self.starts.len() + 16 * columns.len(),
            SparseIndex::Bitmap(bits) => 8 * bits.len(),
        };
        let values = match &self.values {
            SparseValues::F16(values) => 16 * values.len(),
            SparseValues::Int8 { codes, scales } => 8 * codes.len() + 16 * scales.len(),
        };
        (index + values) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halves(v: &[f32]) -> Vec<f16> {
        v.iter().copied().map(f16::from_f32).collect()
    }

    /// The same three entries of `[3, 10]` in all forms.
    fn forms() -> Vec<Sparse> {
        let starts = || vec![0, 2, 2, 3];
        let columns = || SparseIndex::Columns(vec![0, 9, 4]);
        let bitmap = || SparseIndex::Bitmap(vec![1, 2, 0, 0, 16, 0]);
        let f16s = || SparseValues::F16(halves(&[1.0, -2.0, 0.5]));
        let int8 = || SparseValues::Int8 { codes: vec![2, -4, 1], scales: halves(&[0.5, 3.0, 0.5]) };
        let make = |index, values| Sparse::with(10, starts(), index, values).unwrap();
        vec![make(columns(), f16s()), make(columns(), int8()), make(bitmap(), f16s()), make(bitmap(), int8())]
    }

    #[test]
    fn all_forms_say_the_same() {
        for sparse in forms() {
            let mut out = [0.0; 30];
            sparse.add_rows(0..3, &mut out);
            assert_eq!((out[0], out[9], out[24], out.iter().sum::<f32>()), (1.0, -2.0, 0.5, -0.5));
            let mut picked = [0.0; 20];
            sparse.select_rows(&[2, 0]).add_rows(0..2, &mut picked);
            assert_eq!((&picked[..10], &picked[10..]), (&out[20..], &out[..10]));
        }
        let bits: Vec<u64> = forms().iter().map(Sparse::stored_bits).collect();
        assert_eq!(bits, [4 * 32 + 3 * 32, 4 * 32 + 3 * 24 + 48, 48 + 48, 48 + 24 + 48]);
    }

    #[test]
    fn entries_out_of_order_are_refused() {
        let one = || vec![f16::ONE; 2];
        assert!(Sparse::new(4, vec![0, 2], vec![3, 1], one()).is_err());
        assert!(Sparse::new(4, vec![0, 2], vec![1, 4], one()).is_err());
        assert!(Sparse::new(4, vec![0, 3], vec![1, 2], one()).is_err());
        assert!(Sparse::new(4, vec![0, 2], vec![1, 2], vec![f16::INFINITY; 2]).is_err());
        let bitmap =
            |bits: Vec<u8>, starts| Sparse::with(4, starts, SparseIndex::Bitmap(bits), SparseValues::F16(one()));
        assert!(bitmap(vec![3], vec![0, 2]).is_ok());
        assert!(bitmap(vec![7], vec![0, 2]).is_err() && bitmap(vec![17], vec![0, 2]).is_err());
        assert!(bitmap(vec![3, 0], vec![0, 2]).is_err());
        let scales = SparseValues::Int8 { codes: vec![1, 2], scales: one() };
        assert!(Sparse::with(4, vec![0, 2], SparseIndex::Columns(vec![0, 1]), scales).is_err());
    }
}
