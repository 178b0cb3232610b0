//! Weights that GPTQ keeps beside the codes, and what follows from scales of scales.

#![expect(clippy::unwrap_used, reason = "a test")]

use fewbit_engine::InputStats;
use fewbit_engine::kinds::{Grid, InputJob, Keep, LinearJob, Solved, Solver};
use fewbit_format::Mat;
use fewbit_kernel::Team;
use fewbit_methods::REGISTRY;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn grid(text: &str) -> Box<dyn Grid> {
    let entry = REGISTRY.grids.iter().find(|e| e.name == "int").unwrap();
    (entry.build)(text.parse().unwrap()).unwrap()
}

fn solver(name: &str, text: &str) -> Box<dyn Solver> {
    let entry = REGISTRY.solvers.iter().find(|e| e.name == name).unwrap();
    (entry.build)(text.parse().unwrap()).unwrap()
}

fn random(rows: usize, cols: usize, seed: u64) -> Mat {
    let mut r = ChaCha8Rng::seed_from_u64(seed);
    Mat::from_fn(rows, cols, |_, _| r.random::<f32>() * 2.0 - 1.0)
}

/// `XᵀX` of inputs whose columns are correlated and of very different size.
fn correlated(n: usize, seed: u64) -> Mat {
    let (base, mix) = (random(4 * n, n, seed), random(n, n, seed + 1));
    let x = Mat::from_fn(4 * n, n, |t, j| {
        let sum: f32 = (0..n).map(|k| base[(t, k)] * mix[(k, j)]).sum();
        sum * (1.0 + (j % 7) as f32)
    });
    Mat::from_fn(n, n, |a, b| (0..4 * n).map(|t| f64::from(x[(t, a)] * x[(t, b)])).sum::<f64>() as f32)
}

fn solve(solver: &dyn Solver, grid: &dyn Grid, w: &Mat, h: &Mat, threads: usize) -> Solved {
    let stats = InputStats { gram: Some(h.clone()), tokens: 4 * h.cols(), ..InputStats::default() };
    let input = InputJob { name: "test", stats: &stats, team: &Team::new(threads) };
    solver
        .begin(input)
        .unwrap()
        .solve(&LinearJob { name: "test", weight: w, grid, keep: &Keep::Nothing, fisher: None, seed: 0 })
        .unwrap()
}

fn decoded(solved: &Solved, w: &Mat) -> Mat {
    let mut out = Mat::zeros(w.rows(), w.cols());
    solved.storage.decode_rows(0..w.rows(), out.data_mut());
    out
}

/// `tr(Δ H Δᵀ)` in f64, with `damping · mean diag H` on the diagonal.
fn loss(w: &Mat, q: &Mat, h: &Mat, damping: f64) -> f64 {
    let n = w.cols();
    let ridge = damping * (0..n).map(|i| f64::from(h[(i, i)])).sum::<f64>() / n as f64;
    let mut sum = 0.0;
    for r in 0..w.rows() {
        let d: Vec<f64> = (0..n).map(|c| f64::from(w[(r, c)]) - f64::from(q[(r, c)])).collect();
        for a in 0..n {
            let inner: f64 = (0..n).map(|b| f64::from(h[(a, b)]) * d[b]).sum();
            sum += d[a] * (inner + ridge * d[a]);
        }
    }
    sum
}

fn sensitive(threshold: f32, grid_text: &str, w: &Mat, h: &Mat, threads: usize) -> (Solved, Mat) {
    let stats = InputStats { gram: Some(h.clone()), tokens: 4 * h.cols(), ..InputStats::default() };
    let input = InputJob { name: "test", stats: &stats, team: &Team::new(threads) };
    let keep = Keep::Sensitive { threshold };
    let (gptq, grid) = (solver("gptq", ""), grid(grid_text));
    let job = LinearJob { name: "test", weight: w, grid: &*grid, keep: &keep, fisher: None, seed: 0 };
    let solved = gptq.begin(input).unwrap().solve(&job).unwrap();
    let mut seen = decoded(&solved, w);
    solved.sparse.as_ref().unwrap().add_rows(0..w.rows(), seen.data_mut());
    (solved, seen)
}

/// SpQR's outliers: none at an infinite threshold, and the more the lower it is, each time with a smaller error.
#[test]
fn weights_that_cost_too_much_stay_beside_the_codes() {
    let (mut w, h) = (random(37, 64, 21), correlated(64, 22));
    // Few weights that no group of sixteen holds beside the others.
    (0..37).for_each(|r| w[(r, 5 * r % 64)] *= 8.0);
    for grid_text in ["bits = 3\ngroup = 16\nzero = \"point\"\nsecond = 3", "bits = 3\ngroup = 16"] {
        let none = sensitive(1e9, grid_text, &w, &h, 1);
        let plain = solve(&*solver("gptq", ""), &*grid(grid_text), &w, &h, 1);
        assert_eq!(none.1, decoded(&plain, &w));
        let (mut kept, mut error) = (0, loss(&w, &none.1, &h, 0.0));
        for threshold in [60.0, 30.0, 15.0, 8.0, 5.0] {
            let (solved, seen) = sensitive(threshold, grid_text, &w, &h, 1);
            let again = sensitive(threshold, grid_text, &w, &h, 3);
            assert_eq!(format!("{solved:?}"), format!("{:?}", again.0), "threads matter");
            let (count, now) = (solved.sparse.as_ref().unwrap().count(), loss(&w, &seen, &h, 0.0));
            assert!(count > kept && now < error, "{threshold}: {count} after {kept}, {now} after {error}");
            (kept, error) = (count, now);
            // Kept weights have no part in the error that is fed back.
            let said = solved.output_mse.unwrap() * (4 * 64 * 37) as f64;
            let found = loss(&w, &seen, &h, 0.01);
            assert!((said / found - 1.0).abs() < 2e-3, "{threshold}: {said} said, {found} found");
        }
        assert!(kept < 37 * 64 / 3, "{kept} weights");
    }
}
