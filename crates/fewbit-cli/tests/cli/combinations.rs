//! Random recipes of all primitives with random settings: each works, or is refused before the work in one sentence.

use std::fmt::Write;
use std::fs;

use fewbit_methods::REGISTRY;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::bench::Bench;
use crate::{fewbit, shared};

/// Values that a setting may take: its default, its neighbours, and what its meaning names in backticks.
fn candidates(default: &str, meaning: &str) -> Vec<String> {
    if let Ok(number) = default.parse::<i64>() {
        return [number, number, number / 2, number / 4, number + 1, 2 * number, 0].map(|n| n.to_string()).into();
    }
    if let Ok(number) = default.parse::<f64>() {
        return [number, number * 10.0, number / 10.0].map(|n| format!("{n:?}")).into();
    }
    if default == "true" || default == "false" {
        return vec!["true".into(), "false".into()];
    }
    let named = meaning.split('`').skip(1).step_by(2).filter(|w| w.chars().all(char::is_alphanumeric));
    named.map(|w| format!("{w:?}")).chain([default.to_owned()]).collect()
}

/// A pass with some of its settings changed.
fn pass(name: &str, settings: &[(&str, &str)], r: &mut ChaCha8Rng) -> String {
    let mut text = format!("[[pass]]\nuse = \"{name}\"\n");
    for (setting, meaning) in settings {
        let (key, default) = setting.split_once(" = ").unwrap();
        // The rows of the model are short.
        let is_changed = r.random::<f32>() < 0.1;
        let is_width = key == "group" && default != "0";
        let default = if is_width { "32" } else { default };
        if !is_changed && !is_width {
            continue;
        }
        let all = if is_changed { candidates(default, meaning) } else { vec![default.to_owned()] };
        writeln!(text, "{key} = {}", all.choose(r).unwrap()).unwrap();
    }
    text
}

fn recipe(r: &mut ChaCha8Rng) -> String {
    let mut text = "name = \"random\"\ncite = \"nobody\"\nsummary = \"a test\"\ncost = \"little\"\n".to_owned();
    let calibration = [["linear", "compressed"], ["block", "compressed"], ["linear", "original"]];
    let [sequential, stream] = calibration.choose(r).unwrap();
    writeln!(text, "[calibration]\nsequential = \"{sequential}\"\nstream = \"{stream}\"").unwrap();
    for rotation in REGISTRY.rotations.iter().filter(|_| r.random::<f32>() < 0.4).collect::<Vec<_>>() {
        text += &pass(&format!("transform.{}", rotation.name), rotation.settings, r);
    }
    for t in REGISTRY.transforms.iter().filter(|_| r.random::<f32>() < 0.4).collect::<Vec<_>>() {
        text += &pass(&format!("transform.{}", t.name), t.settings, r);
    }
    let online = REGISTRY.onlines.choose(r);
    if let Some(t) = online.filter(|_| r.random::<f32>() < 0.4) {
        text += &pass(&format!("transform.{}", t.name), t.settings, r);
    }
    let (grid, solver) = (REGISTRY.grids.choose(r).unwrap(), REGISTRY.solvers.choose(r).unwrap());
    text += &pass(&format!("grid.{}", grid.name), grid.settings, r);
    // Beside the codes: before the solver, after it, or nothing.
    let beside = r.random::<f32>();
    let residual = REGISTRY.residuals.choose(r).unwrap();
    let residual = pass(&format!("residual.{}", residual.name), residual.settings, r);
    if beside < 0.35 {
        text += &residual;
    }
    text += &pass(&format!("solve.{}", solver.name), solver.settings, r);
    if beside > 0.8 {
        text += &residual;
    }
    for act in REGISTRY.activations.iter().filter(|_| r.random::<f32>() < 0.2).collect::<Vec<_>>() {
        text += &pass(&format!("act.{}", act.name), act.settings, r);
    }
    for learner in REGISTRY.learners.iter().filter(|_| r.random::<f32>() < 0.25).collect::<Vec<_>>() {
        text += &pass(&format!("learn.{}", learner.name), learner.settings, r);
        writeln!(
            text,
            "steps = 2\nbatch = 2\nscope = {}",
            candidates("\"block\"", "`window` `model`").choose(r).unwrap()
        )
        .unwrap();
    }
    if r.random::<f32>() < 0.15 {
        let sensitivity = candidates("\"error\"", "`kl` `trace` `fisher`");
        let sensitivity = sensitivity.choose(r).unwrap();
        writeln!(
            text,
            "[allocate]\nbits = 6\ncandidates = [{{ bits = 3 }}, {{ bits = 4 }}]\nsensitivity = {sensitivity}"
        )
        .unwrap();
    }
    text
}

/// A model that has learned something where it is there, else a random one.
fn model(bench: &Bench) -> String {
    shared("models/stories260K").map_or_else(|| bench.model.clone(), |p| p.display().to_string())
}

/// `FEWBIT_COMBINATIONS=200` tries as many.
#[test]
fn random_combinations_work_or_are_refused() {
    let count = std::env::var("FEWBIT_COMBINATIONS").map_or(30, |n| n.parse().unwrap());
    let bench = Bench::new("1");
    let model = model(&bench);
    let (mut worked, mut refused) = (0, Vec::new());
    for seed in 0..count {
        let recipe = recipe(&mut ChaCha8Rng::seed_from_u64(seed));
        let path = bench.path("text.toml");
        fs::write(&path, &recipe).unwrap();
        let (out, partial) = (bench.path("out"), bench.path("out.partial"));
        let text = bench.path("text.txt");
        let ran = fewbit(&[
            "quantize",
            &model,
            "--recipe",
            path.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
            "--calibration",
            text.to_str().unwrap(),
            "--samples",
            "3",
            "--length",
            "32",
            // Rows of 172 numbers in stories260K take no group of the usual widths.
            "--keep",
            "down_proj",
            "--json",
        ]);
        if ran.code == Some(0) {
            let logits =
                fewbit(&["logits", out.to_str().unwrap(), "--ids", "0,5,9", "--arithmetic", "weights-only", "--json"]);
            let logits = logits.good()["logits"].take();
            let mut all = logits.as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap());
            assert!(all.all(|v| v.as_f64().is_some_and(f64::is_finite)), "seed {seed}: {recipe}");
            fs::remove_dir_all(&out).unwrap();
            worked += 1;
        } else {
            assert_eq!(ran.code, Some(2), "seed {seed}: {recipe}{}", ran.stderr);
            ran.refused(&[]);
            assert!(!out.exists() && !partial.exists(), "seed {seed} left something: {recipe}");
            refused.push(ran.stderr.lines().last().unwrap().to_owned());
        }
    }
    refused.sort();
    refused.dedup();
    println!("{worked} of {count} worked; the others were refused:\n{}", refused.join("\n"));
    assert!(worked >= count / 4, "only {worked} of {count} worked");
}
