//! What is learned begins where the solver ended, is stored as it was seen, and falls in error.

#![expect(clippy::unwrap_used, reason = "a test")]

use fewbit_engine::InputStats;
use fewbit_engine::kinds::{Fake, InputJob, Keep, LeafJob, LinearJob};
use fewbit_format::{Mat, Storage};
use fewbit_grad::optim::{AdamW, Decay, Optimizer, Schedule, SignSgd};
use fewbit_kernel::Team;
use fewbit_methods::REGISTRY;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SHAPE: [usize; 2] = [21, 64];

fn random(seed: u64) -> Mat {
    let mut r = ChaCha8Rng::seed_from_u64(seed);
    Mat::from_fn(SHAPE[0], SHAPE[1], |_, _| r.random::<f32>() * 2.0 - 1.0)
}

/// What GPTQ makes of a matrix whose inputs are correlated.
fn solved(w: &Mat, grid: &str) -> Storage {
    solved_by("gptq", w, grid)
}

fn solved_by(name: &str, w: &Mat, grid: &str) -> Storage {
    let (grids, solvers) = (REGISTRY.grids, REGISTRY.solvers);
    let kind = if grid.contains("element") { "float" } else { "int" };
    let grid = (grids.iter().find(|e| e.name == kind).unwrap().build)(grid.parse().unwrap()).unwrap();
    let solver = (solvers.iter().find(|e| e.name == name).unwrap().build)("".parse().unwrap()).unwrap();
    let cols = if name == "nearest" { 0 } else { w.cols() };
    let x = Mat::from_fn(256, cols, |t, j| (((t * 37 + j * 11) % 101) as f32 - 50.0) / 20.0 + (t % 7) as f32);
    let h = Mat::from_fn(cols, cols, |a, b| (0..256).map(|t| x[(t, a)] * x[(t, b)]).sum());
    let stats = InputStats { gram: Some(h), tokens: 256, ..InputStats::default() };
    let input = InputJob { name: "test", stats: &stats, team: &Team::new(1) };
    let job = LinearJob { name: "test", weight: w, grid: &*grid, keep: &Keep::Nothing, fisher: None, seed: 0 };
    solver.begin(input).unwrap().solve(&job).unwrap().storage
}

fn fake(settings: &str, w: &Mat, start: &Storage) -> Box<dyn Fake> {
    let entry = REGISTRY.learners.iter().find(|e| e.name == "rounding").unwrap();
    let learner = (entry.build)(settings.parse().unwrap()).unwrap();
    learner.begin(&LeafJob { name: "test", weight: w, start, steps: 100, seed: 1 }).unwrap()
}

fn decoded(storage: &Storage) -> Mat {
    let [rows, cols] = storage.shape();
    let mut m = Mat::zeros(rows, cols);
    storage.decode_rows(0..rows, m.data_mut());
    m
}

const GRIDS: [&str; 8] = [
    "bits = 3\ngroup = 16",
    "bits = 2\ngroup = \"row\"\nscale = \"bf16\"",
    "bits = 4\ngroup = 32\nsymmetric = true",
    "bits = 3\ngroup = 16\nzero = \"offset\"",
    "element = \"e2m1\"\ngroup = 16\nscale = \"e4m3\"\nclip = \"mse\"",
    "element = \"e2m1\"\ngroup = 32\nscale = \"e8m0\"",
    "element = \"e2m1\"\ngroup = [5, 24]",
    "element = \"e3m0\"\ngroup = \"tensor\"\nscale = \"f32\"",
];

const ROUNDS: [&str; 6] = ["none", "offset", "divide", "sigmoid", "low-rank", "weight"];

/// All forms that go with a grid.
fn forms(grid: &str) -> impl Iterator<Item = String> {
    let is_float = grid.contains("element");
    let ranges: &[&str] = match grid {
        _ if is_float => &["fixed", "scale"],
        _ if grid.contains("offset") => &["fixed", "scale"],
        _ if grid.contains("symmetric") => &["fixed", "scale", "clip", "sigmoid"],
        _ => &["fixed", "scale", "clip", "sigmoid", "scale-zero"],
    };
    let both = ROUNDS.iter().flat_map(move |round| ranges.iter().map(move |range| (round, range)));
    both.filter(|(round, range)| (**round, **range) != ("none", "fixed"))
        .filter(move |(round, _)| !is_float || matches!(**round, "none" | "weight"))
        // Half or twice a scale is seldom better, and that is all that a power of two can become.
        .filter(move |(round, _)| !(grid.contains("e8m0") && **round == "none"))
        .map(|(round, range)| format!("round = \"{round}\"\nrange = \"{range}\""))
}

