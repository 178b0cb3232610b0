use bytes::Bytes;
use fewbit_format::{Dtype, Error, IntCodes, Result, ScaleType, Scales, Tensor};

use super::Tensors;
use crate::finite;

/// One linear that is being read: where its tensors come from, its name, and the shape `[out, in]` that the model gives it.
#[derive(Clone, Copy)]
pub(super) struct Module<'a> {
    pub(super) tensors: &'a dyn Tensors,
    pub(super) name: &'a str,
    pub(super) shape: [usize; 2],
}

impl Module<'_> {
    pub(super) fn full_name(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }

    pub(super) fn has(&self, suffix: &str) -> bool {
        self.tensors.contains(&self.full_name(suffix))
    }

    /// The tensor `NAME.suffix`, whatever its type and shape.
    pub(super) fn part(&self, suffix: &str) -> Result<Tensor> {
        let name = self.full_name(suffix);
        let tensor = self.tensors.tensor(&name)?;
        let bytes = (tensor.shape.iter()).try_fold(tensor.dtype.size_bytes(), |n, d| n.checked_mul(*d));
        if bytes == Some(tensor.bytes.len()) {
            Ok(tensor)
        } else {
            Err(Error::input(format!("has {} bytes for shape {:?}", tensor.bytes.len(), tensor.shape)).tensor(&name))
        }
    }

    /// The tensor `NAME.suffix`, which must be of this type and shape.
    pub(super) fn part_as(&self, suffix: &str, dtype: Dtype, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.part(suffix)?;
        if tensor.dtype == dtype && tensor.shape == shape {
            return Ok(tensor);
        }
        Err(Error::input(format!(
            "is {} {:?}, where {} {shape:?} is needed",
            tensor.dtype.name(),
            tensor.shape,
            dtype.name()
        ))
        .tensor(&self.full_name(suffix)))
    }

    /// The scales `NAME.suffix`, which must be finite numbers in one of these shapes.
    pub(super) fn scales(&self, suffix: &str, shapes: &[impl AsRef<[usize]>]) -> Result<(ScaleType, Vec<f32>)> {
        let scales = self.finite_scales(suffix, shapes)?;
        Ok((scales.kind(), scales.values()))
    }

    /// [`scales`](Self::scales) as they are stored.
    pub(super) fn finite_scales(&self, suffix: &str, shapes: &[impl AsRef<[usize]>]) -> Result<Scales> {
        let (scale, bytes) = self.stored_scales(suffix, shapes)?;
        match finite::first_in_plain(scale.dtype(), &bytes) {
            Some((at, value)) => Err(Error::input(format!("holds {value} at position {at}, where a scale is needed"))
                .tensor(&self.full_name(suffix))),
            None => Ok(Scales::stored(scale, bytes)),
        }
    }

    /// The scales `NAME.suffix` as they are stored, in one of these shapes. Bytes without a type of their own are powers
    /// of two.
    pub(super) fn stored_scales(&self, suffix: &str, shapes: &[impl AsRef<[usize]>]) -> Result<(ScaleType, Bytes)> {
        let tensor = self.part(suffix)?;
        let fail = |reason: String| Err(Error::input(reason).tensor(&self.full_name(suffix)));
        if !shapes.iter().any(|s| *s.as_ref() == tensor.shape) {
            return fail(format!("has shape {:?}, where {:?} is needed", tensor.shape, shapes[0].as_ref()));
        }
        let scale = match tensor.dtype {
            Dtype::F16 => ScaleType::F16,
            Dtype::BF16 => ScaleType::BF16,
            Dtype::F32 => ScaleType::F32,
            Dtype::F8E8M0 | Dtype::U8 => ScaleType::E8M0,
            Dtype::F8E4M3 => ScaleType::E4M3,
            other => {
                return fail(format!(
                    "has type {}, where a scale's is needed: F16, BF16, F32 or one of 8 bits",
                    other.name()
                ));
            }
        };
        Ok((scale, tensor.bytes))
    }

    /// The codes with the groups of their columns from `NAME.suffix`, i32 `[in]`, if there is such a tensor.
    pub(super) fn grouped_by(&self, suffix: &str, codes: IntCodes) -> Result<IntCodes> {
        if !self.has(suffix) {
            return Ok(codes);
        }
        let index = self.part_as(suffix, Dtype::I32, &[self.shape[1]])?.to_i32()?;
        // A negative number becomes one beyond all groups, and is refused as such.
        let index = index.iter().map(|k| *k as u32).collect();
        codes.with_group_index(index).map_err(|e| e.tensor(&self.full_name(suffix)))
    }
}
