//! What each solver promises, shown on small matrices.

#![expect(clippy::unwrap_used, reason = "a test")]

mod sensitive;

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

/// What is said comes from the identity `‖E‖² = tr(Δ (H + λI) Δᵀ)`, which catches most mistakes of an error feedback.
#[test]
fn gptq_knows_its_own_loss() {
    let (w, h) = (random(33, 64, 1), correlated(64, 2));
    for settings in ["", "act_order = false", "act_order = false\nstatic_groups = false", "block = 24", "damping = 1"] {
        for bits in ["bits = 4\ngroup = 16", "bits = 2\ngroup = \"row\"", "bits = 3\ngroup = 64\nsymmetric = true"] {
            let solved = solve(&*solver("gptq", settings), &*grid(bits), &w, &h, 2);
            let said = solved.output_mse.unwrap() * (4 * 64 * 33) as f64;
            let found = loss(&w, &decoded(&solved, &w), &h, 0.0);
            assert!((said / found - 1.0).abs() < 2e-3, "{settings} {bits}: {said} said, {found} found");
        }
    }
}

#[test]
fn gptq_beats_nearest_and_act_order_helps_on_correlated_inputs() {
    let (mut nearest_sum, mut natural_sum, mut act_sum) = (0.0, 0.0, 0.0);
    for seed in 0..8 {
        let (w, h) = (random(32, 64, 10 * seed), correlated(64, 10 * seed + 1));
        let g = grid("bits = 3\ngroup = 32");
        let of = |s: &dyn Solver| loss(&w, &decoded(&solve(s, &*g, &w, &h, 1), &w), &h, 0.0);
        let (nearest, natural, act) =
            (of(&*solver("nearest", "")), of(&*solver("gptq", "act_order = false")), of(&*solver("gptq", "")));
        assert!(natural < nearest && act < nearest, "seed {seed}: {nearest} {natural} {act}");
        (nearest_sum, natural_sum, act_sum) = (nearest_sum + nearest, natural_sum + natural, act_sum + act);
    }
    assert!(natural_sum < 0.8 * nearest_sum && act_sum < natural_sum, "{nearest_sum} {natural_sum} {act_sum}");
}

#[test]
fn gptq_with_white_inputs_is_nearest() {
    let w = random(20, 48, 3);
    let identity = Mat::from_fn(48, 48, |r, c| f32::from(u8::from(r == c)));
    let g = grid("bits = 3\ngroup = 16");
    let a = solve(&*solver("gptq", ""), &*g, &w, &identity, 1);
    let b = solve(&*solver("nearest", ""), &*g, &w, &identity, 1);
    assert_eq!(decoded(&a, &w), decoded(&b, &w));
}

#[test]
fn results_do_not_depend_on_threads_and_blocks_hardly_on_their_size() {
    let (w, h) = (random(50, 96, 5), correlated(96, 6));
    let g = grid("bits = 4\ngroup = 32");
    let of = |settings: &str, threads| decoded(&solve(&*solver("gptq", settings), &*g, &w, &h, threads), &w);
    assert_eq!(of("", 1), of("", 3));
    let (small, large) = (of("block = 16", 1), of("block = 96", 1));
    // The sums are cut differently, so that a weight on the edge between two codes may fall to either side.
    let differ = small.data().iter().zip(large.data()).filter(|(a, b)| a != b).count();
    assert!(differ <= small.data().len() / 50, "{differ} weights differ");
}

/// Section 14 of the catalogue: the compensated columns are −0.7, −0.371429, −0.275.
#[test]
fn gptq_on_the_worked_example() {
    let h = Mat::from_vec(3, 3, vec![4.0, 3.0, 2.0, 3.0, 4.0, 3.0, 2.0, 3.0, 4.0]);
    let w = Mat::from_vec(1, 3, vec![-0.7, -0.2, -0.4]);
    // Multiples of 0.5: the scale of a 3-bit group that reaches from −1.5 to 2 is made by two more rows in the matrix.
    let solved = solve(&*solver("gptq", "act_order = false\ndamping = 1e-6"), &*half_steps(), &tall(&w), &h, 1);
    let q = decoded(&solved, &tall(&w));
    assert_eq!(q.row(0), [-0.5, -0.5, -0.5]);
}

/// One scale for the whole matrix: 0.5, since the matrix reaches from −1.5 to 2.
fn half_steps() -> Box<dyn Grid> {
    grid("bits = 3\ngroup = \"tensor\"")
}

fn tall(w: &Mat) -> Mat {
    Mat::from_fn(2, 3, |r, c| if r == 0 { w[(0, c)] } else { [-1.5, 2.0, 0.0][c] })
}

