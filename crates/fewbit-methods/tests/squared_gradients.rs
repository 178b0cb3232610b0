//! What follows from squared gradients: learned tables, kept weights, corrections.

#![expect(clippy::unwrap_used, reason = "a test")]

use fewbit_engine::InputStats;
use fewbit_engine::kinds::{Grid, InputJob, Keep, LinearJob, Residual, ResidualJob, Side};
use fewbit_format::Mat;
use fewbit_kernel::Team;
use fewbit_methods::REGISTRY;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn grid(name: &str, text: &str) -> Box<dyn Grid> {
    let entry = REGISTRY.grids.iter().find(|e| e.name == name).unwrap();
    (entry.build)(text.parse().unwrap()).unwrap()
}

fn residual(name: &str, text: &str) -> Box<dyn Residual> {
    let entry = REGISTRY.residuals.iter().find(|e| e.name == name).unwrap();
    (entry.build)(text.parse().unwrap()).unwrap()
}

fn random(rows: usize, cols: usize, seed: u64) -> Mat {
    let mut r = ChaCha8Rng::seed_from_u64(seed);
    Mat::from_fn(rows, cols, |_, _| r.random::<f32>() * 2.0 - 1.0)
}

/// Positive numbers over four decades, of which some are zero.
fn fisher(rows: usize, cols: usize) -> Mat {
    let raw = random(rows, cols, 9);
    Mat::from_fn(rows, cols, |r, c| if (r + c) % 11 == 0 { 0.0 } else { 10f32.powf(2.0 * raw[(r, c)]) })
}

fn nearest(grid: &dyn Grid, w: &Mat, fisher: &Mat, keep: &Keep, threads: usize) -> (Mat, u64) {
    let team = Team::new(threads);
    let gram = Mat::from_fn(w.cols(), w.cols(), |a, b| if a == b { 1.0 + a as f32 } else { 0.0 });
    let stats = InputStats { gram: Some(gram), ..InputStats::default() };
    let solver = REGISTRY.solvers.iter().find(|e| e.name == "nearest").unwrap();
    let solver = (solver.build)("".parse().unwrap()).unwrap();
    let begun = solver.begin(InputJob { name: "test", stats: &stats, team: &team }).unwrap();
    let job = LinearJob { name: "test", weight: w, grid, keep, fisher: Some(fisher), seed: 0 };
    let solved = begun.solve(&job).unwrap();
    let mut decoded = Mat::zeros(w.rows(), w.cols());
    solved.storage.decode_rows(0..w.rows(), decoded.data_mut());
    assert_eq!(solved.storage.stored_bits(), grid.stored_bits(w.rows(), w.cols()));
    if let Some(sparse) = &solved.sparse {
        sparse.add_rows(0..w.rows(), decoded.data_mut());
    }
    (decoded, solved.storage.stored_bits())
}

fn weighted(w: &Mat, q: &Mat, by: impl Fn(usize, usize) -> f32) -> f64 {
    let term = |r: usize, c: usize| f64::from(by(r, c)) * f64::from(w[(r, c)] - q[(r, c)]).powi(2);
    (0..w.rows()).map(|r| (0..w.cols()).map(|c| term(r, c)).sum::<f64>()).sum()
}

#[test]
fn learned_tables_are_best_in_their_own_measure() {
    let (w, f) = (random(21, 192, 1), fisher(21, 192));
    let of = |weights: &str| {
        let grid = grid("learned", &format!("bits = 3\nweights = \"{weights}\""));
        let (q, _) = nearest(&*grid, &w, &f, &Keep::Nothing, 1);
        assert_eq!(q, nearest(&*grid, &w, &f, &Keep::Nothing, 3).0, "threads matter");
        q
    };
    let [none, activations, by_fisher] = ["none", "activations", "fisher"].map(of);
    let measures: [&dyn Fn(&Mat) -> f64; 3] =
        [&|q| weighted(&w, q, |_, _| 1.0), &|q| weighted(&w, q, |_, c| 1.0 + c as f32), &|q| {
            weighted(&w, q, |r, c| f[(r, c)])
        }];
    // Where all gradients are alike they count for nothing.
    let ones = Mat::from_fn(21, 192, |_, _| 1.0);
    assert_eq!(nearest(&*grid("learned", "bits = 3"), &w, &ones, &Keep::Nothing, 1).0, none);
    let uniform = nearest(&*grid("int", "bits = 3\ngroup = \"row\"\nclip = \"mse\""), &w, &f, &Keep::Nothing, 1).0;
    for (i, measure) in measures.iter().enumerate() {
        let own = measure([&none, &activations, &by_fisher][i]);
        for other in [&none, &activations, &by_fisher, &uniform] {
            assert!(own <= measure(other) * (1.0 + 1e-4), "measure {i}: {own}, {}", measure(other));
        }
    }
}

#[test]
fn as_many_levels_as_values_lose_nothing() {
    // Levels that eight bits hold under a scale of 1/64.
    let w = Mat::from_fn(20, 64, |r, c| (((r * 7 + c * 3) % 8) as f32 * 36.0 - 127.0) / 64.0);
    let (q, _) = nearest(&*grid("learned", ""), &w, &fisher(20, 64), &Keep::Nothing, 1);
    // Where all that a value has weighs nothing, its level is another's.
    let error = weighted(&w, &q, |r, c| fisher(20, 64)[(r, c)]);
    assert_eq!(error, 0.0);
}

