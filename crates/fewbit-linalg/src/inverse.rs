use fewbit_format::Mat;
use fewbit_kernel::Team;
use fewbit_kernel::product::product_nn;
use fewbit_kernel::triangular::{TRIANGLE, invert_triangle, mirror_upper};

use crate::NotPositive;
use crate::cholesky::factor_upper;

/// Rows or columns of a product that are computed aside before they replace what they were computed from.
const TILE: usize = 256;

/// The upper triangular `U` with `H⁻¹ = UᵀU` for a symmetric positive definite `H`: what GPTQ spreads errors with.
///
/// Without forming `H⁻¹`: with J the reversal, `J H J = RᵀR`; then `H = R̃R̃ᵀ` with the upper `R̃ = J Rᵀ J`, and
/// `U = R̃⁻¹ = J R⁻ᵀ J`, all in the place of `H`. Reads the upper triangle of `H` alone; below the diagonal of `U`
/// there are zeros. Beside `H` it needs [`scratch_bytes`].
pub fn upper_inverse_factor(team: &Team, mut h: Mat) -> Result<Mat, NotPositive> {
    let n = h.rows();
    assert_eq!(n, h.cols(), "a square");
    let a = h.data_mut();
    mirror_upper(team, n, a);
    factor_upper(team, a, n).map_err(|e| NotPositive { pivot: n - 1 - e.pivot, ..e })?;
    // The products below read whole squares of the triangle.
    team.for_pieces(a, n.max(1), &|i, row| row[..i].fill(0.0));
    team.for_pieces(a, TRIANGLE * n.max(1), &|i, rows| {
        let height = rows.len() / n;
        invert_triangle(&mut rows[i * TRIANGLE..], n, height);
    });
    let mut scratch = vec![0.0; scratch_values(n)];
    invert_upper(team, a, n, 0, n, &mut scratch);
    mirror_upper(team, n, a);
    Ok(h)
}

/// What [`upper_inverse_factor`] allocates for a matrix `[n, n]`, beside the operands that its products rearrange.
pub fn scratch_bytes(n: usize) -> usize {
    (scratch_values(n) * size_of::<f32>()).saturating_add(n * size_of::<f64>())
}

fn scratch_values(n: usize) -> usize {
    if n > TRIANGLE { TILE * n.div_ceil(2).next_multiple_of(TRIANGLE) } else { 0 }
}

/// Inverts rows and columns `from..to` of the upper triangle `a [n, n]`, whose [`TRIANGLE`]s on the diagonal are
/// inverted already and whose other half is zero.
///
/// `[A B; 0 D]⁻¹ = [A⁻¹ −A⁻¹BD⁻¹; 0 D⁻¹]`, by halves.
fn invert_upper(team: &Team, a: &mut [f32], n: usize, from: usize, to: usize, scratch: &mut [f32]) {
    if to - from <= TRIANGLE {
        return;
    }
    let middle = from + ((to - from) / 2).next_multiple_of(TRIANGLE);
    invert_upper(team, a, n, from, middle, scratch);
    invert_upper(team, a, n, middle, to, scratch);
    let (height, width) = (middle - from, to - middle);

    // B ← A⁻¹ B, from the top: a row needs itself and those below.
    for top in (from..middle).step_by(TILE) {
        let rows = TILE.min(middle - top);
        let out = &mut scratch[..rows * width];
        out.fill(0.0);
        let (left, right) = (&a[top * n + top..], &a[top * n + middle..]);
        product_nn(team, rows, width, middle - top, 1.0, left, n, right, n, out, width);
        put(team, out, width, &mut a[top * n..(top + rows) * n], n, middle);
    }
    // B ← −B D⁻¹, from the right: a column needs itself and those before.
    for left in (0..width).step_by(TILE).rev() {
        let columns = TILE.min(width - left);
        let out = &mut scratch[..height * columns];
        out.fill(0.0);
        let (b, d) = (&a[from * n + middle..], &a[middle * n + middle + left..]);
        product_nn(team, height, columns, left + columns, -1.0, b, n, d, n, out, columns);
        put(team, out, columns, &mut a[from * n..middle * n], n, middle + left);
    }
}