#[test]
fn dead_inputs_and_singular_statistics_are_survived() {
    let w = random(16, 32, 7);
    let mut h = correlated(32, 8);
    for i in 0..32 {
        for dead in [3, 17] {
            h[(i, dead)] = 0.0;
            h[(dead, i)] = 0.0;
        }
    }
    let g = grid("bits = 4\ngroup = 16");
    let solved = solve(&*solver("gptq", ""), &*g, &w, &h, 1);
    let q = decoded(&solved, &w);
    assert!(q.data().iter().all(|v| v.is_finite()));
    let nearest = decoded(&solve(&*solver("nearest", ""), &*g, &w, &h, 1), &w);
    assert!(loss(&w, &q, &h, 0.0) < loss(&w, &nearest, &h, 0.0));
    // What no input reaches is stored as zero, and takes no part in its group's range.
    let mut loud = w.clone();
    (0..16).for_each(|r| loud[(r, 17)] = 100.0);
    assert_eq!(decoded(&solve(&*solver("gptq", ""), &*g, &loud, &h, 1), &w).data(), q.data());
    assert!((0..16).all(|r| q[(r, 3)] == 0.0 && q[(r, 17)] == 0.0));
    // Rank one: no damping of 0.01 makes up for rounding errors of 1e-7 at a condition of 1e9; it is raised and said.
    let rank_one = Mat::from_fn(32, 32, |r, c| 1e6 * (1.0 + r as f32) * (1.0 + c as f32));
    let solved = solve(&*solver("gptq", "damping = 1e-9"), &*g, &w, &rank_one, 1);
    assert!(solved.warning.unwrap().contains("damping raised"));
}

#[test]
fn quantease_descends_to_where_no_single_code_helps() {
    let (w, h) = (random(24, 48, 11), correlated(48, 12));
    let g = grid("bits = 3\ngroup = \"row\"");
    let [mut before, nearest] =
        [f64::INFINITY, loss(&w, &decoded(&solve(&*solver("nearest", ""), &*g, &w, &h, 1), &w), &h, 0.0)];
    // Passes that stay on the grid never raise the objective.
    for passes in [1, 2, 3, 5, 10, 40] {
        let solved = solve(&*solver("quantease", &format!("passes = {passes}\nrelax_every = 0")), &*g, &w, &h, 2);
        let now = loss(&w, &decoded(&solved, &w), &h, 0.0);
        assert!(now <= before * (1.0 + 1e-6), "{passes} passes: {now} after {before}");
        let said = f64::from(4 * 48 * 24) * solved.output_mse.unwrap();
        assert!((said - now).abs() < 1e-3 * now, "{said} said, {now} found");
        before = now;
    }
    assert!(before < 0.5 * nearest, "{before} of {nearest}");
    let gptq = decoded(&solve(&*solver("gptq", ""), &*g, &w, &h, 1), &w);
    let after = solve(&*solver("quantease", "passes = 2\nstart = \"gptq\""), &*g, &w, &h, 1);
    assert!(loss(&w, &decoded(&after, &w), &h, 0.0) <= loss(&w, &gptq, &h, 0.0) * (1.0 + 1e-6));
    // A fixed point: one code moved by one step makes its row worse.
    let solved = solve(&*solver("quantease", "passes = 60"), &*g, &w, &h, 1);
    let q = decoded(&solved, &w);
    let fewbit_format::Storage::Int(codes) = &solved.storage else { panic!("codes") };
    for r in 0..24 {
        let (scale, _) = codes.group_params(r, 0);
        let mut own = vec![0; 48];
        codes.row_codes(r, &mut own);
        for c in 0..48 {
            // Moving by `step` changes the loss by `2 step (Δ H)_c + step² H_cc` with `Δ = Ŵ − W`.
            let pull: f64 = (0..48).map(|k| f64::from(q[(r, k)] - w[(r, k)]) * f64::from(h[(k, c)])).sum();
            for (step, is_there) in [(scale, own[c] < 7), (-scale, own[c] > 0)] {
                let step = f64::from(step);
                let gain = 2.0 * step * pull + step * step * f64::from(h[(c, c)]);
                assert!(!is_there || gain >= -1e-4 * step * step * f64::from(h[(c, c)]), "row {r}, column {c}: {gain}");
            }
        }
    }
}

#[test]
fn weighted_tokens_are_rounded_for_themselves() {
    // Tokens whose weights span two decades: what RSQ puts into `Σ_t w_t x_t x_tᵀ`.
    let (w, n) = (random(32, 64, 5), 64);
    let (x, mix) = (random(256, n, 6), random(n, n, 7));
    let weight = |t: usize| if t < 64 { 4.0f32 } else { 0.04 };
    let weighted = |power: i32| {
        let row = |t: usize, j: usize| (0..n).map(|k| x[(t, k)] * mix[(k, (j + t / 64) % n)]).sum::<f32>();
        let rows = Mat::from_fn(256, n, |t, j| row(t, j) * weight(t).powi(power).sqrt());
        Mat::from_fn(n, n, |a, b| (0..256).map(|t| rows[(t, a)] * rows[(t, b)]).sum())
    };
    let (even, uneven) = (weighted(0), weighted(1));
    let (gptq, grid) = (solver("gptq", ""), grid("bits = 3\ngroup = 64"));
    let of = |h: &Mat| decoded(&solve(&*gptq, &*grid, &w, h, 1), &w);
    let (plain, own) = (loss(&w, &of(&even), &uneven, 0.0), loss(&w, &of(&uneven), &uneven, 0.0));
    assert!(own < 0.9 * plain, "{own} with the weights, {plain} without");
}

