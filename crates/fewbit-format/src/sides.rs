use std::ops::Range;

use crate::{Mat, Result, Sparse, Storage};

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
        let sparse = self.sparse.as_ref().map(|s| s.select_rows(rows)).transpose()?;
        Ok(Self { sparse, low_rank })
    }

    /// Everything stored, in bits.
    pub fn stored_bits(&self) -> u64 {
        self.sparse.as_ref().map_or(0, Sparse::stored_bits) + self.low_rank.as_ref().map_or(0, LowRank::stored_bits)
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
    use half::f16;

    use super::*;
    use crate::{Dtype, SparseValues, Tensor};

    fn sparse() -> Sparse {
        let values = [1.0, -2.0, 0.5].map(f16::from_f32).to_vec();
        Sparse::new([3, 4], &[0, 3, 9], SparseValues::F16(values)).unwrap()
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
        // Gaps of 0, 2 and 5 as 0, 2, 3 + 2 in two bits each; how wide they are in a byte.
        assert_eq!(sides.stored_bits(), 8 + 8 + 16 * 3 + 16 * 7);
    }
}