#[test]
fn learning_begins_where_the_solver_ended_and_stores_what_it_sees() {
    let (w, team) = (random(1), Team::new(2));
    for grid in GRIDS {
        let start = solved(&w, grid);
        for form in forms(grid) {
            let mut fake = fake(&form, &w, &start);
            let mut seen = Mat::zeros(SHAPE[0], SHAPE[1]);
            fake.forward(&team, 1.0, &mut seen);
            if !form.contains("range = \"sigmoid\"") {
                assert_eq!(seen, decoded(&start), "{grid} {form}");
            }
            // Anywhere else: what is seen at the end is what is stored.
            let mut r = ChaCha8Rng::seed_from_u64(3);
            for leaf in fake.leaves_mut() {
                leaf.values.iter_mut().for_each(|v| *v += 0.3 * (r.random::<f32>() - 0.5));
            }
            fake.settle();
            fake.forward(&team, 1.0, &mut seen);
            assert_eq!(seen, decoded(&fake.bake().unwrap()), "{grid} {form}");
        }
    }
}

/// Descent on `‖(Ŵ − W) X‖²` by each form's own gradient lowers it.
#[test]
fn every_form_descends() {
    let (w, team) = (random(2), Team::new(1));
    let x = random(5);
    let error = |q: &Mat| -> f64 {
        let row = |r: usize, t: usize| -> f64 {
            (0..SHAPE[1]).map(|c| f64::from((q[(r, c)] - w[(r, c)]) * x[(t, c)])).sum::<f64>().powi(2)
        };
        (0..SHAPE[0]).flat_map(|r| (0..SHAPE[0]).map(move |t| (r, t))).map(|(r, t)| row(r, t)).sum()
    };
    for grid in GRIDS {
        let start = solved(&w, grid);
        for form in forms(grid) {
            let mut fake = fake(&form, &w, &start);
            let mut q = Mat::zeros(SHAPE[0], SHAPE[1]);
            let mut gradients: Vec<Vec<f32>> = fake.leaves().iter().map(|l| vec![0.0; l.values.len()]).collect();
            let (mut first, mut least) = (None, f64::INFINITY);
            // As the recipes have it: soft forms by Adam, the others by the sign.
            let is_soft = form.contains("round = \"sigmoid\"") || form.contains("low-rank");
            let mut adam: Vec<AdamW> = gradients.iter().map(|g| AdamW::new(g.len())).collect();
            let steps = if is_soft { 300 } else { 100 };
            for step in 0..steps {
                fake.forward(&team, 1.0, &mut q);
                let now = error(&q);
                first.get_or_insert(now);
                least = now.min(least);
                let progress = step as f32 / steps as f32;
                fake.forward(&team, progress, &mut q);
                // dE/dŴ = 2 (Ŵ − W) XᵀX.
                let delta = Mat::from_fn(SHAPE[0], SHAPE[1], |r, c| q[(r, c)] - w[(r, c)]);
                let y = Mat::from_fn(SHAPE[0], SHAPE[0], |r, t| (0..SHAPE[1]).map(|c| delta[(r, c)] * x[(t, c)]).sum());
                let g = Mat::from_fn(SHAPE[0], SHAPE[1], |r, c| {
                    2.0 * (0..SHAPE[0]).map(|t| y[(r, t)] * x[(t, c)]).sum::<f32>()
                });
                fake.backward(&team, progress, &g, &mut gradients);
                for ((leaf, g), adam) in fake.leaves_mut().into_iter().zip(&gradients).zip(&mut adam) {
                    if is_soft {
                        adam.step(&team, step + 1, leaf.rate, &mut leaf.values, g);
                        continue;
                    }
                    let rate = leaf.rate * (1.0 - progress);
                    leaf.values.iter_mut().zip(g).for_each(|(v, g)| *v -= rate * g.signum() * f32::from(*g != 0.0));
                }
                fake.settle();
            }
            // Few numbers do less: two for each group of at least 16 weights.
            let most = if form.contains("\"none\"") { 0.97 } else { 0.95 };
            assert!(least < most * first.unwrap(), "{grid} {form}: {least} of {}", first.unwrap());
        }
    }
}

fn int_codes(storage: &Storage) -> &fewbit_format::IntCodes {
    let Storage::Int(codes) = storage else { panic!("codes") };
    codes
}

