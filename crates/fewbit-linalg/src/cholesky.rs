use std::fmt;

use fewbit_kernel::Team;
use fewbit_kernel::product::gram_mirror;
use fewbit_kernel::triangular::{TRIANGLE, factor_triangle, solve_transposed, subtract_gram};

/// Rows whose effect on the rest is taken away in one product: as many as the products sum in one chain.
const PANEL: usize = 256;

/// The matrix is not positive definite, or too close to singular for f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotPositive {
    /// Row and column of the first bad pivot.
    pub pivot: usize,
    /// What was left of its diagonal element; not above the rounding error of the element itself.
    pub value: f64,
}

impl fmt::Display for NotPositive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the matrix is not positive definite in f32: pivot {} is {:e}", self.pivot, self.value)
    }
}

impl std::error::Error for NotPositive {}

/// Replaces a symmetric positive definite `a [n, n]`, row-major, by its lower factor `L` with `A = LLᵀ`.
///
/// Reads the upper triangle alone; above the diagonal of `L` there are zeros. After an error the content is
/// meaningless.
///
/// # Panics
/// If `a` does not hold `n · n` values.
pub fn cholesky_in_place(team: &Team, a: &mut [f32], n: usize) -> Result<(), NotPositive> {
    assert_eq!(a.len(), n * n, "a square");
    factor_upper(team, a, n)?;
    gram_mirror(team, n, a);
    team.for_pieces(a, n.max(1), &|i, row| row[i + 1..].fill(0.0));
    Ok(())
}

/// Replaces the upper triangle of a symmetric positive definite `a [n, n]` by `R` with `A = RᵀR`.
///
/// Right-looking: a panel of rows is finished by triangles, then its products are taken away from all rows below. The
/// panel is whole rows, so that nothing is copied. What lies below the diagonal is neither read nor meaningful.
pub(crate) fn factor_upper(team: &Team, a: &mut [f32], n: usize) -> Result<(), NotPositive> {
    let floor: Vec<f64> = (0..n).map(|i| f64::from(a[i * n + i]) * f64::from(f32::EPSILON)).collect();
    for panel in (0..n).step_by(PANEL) {
        let (_, below) = a.split_at_mut(panel * n);
        let height = PANEL.min(n - panel);
        for top in (panel..panel + height).step_by(TRIANGLE) {
            let rows = TRIANGLE.min(panel + height - top);
            factor_rows(team, &mut below[(top - panel) * n..], n, top, rows, panel + height - top, &floor)?;
        }
        let next = panel + height;
        if next < n {
            let (done, rest) = below.split_at_mut(height * n);
            let shape = [n - next, n - next, height];
            subtract_gram(team, shape, &done[next..], n, &mut rest[next..], n);
        }
    }
    Ok(())
}

