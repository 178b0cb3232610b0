use fewbit_format::Mat;
use fewbit_kernel::Team;
use fewbit_kernel::product::{Weights, product_nn, product_nt};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::eigen::symmetric_eigen;
use crate::rotation::{dot, normal};

/// `A ≈ Σ_k σ_k u_k v_kᵀ`, the largest `σ` first.
#[derive(Clone, Debug, PartialEq)]
pub struct Svd {
    /// `u_k`, one a row: `[rank, rows]`, orthonormal.
    pub left: Mat,
    /// `σ_k ≥ 0`.
    pub values: Vec<f64>,
    /// `σ_k v_k`, one a row: `[rank, cols]`.
    pub right: Mat,
}

/// Rows of the shorter side up to which the whole decomposition is made.
const WHOLE: usize = 160;
/// Directions that are followed beside those asked for, and how often they are taken through the matrix
/// (Halko, Martinsson, Tropp 2011, Finding structure with randomness, Algorithm 4.4).
const OVERSAMPLING: usize = 10;
const ROUNDS: usize = 6;

/// The best approximation of `a [rows, cols]` by a matrix of rank `rank` at most (fewer where `a` has no more).
///
/// Best is what has the least `‖A − B‖²`, or, with `metric [cols, cols]` symmetric and not negative, the least
/// `tr((A − B) H (A − B)ᵀ)`: the vectors `u` are then those of `A L`, `H = LLᵀ`, which are the eigenvectors of `A H Aᵀ`,
/// and `B = U Uᵀ A`. Neither `L` nor an inverse is needed.
///
/// Random directions are followed through `A H Aᵀ`, in f32 with f64 where directions are held apart. The same seed gives
/// the same bits for any number of threads.
pub fn truncated_svd(team: &Team, a: &Mat, metric: Option<&Mat>, rank: usize, seed: u64) -> Svd {
    let (m, shorter) = (a.rows(), a.rows().min(a.cols()));
    let rank = rank.min(shorter);
    let is_whole = shorter <= WHOLE.max(rank + OVERSAMPLING);
    let mut left = if is_whole && shorter == m {
        // All directions there are.
        Mat::from_fn(m, m, |r, c| f32::from(u8::from(r == c)))
    } else if is_whole {
        a.transposed()
    } else {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        Mat::from_fn(rank + OVERSAMPLING, m, |_, _| normal(&mut || random.random::<f64>()) as f32)
    };
    orthonormalise(&mut left);
    let (followed, rounds) = (left.rows(), if is_whole { 0 } else { ROUNDS });
    for _ in 0..rounds {
        let (_, weighted) = through(team, &left, a, metric);
        let mut next = Mat::zeros(followed, m);
        product_nt(
            team,
            followed,
            m,
            a.cols(),
            weighted.data(),
            a.cols(),
            Weights::F32(a.data()),
            next.data_mut(),
            m,
            false,
        );
        left = next;
        orthonormalise(&mut left);
    }
    // Within the directions that were found, the eigenvectors of their small matrix are the answer.
    let (seen, weighted) = through(team, &left, a, metric);
    let mut small = vec![0.0; followed * followed];
    team.for_pieces(&mut small, followed.max(1), &|i, row| {
        for (j, v) in row.iter_mut().enumerate() {
            *v = 0.5 * (dot_f32(weighted.row(i), seen.row(j)) + dot_f32(weighted.row(j), seen.row(i)));
        }
    });
    let (values, vectors) = symmetric_eigen(small, followed);
    let turn = |from: &Mat| {
        let mut out = Mat::zeros(rank, from.cols());
        team.for_pieces(out.data_mut(), from.cols().max(1), &|k, out| {
            let mut row = vec![0.0; from.cols()];
            for (i, by) in vectors[k * followed..(k + 1) * followed].iter().enumerate() {
                row.iter_mut().zip(from.row(i)).for_each(|(r, v)| *r += by * f64::from(*v));
            }
            out.iter_mut().zip(&row).for_each(|(o, r)| *o = *r as f32);
        });
        out
    };
    let (left, right) = (turn(&left), turn(&seen));
    Svd { left, values: values[..rank].iter().map(|v| v.max(0.0).sqrt()).collect(), right }
}

/// `U A` and `U A H` for directions in rows.
fn through(team: &Team, left: &Mat, a: &Mat, metric: Option<&Mat>) -> (Mat, Mat) {
    let (k, m, n) = (left.rows(), a.rows(), a.cols());
    let mut seen = Mat::zeros(k, n);
    product_nn(team, k, n, m, 1.0, left.data(), m, a.data(), n, seen.data_mut(), n);
    let weighted = match metric {
        None => seen.clone(),
        Some(h) => {
            let mut weighted = Mat::zeros(k, n);
            product_nt(team, k, n, n, seen.data(), n, Weights::F32(h.data()), weighted.data_mut(), n, false);
            weighted
        }
    };
    (seen, weighted)
}

