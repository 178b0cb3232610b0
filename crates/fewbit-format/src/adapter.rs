use std::ops::Range;

use crate::{Dtype, Error, LowRank, Result, Storage, Tensor};

/// What an adapter adds to a linear: `scale · left · right · x` (LoRA, <https://arxiv.org/abs/2106.09685>).
///
/// It stands beside the linear, not in its matrix: `x` is the input as it comes, before maps and rounding, and the sum is
/// added to what the linear makes in the end. The scale is not multiplied into the factors, which keep their type.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// `left [out, rank]`, `right [rank, in]`, plain floats.
    pub factors: LowRank,
    /// Of the product.
    pub scale: f32,
}

impl Adapter {
    /// An adapter of factors `left [out, rank]` and `right [rank, in]`.
    ///
    /// # Errors
    /// If they are no matrices of F32, F16 or BF16 that can be multiplied.
    pub fn new(left: Tensor, right: Tensor, scale: f32) -> Result<Self> {
        let is_matrix = |t: &Tensor| t.shape.len() == 2 && matches!(t.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        if !is_matrix(&left) || !is_matrix(&right) || left.shape[1] != right.shape[0] {
            let [left, right] = [left, right].map(|t| format!("{} {:?}", t.dtype.name(), t.shape));
            return Err(Error::input(format!("factors {left} and {right} cannot be multiplied"))
                .hint("matrices of F32, F16 or BF16 are needed"));
        }
        Ok(Self { factors: LowRank { left: Storage::Dense(left), right: Storage::Dense(right) }, scale })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.factors.left.shape()[0], self.factors.right.shape()[1]]
    }

    /// Adds rows `rows` of `scale · left · right` to `out[rows.len() · in]`.
    pub fn add_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let mut product = vec![0.0; out.len()];
        self.factors.add_rows(rows, &mut product);
        out.iter_mut().zip(&product).for_each(|(o, p)| *o += self.scale * p);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: Dtype, shape: [usize; 2], values: &[f32]) -> Tensor {
        Tensor::from_f32(dtype, &shape, values).unwrap()
    }

    #[test]
    fn the_scale_is_that_of_the_product() {
        let left = tensor(Dtype::BF16, [3, 2], &[1.0, 0.0, 0.0, 1.0, 2.0, -1.0]);
        let right = tensor(Dtype::F32, [2, 2], &[1.0, 3.0, 0.1, 0.2]);
        let adapter = Adapter::new(left, right, 0.5).unwrap();
        assert_eq!(adapter.shape(), [3, 2]);
        let mut out = [1.0; 4];
        adapter.add_rows(1..3, &mut out);
        assert_eq!(out, [1.0 + 0.05, 1.0 + 0.1, 1.0 + 0.5 * (2.0 - 0.1), 1.0 + 0.5 * (6.0 - 0.2)]);
    }

    #[test]
    fn what_cannot_be_multiplied_is_refused() {
        let of = |dtype, shape: [usize; 2]| tensor(dtype, shape, &vec![0.0; shape[0] * shape[1]]);
        let e = Adapter::new(of(Dtype::F32, [4, 2]), of(Dtype::F32, [3, 4]), 1.0).unwrap_err().to_string();
        assert!(e.starts_with("factors F32 [4, 2] and F32 [3, 4] cannot be multiplied"), "{e}");
        assert!(Adapter::new(of(Dtype::F64, [4, 2]), of(Dtype::F32, [2, 4]), 1.0).is_err(), "it would be rounded");
    }
}
