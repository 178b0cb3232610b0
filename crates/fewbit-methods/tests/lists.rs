//! Every member of the const lists, and every recipe.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fmt::Debug;

use fewbit_engine::kinds::{Entries, Entry, Grid, InputJob, Keep, LinearJob, Solved, Solver};
use fewbit_engine::{InputStats, Recipe, Settings, Table};
use fewbit_format::Mat;
use fewbit_kernel::Team;
use fewbit_methods::{RECIPES, REGISTRY};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A member builds without settings, has a source, and its documented defaults are the ones that it has.
fn is_documented<T: ?Sized + Debug>(kind: &str, entry: &Entry<T>) {
    let name = format!("{kind}.{}", entry.name);
    assert!(entry.cite.len() > 10, "{name} has no source");
    let built = (entry.build)(Table::new()).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (setting, meaning) in entry.settings {
        assert!(meaning.len() > 10, "{name}, {setting}: what does it mean?");
        // The engine puts the source's own type in its place.
        if *setting == "scale = \"source\"" {
            continue;
        }
        let table: Table = setting.parse().unwrap_or_else(|e| panic!("{name}, {setting}: {e}"));
        let with = (entry.build)(table).unwrap_or_else(|e| panic!("{name}, {setting}: {e}"));
        assert_eq!(format!("{built:?}"), format!("{with:?}"), "{name}, {setting}: not the default");
    }
    let unknown = (entry.build)("no_such_setting = 1".parse().unwrap());
    assert!(unknown.is_err_and(|e| e.to_string().contains("no_such_setting")), "{name} takes any setting");
}

#[test]
fn members_are_documented_as_they_are() {
    REGISTRY.grids.iter().for_each(|e| is_documented("grid", e));
    REGISTRY.activations.iter().for_each(|e| is_documented("act", e));
    REGISTRY.solvers.iter().for_each(|e| is_documented("solve", e));
    REGISTRY.learners.iter().for_each(|e| is_documented("learn", e));
    REGISTRY.residuals.iter().for_each(|e| is_documented("residual", e));
    REGISTRY.onlines.iter().for_each(|e| is_documented("transform", e));
    REGISTRY.transforms.iter().for_each(|e| is_documented("transform", e));
    REGISTRY.rotations.iter().for_each(|e| is_documented("transform", e));
}

