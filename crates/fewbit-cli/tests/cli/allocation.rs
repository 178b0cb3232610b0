//! Budgets of bits, spread over the linears of a model.

use std::path::Path;

use serde_json::Value;

use crate::bench::{Bench, files, same_bytes};
use crate::fewbit;

/// `--set allocate.sensitivity=…`
const SENSITIVITIES: [&str; 4] = ["kl", "fisher", "trace", "error"];

/// Candidates for rows of any width.
const CANDIDATES: &str = "allocate.candidates=[{bits=2},{bits=3},{bits=4},{bits=6}]";

struct Linear {
    chosen: usize,
    bits: Vec<f64>,
    costs: Vec<f64>,
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn linears(report: &Value) -> Vec<Linear> {
    let all = report["allocation"]["linears"].as_array().unwrap();
    let linear = |v: &Value| Linear {
        chosen: v["chosen"].as_u64().unwrap() as usize,
        bits: floats(&v["bits_per_weight"]),
        costs: floats(&v["costs"]),
    };
    all.iter().map(linear).collect()
}

/// Positions in rising order.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    order.iter().enumerate().for_each(|(rank, i)| ranks[*i] = rank as f64);
    ranks
}

/// Spearman's rank correlation.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let (a, b, n) = (ranks(a), ranks(b), a.len() as f64);
    1.0 - 6.0 * a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>() / (n * (n * n - 1.0))
}

#[test]
fn budgets_are_kept_and_no_uniform_width_is_better() {
    let bench = Bench::new("3");
    for sensitivity in SENSITIVITIES {
        for budget in [3.1, 4.7] {
            let out = bench.path("out");
            let set = [format!("allocate.sensitivity={sensitivity}"), format!("allocate.bits={budget}")];
            let args = ["--recipe", "mixed", "--set", CANDIDATES, "--set", &set[0], "--set", &set[1], "--json"];
            let report = bench.run(&out, &[&args[..], &["--force", "--threads", "1"]].concat()).good();
            let true_bits = report["bits_per_weight"].as_f64().unwrap();
            assert!(true_bits <= budget && true_bits > budget - 0.35, "{true_bits} of {budget}");
            let predicted = report["allocation"]["bits_per_weight"].as_f64().unwrap();
            assert!((predicted - true_bits).abs() < 1e-9, "{predicted} is not {true_bits}");
            // All linears of this model read rows of two widths, so that bits weigh them alike up to their size.
            let linears = linears(&report);
            assert_eq!(linears.len(), 3 * 7);
            for l in &linears {
                assert!(l.costs[0] > l.costs[3], "{sensitivity}: {:?}", l.costs);
            }
            let cost: f64 = linears.iter().map(|l| l.costs[l.chosen]).sum();
            for (k, bits) in linears[0].bits.iter().enumerate().filter(|(_, bits)| **bits <= budget) {
                let uniform: f64 = linears.iter().map(|l| l.costs[k]).sum();
                assert!(cost <= uniform + 1e-12, "{sensitivity}: {cost} where {bits} bits cost {uniform}");
            }
            assert!(linears.iter().any(|l| l.chosen != linears[0].chosen), "{sensitivity}: all alike");
            if budget < 4.0 {
                let once = files(&out);
                bench.run(&out, &[&args[..], &["--force", "--threads", "2"]].concat()).good();
                same_bytes(&files(&out), &once, sensitivity);
            }
        }
    }
}

#[test]
fn blocks_are_chosen_as_one() {
    let bench = Bench::new("4");
    let args = ["--recipe", "mixed", "--set", CANDIDATES, "--set", "allocate.granularity=block", "--json"];
    let report = bench.run(&bench.path("out"), &args).good();
    let chosen: Vec<usize> = linears(&report).iter().map(|l| l.chosen).collect();
    for block in chosen.chunks(7) {
        assert!(block.iter().all(|k| *k == block[0]), "{chosen:?}");
    }
    assert!(report["bits_per_weight"].as_f64().unwrap() <= 3.2);
}

