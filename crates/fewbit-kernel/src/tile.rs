//! A small product on a few rows, for kernels that keep their operands in cache.

use std::ptr;

use crate::aligned::LINE_BYTES;
use crate::lanes::{Number, Simd};

/// Rows of one [`add_product`] that are fastest where there are many.
pub(crate) const ROWS: usize = 6;

/// Rows of one [`add_product`] at most: where the right side is read once for all of them.
pub(crate) const MOST_ROWS: usize = 8;

/// `C[rows, cols] += A[rows, depth] · B[depth, cols]`, each with its stride; `cols` in whole vectors.
///
/// An element of C is one chain of multiply-adds over `depth` in order, whatever the shape: products with zeros at the
/// ends of `depth` leave it as it is.
#[inline(always)]
pub(crate) fn add_product<S: Simd>(
    s: S,
    shape: [usize; 3],
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    b_stride: usize,
    c: &mut [f32],
    c_stride: usize,
) {
    add_product_ahead(s, shape, (a, a_stride, 1), (b, b_stride, ptr::null()), c, c_stride);
}

/// [`add_product`] with the transpose of `A[depth, rows]` as the left side.
#[inline(always)]
pub(crate) fn add_product_transposed<S: Simd>(
    s: S,
    shape: [usize; 3],
    a: &[f32],
    a_stride: usize,
    b: &[f32],
    b_stride: usize,
    c: &mut [f32],
    c_stride: usize,
) {
    add_product_ahead(s, shape, (a, 1, a_stride), (b, b_stride, ptr::null()), c, c_stride);
}

/// [`add_product`] with a right side of any number, while `depth · cols` numbers are fetched that lie at the address beside
/// it: none at the null pointer. The left side has a stride from row to row and one along the depth.
#[inline(always)]
pub(crate) fn add_product_ahead<S: Simd, T: Number>(
    s: S,
    [rows, depth, cols]: [usize; 3],
    (a, a_row, a_step): (&[f32], usize, usize),
    (b, b_stride, ahead): (&[T], usize, *const T),
    c: &mut [f32],
    c_stride: usize,
) {
    if depth == 0 || cols == 0 || rows == 0 {
        return;
    }
    assert!(cols.is_multiple_of(S::LANES) && rows <= MOST_ROWS, "a tile of whole vectors");
    assert!(a.len() > (rows - 1) * a_row + (depth - 1) * a_step, "left side");
    assert!(b.len() >= (depth - 1) * b_stride + cols, "right side");
    assert!(c.len() >= (rows - 1) * c_stride + cols, "result");
    let (a, b, c) = ((a.as_ptr(), a_row, a_step), (b.as_ptr(), b_stride, ahead), (c.as_mut_ptr(), c_stride));
    // SAFETY: the shapes were checked; `c` is borrowed mutably, so it overlaps neither side.
    unsafe {
        match rows {
            1 => strip::<S, T, 1>(s, depth, cols, a, b, c),
            2 => strip::<S, T, 2>(s, depth, cols, a, b, c),
            3 => strip::<S, T, 3>(s, depth, cols, a, b, c),
            4 => strip::<S, T, 4>(s, depth, cols, a, b, c),
            5 => strip::<S, T, 5>(s, depth, cols, a, b, c),
            6 => strip::<S, T, 6>(s, depth, cols, a, b, c),
            7 => strip::<S, T, 7>(s, depth, cols, a, b, c),
            _ => strip::<S, T, 8>(s, depth, cols, a, b, c),
        }
    }
}

/// All columns for `R` rows, as many vectors at once as there are registers for.
#[inline(always)]
unsafe fn strip<S: Simd, T: Number, const R: usize>(
    s: S,
    depth: usize,
    cols: usize,
    a: (*const f32, usize, usize),
    b: (*const T, usize, *const T),
    c: (*mut f32, usize),
) {
    let at_once = match (S::LANES, R) {
        (16, ..=6) => 4,
        (16, _) | (_, ..=6) => 2,
        _ => 1,
    };
    let mut at = 0;
    // SAFETY: the shapes are the caller's promise, and `at` stays below `cols`.
    unsafe {
        while at + at_once * S::LANES <= cols {
            let (b, c) = ((b.0.add(at), b.1, moved(b.2, at * depth)), (c.0.add(at), c.1));
            match at_once {
                4 => tile::<S, T, R, 4>(s, depth, a, b, c),
                2 => tile::<S, T, R, 2>(s, depth, a, b, c),
                _ => tile::<S, T, R, 1>(s, depth, a, b, c),
            }
            at += at_once * S::LANES;
        }
        while at < cols {
            tile::<S, T, R, 1>(s, depth, a, (b.0.add(at), b.1, moved(b.2, at * depth)), (c.0.add(at), c.1));
            at += S::LANES;
        }
    }
}

