use std::ops::Range;

use half::f16;

use crate::dtype::wide;
use crate::group::pick;
use crate::{Error, Result, packed_len};

/// What codes into vector codebooks look like, without their content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorGrid {
    /// Consecutive rows of one column that share a code: 2, 4, 8 or 16.
    pub len: u8,
    /// Bits of an index into the codebook, 1 to 16.
    pub bits: u8,
    /// Bits of an index into the residual codebook, whose vector is added; 0: there is none.
    pub residual_bits: u8,
    /// Whether each column has a scale and an offset.
    pub has_columns: bool,
}

impl VectorGrid {
    /// Checks the numbers.
    ///
    /// # Errors
    /// One sentence with what is possible.
    pub fn check(self) -> Result<()> {
        if !matches!(self.len, 2 | 4 | 8 | 16) {
            return Err(Error::input(format!("vectors of {}, where 2, 4, 8 or 16 are possible", self.len)));
        }
        if !(1..=16).contains(&self.bits) || self.residual_bits > 16 {
            return Err(Error::input(format!(
                "codebooks of {} and {} bits, where 1 to 16 and 0 to 16 are possible",
                self.bits, self.residual_bits
            )));
        }
        Ok(())
    }

    /// Vectors of both codebooks.
    pub fn entries(self) -> usize {
        (1 << self.bits) + if self.residual_bits == 0 { 0 } else { 1 << self.residual_bits }
    }
}

/// Codes into vector codebooks (VPTQ): `W[r, c] = a[c] · (C[q][r mod len] + R[p][r mod len]) + b[c]`, `q` and `p` the
/// codes of column `c` in the `⌊r / len⌋`-th row of vectors.
///
/// Rows of vectors are packed one by one, all of `q`, then all of `p`. The last vectors may reach past the matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorCodes {
    rows: usize,
    cols: usize,
    grid: VectorGrid,
    packed: Vec<u8>,
    residual: Vec<u8>,
    codebook: Vec<f16>,
    columns: Vec<f16>,
}

impl VectorCodes {
    /// Takes codes and residual codes `[⌈rows/len⌉ · cols]` (these empty without a second codebook), both codebooks in
    /// one `[(2^bits + 2^residual_bits) · len]`, and the scales of all columns before their offsets `[2 · cols]` (or
    /// nothing). All numbers must be F16's.
    ///
    /// # Errors
    /// If a size is wrong, a code is beyond its bits, or a number is not one of F16.
    pub fn new(
        rows: usize,
        cols: usize,
        grid: VectorGrid,
        codes: &[u16],
        residual: &[u16],
        codebook: Vec<f32>,
        columns: Vec<f32>,
    ) -> Result<Self> {
        let packed = pack_rows(codes, cols, grid.bits)?;
        let residual = pack_rows(residual, cols, grid.residual_bits)?;
        Self::from_packed(rows, cols, grid, packed, residual, codebook, columns)
    }