fn kept(text: &str, w: &Mat, f: &Mat) -> fewbit_engine::kinds::Entries {
    let (team, n) = (Team::new(1), w.cols());
    let x = random(3 * n, n, 4);
    let gram = Mat::from_fn(n, n, |a, b| (0..3 * n).map(|t| x[(t, a)] * x[(t, b)] * (1.0 + a.max(b) as f32)).sum());
    let stats = InputStats { gram: Some(gram), ..InputStats::default() };
    let job = ResidualJob { name: "test", weight: w, missing: w, stats: &stats, fisher: Some(f), seed: 0, team: &team };
    let Side::Keep(Keep::Entries(entries)) = residual("sparse", text).fit(&job).unwrap() else { panic!("no entries") };
    entries
}

#[test]
fn kept_weights_are_the_most_important_ones() {
    let (mut w, f) = (random(30, 40, 2), fisher(30, 40));
    for r in 0..30 {
        w[(r, 7)] = 6.0;
    }
    for by in ["magnitude", "sigma", "fisher", "hessian", "obs"] {
        for per in ["matrix", "row"] {
            let entries = kept(&format!("by = \"{by}\"\nper = \"{per}\"\nfraction = 0.05"), &w, &f);
            assert_eq!(entries.count(), 60, "{by} per {per}");
            let of_row = |r: usize| (0..40).filter(|c| entries.has(r, *c)).count();
            assert!(per == "matrix" || (0..30).all(|r| of_row(r) == 2), "{by} per {per}");
            // What is large is kept by every rule but the gradients'.
            assert!(by == "fisher" || (0..30).all(|r| entries.has(r, 7)), "{by} per {per}");
        }
    }
    let entries = kept("by = \"fisher\"\nfraction = 0.05", &w, &f);
    let least = (0..1200).filter(|i| entries.has(i / 40, i % 40)).map(|i| f[(i / 40, i % 40)]).fold(f32::MAX, f32::min);
    let most = (0..1200).filter(|i| !entries.has(i / 40, i % 40)).map(|i| f[(i / 40, i % 40)]).fold(0.0, f32::max);
    assert!(least >= most);
    let beyond = kept("by = \"sigma\"\ncut = 3.0", &w, &f);
    assert_eq!((beyond.count(), beyond.has(3, 7)), (30, true));
}

#[test]
fn tables_do_not_see_what_is_kept() {
    let (mut w, f) = (random(16, 64, 3), fisher(16, 64));
    for r in 0..16 {
        w[(r, r)] = 50.0;
    }
    let keep = Keep::Entries(kept("fraction = 0.015625", &w, &f));
    let grid = grid("learned", "weights = \"none\"");
    let (with, _) = nearest(&*grid, &w, &f, &keep, 1);
    let (without, _) = nearest(&*grid, &w, &f, &Keep::Nothing, 1);
    let error = |q: &Mat| weighted(&w, q, |_, _| 1.0);
    assert!(error(&with) < 0.9 * error(&without), "{} {}", error(&with), error(&without));
}

#[test]
fn a_correction_by_squared_gradients_is_best_where_they_are_a_product() {
    let missing = random(30, 20, 6);
    // Here, and only here, the weighted problem has a closed solution.
    let f = Mat::from_fn(30, 20, |r, c| (1.0 + (r % 5) as f32).powi(3) * (1.0 + (c % 3) as f32).powi(2));
    let team = Team::new(1);
    let left = |weighting: &str, f: &Mat| {
        let (stats, weight) = (InputStats::default(), &missing);
        let job =
            ResidualJob { name: "test", weight, missing: weight, stats: &stats, fisher: Some(f), seed: 0, team: &team };
        let text = format!("rank = 4\nbits = 16\nweighting = \"{weighting}\"");
        let Side::LowRank(factors) = residual("lowrank", &text).fit(&job).unwrap() else { panic!("no factors") };
        let mut sum = Mat::zeros(30, 20);
        factors.add_rows(0..30, sum.data_mut());
        sum
    };
    let [plain, by_fisher] = ["none", "fisher"].map(|weighting| left(weighting, &f));
    assert_eq!(left("fisher", &Mat::from_fn(30, 20, |_, _| 1.0)), plain, "all gradients alike");
    let best = {
        let scaled = Mat::from_fn(30, 20, |r, c| missing[(r, c)] * f[(r, c)].sqrt());
        let values = fewbit_linalg::truncated_svd(&team, &scaled, None, 20, 1).values;
        values.iter().skip(4).map(|s| s * s).sum::<f64>()
    };
    let own = weighted(&missing, &by_fisher, |r, c| f[(r, c)]);
    assert!((own / best - 1.0).abs() < 1e-3, "{own}, the best is {best}");
    assert!(own < 0.9 * weighted(&missing, &plain, |r, c| f[(r, c)]));
    assert!(weighted(&missing, &plain, |_, _| 1.0) < weighted(&missing, &by_fisher, |_, _| 1.0));
}
