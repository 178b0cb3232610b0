//! Matrices whose columns are stored as rows.

use fewbit_format::{Error, Result, Storage, Tensor};
use fewbit_graph::Source;

/// The matrix `[out, in]` whose rows are columns of a tensor `[in, columns]`, or `[heads, in, columns]`.
///
/// # Errors
/// If the tensor is not of plain floats, or of another shape.
pub(crate) fn columns(tensor: &Tensor, source: &Source, shape: [usize; 2]) -> Result<Storage> {
    let ([out, width], size) = (shape, tensor.dtype.size_bytes());
    if !tensor.dtype.is_float() || tensor.shape != source.stored_shape(shape) {
        return Err(Error::input(format!("is {} {:?}, which is not read", tensor.dtype.name(), tensor.shape))
            .hint("floats of the shape that the configuration implies are needed"));
    }
    let mut bytes = vec![0; out * width * size];
    each(shape, |r, c| {
        let (to, from) = ((r * width + c) * size, source.stored_transposed(shape, r, c) * size);
        bytes[to..to + size].copy_from_slice(&tensor.bytes[from..from + size]);
    });
    Ok(Storage::Dense(Tensor { dtype: tensor.dtype, shape: shape.to_vec(), bytes: bytes.into() }))
}

/// The transposed matrix, or a transposed matrix for each of `heads`: what a writer stores where a reader takes columns.
///
/// # Errors
/// If the tensor is no matrix of plain floats, or its rows are no multiple of the heads.
pub fn transposed(tensor: &Tensor, heads: Option<usize>) -> Result<Tensor> {
    let &[rows, width] = &tensor.shape[..] else { return Err(Error::internal("a matrix has two sizes")) };
    let size = tensor.dtype.size_bytes();
    if !tensor.dtype.is_float() || heads.is_some_and(|heads| !rows.is_multiple_of(heads)) {
        return Err(Error::internal("no matrix of plain floats to transpose"));
    }
    let source = Source { heads, is_transposed: true, ..Source::plain("") };
    let mut bytes = vec![0; tensor.bytes.len()];
    each([rows, width], |r, c| {
        let (from, to) = ((r * width + c) * size, source.stored_transposed([rows, width], r, c) * size);
        bytes[to..to + size].copy_from_slice(&tensor.bytes[from..from + size]);
    });
    Ok(Tensor { dtype: tensor.dtype, shape: source.stored_shape([rows, width]), bytes: bytes.into() })
}

/// Visits all elements in squares, so that neither order of a transposition leaves the cache.
pub(crate) fn each([rows, columns]: [usize; 2], mut visit: impl FnMut(usize, usize)) {
    const SIDE: usize = 32;
    for r0 in (0..rows).step_by(SIDE) {
        for c0 in (0..columns).step_by(SIDE) {
            for r in r0..(r0 + SIDE).min(rows) {
                for c in c0..(c0 + SIDE).min(columns) {
                    visit(r, c);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fewbit_format::Dtype;
    use fewbit_graph::Rows;

    use super::*;

    #[test]
    fn columns_become_rows_and_go_back() {
        // Stored `[in, 3 · out]` with more elements than a square has: element `[c, r]` is `100 c + r`.
        let values: Vec<f32> = (0..40 * 99).map(|i| (i / 99 * 100 + i % 99) as f32).collect();
        let tensor = Tensor::from_f32(Dtype::F32, &[40, 99], &values).unwrap();
        let plain = Source { is_transposed: true, ..Source::plain("t") };
        let source = Source { rows: Rows::Blocks { block: 99, offset: 33, rows: 33 }, ..plain.clone() };
        let Storage::Dense(second) = columns(&tensor, &source, [33, 40]).unwrap() else { panic!("not plain") };
        let expected: Vec<f32> = (0..33 * 40).map(|i| (i % 40 * 100 + i / 40 + 33) as f32).collect();
        assert_eq!((second.to_f32().unwrap(), &second.shape[..]), (expected, &[33, 40][..]));
        let there = transposed(&tensor, None).unwrap();
        assert_eq!(there.shape, [99, 40]);
        let back = transposed(&there, None).unwrap();
        assert_eq!((back.bytes, back.shape), (tensor.bytes, tensor.shape));
        assert!(columns(&there, &plain, [99, 40]).is_err(), "of another shape");
    }

    #[test]
    fn each_head_is_transposed_by_itself() {
        let values: Vec<f32> = (0..3 * 40 * 33).map(|i| i as f32).collect();
        let matrix = Tensor::from_f32(Dtype::F32, &[120, 33], &values).unwrap();
        let stored = transposed(&matrix, Some(3)).unwrap();
        assert_eq!((&stored.shape[..], stored.to_f32().unwrap()[33 * 40 + 2]), (&[3, 33, 40][..], values[42 * 33]));
        let source = Source { is_transposed: true, heads: Some(3), ..Source::plain("t") };
        let Storage::Dense(back) = columns(&stored, &source, [120, 33]).unwrap() else { panic!("not plain") };
        assert!(transposed(&matrix, Some(7)).is_err(), "120 rows for seven heads");
        assert_eq!((back.bytes, back.shape), (matrix.bytes, matrix.shape));
    }
}