#[test]
fn recipes_say_what_they_are_and_compile() {
    for (name, _) in RECIPES {
        let recipe = Recipe::find(name, RECIPES).unwrap();
        assert_eq!(recipe.name, *name);
        for (what, text) in [("cite", &recipe.cite), ("summary", &recipe.summary), ("cost", &recipe.cost)] {
            assert!(text.len() > 15, "{name} has no {what}");
        }
        recipe.compile(&Settings::default(), &REGISTRY, "f16").unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn the_common_settings_of_learning_are_documented_as_they_are() {
    let learner = REGISTRY.learners[0].name;
    let recipe = |more: &str| {
        let text = format!(
            "name = \"a\"\ncite = \"b\"\nsummary = \"c\"\ncost = \"d\"\n[[pass]]\nuse = \"learn.{learner}\"\n{more}"
        );
        let passes = Recipe::parse(&text).unwrap().compile(&Settings::default(), &REGISTRY, "f16").unwrap();
        format!("{passes:?}")
    };
    for (setting, _) in fewbit_engine::TuneSettings::SETTINGS {
        assert_eq!(recipe(setting), recipe(""), "{setting}");
    }
}

fn random(rows: usize, cols: usize, seed: u64) -> Mat {
    let mut r = ChaCha8Rng::seed_from_u64(seed);
    Mat::from_fn(rows, cols, |_, _| r.random::<f32>() * 2.0 - 1.0)
}

/// `XᵀX` of inputs whose columns share a part.
fn gram(n: usize) -> Mat {
    let (own, shared) = (random(3 * n, n, 1), random(3 * n, 1, 2));
    let x = Mat::from_fn(3 * n, n, |t, j| own[(t, j)] + shared[(t, 0)] * (1.0 + (j % 5) as f32));
    Mat::from_fn(n, n, |a, b| (0..3 * n).map(|t| x[(t, a)] * x[(t, b)]).sum())
}

fn loss(w: &Mat, solved: &Solved, h: &Mat) -> f64 {
    let mut q = Mat::zeros(w.rows(), w.cols());
    solved.storage.decode_rows(0..w.rows(), q.data_mut());
    let row = |r: usize| -> f64 {
        let d: Vec<f64> = w.row(r).iter().zip(q.row(r)).map(|(a, b)| f64::from(a - b)).collect();
        (0..d.len()).map(|i| d[i] * (0..d.len()).map(|j| f64::from(h[(i, j)]) * d[j]).sum::<f64>()).sum()
    };
    (0..w.rows()).map(row).sum()
}

#[test]
fn every_solver_on_every_grid_is_deterministic_and_no_worse_than_nearest() {
    let (w, h) = (random(37, 256, 3), gram(256));
    let stats =
        InputStats { gram: Some(h.clone()), mean_abs: Some(vec![1.0; 256]), tokens: 3 * 256, ..InputStats::default() };
    let solve = |solver: &dyn Solver, grid: &dyn Grid, threads: usize| {
        let input = InputJob { name: "test", stats: &stats, team: &Team::new(threads) };
        solver
            .begin(input)
            .unwrap()
            .solve(&LinearJob { name: "test", weight: &w, grid, keep: &Keep::Nothing, fisher: None, seed: 0 })
            .unwrap()
    };
    let nearest = REGISTRY.solvers.iter().find(|e| e.name == "nearest").unwrap();
    let nearest = (nearest.build)(Table::new()).unwrap();
    for grid in REGISTRY.grids {
        let bound = (grid.build)(Table::new()).unwrap();
        let baseline = loss(&w, &solve(&*nearest, &*bound, 1), &h);
        for entry in REGISTRY.solvers {
            let name = format!("solve.{} on grid.{}", entry.name, grid.name);
            let solver = (entry.build)(Table::new()).unwrap();
            let [one, three] = [1, 3].map(|threads| solve(&*solver, &*bound, threads));
            assert_eq!(format!("{one:?}"), format!("{three:?}"), "{name}: threads matter");
            let own = loss(&w, &one, &h);
            assert!(own <= baseline, "{name}: {own}, nearest {baseline}");
        }
    }
}

#[test]
fn every_solver_on_every_grid_keeps_what_it_is_told_to() {
    let (mut w, h) = (random(37, 256, 5), gram(256));
    let mut entries = Entries::none(37, 256);
    for r in 0..37 {
        // Outliers that no code reaches without loss for all others.
        for c in [r % 128, (7 * r + 60) % 128].into_iter().flat_map(|c| [c, c + 128]) {
            entries.add(r, c);
            w[(r, c)] *= 40.0;
        }
    }
    let stats =
        InputStats { gram: Some(h.clone()), mean_abs: Some(vec![1.0; 256]), tokens: 3 * 256, ..InputStats::default() };
    for grid in REGISTRY.grids {
        let bound = (grid.build)(Table::new()).unwrap();
        for entry in REGISTRY.solvers {
            let name = format!("solve.{} on grid.{}", entry.name, grid.name);
            let solver = (entry.build)(Table::new()).unwrap();
            let solve = |keep: &Keep, threads| {
                let input = InputJob { name: "test", stats: &stats, team: &Team::new(threads) };
                let job = LinearJob { name: "test", weight: &w, grid: &*bound, keep, fisher: None, seed: 0 };
                solver.begin(input).unwrap().solve(&job).unwrap()
            };
            let keep = Keep::Entries(entries.clone());
            let [kept, again, without] = [solve(&keep, 1), solve(&keep, 3), solve(&Keep::Nothing, 1)];
            assert_eq!(format!("{kept:?}"), format!("{again:?}"), "{name}: threads matter");
            let (mut one, mut two) = (Mat::zeros(37, 256), Mat::zeros(37, 256));
            kept.storage.decode_rows(0..37, one.data_mut());
            let sparse = kept.sparse.as_ref().unwrap();
            sparse.add_rows(0..37, one.data_mut());
            without.storage.decode_rows(0..37, two.data_mut());
            assert_eq!(sparse.count(), entries.count(), "{name}");
            let error = |q: &Mat| -> f64 {
                let delta = w.data().iter().zip(q.data());
                delta.map(|(a, b)| f64::from((a - b).powi(2))).sum()
            };
            // A learned table has levels for outliers too, which others then lack.
            let most = match grid.name {
                "learned" => 0.6,
                // What is zero anyway is lost with outliers and without.
                "sparse" => 0.4,
                // A scale is that of 32 columns, of which an outlier spoils one in eight here.
                "ggml" => 0.3,
                _ => 0.1,
            };
            assert!(error(&one) < most * error(&two), "{name}: {} {}", error(&one), error(&two));
        }
    }
}
