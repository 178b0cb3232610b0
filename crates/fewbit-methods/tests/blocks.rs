//! Blocks of ggml as a grid.

#![expect(clippy::unwrap_used, reason = "a test")]

use fewbit_engine::InputStats;
use fewbit_engine::kinds::{Grid, GridJob, LANES, Place, Strip, Weighting};
use fewbit_format::{GgmlBlocks, GgmlType, Mat, Storage};
use fewbit_kernel::Team;
use fewbit_methods::REGISTRY;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const ROWS: usize = 21;
const COLS: usize = 512;

fn grid(kind: GgmlType, importance: &str) -> Box<dyn Grid> {
    let entry = REGISTRY.grids.iter().find(|e| e.name == "ggml").unwrap();
    let text = format!("type = \"{}\"\npure = true\nimportance = \"{importance}\"", kind.name());
    (entry.build)(text.parse().unwrap()).unwrap()
}

/// Weights with a few large ones, a row of zeros, a block of zeros.
fn weights() -> Mat {
    let mut r = ChaCha8Rng::seed_from_u64(5);
    Mat::from_fn(ROWS, COLS, |row, c| match (row, c) {
        (3, _) | (4, 256..) => 0.0,
        _ => (r.random::<f32>() + r.random::<f32>() - 1.0) * if c % 97 == 5 { 6.0 } else { 0.5 },
    })
}

fn importances() -> Vec<f32> {
    (0..COLS).map(|c| 0.1 + (c * 37 % 101) as f32 / 25.0).collect()
}

/// Strip by strip, as solvers round; the second are the values that they saw.
fn by_strips(grid: &dyn Grid, w: &Mat, stats: &InputStats) -> (Storage, Mat) {
    let team = Team::new(1);
    let bound = grid.begin(&GridJob { weight: w, stats, seed: 0, team: &team }).unwrap();
    let (group, mut seen) = (bound.group(), Mat::zeros(ROWS, COLS));
    let (mut all_codes, mut all_params) = (Vec::new(), Vec::new());
    for s in 0..Strip::count(ROWS) {
        let strip = Strip::of(w, s);
        let (mut codes, mut decoded) = (vec![[0; LANES]; COLS], vec![[0.0; LANES]; COLS]);
        let at = |column: usize| Place { strip: s, column };
        let params: Vec<_> = (0..COLS / group)
            .map(|k| bound.fit(at(k * group), &strip.data[k * group..(k + 1) * group], Weighting::None))
            .collect();
        // Tile by tile, the last one first.
        for c in (0..COLS / bound.width()).rev().map(|t| t * bound.width()) {
            let tile = c..c + bound.width();
            let (codes, decoded) = (&mut codes[tile.clone()], &mut decoded[tile.clone()]);
            bound.round(at(c), &params[c / group], &strip.data[tile], codes, decoded);
        }
        for r in strip.rows.clone() {
            (0..COLS).for_each(|c| seen[(r, c)] = decoded[c][r % LANES]);
        }
        all_codes.push(codes);
        all_params.push(params);
    }
    (bound.store(all_codes, all_params).unwrap(), seen)
}

fn decoded(storage: &Storage) -> Mat {
    let mut out = Mat::zeros(ROWS, COLS);
    storage.decode_rows(0..ROWS, out.data_mut());
    out
}

fn encoders() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.into_iter().filter(|k| k.has_encoder())
}

#[test]
fn what_a_solver_sees_is_what_is_stored() {
    let (w, stats) = (weights(), InputStats { mean_square: Some(importances()), ..InputStats::default() });
    for kind in encoders() {
        let (storage, seen) = by_strips(&*grid(kind, "input"), &w, &stats);
        assert!(matches!(&storage, Storage::Ggml(b) if b.kind == kind));
        assert!(decoded(&storage).data() == seen.data(), "{}", kind.name());
    }
}

/// Under the scales that ggml finds, the nearest codes lose no more than its own.
#[test]
fn no_error_is_greater_than_ggmls() {
    let (w, stats) = (weights(), InputStats { mean_square: Some(importances()), ..InputStats::default() });
    let team = Team::new(2);
    for kind in encoders() {
        for importance in ["none", "input"] {
            let weights = Some(importances()).filter(|_| importance == "input");
            let theirs = GgmlBlocks::encode(kind, ROWS, COLS, w.data(), weights.as_deref()).unwrap();
            let grid = grid(kind, importance);
            let bound = grid.begin(&GridJob { weight: &w, stats: &stats, seed: 0, team: &team }).unwrap();
            let Storage::Ggml(whole) = bound.round_rows(&w, &team).unwrap().unwrap() else { panic!("{}", kind.name()) };
            assert!(whole.bytes == theirs.bytes, "{}: all rows at once", kind.name());
            let ours = decoded(&by_strips(&*grid, &w, &stats).0);
            let theirs = decoded(&Storage::Ggml(theirs));
            // Errors count as they are looked at; 1 in each column without importances.
            let counts = weights.unwrap_or_else(|| vec![1.0; COLS]);
            let error = |q: &Mat| -> f64 {
                let square = |(i, (a, b)): (usize, (&f32, &f32))| f64::from(counts[i % COLS] * (a - b) * (a - b));
                w.data().iter().zip(q.data()).enumerate().map(square).sum()
            };
            // The power of a row, which some encoders look at beside importances, is that of a block here.
            let slack = if importance == "input" { 1.02 } else { 1.000_001 };
            let (ours, theirs) = (error(&ours), error(&theirs));
            assert!(ours <= slack * theirs, "{} {importance}: {ours}, ggml {theirs}", kind.name());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let check = |kind, importance, cols| grid(kind, importance).check(8, cols).map_err(|e| e.to_string());
    assert!(check(GgmlType::Q4K, "none", 384).unwrap_err().contains("no multiple of the 256 weights of a Q4_K block"));
    assert!(check(GgmlType::Q4K, "none", 512).is_ok());
    assert!(check(GgmlType::Iq2Xs, "none", 512).unwrap_err().contains("no use without importances"));
    assert!(check(GgmlType::Iq2Xs, "input", 512).is_ok());
    let (mut w, team) = (weights(), Team::new(1));
    w[(7, 9)] = 1e30;
    let job = GridJob { weight: &w, stats: &InputStats::default(), seed: 0, team: &team };
    let e = grid(GgmlType::Q4K, "none").begin(&job).err().unwrap().to_string();
    assert!(e.contains("1e30") && e.contains("Q4_K"), "{e}");
    w[(7, 9)] = 1.0;
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let mut mean_square = importances();
        mean_square[3] = bad;
        let stats = InputStats { mean_square: Some(mean_square), ..InputStats::default() };
        let job = GridJob { weight: &w, stats: &stats, seed: 0, team: &team };
        let e = grid(GgmlType::Q4K, "input").begin(&job).err().unwrap().to_string();
        assert!(e.contains(&format!("importance {bad}")), "{e}");
    }
}
