//! Recipes that learn: blocks, windows of blocks, the whole model.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::bench::{Bench, files, same_bytes};

/// Losses before and after each descent, in the journal's order.
fn losses(report: &Value) -> Vec<[f64; 2]> {
    let blocks = report["blocks"].as_array().unwrap().iter();
    let learned = blocks.flat_map(|b| b["learned"].as_array().cloned().unwrap_or_default());
    learned.map(|l| [l[0].as_f64().unwrap(), l[1].as_f64().unwrap()]).collect()
}

/// Whether no descent ends above its start, and all together well below.
fn falls(losses: &[[f64; 2]]) -> bool {
    let sum = |i: usize| losses.iter().map(|l| l[i]).sum::<f64>();
    losses.iter().all(|[first, last]| last <= first) && sum(1) < 0.95 * sum(0)
}

/// Writes a recipe of these passes.
fn recipe(path: &Path, passes: &[&str]) -> String {
    let head = "name = \"learning\"\ncite = \"nobody\"\nsummary = \"a test\"\ncost = \"little\"\n".to_owned();
    let passes = passes.iter().map(|p| format!("[[pass]]\nuse = {p}\n"));
    fs::write(path, head + &passes.collect::<String>()).unwrap();
    path.display().to_string()
}

/// Rounded to few bits, and learned by few steps.
const ROUND: [&str; 2] = ["\"grid.int\"\nbits = 3", "\"solve.gptq\""];
const STEPS: &str = "steps = 80\nrate = 5e-3\ndecay = \"cosine\"\nbatch = 2\noptimizer = \"adam\"\nround = \"weight\"\nrange = \"scale\"";

fn learn(scope: &str) -> String {
    format!("\"learn.rounding\"\nscope = \"{scope}\"\n{STEPS}")
}

#[test]
fn every_scope_descends_and_threads_change_nothing() {
    let bench = Bench::new("3");
    for (scope, descents) in [("block", 3), ("window", 2), ("model", 1)] {
        let recipe = recipe(&bench.path("recipe.toml"), &[ROUND[0], ROUND[1], &learn(scope)]);
        let args = ["--recipe", &recipe, "--force", "--json"];
        let out = bench.path("out");
        let report = bench.run(&out, &[&args[..], &["--threads", "1"]].concat()).good();
        let found = losses(&report);
        assert_eq!(found.len(), descents, "{scope}");
        assert!(falls(&found), "{scope}: {found:?}");
        let once = files(&out);
        bench.run(&out, &[&args[..], &["--threads", "3"]].concat()).good();
        same_bytes(&files(&out), &once, scope);
    }
}

/// What is learned once all is rounded begins with what was rounded, whatever was done to it before, and with what stands
/// beside the codes.
#[test]
fn passes_over_the_rounded_model_know_what_was_rounded() {
    let bench = Bench::new("2");
    let (rotate, smooth) = ("\"transform.rotate\"\nspace = \"residual\"", "\"transform.scale\"");
    let (hadamard, sparse) = ("\"transform.hadamard\"", "\"residual.sparse\"\nfraction = 0.02");
    let low_rank = "\"residual.lowrank\"\nrank = 2";
    for scope in ["window", "model"] {
        for before in [&[smooth][..], &[rotate], &[hadamard], &[sparse], &[rotate, hadamard, low_rank]] {
            let learn = learn(scope);
            let is_low_rank = before.contains(&low_rank);
            let first = if is_low_rank { &before[..2] } else { before };
            let last: &[&str] = if is_low_rank { &[low_rank] } else { &[] };
            let passes = [first, &ROUND, last, &[&learn]].concat();
            let recipe = recipe(&bench.path("recipe.toml"), &passes);
            let out = bench.path("out");
            let report = bench.run(&out, &["--recipe", &recipe, "--force", "--json"]).good();
            let found = losses(&report);
            assert!(falls(&found), "{before:?}, {scope}: {found:?}");
        }
    }
}

#[test]
fn a_head_that_is_compressed_is_not_learned_with_the_blocks() {
    let bench = Bench::new("2");
    let recipe = recipe(&bench.path("recipe.toml"), &[ROUND[0], ROUND[1], &learn("block")]);
    let out = bench.path("out");
    let args = ["--recipe", &recipe, "--override", "lm_head:bits=8", "--json"];
    let report = bench.run(&out, &args).good();
    assert_eq!(report["blocks"].as_array().unwrap().len(), 3, "the head is among them");
    assert_eq!(losses(&report).len(), 2);
}

/// EfficientQAT, table 6: blocks gain on rounding, and scales of the whole model on blocks.
#[test]
fn scales_of_the_model_gain_on_learned_blocks() {
    let bench = Bench::new("2");
    let settings = "steps = 80\nbatch = 2\noptimizer = \"adam\"\ndecay = \"cosine\"";
    let blocks = format!("\"learn.rounding\"\nround = \"weight\"\nrange = \"scale-zero\"\n{settings}");
    let whole = format!("\"learn.rounding\"\nscope = \"model\"\nround = \"none\"\nrange = \"scale\"\n{settings}");
    let passes = ["\"grid.int\"\nbits = 2", "\"solve.nearest\"", &blocks, &whole];
    let text = bench.path("text.txt");
    let divergence = |count: usize| {
        let (recipe, out) = (recipe(&bench.path("recipe.toml"), &passes[..count]), bench.path("out"));
        bench.run(&out, &["--recipe", &recipe, "--force", "--json"]).good();
        let [out, text] = [&out, &text].map(|p| p.to_str().unwrap());
        let args = ["eval", out, "--against", &bench.model, "--text", text, "--length", "32", "--json"];
        crate::fewbit(&args).good()["kl_mean"].as_f64().unwrap()
    };
    let [rounded, by_block, both] = [2, 3, 4].map(divergence);
    println!("{rounded}, {by_block}, {both}");
    assert!(by_block < 0.9 * rounded && both < 0.95 * by_block, "{rounded}, {by_block}, {both}");
}

/// CBQ, section 3.2: windows of one block, one after another, are blocks.
#[test]
fn windows_of_one_block_are_blocks() {
    let bench = Bench::new("2");
    let ends = |scope: &str| {
        let learn = learn(scope);
        let recipe = recipe(&bench.path("recipe.toml"), &[ROUND[0], "\"solve.nearest\"", &learn]);
        losses(&bench.run(&bench.path("out"), &["--recipe", &recipe, "--force", "--json"]).good())
    };
    let [blocks, windows] = ["block", "window\"\nwindow = 1\n# \""].map(ends);
    println!("{blocks:?} {windows:?}");
    assert_eq!(blocks.len(), windows.len());
    for ([a, b], [c, d]) in blocks.iter().zip(&windows) {
        assert!((a / c - 1.0).abs() < 0.02 && (b / d - 1.0).abs() < 0.1, "{blocks:?} {windows:?}");
    }
}