/// Finishes `rows` rows from row and column `top` on, and takes their products away from the first `height` rows, which
/// are those left of the panel. `a` begins at row `top`.
fn factor_rows(
    team: &Team,
    a: &mut [f32],
    n: usize,
    top: usize,
    rows: usize,
    height: usize,
    floor: &[f64],
) -> Result<(), NotPositive> {
    factor_triangle(&mut a[top..], n, rows, &floor[top..])
        .map_err(|(k, value)| NotPositive { pivot: top + k, value })?;
    let next = top + rows;
    if next == n {
        return Ok(());
    }
    let mut triangle = [0.0; TRIANGLE * TRIANGLE];
    for (i, row) in triangle.chunks_exact_mut(TRIANGLE).enumerate().take(rows) {
        row[..rows].copy_from_slice(&a[i * n + top..][..rows]);
    }
    solve_transposed(team, [rows, n - next], &triangle, TRIANGLE, &mut a[next..], n);
    if height > rows {
        let (done, rest) = a.split_at_mut(rows * n);
        subtract_gram(team, [height - rows, n - next, rows], &done[next..], n, &mut rest[next..], n);
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use fewbit_format::Mat;
    use fewbit_kernel::product::gram_add;

    use super::*;

    /// Numbers in -1..1 that look random.
    pub(crate) fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// `XᵀX / tokens + damping · I` of correlated noise.
    pub(crate) fn hessian(team: &Team, n: usize, tokens: usize, damping: f32, seed: u64) -> Mat {
        let mut x = noise(tokens * n, seed);
        for row in x.chunks_exact_mut(n) {
            for i in 1..n {
                row[i] = 0.8 * row[i - 1] + 0.6 * row[i];
            }
        }
        let mut h = Mat::zeros(n, n);
        gram_add(team, n, tokens, &x, n, h.data_mut());
        gram_mirror(team, n, h.data_mut());
        h.data_mut().iter_mut().for_each(|v| *v /= tokens as f32);
        for i in 0..n {
            h[(i, i)] += damping;
        }
        h
    }

    /// The greatest `|(B Bᵀ)[i, j] − A[i, j]|` relative to the greatest element of A, by sampling `rows` rows.
    pub(crate) fn mismatch(a: &Mat, rows: &[usize], row: impl Fn(usize) -> Vec<f32>) -> f64 {
        let top = a.data().iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let all: Vec<Vec<f32>> = (0..a.rows()).map(&row).collect();
        let mut worst = 0.0f64;
        for &i in rows {
            for j in 0..a.cols() {
                let dot: f64 = all[i].iter().zip(&all[j]).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                worst = worst.max((dot - f64::from(a[(i, j)])).abs() / f64::from(top));
            }
        }
        worst
    }

    #[test]
    fn it_reconstructs_at_every_small_size() {
        let team = Team::new(2);
        for n in (1..70).chain([127, 128, 129, 255, 256, 257, 300, 511, 577]) {
            let a = hessian(&team, n, 2 * n + 5, 0.01, n as u64);
            let mut l = a.clone();
            // What lies below the diagonal is not read.
            for i in 0..n {
                l.row_mut(i)[..i].fill(f32::NAN);
            }
            cholesky_in_place(&team, l.data_mut(), n).expect("positive definite");
            assert!((0..n).all(|i| l.row(i)[i + 1..].iter().all(|&v| v == 0.0)), "{n}");
            let rows: Vec<usize> = (0..n).step_by(1 + n / 40).chain([n - 1]).collect();
            let error = mismatch(&a, &rows, |i| l.row(i).to_vec());
            assert!(error < 2e-6, "{n}: {error}");
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let (one, three) = (Team::new(1), Team::new(3));
        let n = 700;
        let mut a = hessian(&one, n, 900, 0.01, 3);
        let mut b = a.clone();
        cholesky_in_place(&one, a.data_mut(), n).expect("positive definite");
        cholesky_in_place(&three, b.data_mut(), n).expect("positive definite");
        assert_eq!(a, b);
    }

    #[test]
    fn bad_matrices_name_their_pivot() {
        let team = Team::new(2);
        for n in [1, 5, 64, 65, 200, 300, 513] {
            let good = hessian(&team, n, 2 * n, 0.01, 1);
            for pivot in [0, n / 2, n - 1] {
                for bad in [0.0, -1.0, -1e30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut a = good.clone();
                    a[(pivot, pivot)] = bad;
                    let error = cholesky_in_place(&team, a.data_mut(), n).unwrap_err();
                    assert_eq!(error.pivot, pivot, "{n} {bad}");
                }
                if pivot > 0 {
                    let mut a = good.clone();
                    a[(0, pivot)] = f32::NAN;
                    let error = cholesky_in_place(&team, a.data_mut(), n).unwrap_err();
                    assert!(error.pivot == pivot && error.value.is_nan(), "{n}");
                }
            }
        }
    }

    #[test]
    fn a_singular_matrix_gives_an_error_or_finite_numbers() {
        let team = Team::new(2);
        for n in [3, 70, 300] {
            // Fewer tokens than columns, no damping.
            for (tokens, damping) in [(1, 0.0), (n / 2, 0.0), (n / 2, 1e-9), (n / 2, 1e-7), (n / 2, 1e-5)] {
                let mut a = hessian(&team, n, tokens.max(1), damping, 5);
                match cholesky_in_place(&team, a.data_mut(), n) {
                    Ok(()) => assert!(a.data().iter().all(|v| v.is_finite())),
                    Err(e) => assert!(e.pivot < n && e.to_string().contains("pivot")),
                }
                assert!(damping > 1e-6 || cholesky_in_place(&team, a.data_mut(), n).is_err() || n < 4);
            }
        }
    }
}