/// Rows become orthonormal, by taking each twice out of those after it; rows that depend on those before become zeros.
fn orthonormalise(rows: &mut Mat) {
    let mut done: Vec<Vec<f64>> = Vec::with_capacity(rows.rows());
    for r in 0..rows.rows() {
        let mut row: Vec<f64> = rows.row(r).iter().map(|v| f64::from(*v)).collect();
        let before = dot(&row, &row).sqrt();
        for _ in 0..2 {
            for other in &done {
                let along = dot(&row, other);
                row.iter_mut().zip(other).for_each(|(v, o)| *v -= along * o);
            }
        }
        let length = dot(&row, &row).sqrt();
        // What is left of a dependent row is the rounding of f32.
        let by = if length > 1e-6 * before && length > 0.0 { 1.0 / length } else { 0.0 };
        row.iter_mut().for_each(|v| *v *= by);
        rows.row_mut(r).iter_mut().zip(&row).for_each(|(o, v)| *o = *v as f32);
        done.push(row);
    }
}

fn dot_f32(a: &[f32], b: &[f32]) -> f64 {
    let wide = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    dot(&wide(a), &wide(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(rows: usize, cols: usize) -> Mat {
        Mat::from_fn(rows, cols, |r, c| ((3 * r + 1) as f32 * (c + 2) as f32 * 0.37).sin() / (1.0 + r.min(c) as f32))
    }

    fn product(svd: &Svd) -> Mat {
        let (m, n) = (svd.left.cols(), svd.right.cols());
        Mat::from_fn(m, n, |r, c| {
            (0..svd.left.rows()).map(|k| f64::from(svd.left[(k, r)]) * f64::from(svd.right[(k, c)])).sum::<f64>() as f32
        })
    }

    fn squares(a: &Mat, b: &Mat) -> f64 {
        a.data().iter().zip(b.data()).map(|(a, b)| f64::from(a - b).powi(2)).sum()
    }

    #[test]
    fn all_of_it_reconstructs_and_less_of_it_leaves_the_smaller_values() {
        let team = Team::new(2);
        for (m, n) in [(1, 1), (1, 7), (7, 1), (24, 40), (40, 24), (200, 180)] {
            let a = wave(m, n);
            let all = truncated_svd(&team, &a, None, m.min(n), 3);
            let scale = squares(&a, &Mat::zeros(m, n));
            assert!(squares(&a, &product(&all)) < 1e-10 * scale, "[{m}, {n}]: {}", squares(&a, &product(&all)) / scale);
            for rank in [1, 3, 8] {
                let svd = truncated_svd(&team, &a, None, rank, 3);
                let left: f64 = all.values.iter().skip(rank).map(|s| s * s).sum();
                let error = squares(&a, &product(&svd));
                assert!((error - left).abs() < 1e-6 * scale, "[{m}, {n}], rank {rank}: {error} for {left}");
            }
        }
    }

    #[test]
    fn few_of_many_are_nearly_the_best_and_follow_the_seed_alone() {
        // A matrix with a slowly falling spectrum, of which most directions are noise.
        let a = Mat::from_fn(300, 260, |r, c| {
            ((r * 7919 + c * 104_729) as f32 * 0.618).sin() + if r % 8 == c % 8 { 0.2 } else { 0.0 }
        });
        let all = truncated_svd(&Team::new(1), &a, None, 260, 1);
        let few = truncated_svd(&Team::new(1), &a, None, 8, 1);
        assert_eq!(few, truncated_svd(&Team::new(3), &a, None, 8, 1));
        let best: f64 = all.values.iter().skip(8).map(|s| s * s).sum();
        let error = squares(&a, &product(&few));
        assert!(error < 1.02 * best, "{error}, the best is {best}");
        for k in 0..8 {
            let dots: Vec<f64> = (0..8).map(|j| dot_f32(few.left.row(k), few.left.row(j))).collect();
            assert!((0..8).all(|j| (dots[j] - f64::from(u8::from(j == k))).abs() < 1e-5), "{dots:?}");
        }
    }

    #[test]
    fn a_metric_decides_what_is_best() {
        let (team, a) = (Team::new(2), wave(30, 20));
        // Inputs whose columns are of very different size, and fewer than columns: H is singular.
        let x = Mat::from_fn(12, 20, |t, j| {
            ((t * 7919 + j * 104_729 + t * j * 31) as f32 * 0.618).cos() * (1.0 + (j % 4) as f32)
        });
        let h = Mat::from_fn(20, 20, |i, j| (0..12).map(|t| x[(t, i)] * x[(t, j)]).sum());
        let error = |b: &Mat| -> f64 {
            (0..30)
                .map(|r| {
                    let d: Vec<f64> = (0..20).map(|c| f64::from(a[(r, c)] - b[(r, c)])).collect();
                    (0..12).map(|t| (0..20).map(|c| d[c] * f64::from(x[(t, c)])).sum::<f64>().powi(2)).sum::<f64>()
                })
                .sum()
        };
        let [plain, weighted] = [None, Some(&h)].map(|metric| error(&product(&truncated_svd(&team, &a, metric, 4, 1))));
        assert!(weighted < 0.8 * plain, "{weighted} {plain}");
        // The best of all: the singular values of A Xᵀ that are left.
        let outputs = Mat::from_fn(30, 12, |r, t| (0..20).map(|c| a[(r, c)] * x[(t, c)]).sum());
        let best: f64 = truncated_svd(&team, &outputs, None, 12, 1).values.iter().skip(4).map(|s| s * s).sum();
        assert!((weighted - best).abs() < 1e-4 * best, "{weighted} {best}");
    }

    #[test]
    fn nothing_has_rank_zero() {
        let svd = truncated_svd(&Team::new(1), &Mat::zeros(6, 5), None, 2, 1);
        assert!(svd.values.iter().all(|v| *v == 0.0) && product(&svd).data().iter().all(|v| *v == 0.0));
    }
}