/// The null pointer stays where it is.
#[inline(always)]
fn moved<T>(at: *const T, by: usize) -> *const T {
    if at.is_null() { at } else { at.wrapping_add(by) }
}

/// `R` rows by `N` vectors, held in registers. What is fetched ahead is read front to back, as many bytes in each step as of
/// the right side: so that the hardware sees a stream.
#[inline(always)]
unsafe fn tile<S: Simd, T: Number, const R: usize, const N: usize>(
    s: S,
    depth: usize,
    (a, a_row, a_step): (*const f32, usize, usize),
    (b, b_stride, ahead): (*const T, usize, *const T),
    (c, c_stride): (*mut f32, usize),
) {
    // SAFETY: the caller's promise of shapes.
    unsafe {
        let mut sums = [[s.splat(0.0); N]; R];
        for r in 0..R {
            for n in 0..N {
                sums[r][n] = s.load_at(c.add(r * c_stride + n * S::LANES));
            }
        }
        for k in 0..depth {
            let mut right = [s.splat(0.0); N];
            for n in 0..N {
                right[n] = T::load_at(s, b.add(k * b_stride + n * S::LANES));
                if !ahead.is_null() && (n * S::LANES * size_of::<T>()).is_multiple_of(LINE_BYTES) {
                    s.prefetch(ahead.wrapping_add((k * N + n) * S::LANES));
                }
            }
            for r in 0..R {
                let left = s.splat(*a.add(r * a_row + k * a_step));
                for n in 0..N {
                    sums[r][n] = s.mul_add(left, right[n], sums[r][n]);
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                s.store_at(c.add(r * c_stride + n * S::LANES), sums[r][n]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;
    use crate::lanes::vectorised;

    vectorised! {
        fn both(shape: [usize; 3], a: &[f32], transposed: &[f32], b: &[f32], c: &mut [f32], d: &mut [f32]) = both_lanes
    }

    #[inline(always)]
    fn both_lanes<S: Simd>(
        s: S,
        [rows, depth, vectors]: [usize; 3],
        a: &[f32],
        transposed: &[f32],
        b: &[f32],
        c: &mut [f32],
        d: &mut [f32],
    ) {
        let shape = [rows, depth, vectors * S::LANES];
        add_product(s, shape, a, depth + 1, b, 80, c, 80);
        add_product_transposed(s, shape, transposed, MOST_ROWS + 1, b, 80, d, 80);
        for r in 0..rows {
            for col in 0..shape[2] {
                let sum: f32 = (0..depth).map(|k| a[r * (depth + 1) + k] * b[k * 80 + col]).sum();
                assert_eq!(c[r * 80 + col], 1.0 + sum);
            }
        }
    }

    #[test]
    fn a_transposed_left_side_gives_the_same() {
        at_every_level(|level| {
            for (rows, depth, vectors) in
                [(1, 1, 1), (6, 7, 5), (4, 9, 4), (3, 2, 2), (5, 3, 3), (2, 8, 1), (7, 9, 5), (8, 4, 3)]
            {
                let a: Vec<f32> = (0..rows * (depth + 1)).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
                let mut transposed = vec![0.0; depth * (MOST_ROWS + 1)];
                for r in 0..rows {
                    for k in 0..depth {
                        transposed[k * (MOST_ROWS + 1) + r] = a[r * (depth + 1) + k];
                    }
                }
                let b: Vec<f32> = (0..depth * 80).map(|i| (i * 5 % 13) as f32 - 6.0).collect();
                let (mut c, mut d) = (vec![1.0; rows * 80], vec![1.0; rows * 80]);
                both([rows, depth, vectors], &a, &transposed, &b, &mut c, &mut d);
                assert_eq!(c, d, "{level:?} {rows} {depth} {vectors}");
            }
        });
    }
}
