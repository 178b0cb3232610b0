//! Weights beside the codes: of a single sign (PB-LLM), and found in turns with the codes (QuantEase).

#![expect(clippy::unwrap_used, reason = "a test")]

use fewbit_engine::InputStats;
use fewbit_engine::kinds::{Grid, InputJob, Keep, LinearJob, Residual, ResidualJob, Side, Solver};
use fewbit_format::Mat;
use fewbit_kernel::Team;
use fewbit_methods::REGISTRY;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn grid(name: &str, text: &str) -> Box<dyn Grid> {
    let entry = REGISTRY.grids.iter().find(|e| e.name == name).unwrap();
    (entry.build)(text.parse().unwrap()).unwrap()
}

fn solver(name: &str) -> Box<dyn Solver> {
    let entry = REGISTRY.solvers.iter().find(|e| e.name == name).unwrap();
    (entry.build)("".parse().unwrap()).unwrap()
}

fn residual(name: &str, text: &str) -> Box<dyn Residual> {
    let entry = REGISTRY.residuals.iter().find(|e| e.name == name).unwrap();
    (entry.build)(text.parse().unwrap()).unwrap()
}

fn random(rows: usize, cols: usize, seed: u64) -> Mat {
    let mut r = ChaCha8Rng::seed_from_u64(seed);
    Mat::from_fn(rows, cols, |_, _| (0..6).map(|_| r.random::<f32>()).sum::<f32>() - 3.0)
}

/// `XᵀX` of inputs that share a part and differ in size.
fn gram(n: usize) -> Mat {
    let (own, shared) = (random(3 * n, n, 1), random(3 * n, 1, 2));
    let x = Mat::from_fn(3 * n, n, |t, j| (own[(t, j)] + shared[(t, 0)]) * (1.0 + (j % 5) as f32));
    Mat::from_fn(n, n, |a, b| (0..3 * n).map(|t| x[(t, a)] * x[(t, b)]).sum())
}

fn loss(w: &Mat, q: &Mat, h: &Mat) -> f64 {
    let row = |r: usize| -> f64 {
        let d: Vec<f64> = w.row(r).iter().zip(q.row(r)).map(|(a, b)| f64::from(a - b)).collect();
        (0..d.len()).map(|i| d[i] * (0..d.len()).map(|j| f64::from(h[(i, j)]) * d[j]).sum::<f64>()).sum()
    };
    (0..w.rows()).map(row).sum()
}

/// What a recipe of these makes of a matrix, and how many weights it keeps.
fn compressed(
    w: &Mat,
    h: &Mat,
    grid: &dyn Grid,
    kept: Option<&dyn Residual>,
    solver: &str,
    threads: usize,
) -> (Mat, usize) {
    let (team, stats) = (Team::new(threads), InputStats { gram: Some(h.clone()), tokens: 3, ..InputStats::default() });
    let job = ResidualJob { name: "test", weight: w, missing: w, stats: &stats, fisher: None, seed: 0, team: &team };
    let keep = match kept.map(|r| r.fit(&job).unwrap()) {
        Some(Side::Keep(keep)) => keep,
        Some(Side::LowRank(_)) => panic!("a correction"),
        None => Keep::Nothing,
    };
    let solver = self::solver(solver);
    let begun = solver.begin(InputJob { name: "test", stats: &stats, team: &team }).unwrap();
    let job = LinearJob { name: "test", weight: w, grid, keep: &keep, fisher: None, seed: 0 };
    let solved = begun.solve(&job).unwrap();
    let mut q = Mat::zeros(w.rows(), w.cols());
    solved.storage.decode_rows(0..w.rows(), q.data_mut());
    solved.sparse.iter().for_each(|s| s.add_rows(0..w.rows(), q.data_mut()));
    (q, solved.sparse.map_or(0, |s| s.count()))
}

/// Nothing kept is XNOR-Net's sign, and the more is kept the better.
#[test]
fn pb_llm_begins_at_one_sign_and_more_is_better() {
    let (w, h) = (random(32, 64, 3), gram(64));
    let signs = grid("signs", "bits = 1\noffset = true\ngroup = \"row\"\nscale = \"f32\"");
    let white = Mat::from_fn(64, 64, |a, b| f32::from(u8::from(a == b)));
    let (none, _) = compressed(&w, &white, &*signs, None, "nearest", 1);
    let mut xnor = Mat::zeros(32, 64);
    for r in 0..32 {
        let mean = w.row(r).iter().sum::<f32>() / 64.0;
        let alpha = w.row(r).iter().map(|v| (v - mean).abs()).sum::<f32>() / 64.0;
        xnor.row_mut(r).iter_mut().zip(w.row(r)).for_each(|(q, v)| *q = mean + alpha.copysign(v - mean));
    }
    // Found in turns, the two numbers are no worse than the mean and the mean distance from it.
    let error = |q: &Mat| loss(&w, q, &white);
    assert!(error(&none) <= error(&xnor) && error(&none) > 0.9 * error(&xnor), "{} {}", error(&none), error(&xnor));

    let mut before = f64::INFINITY;
    for fraction in ["0.01", "0.1", "0.3", "0.5"] {
        for by in ["obs", "magnitude"] {
            let text = format!("by = \"{by}\"\nfraction = {fraction}\nvalues = \"int8\"");
            let keep = residual("sparse", &text);
            let (q, count) = compressed(&w, &h, &*signs, Some(&*keep), "gptq", 2);
            assert_eq!(count, (32.0 * 64.0 * fraction.parse::<f64>().unwrap()).round() as usize);
            let now = loss(&w, &q, &h);
            assert!(now < before, "{fraction} by {by}: {now} after {before}");
            before = if by == "magnitude" { now } else { before };
        }
    }
    assert!(compressed(&w, &h, &*signs, None, "gptq", 1).0 != none, "feedback changes signs");
}

#[test]
fn quantease_chooses_outliers_that_help() {
    let (mut w, mut h) = (random(24, 64, 5), gram(64));
    // Large weights where inputs are large, and larger ones where there are hardly any.
    for r in 0..24 {
        (w[(r, 8 + r)], w[(r, r % 4)]) = (12.0, 14.0);
    }
    for a in 0..64 {
        for b in 0..64 {
            h[(a, b)] *= if a < 4 { 1e-3 } else { 1.0 } * if b < 4 { 1e-3 } else { 1.0 };
        }
    }
    let int = grid("int", "bits = 3\ngroup = \"row\"");
    let turns = residual("thresholded", "fraction = 0.03125");
    let (q, count) = compressed(&w, &h, &*int, Some(&*turns), "quantease", 1);
    assert_eq!((count, &q), (48, &compressed(&w, &h, &*int, Some(&*turns), "quantease", 3).0), "threads matter");
    let by_size = residual("sparse", "fraction = 0.03125");
    let [turns, by_size, none] = [Some(&*turns), Some(&*by_size), None]
        .map(|keep| loss(&w, &compressed(&w, &h, &*int, keep, "quantease", 1).0, &h));
    assert!(by_size < 0.5 * none && turns <= by_size * 1.05, "{none} without, {by_size} by size, {turns} in turns");
    let spqr = ["1000", "300", "100", "30", "10", "3", "1"].map(|threshold| {
        let sensitive = residual("sensitive", &format!("threshold = {threshold}.0"));
        let (q, count) = compressed(&w, &h, &*int, Some(&*sensitive), "gptq", 1);
        (count, loss(&w, &q, &h))
    });
    let (count, spqr) = *spqr.iter().rev().find(|(count, _)| *count <= 48).unwrap();
    assert!(turns < spqr, "{turns}, SpQR {spqr} with {count} of them");
}
