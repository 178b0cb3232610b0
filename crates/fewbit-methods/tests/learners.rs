//! What is learned begins where the solver ended, is stored as it was seen, and falls in error.

#![expect(clippy::unwrap_used, reason = "a test")]

use fewbit_engine::InputStats;
use fewbit_engine::kinds::{Fake, InputJob, Keep, LeafJob, LinearJob};
use fewbit_format::{Mat, Storage};
use fewbit_grad::optim::{AdamW, Optimizer};
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
    let (grids, solvers) = (REGISTRY.grids, REGISTRY.solvers);
    let kind = if grid.contains("element") { "float" } else { "int" };
    let grid = (grids.iter().find(|e| e.name == kind).unwrap().build)(grid.parse().unwrap()).unwrap();
    let solver = (solvers.iter().find(|e| e.name == "gptq").unwrap().build)("".parse().unwrap()).unwrap();
    let x = Mat::from_fn(256, SHAPE[1], |t, j| (((t * 37 + j * 11) % 101) as f32 - 50.0) / 20.0 + (t % 7) as f32);
    let h = Mat::from_fn(SHAPE[1], SHAPE[1], |a, b| (0..256).map(|t| x[(t, a)] * x[(t, b)]).sum());
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
    let mut m = Mat::zeros(SHAPE[0], SHAPE[1]);
    storage.decode_rows(0..SHAPE[0], m.data_mut());
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
