use std::ops::Range;

use half::f16;

use crate::{Error, Mat, Result, Storage};

/// What stands beside the codes of a matrix: `W = bands + sparse + left · right`.
#[derive(Clone, Debug, Default)]
pub struct Sides {
    /// Single weights that the codes do not reach.
    pub sparse: Option<Sparse>,
    /// A correction of low rank.
    pub low_rank: Option<LowRank>,
}

impl Sides {
    /// Whether there is nothing beside the codes.
    pub fn is_empty(&self) -> bool {
        self.sparse.is_none() && self.low_rank.is_none()
    }

    /// Adds rows `rows` to `out[rows.len() · in]`.
    pub fn add_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        if let Some(sparse) = &self.sparse {
            sparse.add_rows(rows.clone(), out);
        }
        if let Some(low_rank) = &self.low_rank {
            low_rank.add_rows(rows, out);
        }
    }

    /// The same rows, in this order.
    ///
    /// # Errors
    /// As [`Storage::select_rows`].
    pub fn select_rows(&self, rows: &[usize]) -> Result<Self> {
        let picked = |l: &LowRank| Ok(LowRank { left: l.left.select_rows(rows)?, right: l.right.clone() });
        let low_rank = self.low_rank.as_ref().map(picked).transpose()?;
        Ok(Self { sparse: self.sparse.as_ref().map(|s| s.select_rows(rows)), low_rank })
    }

    /// Everything stored, in bits.
    pub fn stored_bits(&self) -> u64 {
        self.sparse.as_ref().map_or(0, Sparse::stored_bits) + self.low_rank.as_ref().map_or(0, LowRank::stored_bits)
    }
}

/// Few entries of a matrix `[rows, cols]`, by rows: what is added to the decoded codes.
///
/// 32 bits an entry (a column in 16, a value in f16) and 32 bits a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse {
    cols: usize,
    /// Where each row begins, and where the last ends: `[rows + 1]`.
    starts: Vec<u32>,
    columns: Vec<u16>,
    values: Vec<f16>,
}

impl Sparse {
    /// Takes the entries of all rows, in order: `starts [rows + 1]`, columns that rise within a row, finite values.
    ///
    /// # Errors
    /// If a column is beyond the matrix or 16 bits, the order is another, a value is no number, or the sizes differ.
    pub fn new(cols: usize, starts: Vec<u32>, columns: Vec<u16>, values: Vec<f16>) -> Result<Self> {
        let is_ordered = starts.first() == Some(&0)
            && starts.windows(2).all(|w| w[0] <= w[1])
            && starts.last().is_some_and(|n| *n as usize == columns.len());
        if !is_ordered || columns.len() != values.len() {
            return Err(Error::input("the rows of the sparse entries do not add up"));
        }
        let sparse = Self { cols, starts, columns, values };
        let in_order = |r: usize| sparse.row(r).0.windows(2).all(|w| w[0] < w[1]);
        if !(0..sparse.rows()).all(in_order) || sparse.columns.iter().any(|c| usize::from(*c) >= cols) {
            return Err(Error::input("the columns of the sparse entries are out of order or beyond the matrix"));
        }
        if sparse.values.iter().any(|v| !v.is_finite()) {
            return Err(Error::input("a sparse entry is no number that f16 holds"));
        }
        Ok(sparse)
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// Columns of the matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Where each row begins in columns and values, and where the last ends.
    pub fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Columns and values of all rows.
    pub fn entries(&self) -> (&[u16], &[f16]) {
        (&self.columns, &self.values)
    }

    /// Columns and values of row `r`.
    pub fn row(&self, r: usize) -> (&[u16], &[f16]) {
        let at = self.starts[r] as usize..self.starts[r + 1] as usize;
        (&self.columns[at.clone()], &self.values[at])
    }

    /// Adds rows `rows` to `out[rows.len() · cols]`.
    pub fn add_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        for (r, row) in rows.zip(out.chunks_exact_mut(self.cols)) {
            let (columns, values) = self.row(r);
            columns.iter().zip(values).for_each(|(c, v)| row[usize::from(*c)] += v.to_f32());
        }
    }

    /// The same entries with these rows, in this order.
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        let (mut starts, mut columns, mut values) = (vec![0], Vec::new(), Vec::new());
        for r in rows {
            let (c, v) = self.row(*r);
            columns.extend_from_slice(c);
            values.extend_from_slice(v);
            starts.push(columns.len() as u32);
        }
        Self { cols: self.cols, starts, columns, values }
    }

    /// Everything stored, in bits.
    pub fn stored_bits(&self) -> u64 {
        32 * (self.starts.len() + self.columns.len()) as u64
    }
}

/// `left [out, rank] · right [rank, in]`, each in a storage of its own.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `[out, rank]`.
    pub left: Storage,
    /// `[rank, in]`.
    pub right: Storage,
}

impl LowRank {
    /// Adds rows `rows` of the product to `out[rows.len() · in]`.
    pub fn add_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let ([_, rank], [_, cols]) = (self.left.shape(), self.right.shape());
        let mut right = Mat::zeros(rank, cols);
        self.right.decode_rows(0..rank, right.data_mut());
        let mut left = vec![0.0; rows.len() * rank];
        self.left.decode_rows(rows, &mut left);
        for (row, factors) in out.chunks_exact_mut(cols).zip(left.chunks_exact(rank)) {
            for (k, f) in factors.iter().enumerate() {
                row.iter_mut().zip(right.row(k)).for_each(|(o, v)| *o += f * v);
            }
        }
    }

    /// Everything stored, in bits.
    pub fn stored_bits(&self) -> u64 {
        self.left.stored_bits() + self.right.stored_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, Tensor};

    fn sparse() -> Sparse {
        let values = [1.0, -2.0, 0.5].map(f16::from_f32).to_vec();
        Sparse::new(4, vec![0, 2, 2, 3], vec![0, 3, 1], values).unwrap()
    }

    #[test]
    fn sides_are_added() {
        let dense = |shape: [usize; 2], v: &[f32]| Storage::Dense(Tensor::from_f32(Dtype::F16, &shape, v).unwrap());
        let low_rank = LowRank { left: dense([3, 1], &[1.0, 2.0, 0.0]), right: dense([1, 4], &[1.0, 0.0, 0.0, 4.0]) };
        let sides = Sides { sparse: Some(sparse()), low_rank: Some(low_rank) };
        let mut out = [0.0; 12];
        sides.add_rows(0..3, &mut out);
        assert_eq!(out, [2.0, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 8.0, 0.0, 0.5, 0.0, 0.0]);
        let mut picked = [0.0; 8];
        sides.select_rows(&[2, 0]).unwrap().add_rows(0..2, &mut picked);
        assert_eq!((&picked[..4], &picked[4..]), (&out[8..], &out[..4]));
        assert_eq!(sides.stored_bits(), 32 * 7 + 16 * 7);
    }

    #[test]
    fn entries_out_of_order_are_refused() {
        let one = || vec![f16::ONE; 2];
        assert!(Sparse::new(4, vec![0, 2], vec![3, 1], one()).is_err());
        assert!(Sparse::new(4, vec![0, 2], vec![1, 4], one()).is_err());
        assert!(Sparse::new(4, vec![0, 3], vec![1, 2], one()).is_err());
        assert!(Sparse::new(4, vec![0, 2], vec![1, 2], vec![f16::INFINITY; 2]).is_err());
    }
}