#[test]
fn an_override_decides_before_the_budget_does() {
    let bench = Bench::new("2");
    let args = ["--recipe", "rtn", "--set", "allocate.bits=4.7", "--override", "q_proj:bits=8", "--keep", "o_proj"];
    let report = bench.run(&bench.path("out"), &[&args[..], &["--json"]].concat()).good();
    let all = report["allocation"]["linears"].as_array().unwrap();
    assert_eq!(all.len(), 2 * 6);
    for l in all.iter().filter(|l| l["name"].as_str().unwrap().contains("q_proj")) {
        assert!(l["grid"].as_str().unwrap().starts_with("w8"), "{l}");
    }
    assert!(report["bits_per_weight"].as_f64().unwrap() <= 4.7);
}

#[test]
fn impossible_allocations_are_refused() {
    let bench = Bench::new("2");
    let cases: [(&[&str], &[&str]); 6] = [
        (&["allocate.bits=1.5"], &["`allocate.bits` is 1.5", "smallest candidates take", "more bits"]),
        (&["allocate.candidates=[]"], &["`allocate.candidates` has 0 entries"]),
        (&["allocate.candidates=[{bits=9}]"], &["`allocate.candidates[0]`", "1 to 8"]),
        (&["allocate.candidates=[{bots=4}]"], &["`bots`", "did you mean `bits`?"]),
        (&["allocate.sensitivity=magic"], &["`allocate`, `sensitivity`", "`kl`"]),
        (&["allocate.samples=0"], &["`allocate.samples` is 0"]),
    ];
    for (set, words) in cases {
        let set: Vec<&str> = set.iter().flat_map(|s| ["--set", s]).collect();
        let out = bench.path("out");
        bench.run(&out, &[&["--recipe", "gptq"], &set[..]].concat()).refused(words);
        bench.holds_only(&[]);
    }
    let head = ["--recipe", "mixed", "--set", CANDIDATES, "--override", "lm_head:bits=8"];
    bench.run(&bench.path("out"), &head).refused(&["the head is compressed", "--override"]);
}

