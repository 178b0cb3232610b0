//! Eigenvalues of small symmetric matrices.

/// Eigenvalues of a symmetric `a [n, n]`, falling, and their eigenvectors, one after the other in `[n, n]`.
///
/// Cyclic Jacobi rotations in f64 (Golub and Van Loan, Matrix Computations, 8.5): small eigenvalues of a positive matrix
/// are as precise as its entries allow. `O(n³)` a sweep, five to ten sweeps.
///
/// # Panics
/// If `a` does not hold `n · n` values.
pub fn symmetric_eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(a.len(), n * n, "a square");
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    for _ in 0..40 {
        let mut has_turned = false;
        for p in 0..n {
            for q in p + 1..n {
                let off = a[p * n + q];
                if off.abs() <= 1e-15 * (a[p * n + p] * a[q * n + q]).abs().sqrt() || off.abs() < f64::MIN_POSITIVE {
                    continue;
                }
                has_turned = true;
                let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * off);
                let t = 1.0f64.copysign(theta) / (theta.abs() + theta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                turn(&mut a, n, p, q, c, c * t);
                for k in 0..n {
                    (a[k * n + p], a[k * n + q]) = turned(a[k * n + p], a[k * n + q], c, c * t);
                }
                (a[p * n + q], a[q * n + p]) = (0.0, 0.0);
                turn(&mut vectors, n, p, q, c, c * t);
            }
        }
        if !has_turned {
            break;
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|i, j| a[j * n + j].total_cmp(&a[i * n + i]).then(i.cmp(j)));
    let values = order.iter().map(|i| a[i * n + i]).collect();
    (values, order.iter().flat_map(|i| &vectors[i * n..(i + 1) * n]).copied().collect())
}

fn turned(x: f64, y: f64, c: f64, s: f64) -> (f64, f64) {
    (c * x - s * y, s * x + c * y)
}

/// Turns rows `p < q` of `[n, n]` in their plane.
fn turn(a: &mut [f64], n: usize, p: usize, q: usize, c: f64, s: f64) {
    let (upper, lower) = a.split_at_mut(q * n);
    for (x, y) in upper[p * n..][..n].iter_mut().zip(&mut lower[..n]) {
        (*x, *y) = turned(*x, *y, c, s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eigenvectors_reconstruct() {
        for n in [1, 2, 3, 9, 40] {
            let value = |i: usize, j: usize| ((i + j) as f64 * 0.7).sin() + f64::from(u8::from(i == j)) * i as f64;
            let a: Vec<f64> = (0..n * n).map(|k| value(k / n, k % n)).collect();
            let (values, vectors) = symmetric_eigen(a.clone(), n);
            assert!(values.windows(2).all(|w| w[0] >= w[1]));
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let sum: f64 = (0..n).map(|k| values[k] * vectors[k * n + i] * vectors[k * n + j]).sum();
                assert!((sum - a[i * n + j]).abs() < 1e-11 * n as f64, "{n}: {i} {j}");
                let dot: f64 = (0..n).map(|k| vectors[i * n + k] * vectors[j * n + k]).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12, "{n}: {i} {j}");
            }
        }
    }

    #[test]
    fn zeros_have_eigenvectors_too() {
        let (values, vectors) = symmetric_eigen(vec![0.0; 9], 3);
        assert_eq!((values, vectors), (vec![0.0; 3], vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]));
    }
}