    /// As [`new`](Self::new), from bit streams.
    ///
    /// # Errors
    /// If a size is wrong, or a number is not one of F16.
    pub fn from_packed(
        rows: usize,
        cols: usize,
        grid: VectorGrid,
        packed: Vec<u8>,
        residual: Vec<u8>,
        codebook: Vec<f32>,
        columns: Vec<f32>,
    ) -> Result<Self> {
        grid.check()?;
        let strips = rows.div_ceil(usize::from(grid.len));
        let bytes = [grid.bits, grid.residual_bits].map(|bits| strips * packed_len(cols, bits));
        let numbers = [grid.entries() * usize::from(grid.len), if grid.has_columns { 2 * cols } else { 0 }];
        if [packed.len(), residual.len()] != bytes || [codebook.len(), columns.len()] != numbers {
            return Err(Error::internal(format!(
                "{} and {} bytes of codes, {} and {} numbers, where [{rows}, {cols}] takes {bytes:?} and {numbers:?}",
                packed.len(),
                residual.len(),
                codebook.len(),
                columns.len()
            )));
        }
        if !codebook.iter().chain(&columns).all(|v| f16::from_f32(*v).to_f32() == *v && v.is_finite()) {
            return Err(Error::input("holds what is no finite number of F16"));
        }
        let [codebook, columns] = [codebook, columns].map(|values| values.into_iter().map(f16::from_f32).collect());
        Ok(Self { rows, cols, grid, packed, residual, codebook, columns })
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// The grid.
    pub fn grid(&self) -> VectorGrid {
        self.grid
    }

    /// The bit streams of the codes, and of the residual codes.
    pub fn packed(&self) -> [&[u8]; 2] {
        [&self.packed, &self.residual]
    }

    /// Both codebooks, `[entries · len]`.
    pub fn codebook(&self) -> &[f16] {
        &self.codebook
    }

    /// The columns' scales, then their offsets; or nothing.
    pub fn columns(&self) -> &[f16] {
        &self.columns
    }

    /// Decodes rows `rows` into `out[rows.len() · cols]`.
    pub fn decode_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let VectorGrid { bits, residual_bits, .. } = self.grid;
        let len = usize::from(self.grid.len);
        let (main, second) = self.codebook.split_at(len << bits);
        let mut codes = [vec![0; self.cols], vec![0; self.cols]];
        let mut at = rows.start;
        while at < rows.end {
            let (strip, from) = (at / len, at % len);
            let count = (len - from).min(rows.end - at);
            for ((packed, bits), codes) in
                [(&self.packed, bits), (&self.residual, residual_bits)].into_iter().zip(&mut codes)
            {
                unpack_row(&packed[strip * packed_len(self.cols, bits)..], bits, codes);
            }
            let out = &mut out[(at - rows.start) * self.cols..];
            let mut vectors = [0.0; 64 * 16];
            for first in (0..self.cols).step_by(64) {
                let columns = first..(first + 64).min(self.cols);
                // A vector is read once for all of its rows; rows are written one after another.
                for (vector, c) in vectors.chunks_exact_mut(len).zip(columns.clone()) {
                    let entry = &main[usize::from(codes[0][c]) * len..][..len];
                    vector.iter_mut().zip(entry).for_each(|(v, e)| *v = wide(*e));
                    if !second.is_empty() {
                        let entry = &second[usize::from(codes[1][c]) * len..][..len];
                        vector.iter_mut().zip(entry).for_each(|(v, e)| *v += wide(*e));
                    }
                }
                for (r, row) in out.chunks_exact_mut(self.cols).take(count).enumerate() {
                    row[columns.clone()].iter_mut().zip(vectors.chunks_exact(len)).for_each(|(v, e)| *v = e[from + r]);
                }
            }
            if !self.columns.is_empty() {
                let (scales, offsets) = self.columns.split_at(self.cols);
                for row in out.chunks_exact_mut(self.cols).take(count) {
                    let of_column = scales.iter().zip(offsets);
                    row.iter_mut().zip(of_column).for_each(|(v, (a, b))| *v = wide(*a) * *v + wide(*b));
                }
            }
            at += count;
        }
    }

    /// The same codes with these rows, in this order; `None` unless they are whole vectors (the last may be short).
    pub fn select_rows(&self, rows: &[usize]) -> Option<Self> {
        let len = usize::from(self.grid.len);
        let strips: Vec<usize> = rows.iter().step_by(len).map(|r| r / len).collect();
        let whole = rows.iter().enumerate().all(|(i, r)| *r == strips[i / len] * len + i % len);
        let picked = |packed, bits| pick(packed, &strips, packed_len(self.cols, bits), false);
        whole.then(|| Self {
            rows: rows.len(),
            packed: picked(&self.packed, self.grid.bits),
            residual: picked(&self.residual, self.grid.residual_bits),
            codebook: self.codebook.clone(),
            columns: self.columns.clone(),
            ..*self
        })
    }

    /// Everything stored, in bits: codes, codebooks, scales and offsets of columns.
    pub fn stored_bits(&self) -> u64 {
        8 * (self.packed.len() + self.residual.len()) as u64 + 16 * (self.codebook.len() + self.columns.len()) as u64
    }
}

/// Codes row by row as bit streams: code `i` of a row lies at bits `[i·bits, (i+1)·bits)`, low bits first.
fn pack_rows(codes: &[u16], cols: usize, bits: u8) -> Result<Vec<u8>> {
    if codes.iter().any(|c| u32::from(*c) >> bits != 0) {
        return Err(Error::input(format!("holds a code beyond {bits} bits")));
    }
    let row_bytes = packed_len(cols, bits);
    let mut packed = vec![0; codes.len() / cols.max(1) * row_bytes];
    for (row, out) in codes.chunks_exact(cols).zip(packed.chunks_exact_mut(row_bytes.max(1))) {
        let (mut held, mut count, mut at) = (0u32, 0, 0);
        for code in row {
            held |= u32::from(*code) << count;
            count += bits;
            while count >= 8 {
                out[at] = held as u8;
                (held, count, at) = (held >> 8, count - 8, at + 1);
            }
        }
        if count > 0 {
            out[at] = held as u8;
        }
    }
    Ok(packed)
}