/// Masks within the loop know their loss, and are better than magnitudes first and GPTQ behind them (SparseGPT, section 5).
#[test]
fn masks_beside_grids_know_their_loss_and_beat_magnitudes() {
    let (w, h) = (random(24, 64, 31), correlated(64, 32));
    let int = "group = 32\n";
    let sparse = |text: &str| {
        let entry = REGISTRY.grids.iter().find(|e| e.name == "sparse").unwrap();
        (entry.build)(text.parse().unwrap()).unwrap()
    };
    for text in [int, "floats = true"] {
        let grid = sparse(text);
        let [one, other] = [1, 3].map(|threads| solve(&*solver("gptq", ""), &*grid, &w, &h, threads));
        let q = decoded(&one, &w);
        assert_eq!(q, decoded(&other, &w), "threads matter");
        assert_eq!(one.storage.stored_bits(), grid.stored_bits(24, 64));
        for four in q.data().chunks(4) {
            assert!(four.iter().filter(|v| **v == 0.0).count() >= 2, "{four:?}");
        }
        let said = one.output_mse.unwrap() * f64::from(4 * 64 * 24);
        let found = loss(&w, &q, &h, 0.0);
        assert!((said / found - 1.0).abs() < 2e-3, "{said} said, {found} found");
        let nearest = loss(&w, &decoded(&solve(&*solver("nearest", ""), &*grid, &w, &h, 1), &w), &h, 0.0);
        let plain = loss(&w, &q, &h, 0.0);
        assert!(plain < 0.6 * nearest, "{plain} of {nearest}");
        // The descent goes on from there, tile by tile.
        let after = solve(&*solver("quantease", "start = \"gptq\"\npasses = 5"), &*grid, &w, &h, 1);
        assert!(loss(&w, &decoded(&after, &w), &h, 0.0) < plain);
        if text == int {
            // Magnitudes choose, GPTQ rounds what they leave.
            let pruned = decoded(&solve(&*solver("nearest", ""), &*sparse("floats = true"), &w, &h, 1), &w);
            let apart = decoded(&solve(&*solver("gptq", ""), &*self::grid(text), &pruned, &h, 1), &w);
            assert!(plain < 0.7 * loss(&w, &apart, &h, 0.0), "{plain}, apart {}", loss(&w, &apart, &h, 0.0));
        }
    }
    // Columns that know nothing of each other are masked by magnitude and input.
    let white = Mat::from_fn(64, 64, |a, b| if a == b { 7.0 } else { 0.0 });
    let grid = sparse(int);
    let [gptq, nearest] = ["gptq", "nearest"].map(|s| decoded(&solve(&*solver(s, ""), &*grid, &w, &white, 1), &w));
    assert_eq!(gptq, nearest);
}

/// AWQ's search of the clip (released code): the whole range is among what is tried, so that no group's own output is worse.
#[test]
fn clipping_by_outputs_never_costs_a_group() {
    let (w, h) = (random(24, 64, 41), correlated(64, 42));
    for text in ["bits = 3\ngroup = 16", "bits = 2\ngroup = 32\nsymmetric = true"] {
        let width = if text.contains("16") { 16 } else { 32 };
        let [plain, clipped] = ["", "\nclip = \"output\""].map(|clip| {
            let grid = grid(&format!("{text}{clip}"));
            decoded(&solve(&*solver("nearest", ""), &*grid, &w, &h, 1), &w)
        });
        let error = |q: &Mat, r: usize, k: usize| -> f64 {
            let d: Vec<f64> = (k * width..(k + 1) * width).map(|c| f64::from(w[(r, c)] - q[(r, c)])).collect();
            let inner =
                |a: usize| -> f64 { (0..width).map(|b| f64::from(h[(k * width + a, k * width + b)]) * d[b]).sum() };
            (0..width).map(|a| d[a] * inner(a)).sum()
        };
        let groups = (0..24).flat_map(|r| (0..64 / width).map(move |k| (r, k)));
        let all: Vec<[f64; 2]> = groups.map(|(r, k)| [&plain, &clipped].map(|q| error(q, r, k))).collect();
        assert!(all.iter().all(|[p, c]| *c <= p * (1.0 + 1e-4) + 1e-9), "{text}: {all:?}");
        let sum = |i: usize| all.iter().map(|e| e[i]).sum::<f64>();
        assert!(sum(1) < 0.9 * sum(0), "{text}: {} {}", sum(0), sum(1));
    }
}
