//! What each residual promises, shown on small matrices.

#![expect(clippy::unwrap_used, reason = "a test")]

use fewbit_engine::InputStats;
use fewbit_engine::kinds::{Residual, ResidualJob, Side};
use fewbit_format::{LowRank, Mat};
use fewbit_kernel::Team;
use fewbit_linalg::truncated_svd;
use fewbit_methods::REGISTRY;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn residual(name: &str, text: &str) -> Box<dyn Residual> {
    let entry = REGISTRY.residuals.iter().find(|e| e.name == name).unwrap();
    (entry.build)(text.parse().unwrap()).unwrap()
}

fn random(rows: usize, cols: usize, seed: u64) -> Mat {
    let mut r = ChaCha8Rng::seed_from_u64(seed);
    Mat::from_fn(rows, cols, |_, _| r.random::<f32>() * 2.0 - 1.0)
}

/// Inputs `[tokens, n]` whose columns are of very different size.
fn inputs(n: usize) -> Mat {
    let x = random(3 * n, n, 1);
    Mat::from_fn(3 * n, n, |t, j| (x[(t, j)] + x[(t, (j + 1) % n)]) * (1.0 + (j % 7) as f32).powi(2))
}

fn stats(x: &Mat) -> InputStats {
    let n = x.cols();
    let gram = Mat::from_fn(n, n, |a, b| (0..x.rows()).map(|t| x[(t, a)] * x[(t, b)]).sum());
    let mean = |j| (0..x.rows()).map(|t| x[(t, j)].abs()).sum::<f32>() / x.rows() as f32;
    InputStats {
        gram: Some(gram),
        mean_abs: Some((0..n).map(mean).collect()),
        tokens: x.rows(),
        ..InputStats::default()
    }
}

fn low_rank(text: &str, missing: &Mat, stats: &InputStats, threads: usize) -> LowRank {
    let team = Team::new(threads);
    let job = ResidualJob { name: "test", weight: missing, missing, stats, fisher: None, seed: 3, team: &team };
    let Side::LowRank(factors) = residual("lowrank", text).fit(&job).unwrap() else { panic!("no factors") };
    *factors
}

fn left(missing: &Mat, factors: &LowRank) -> Mat {
    let mut sum = Mat::zeros(missing.rows(), missing.cols());
    factors.add_rows(0..missing.rows(), sum.data_mut());
    sum.data_mut().iter_mut().zip(missing.data()).for_each(|(s, m)| *s = m - *s);
    sum
}

fn squares(m: &Mat) -> f64 {
    m.data().iter().map(|v| f64::from(*v).powi(2)).sum()
}

/// `‖X Δᵀ‖²`.
fn output_error(x: &Mat, delta: &Mat) -> f64 {
    let dot = |t: usize, r: usize| -> f64 {
        x.row(t).iter().zip(delta.row(r)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    (0..x.rows()).map(|t| (0..delta.rows()).map(|r| dot(t, r).powi(2)).sum::<f64>()).sum()
}

#[test]
fn what_a_correction_leaves_are_the_smaller_singular_values() {
    let (missing, x) = (random(40, 56, 5), inputs(56));
    let stats = stats(&x);
    let values = truncated_svd(&Team::new(1), &missing, None, 40, 1).values;
    for rank in [1, 4, 16, 40] {
        let factors = low_rank(&format!("rank = {rank}\nbits = 16"), &missing, &stats, 2);
        let rest: f64 = values.iter().skip(rank).map(|s| s * s).sum();
        let error = squares(&left(&missing, &factors));
        assert!((error - rest).abs() < 1e-3 * squares(&missing), "rank {rank}: {error} is left of {rest}");
        // Eight bits a number cost little.
        let coarse = squares(&left(&missing, &low_rank(&format!("rank = {rank}"), &missing, &stats, 2)));
        assert!(coarse < rest + 0.01 * squares(&missing), "rank {rank}: {coarse} is left of {rest}");
    }
}

#[test]
fn a_weighting_is_best_in_its_own_measure() {
    let (missing, x) = (random(48, 32, 7), inputs(32));
    let stats = stats(&x);
    let of = |weighting: &str| {
        left(&missing, &low_rank(&format!("rank = 6\nbits = 16\nweighting = \"{weighting}\""), &missing, &stats, 1))
    };
    let [none, diagonal, activations] = ["none", "diagonal", "activations"].map(of);
    let weighted = |m: &Mat| {
        let scales = stats.mean_abs.as_ref().unwrap();
        squares(&Mat::from_fn(48, 32, |r, c| m[(r, c)] * scales[c]))
    };
    assert!(squares(&none) < squares(&diagonal) && squares(&none) < squares(&activations));
    assert!(weighted(&diagonal) < weighted(&none) && weighted(&diagonal) < weighted(&activations));
    let output = |m: &Mat| output_error(&x, m);
    assert!(output(&activations) < output(&diagonal) && output(&diagonal) < 0.9 * output(&none));
}

#[test]
fn corrections_follow_the_seed_alone() {
    let (missing, x) = (random(200, 190, 9), inputs(190));
    let stats = stats(&x);
    for text in ["", "weighting = \"activations\"\nbits = 4"] {
        let [one, three] = [1, 3].map(|threads| low_rank(text, &missing, &stats, threads));
        assert_eq!(format!("{one:?}"), format!("{three:?}"));
        let rank = residual("lowrank", text);
        assert_eq!(one.stored_bits(), rank.stored_bits(200, 190));
    }
}