/// The inverse of [`pack_rows`] for one row; zeros for codes of 0 bits.
fn unpack_row(packed: &[u8], bits: u8, codes: &mut [u16]) {
    let mask = (1u32 << bits) - 1;
    let (mut held, mut count, mut bytes) = (0u32, 0, packed.iter());
    for code in codes {
        while count < bits {
            held |= u32::from(*bytes.next().expect("a row has a bit for each code")) << count;
            count += 8;
        }
        *code = (held & mask) as u16;
        (held, count) = (held >> bits, count - bits);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decodes_what_was_put_in(
            len in prop::sample::select(vec![2u8, 4, 8, 16]), bits in 1u8..=16, residual_bits in 0u8..=16, rows in 1usize..40,
            cols in 1usize..20, has_columns: bool, seed: u32,
        ) {
            let (bits, residual_bits) = if len > 4 { (bits.min(9), residual_bits.min(9)) } else { (bits, residual_bits) };
            let grid = VectorGrid { len, bits, residual_bits, has_columns };
            let mut state = seed;
            let mut next = || { state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223); state >> 16 };
            let strips = rows.div_ceil(usize::from(len));
            let mut codes = |bits: u8| -> Vec<u16> { (0..strips * cols).map(|_| (next() & ((1 << bits) - 1)) as u16).collect() };
            let (main, second) = (codes(bits), if residual_bits == 0 { vec![] } else { codes(residual_bits) });
            let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| next() as f32 / 256.0).map(|v| f16::from_f32(v).to_f32()).collect() };
            let book = numbers(grid.entries() * usize::from(len));
            let columns = numbers(if has_columns { 2 * cols } else { 0 });
            let stored = VectorCodes::new(rows, cols, grid, &main, &second, book.clone(), columns.clone()).unwrap();
            let mut all = vec![0.0; rows * cols];
            stored.decode_rows(0..rows, &mut all);
            let len = usize::from(len);
            for r in 0..rows {
                for c in 0..cols {
                    let at = r / len * cols + c;
                    let mut value = book[usize::from(main[at]) * len + r % len];
                    if residual_bits > 0 {
                        value += book[(len << bits) + usize::from(second[at]) * len + r % len];
                    }
                    if has_columns {
                        value = columns[c] * value + columns[cols + c];
                    }
                    prop_assert_eq!(all[r * cols + c], value);
                }
            }
            let (from, to) = (rows / 3, rows);
            let mut part = vec![0.0; (to - from) * cols];
            stored.decode_rows(from..to, &mut part);
            prop_assert_eq!(&part[..], &all[from * cols..]);
            let last = stored.select_rows(&((strips - 1) * len..rows).collect::<Vec<_>>()).unwrap();
            let mut part = vec![0.0; last.shape()[0] * cols];
            last.decode_rows(0..last.shape()[0], &mut part);
            prop_assert_eq!(&part[..], &all[(strips - 1) * len * cols..]);
            prop_assert!(rows < 2 || stored.select_rows(&[1, 0]).is_none());
        }
    }

    #[test]
    fn everything_stored_is_counted() {
        let grid = VectorGrid { len: 8, bits: 3, residual_bits: 0, has_columns: true };
        let codes = VectorCodes::new(9, 3, grid, &[0, 1, 2, 3, 4, 5], &[], vec![1.0; 64], vec![1.0; 6]).unwrap();
        assert_eq!(codes.stored_bits(), 2 * 16 + 16 * 64 + 16 * 6);
        assert!(VectorCodes::new(9, 3, grid, &[0, 1, 2, 3, 4, 8], &[], vec![1.0; 64], vec![1.0; 6]).is_err());
        assert!(VectorCodes::new(9, 3, grid, &[0, 1, 2, 3, 4, 5], &[], vec![1.0e-9; 64], vec![1.0; 6]).is_err());
    }
}
