use bytes::Bytes;

use crate::{Dtype, Error, Mat, Result};

/// A tensor as it lies in a file: row-major, little-endian; the bytes may be mapped.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, outermost first; `[out, in]` for a linear.
    pub shape: Vec<usize>,
    /// `shape.product() · dtype.size_bytes()` bytes.
    pub bytes: Bytes,
}

impl Tensor {
    /// A tensor of f32 values rounded to `dtype`.
    ///
    /// # Errors
    /// If `dtype` is not a plain float.
    pub fn from_f32(dtype: Dtype, shape: &[usize], values: &[f32]) -> Result<Self> {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        let bytes = dtype.narrow(values).ok_or_else(|| Error::internal(format!("cannot round to {}", dtype.name())))?;
        Ok(Self { dtype, shape: shape.to_vec(), bytes: bytes.into() })
    }

    /// A tensor of i32 values.
    pub fn from_i32(shape: &[usize], values: &[i32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: Dtype::I32, shape: shape.to_vec(), bytes: bytes.into() }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as f32.
    ///
    /// # Errors
    /// If the type is not a plain float.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.len()];
        self.dtype.widen(&self.bytes, &mut out).ok_or_else(|| {
            Error::input(format!("has type {}, where F64, F32, F16 or BF16 is needed", self.dtype.name()))
        })?;
        Ok(out)
    }

    /// The elements as i32, from `I32` or `I64` (which must fit).
    ///
    /// # Errors
    /// If the type is another, or a value does not fit.
    pub fn to_i32(&self) -> Result<Vec<i32>> {
        match self.dtype {
            Dtype::I32 => Ok(self.bytes.as_chunks::<4>().0.iter().map(|c| i32::from_le_bytes(*c)).collect()),
            Dtype::I64 => (self.bytes.as_chunks::<8>().0.iter())
                .map(|c| {
                    i32::try_from(i64::from_le_bytes(*c)).map_err(|_| Error::input("holds a number beyond 32 bits"))
                })
                .collect(),
            other => Err(Error::input(format!("has type {}, where I32 or I64 is needed", other.name()))),
        }
    }

    /// A two-dimensional tensor as an f32 matrix.
    ///
    /// # Errors
    /// If it has another rank, or is not a plain float.
    pub fn to_mat(&self) -> Result<Mat> {
        match *self.shape {
            [rows, cols] => Ok(Mat::from_vec(rows, cols, self.to_f32()?)),
            _ => Err(Error::input(format!("has shape {:?}, where two dimensions are needed", self.shape))),
        }
    }
}