/// Codes of all rows.
fn codes(storage: &Storage) -> Vec<u8> {
    let [rows, cols] = storage.shape();
    let mut all = vec![0; rows * cols];
    all.chunks_exact_mut(cols).enumerate().for_each(|(r, row)| int_codes(storage).row_codes(r, row));
    all
}

/// OmniQuant, section 3.2: clipping by `σ(γ)` is min–max rounding where `γ` is large, and begins at 1.8 % less.
#[test]
fn soft_clipping_begins_just_inside_the_range() {
    let (w, team) = (random(7), Team::new(1));
    for grid in ["bits = 3\ngroup = 16", "bits = 4\ngroup = 32\nsymmetric = true"] {
        let start = solved_by("nearest", &w, grid);
        let mut fake = fake("round = \"none\"\nrange = \"sigmoid\"", &w, &start);
        let first = fake.bake().unwrap();
        let groups = int_codes(&start).groups_per_row();
        for (r, k) in (0..SHAPE[0]).flat_map(|r| (0..groups).map(move |k| (r, k))) {
            let [before, after] = [&start, &first].map(|s| int_codes(s).group_params(r, k).0);
            // The scale is F16.
            assert!((after / before - 0.982_01).abs() < 6e-4, "{grid}: {before} became {after}");
        }
        fake.leaves_mut().into_iter().for_each(|l| l.values.fill(20.0));
        let mut seen = Mat::zeros(SHAPE[0], SHAPE[1]);
        fake.forward(&team, 1.0, &mut seen);
        assert_eq!(seen, decoded(&start), "{grid}");
    }
}

/// FlexRound, section 3.2: a code may move by several steps, and that of a weight of zero never does.
#[test]
fn divisors_move_codes_far_and_zeros_not_at_all() {
    let mut w = random(8);
    (0..SHAPE[0]).for_each(|r| w[(r, 7 + r % 3)] = 0.0);
    let start = solved_by("nearest", &w, "bits = 4\ngroup = 32");
    let mut fake = fake("round = \"divide\"\nrange = \"fixed\"", &w, &start);
    let mut r = ChaCha8Rng::seed_from_u64(4);
    for leaf in fake.leaves_mut() {
        leaf.values.iter_mut().for_each(|v| *v = r.random::<f32>() - 0.5);
    }
    let (before, after) = (codes(&start), codes(&fake.bake().unwrap()));
    let moved = |at: usize| before[at].abs_diff(after[at]);
    assert!((0..before.len()).filter(|at| moved(*at) > 1).count() > before.len() / 10);
    let zeros: Vec<usize> = (0..before.len()).filter(|at| w.data()[*at] == 0.0).collect();
    assert!(zeros.len() == SHAPE[0] && zeros.into_iter().all(|at| moved(at) == 0));
}

/// SignRound, section 3: with its own rate, all steps together move a weight by `½ + 1 / 2T`, so that nothing need be
/// kept in bounds.
#[test]
fn offsets_go_no_farther_than_the_next_code() {
    let w = random(9);
    let (start, steps) = (solved_by("nearest", &w, "bits = 4\ngroup = 32"), 200);
    let entry = REGISTRY.learners.iter().find(|e| e.name == "rounding").unwrap();
    let learner = (entry.build)("".parse().unwrap()).unwrap();
    let mut fake = learner.begin(&LeafJob { name: "test", weight: &w, start: &start, steps, seed: 1 }).unwrap();
    let mut leaves = fake.leaves_mut();
    let leaf = leaves.iter_mut().find(|l| l.name == "offset").unwrap();
    let schedule = Schedule { peak: leaf.rate, steps: steps as u64, warmup: 0, decay: Decay::Linear { least: 0.0 } };
    let (mut optimizer, gradient) = (SignSgd::new(leaf.values.len(), 0.0), vec![-1.0; leaf.values.len()]);
    for step in 1..=steps as u64 {
        optimizer.step(&Team::new(1), step, schedule.rate(step), &mut leaf.values, &gradient);
    }
    assert!(leaf.values.iter().all(|v| (v - 0.5025).abs() < 1e-4), "{}", leaf.values[0]);
    // From nearest, that is one code at most.
    let (before, after) = (codes(&start), codes(&fake.bake().unwrap()));
    assert!(before.iter().zip(&after).all(|(b, a)| a.abs_diff(*b) <= 1));
}