#[test]
fn estimates_of_sensitivity_agree_with_what_is_measured() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260K");
    if !model.exists() {
        println!("{} is not there", model.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let costs = |sensitivity: &str| -> Vec<Vec<f64>> {
        let set = format!("allocate.sensitivity={sensitivity}");
        let out = dir.path().join("out");
        let places = ["quantize", model.to_str().unwrap(), "--out", out.to_str().unwrap(), "--force", "--json"];
        let args = ["--recipe", "rtn", "--group", "row", "--set", CANDIDATES, "--set", &set];
        let few = ["--samples", "8", "--length", "256"];
        linears(&fewbit(&[&places[..], &args, &few].concat()).good()).into_iter().map(|l| l.costs).collect()
    };
    let measured = costs("kl");
    let flat: Vec<f64> = measured.concat();
    for sensitivity in ["fisher", "trace"] {
        let estimated = costs(sensitivity);
        let whole = correlation(&estimated.concat(), &flat);
        assert!(whole > 0.95, "{sensitivity}: {whole}");
        // Within one width, where more bits do not explain the order.
        for k in 0..measured[0].len() {
            let of = |all: &[Vec<f64>]| all.iter().map(|c| c[k]).collect::<Vec<_>>();
            let within = correlation(&of(&estimated), &of(&measured));
            assert!(within > 0.7, "{sensitivity}, candidate {k}: {within}");
        }
        // Both are divergences per token: as many nats, not only the same order.
        let mut shares: Vec<f64> = estimated.concat().iter().zip(&flat).map(|(e, m)| e / m).collect();
        shares.sort_by(f64::total_cmp);
        let median = shares[shares.len() / 2];
        assert!((0.5..3.0).contains(&median), "{sensitivity}: {median} times what is measured");
    }
}

#[test]
fn a_mixed_model_is_nearer_to_its_original_than_a_uniform_one() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let (model, text) = (shared.join("models/stories260K"), shared.join("data/tinystories/valid.txt"));
    if let Some(missing) = [&model, &text].into_iter().find(|p| !p.exists()) {
        println!("{} is not there", missing.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str]| -> (f64, f64) {
        let out = dir.path().join(name);
        let places = ["quantize", model.to_str().unwrap(), "--out", out.to_str().unwrap(), "--json"];
        let few = ["--group", "row", "--samples", "16", "--length", "256", "--set", "grid.clip=mse"];
        let made = fewbit(&[&places[..], &few, more].concat()).good();
        let against = ["eval", out.to_str().unwrap(), "--against", model.to_str().unwrap(), "--text"];
        let held = ["--length", "256", "--blocks", "16", "--protocol", "blocks", "--json"];
        let eval = fewbit(&[&against[..], &[text.to_str().unwrap()], &held].concat()).good();
        (made["bits_per_weight"].as_f64().unwrap(), eval["kl_mean"].as_f64().unwrap())
    };
    let (uniform_bits, uniform) = run("uniform", &["--recipe", "gptq", "--bits", "3"]);
    let budget = format!("allocate.bits={uniform_bits}");
    let (bits, mixed) = run("mixed", &["--recipe", "mixed", "--set", CANDIDATES, "--set", &budget]);
    assert!(bits <= uniform_bits, "{bits} of {uniform_bits}");
    assert!(mixed < uniform * 0.97, "{mixed} where three bits everywhere have {uniform}");
}

#[test]
fn rows_of_one_matrix_have_two_widths() {
    let bench = Bench::new("3");
    let args = ["--recipe", "mixllm", "--set", "allocate.bits=5.6", "--json"];
    let out = bench.path("out");
    let report = bench.run(&out, &[&args[..], &["--threads", "1"]].concat()).good();
    let (stored, said) = (&report["bits_per_weight"], &report["allocation"]["bits_per_weight"]);
    let (stored, said) = (stored.as_f64().unwrap(), said.as_f64().unwrap());
    assert!(stored <= 5.6 && stored > 5.3 && (stored - said).abs() < 1e-9, "{stored} stored, {said} said");
    let grids = report["allocation"]["linears"].as_array().unwrap().iter().map(|l| l["grid"].as_str().unwrap());
    // How many rows of a linear have more bits is the model's matter.
    let mut counts: Vec<&str> = grids.map(|g| g.split_once(" + ").map_or("0", |(_, rows)| rows)).collect();
    counts.sort_unstable();
    counts.dedup();
    assert!(counts.len() > 3 && counts.iter().any(|c| c.contains("rows w8")), "{counts:?}");
    let once = files(&out);
    bench.run(&out, &[&args[..], &["--force", "--threads", "2"]].concat()).good();
    same_bytes(&files(&out), &once, "threads");
    let shown = fewbit(&["inspect", out.to_str().unwrap()]).stdout;
    assert!(shown.contains("4 bit") && shown.contains("8 bit"), "{shown}");

    let refused = |set: &[&str], words: &[&str]| {
        let set: Vec<&str> = set.iter().flat_map(|s| ["--set", s]).collect();
        bench.run(&bench.path("no"), &[&["--recipe", "mixllm"], &set[..]].concat()).refused(words);
    };
    refused(&["allocate.candidates=[{bits=2},{bits=4},{bits=8}]"], &["3 entries", "rows choose between 2"]);
    refused(&["allocate.granularity=matrix"], &["`allocate.sensitivity = \"taylor\"`", "rows"]);
    refused(&["allocate.sensitivity=kl"], &["allocate.granularity=row"]);
    let spqr = ["--recipe", "spqr", "--set", "allocate.granularity=row", "--set", "allocate.sensitivity=taylor"];
    let two = ["--set", "allocate.candidates=[{bits=3},{bits=4}]"];
    bench.run(&bench.path("no"), &[&spqr[..], &two].concat()).refused(&["beside codes"]);
    let format = ["--recipe", "mixllm", "--format", "compressed-tensors"];
    bench.run(&bench.path("no"), &format).refused(&["no place for rows of two widths"]);
}

#[test]
fn rows_are_chosen_where_the_model_feels_them() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let (model, text) = (shared.join("models/stories260K"), shared.join("data/tinystories/valid.txt"));
    if let Some(missing) = [&model, &text].into_iter().find(|p| !p.exists()) {
        println!("{} is not there", missing.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str]| -> (Value, f64) {
        let out = dir.path().join(name);
        let places = ["quantize", model.to_str().unwrap(), "--out", out.to_str().unwrap()];
        let few = ["--group", "row", "--samples", "16", "--length", "256", "--set", "grid.clip=mse"];
        let made = fewbit(&[&places[..], &few, more, &["--json"]].concat()).good();
        let against = ["eval", out.to_str().unwrap(), "--against", model.to_str().unwrap(), "--text"];
        let held = ["--length", "256", "--blocks", "16", "--json"];
        let eval = fewbit(&[&against[..], &[text.to_str().unwrap()], &held].concat()).good();
        (made["allocation"].clone(), eval["kl_mean"].as_f64().unwrap())
    };
    let two = "allocate.candidates=[{bits=3},{bits=8}]";
    let (allocation, rows) = run("rows", &["--recipe", "mixllm", "--set", two, "--set", "allocate.bits=4.3"]);
    let (_, three) = run("uniform", &["--recipe", "gptq", "--bits", "3"]);
    // Rows that were drawn would save their share of the weights.
    let (mut high, mut all) = (0.0, 0.0);
    for l in allocation["linears"].as_array().unwrap() {
        let [rows, cols] = shape(l["name"].as_str().unwrap());
        let grid = l["grid"].as_str().unwrap();
        let count = grid.split_once(" + ").map_or("0", |(_, rest)| rest.split_once(' ').unwrap().0);
        let count: f64 = if grid.starts_with("w8") { rows } else { count.parse().unwrap() };
        (high, all) = (high + count * cols, all + rows * cols);
    }
    let drawn = three * (1.0 - high / all);
    assert!(rows < 0.9 * drawn, "{three} with 3 bits, {rows} with {high} of {all} weights in 8, {drawn} if drawn");
}

/// Of a linear of stories260K.
fn shape(name: &str) -> [f64; 2] {
    match name.rsplit('.').next().unwrap() {
        "k_proj" | "v_proj" => [32.0, 64.0],
        "q_proj" | "o_proj" => [64.0, 64.0],
        "down_proj" => [64.0, 172.0],
        _ => [172.0, 64.0],
    }
}

/// GPTQ's own promise, on blocks: nearly every linear's outputs change less than when its weights are rounded to nearest.
#[test]
fn feedback_gains_on_nearly_every_linear() {
    let dir = tempfile::tempdir().unwrap();
    let (text, recipe, out) = (dir.path().join("text"), dir.path().join("recipe.toml"), dir.path().join("out"));
    std::fs::write(&text, &include_str!("../../../../assets/evaluation.txt")[..8000]).unwrap();
    let costs = |solver: &str| -> Vec<f64> {
        let passes = format!(
            "name = \"x\"\ncite = \"nobody\"\nsummary = \"a test\"\ncost = \"little\"\n[allocate]\nbits = 3.5\n\
             candidates = [{{ bits = 3 }}]\nsensitivity = \"error\"\n[[pass]]\nuse = \"grid.int\"\n[[pass]]\nuse = \"{solver}\"\n"
        );
        std::fs::write(&recipe, passes).unwrap();
        let [text, recipe, out] = [&text, &recipe, &out].map(|p| p.to_str().unwrap());
        let args = ["quantize", "demo", "--recipe", recipe, "--out", out, "--calibration", text, "--force", "--json"];
        let report = fewbit(&[&args[..], &["--samples", "8", "--length", "128"]].concat()).good();
        linears(&report).into_iter().map(|l| l.costs[0]).collect()
    };
    let (nearest, gptq) = (costs("solve.nearest"), costs("solve.gptq"));
    let better = nearest.iter().zip(&gptq).filter(|(n, g)| g < n).count();
    println!("{better} of {}", nearest.len());
    assert!(nearest.len() > 20 && better * 100 >= 95 * nearest.len(), "{better} of {}", nearest.len());
}