/// Copies `block [_, width]` into the whole rows `rows [_, n]`, from column `left` on.
fn put(team: &Team, block: &[f32], width: usize, rows: &mut [f32], n: usize, left: usize) {
    const ROWS: usize = 16;
    team.for_pieces(rows, ROWS * n, &|i, piece| {
        for (row, from) in piece.chunks_exact_mut(n).zip(block[i * ROWS * width..].chunks_exact(width)) {
            row[left..left + width].copy_from_slice(from);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cholesky::tests::hessian;

    /// The greatest element of `|U H Uᵀ − I|`, by rows.
    fn mismatch(h: &Mat, u: &Mat, rows: impl Iterator<Item = usize>) -> f64 {
        let n = h.rows();
        let mut worst = 0.0f64;
        for i in rows {
            let mut uh = vec![0.0f64; n];
            for k in i..n {
                for j in 0..n {
                    uh[j] += f64::from(u[(i, k)]) * f64::from(h[(k, j)]);
                }
            }
            for j in 0..n {
                let dot: f64 = (j..n).map(|k| uh[k] * f64::from(u[(j, k)])).sum();
                worst = worst.max((dot - f64::from(u8::from(i == j))).abs());
            }
        }
        worst
    }

    #[test]
    fn the_published_example() {
        let h = Mat::from_vec(3, 3, vec![4.0, 3.0, 2.0, 3.0, 4.0, 3.0, 2.0, 3.0, 4.0]);
        let u = upper_inverse_factor(&Team::new(1), h).expect("positive definite");
        let want = [0.763763, -0.654654, 0.109109, 0.0, 0.755929, -0.566947, 0.0, 0.0, 0.5];
        assert!(u.data().iter().zip(want).all(|(u, w)| (u - w).abs() < 1e-6), "{u:?}");
    }

    #[test]
    fn it_inverts_at_every_small_size() {
        let team = Team::new(2);
        for n in (1..70).chain([127, 128, 129, 193, 257, 300, 511, 577, 640]) {
            let h = hessian(&team, n, 2 * n + 5, 0.01, n as u64);
            let u = upper_inverse_factor(&team, h.clone()).expect("positive definite");
            assert!((0..n).all(|i| u.row(i)[..i].iter().all(|&v| v == 0.0)), "{n}");
            let error = mismatch(&h, &u, (0..n).step_by(1 + n / 30).chain([n - 1]));
            assert!(error < 1e-4, "{n}: {error}");
        }
    }

    #[test]
    fn neither_threads_nor_the_lower_triangle_matter() {
        let n = 700;
        let h = hessian(&Team::new(1), n, 900, 0.01, 3);
        let mut upper = h.clone();
        for i in 0..n {
            upper.row_mut(i)[..i].fill(f32::NAN);
        }
        let a = upper_inverse_factor(&Team::new(1), h).expect("positive definite");
        let b = upper_inverse_factor(&Team::new(3), upper).expect("positive definite");
        assert_eq!(a, b);
    }

    #[test]
    fn a_bad_matrix_names_its_pivot() {
        for n in [1, 5, 64, 200, 300] {
            for pivot in [0, n / 2, n - 1] {
                let mut h = hessian(&Team::new(1), n, 2 * n, 0.01, 1);
                h[(pivot, pivot)] = -0.5;
                let error = upper_inverse_factor(&Team::new(2), h).unwrap_err();
                assert_eq!(error.pivot, pivot);
            }
        }
        assert_eq!(upper_inverse_factor(&Team::new(1), Mat::zeros(0, 0)), Ok(Mat::zeros(0, 0)));
    }
}