/// AdaRound, section 3.3: with penalty and steps enough each `h` goes to 0 or 1, and each code is the one below a weight or
/// the next.
#[test]
fn sigmoids_end_at_their_ends() {
    let (w, team, steps) = (random(10), Team::new(1), 2000);
    let start = solved_by("nearest", &w, "bits = 3\ngroup = 32");
    let mut fake = fake("round = \"sigmoid\"\nrange = \"fixed\"\npenalty = 300.0", &w, &start);
    let mut q = Mat::zeros(SHAPE[0], SHAPE[1]);
    let mut gradients: Vec<Vec<f32>> = fake.leaves().iter().map(|l| vec![0.0; l.values.len()]).collect();
    let mut adam = AdamW::new(gradients[0].len());
    for step in 0..steps {
        let progress = step as f32 / steps as f32;
        // Other tokens in each step, as a block sees them.
        let x = random(100 + step);
        fake.forward(&team, progress, &mut q);
        let y =
            Mat::from_fn(SHAPE[0], SHAPE[0], |r, t| (0..SHAPE[1]).map(|c| (q[(r, c)] - w[(r, c)]) * x[(t, c)]).sum());
        let g = Mat::from_fn(SHAPE[0], SHAPE[1], |r, c| (0..SHAPE[0]).map(|t| y[(r, t)] * x[(t, c)]).sum());
        fake.backward(&team, progress, &g, &mut gradients);
        let leaf = fake.leaves_mut().into_iter().next().unwrap();
        adam.step(&team, step + 1, leaf.rate, &mut leaf.values, &gradients[0]);
    }
    let h = |v: &f32| (1.2 / (1.0 + (-v).exp()) - 0.1).clamp(0.0, 1.0);
    let values = &fake.leaves()[0].values;
    let ends = values.iter().filter(|v| h(v) < 0.01 || h(v) > 0.99).count();
    assert!(ends * 1000 > 999 * values.len(), "{ends} of {}", values.len());
    let end = codes(&fake.bake().unwrap());
    for (at, (q, w)) in end.iter().zip(w.data()).enumerate() {
        let (scale, zero) = int_codes(&start).group_params(at / SHAPE[1], at % SHAPE[1] / 32);
        let fewbit_format::Zero::Code(zero) = zero else { panic!("integers") };
        let below = (w / scale).floor() + f32::from(zero);
        let possible = [below, below + 1.0].map(|v| v.clamp(0.0, 7.0));
        assert!(possible.contains(&f32::from(*q)), "{w} became {q} of {possible:?}");
    }
}

/// LSQ, equation 3: descent by its rule ends near the best step of normal weights (0.335, and 1.05 with an error of
/// 0.1494), but not at it. Steps and errors are those of the rule's own equation, solved by quadrature, where a weight counts
/// as clamped if its code is; were it the weight itself that is compared, they would be 0.340 and 1.10.
#[test]
fn steps_settle_where_their_rule_says() {
    let mut r = ChaCha8Rng::seed_from_u64(12);
    // The tails count: normal by Box and Muller.
    let w = Mat::from_fn(1, 1 << 15, |_, _| {
        let (u, angle) = (1.0 - r.random::<f32>(), std::f32::consts::TAU * r.random::<f32>());
        (-2.0 * u.ln()).sqrt() * angle.cos()
    });
    let team = Team::new(2);
    for (bits, settled, most) in [(4, 0.336, 0.0119), (2, 0.989, 0.1506)] {
        let start =
            solved_by("nearest", &w, &format!("bits = {bits}\ngroup = \"row\"\nsymmetric = true\nscale = \"f32\""));
        let mut fake = fake("round = \"weight\"\nrange = \"scale\"", &w, &start);
        let (mut q, mut gradients) = (Mat::zeros(1, w.cols()), vec![vec![0.0; w.cols()], vec![0.0]]);
        for step in 0..150 {
            fake.forward(&team, 0.0, &mut q);
            let g = Mat::from_fn(1, w.cols(), |_, c| q[(0, c)] - w[(0, c)]);
            fake.backward(&team, 0.0, &g, &mut gradients);
            fake.leaves_mut()[1].values[0] -= 0.02 * (1.0 - step as f32 / 150.0) * gradients[1][0].signum();
            fake.settle();
        }
        let end = fake.bake().unwrap();
        let (step, _) = int_codes(&end).group_params(0, 0);
        let square = |(a, b): (&f32, &f32)| f64::from((a - b).powi(2));
        let error = decoded(&end).data().iter().zip(w.data()).map(square).sum::<f64>() / w.cols() as f64;
        assert!((step / settled - 1.0).abs() < 0.04, "{bits} bits: a step of {step}");
        assert!((error / most - 1.0).abs() < 0.03, "{bits} bits: an error of {error}");
    }
}

