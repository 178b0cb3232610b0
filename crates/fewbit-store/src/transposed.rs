//! Matrices whose columns are stored as rows.

use fewbit_format::{Error, Result, Storage, Tensor};
use fewbit_graph::Rows;

/// The matrix `[out, in]` whose rows are these columns of a tensor `[in, columns]`.
///
/// # Errors
/// If the tensor is not of plain floats, or of another shape.
pub(crate) fn columns(tensor: &Tensor, rows: Rows, shape: [usize; 2]) -> Result<Storage> {
    let ([out, width], size) = (shape, tensor.dtype.size_bytes());
    let stored = rows.stored_count(out);
    if !tensor.dtype.is_float() || tensor.shape != [width, stored] {
        return Err(Error::input(format!("is {} {:?}, which is not read", tensor.dtype.name(), tensor.shape))
            .hint("floats of the shape that config.json implies are needed"));
    }
    let mut bytes = vec![0; out * width * size];
    each(shape, |r, c| {
        let (to, from) = ((r * width + c) * size, (c * stored + rows.stored(r)) * size);
        bytes[to..to + size].copy_from_slice(&tensor.bytes[from..from + size]);
    });
    Ok(Storage::Dense(Tensor { dtype: tensor.dtype, shape: shape.to_vec(), bytes: bytes.into() }))
}

/// The transposed matrix: what a writer stores where a reader takes columns.
///
/// # Errors
/// If the tensor is no matrix of plain floats.
pub fn transposed(tensor: &Tensor) -> Result<Tensor> {
    let &[rows, columns_of] = &tensor.shape[..] else { return Err(Error::internal("a matrix has two sizes")) };
    match columns(tensor, Rows::All, [columns_of, rows])? {
        Storage::Dense(tensor) => Ok(tensor),
        _ => Err(Error::internal("plain numbers stay plain")),
    }
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

    use super::*;

    #[test]
    fn columns_become_rows_and_go_back() {
        // Stored `[in, 3 · out]` with more elements than a square has: element `[c, r]` is `100 c + r`.
        let values: Vec<f32> = (0..40 * 99).map(|i| (i / 99 * 100 + i % 99) as f32).collect();
        let tensor = Tensor::from_f32(Dtype::F32, &[40, 99], &values).unwrap();
        let rows = Rows::Blocks { block: 99, offset: 33, rows: 33 };
        let Storage::Dense(second) = columns(&tensor, rows, [33, 40]).unwrap() else { panic!("not plain") };
        let expected: Vec<f32> = (0..33 * 40).map(|i| (i % 40 * 100 + i / 40 + 33) as f32).collect();
        assert_eq!((second.to_f32().unwrap(), &second.shape[..]), (expected, &[33, 40][..]));
        let there = transposed(&tensor).unwrap();
        assert_eq!(there.shape, [99, 40]);
        let back = transposed(&there).unwrap();
        assert_eq!((back.bytes, back.shape), (tensor.bytes, tensor.shape));
        assert!(columns(&there, Rows::All, [99, 40]).is_err(), "of another shape");
    }
}
