//! Matrices of experts that lie in one tensor.

use fewbit_format::{Error, GgmlBlocks, Result, Storage, Tensor};
use fewbit_graph::{Fused, Rows};

use crate::transposed::each;

/// One expert's matrix `[out, in]` out of the tensor of all, without a copy where its rows lie one after the other.
///
/// # Errors
/// If the tensor is not of plain floats, or of another shape.
pub(crate) fn one(tensor: &Tensor, fused: &Fused, shape: [usize; 2]) -> Result<Storage> {
    let [out, columns] = shape;
    let size = tensor.dtype.size_bytes();
    if !tensor.dtype.is_float() || tensor.shape != fused.stored_shape(shape) || fused.expert >= fused.experts {
        return Err(Error::input(format!("is {} {:?}, which is not read", tensor.dtype.name(), tensor.shape))
            .hint("floats of the shape that the configuration implies are needed"));
    }
    let first = fused.stored(shape, 0, 0);
    let is_one_piece = !fused.is_transposed && fused.stored(shape, out - 1, columns - 1) == first + out * columns - 1;
    let bytes = if is_one_piece {
        tensor.bytes.slice(first * size..(first + out * columns) * size)
    } else {
        let mut bytes = vec![0; out * columns * size];
        each(shape, |r, c| {
            let (to, from) = ((r * columns + c) * size, fused.stored(shape, r, c) * size);
            bytes[to..to + size].copy_from_slice(&tensor.bytes[from..from + size]);
        });
        bytes.into()
    };
    Ok(Storage::Dense(Tensor { dtype: tensor.dtype, shape: shape.to_vec(), bytes }))
}

/// One expert's matrix `[out, in]` out of the blocks of all, which lie expert after expert; nothing is copied.
///
/// # Errors
/// If they are of another shape, or the experts' rows lie otherwise.
pub(crate) fn one_in_blocks(all: Storage, fused: &Fused, [out, columns]: [usize; 2]) -> Result<Storage> {
    let Storage::Ggml(all) = all else { return Err(Error::internal("no blocks of experts")) };
    let is_whole = fused.rows == Rows::All && !fused.is_transposed && fused.expert < fused.experts;
    if !is_whole || [all.rows, all.cols] != [fused.experts * out, columns] {
        return Err(Error::input(format!("has blocks of {} rows of {}, which are not read", all.rows, all.cols))
            .hint("the shape that the file's keys imply is needed"));
    }
    let size = all.bytes.len() / fused.experts;
    let bytes = all.bytes.slice(fused.expert * size..(fused.expert + 1) * size);
    GgmlBlocks::new(all.kind, out, columns, bytes).map(Storage::Ggml)
}

/// The tensor of all experts' matrices and that of their biases, if they have any: the inverse of reading them one by one.
///
/// `None` where not all are there as plain floats of one type.
pub fn fuse(matrices: &[(Fused, &Tensor, Option<&[f32]>)]) -> Option<(Tensor, Option<Vec<f32>>)> {
    let (fused, first, bias) = matrices.first()?;
    let shape_of = |t: &Tensor| Some([*t.shape.first()?, *t.shape.get(1)?]);
    let shape = shape_of(first)?;
    let (stored, dtype) = (fused.stored_shape(shape), first.dtype);
    let [rows, size] = [fused.rows.stored_count(shape[0]), dtype.size_bytes()];
    let total: usize = stored.iter().product();
    let is_whole = matrices.len() * shape[0] * shape[1] == total && dtype.is_float();
    if !is_whole || matrices.iter().any(|(_, t, _)| t.dtype != dtype || shape_of(t) != Some(shape)) {
        return None;
    }
    let mut bytes = vec![0; total * size];
    let mut biases = bias.map(|_| vec![0.0; fused.experts * rows]);
    for (fused, tensor, bias) in matrices {
        each(shape, |r, c| {
            let (from, to) = ((r * shape[1] + c) * size, fused.stored(shape, r, c) * size);
            bytes[to..to + size].copy_from_slice(&tensor.bytes[from..from + size]);
        });
        if let Some(biases) = &mut biases {
            for (r, b) in bias.as_ref()?.iter().enumerate() {
                biases[fused.stored_bias(shape[0], r)] = *b;
            }
        }
    }
    Some((Tensor { dtype, shape: stored.to_vec(), bytes: bytes.into() }, biases))
}

#[cfg(test)]
mod tests {
    use fewbit_format::{Dtype, GgmlType};

    use super::*;

    #[test]
    fn blocks_are_parted_where_they_lie() {
        let values: Vec<f32> = (0..3 * 5 * 64).map(|i| (i * 37 % 101) as f32).collect();
        let all = GgmlBlocks::encode(GgmlType::Q4_0, 15, 64, &values, None).unwrap();
        let (tensor, bias) = (String::new(), String::new());
        let fused = Fused { tensor, bias, expert: 2, experts: 3, rows: Rows::All, is_transposed: false };
        let Storage::Ggml(one) = one_in_blocks(Storage::Ggml(all.clone()), &fused, [5, 64]).unwrap() else { panic!() };
        assert_eq!((one.rows, one.cols), (5, 64));
        assert_eq!(one.bytes.as_ptr(), all.bytes[all.bytes.len() / 3 * 2..].as_ptr(), "not copied");
        for (fused, shape) in [(Fused { experts: 4, ..fused.clone() }, [5, 64]), (fused.clone(), [5, 32])] {
            let e = one_in_blocks(Storage::Ggml(all.clone()), &fused, shape).unwrap_err().to_string();
            assert!(e.contains("blocks of 15 rows of 64, which are not read"), "{e}");
        }
    }

    #[test]
    fn what_is_taken_apart_goes_together_again() {
        let layouts = [
            (false, Rows::Blocks { block: 80, offset: 40, rows: 40 }, Rows::Blocks { block: 80, offset: 0, rows: 40 }),
            (true, Rows::Blocks { block: 2, offset: 0, rows: 1 }, Rows::Blocks { block: 2, offset: 1, rows: 1 }),
        ];
        for (is_transposed, gate, up) in layouts {
            let shape = [40, 36];
            let at = |expert, rows| Fused {
                tensor: String::new(),
                bias: String::new(),
                expert,
                experts: 3,
                rows,
                is_transposed,
            };
            let all: Vec<Fused> = (0..3).flat_map(|e| [at(e, gate), at(e, up)]).collect();
            let stored = all[0].stored_shape(shape);
            let values: Vec<f32> = (0..stored.iter().product::<usize>()).map(|i| i as f32).collect();
            let tensor = Tensor::from_f32(Dtype::F32, &stored, &values).unwrap();
            let parts: Vec<Tensor> = (all.iter())
                .map(|f| match one(&tensor, f, shape).unwrap() {
                    Storage::Dense(t) => t,
                    other => panic!("{other:?}"),
                })
                .collect();
            let biases: Vec<Vec<f32>> =
                all.iter().map(|f| (0..40).map(|r| f.stored_bias(40, r) as f32).collect()).collect();
            let matrices: Vec<_> =
                all.into_iter().zip(&parts).zip(&biases).map(|((f, t), b)| (f, t, Some(&b[..]))).collect();
            let (again, bias) = fuse(&matrices).unwrap();
            assert_eq!((again.bytes, again.shape), (tensor.bytes, tensor.shape));
            assert_eq!(bias.unwrap(), (0..240).map(|i| i as f32).collect::<Vec<_>>());
            assert!(fuse(&matrices[1..]).is_none());
        }
    }
}