/// EfficientQAT, section 3.2: `∂ŵ/∂s = (q − z) − m w / s`, `∂ŵ/∂z = −s (1 − m)`, `∂ŵ/∂w = m`, `m` saying that the code
/// is not clamped.
#[test]
fn gradients_pass_through_the_rounding_as_published() {
    let (w, team, width) = (random(13), Team::new(2), 16);
    let start = solved_by("nearest", &w, "bits = 2\ngroup = 16\nscale = \"f32\"");
    let mut fake = fake("round = \"weight\"\nrange = \"scale-zero\"", &w, &start);
    // So far that some codes are clamped.
    let mut r = ChaCha8Rng::seed_from_u64(14);
    fake.leaves_mut()[0].values.iter_mut().for_each(|v| *v = 2.0 * (r.random::<f32>() - 0.5));
    let (g, mut q) = (random(15), Mat::zeros(SHAPE[0], SHAPE[1]));
    fake.forward(&team, 0.0, &mut q);
    let mut found: Vec<Vec<f32>> = fake.leaves().iter().map(|l| vec![0.0; l.values.len()]).collect();
    fake.backward(&team, 0.0, &g, &mut found);
    let groups = SHAPE[1] / width;
    let steps: Vec<f32> =
        (0..SHAPE[0] * groups).map(|i| int_codes(&start).group_params(i / groups, i % groups).0).collect();
    let unit = steps.iter().sum::<f32>() / steps.len() as f32;
    let (mut clamped, leaves) = (0, fake.leaves());
    for i in 0..steps.len() {
        let (mut by_scale, mut by_zero) = (0.0, 0.0);
        let (s, zero) = int_codes(&start).group_params(i / groups, i % groups);
        let fewbit_format::Zero::Code(z) = zero else { panic!("integers") };
        for at in i * width..(i + 1) * width {
            let v = (w.data()[at] + unit * leaves[0].values[at]) / s;
            let free = (v + f32::from(z)).round_ties_even();
            let code = free.clamp(0.0, 3.0) - f32::from(z);
            assert!((q.data()[at] - s * code).abs() < 1e-6);
            let m = if (0.0..=3.0).contains(&free) { 1.0 } else { 0.0 };
            clamped += usize::from(m == 0.0);
            by_scale += g.data()[at] * (code - m * v);
            by_zero -= g.data()[at] * s * (1.0 - m);
            let by_weight = g.data()[at] * m * unit;
            assert!((found[0][at] - by_weight).abs() < 1e-5, "weight {at}: {} for {by_weight}", found[0][at]);
        }
        // The leaf is a factor of the scale.
        assert!((found[1][i] - s * by_scale).abs() < 1e-4, "scale {i}: {} for {}", found[1][i], s * by_scale);
        assert!((found[2][i] - by_zero).abs() < 1e-4, "zero {i}: {} for {by_zero}", found[2][i]);
    }
    assert!(clamped > 50, "{clamped}");
}

/// EfficientQAT, section 3.3: where scales alone are learned, codes stay, and the product is linear in the scale.
#[test]
fn scales_alone_leave_the_codes() {
    let (w, team, width) = (random(16), Team::new(1), 16);
    let start = solved(&w, "bits = 2\ngroup = 16\nscale = \"f32\"");
    let mut fake = fake("round = \"none\"\nrange = \"scale\"", &w, &start);
    let (g, [mut low, mut high]) = (random(17), [(); 2].map(|()| Mat::zeros(SHAPE[0], SHAPE[1])));
    let mut found = vec![vec![0.0; w.data().len() / width]];
    fake.backward(&team, 0.0, &g, &mut found);
    fake.leaves_mut()[0].values.fill(0.75);
    fake.forward(&team, 0.0, &mut low);
    fake.leaves_mut()[0].values.fill(1.25);
    fake.forward(&team, 0.0, &mut high);
    for (i, found) in found[0].iter().enumerate() {
        let at = i * width..(i + 1) * width;
        let difference: f32 = at.map(|at| g.data()[at] * (high.data()[at] - low.data()[at])).sum();
        assert!((found - 2.0 * difference).abs() < 1e-4, "{found} for {}", 2.0 * difference);
    }
    assert_eq!(codes(&start), codes(&fake.bake().unwrap()));
}
