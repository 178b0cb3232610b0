//! Mixtures of experts: made, quantized, read again, run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::bench::{files, same_bytes};
use crate::{Ran, fewbit};

const SHAPES: [&str; 3] = ["mixtral", "qwen3-moe", "gpt-oss"];
/// Experts, and those that a token goes to.
const EXPERTS: (usize, usize) = (6, 2);

/// A random model of two small blocks.
fn model(dir: &Path, shape: &str) -> String {
    model_of(dir, shape, EXPERTS)
}

fn model_of(dir: &Path, shape: &str, (experts, top): (usize, usize)) -> String {
    let path = dir.join(shape).display().to_string();
    let sizes = ["--layers", "2", "--hidden", "64", "--mlp", "32", "--heads", "2", "--kv-heads", "1"];
    let (experts, top) = (experts.to_string(), top.to_string());
    let experts = ["--experts", &experts, "--experts-per-token", &top];
    let args = [&["make-model", &path, "--shape", shape][..], &sizes, &experts].concat();
    assert_eq!(fewbit(&args).code, Some(0));
    path
}

fn quantize(model: &str, recipe: &str, out: &Path, more: &[&str]) -> Ran {
    let args = ["quantize", model, "--recipe", recipe, "--out", out.to_str().unwrap(), "--json", "--group", "32"];
    let text = ["--samples", "4", "--length", "64"];
    fewbit(&[&args[..], if more.contains(&"--samples") { &[] } else { &text }, more].concat())
}

/// The tensors of a folder, by name.
fn tensors(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for (name, bytes) in files(folder).into_iter().filter(|(name, _)| name.ends_with(".safetensors")) {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        for (tensor, v) in header.into_iter().filter(|(tensor, _)| tensor != "__metadata__") {
            let numbers = |v: &Value| -> Vec<usize> {
                v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
            };
            let (shape, at) = (numbers(&v["shape"]), numbers(&v["data_offsets"]));
            let data = bytes[8 + length + at[0]..8 + length + at[1]].to_vec();
            assert!(all.insert(tensor.clone(), (shape, data)).is_none(), "{tensor} twice, again in {name}");
        }
    }
    all
}

fn kl(model: &str, original: &str, text: &Path) -> f64 {
    let args = ["eval", model, "--against", original, "--text", text.to_str().unwrap(), "--length", "64", "--json"];
    fewbit(&args).good()["kl_mean"].as_f64().unwrap()
}

#[test]
fn every_recipe_rounds_every_shape() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, &include_str!("../../../../assets/evaluation.txt")[..4000]).unwrap();
    for shape in SHAPES {
        let original = model(dir.path(), shape);
        for recipe in ["rtn", "gptq", "awq", "hqq", "quantease", "nf4"] {
            let out = dir.path().join(format!("{shape}-{recipe}"));
            let more: &[&str] =
                if recipe == "awq" { &["--set", "transform.steps=2", "--set", "grid.steps=4"] } else { &[] };
            let ran = quantize(&original, recipe, &out, more);
            let report = ran.good();
            for block in report["blocks"].as_array().unwrap() {
                // q, k, v, o; gate, up and down of each expert; no router.
                assert_eq!(block["linears"].as_array().unwrap().len(), 4 + 3 * EXPERTS.0, "{shape} {recipe}");
                let looks = ["gptq", "awq", "quantease"].contains(&recipe);
                match block["tokens_per_expert"].as_array() {
                    Some(counts) if looks => {
                        let tokens: u64 = counts.iter().map(|n| n.as_u64().unwrap()).sum();
                        assert_eq!((counts.len(), tokens), (EXPERTS.0, 4 * 64 * EXPERTS.1 as u64), "{shape} {recipe}");
                    }
                    counts => assert!(counts.is_none() && !looks, "{shape} {recipe}: {counts:?}"),
                }
            }
            let read = fewbit(&["inspect", out.to_str().unwrap(), "--json"]).good();
            assert_eq!(read["bits_per_weight_model"], report["bits_per_weight_model"], "{shape} {recipe}");
            let distance = kl(out.to_str().unwrap(), &original, &text);
            assert!(distance > 0.0 && distance < 0.01, "{shape} {recipe}: {distance}");
            let run = fewbit(&["run", out.to_str().unwrap(), "--prompt", "Once", "--raw", "--max-tokens", "3"]);
            assert_eq!(run.code, Some(0), "{}", run.stderr);
        }
    }
}

#[test]
fn written_experts_are_linears_and_kept_ones_lie_as_they_did() {
    let dir = tempfile::tempdir().unwrap();
    let original = model(dir.path(), "gpt-oss");
    let before = tensors(Path::new(&original));
    let out = dir.path().join("rounded");
    quantize(&original, "gptq", &out, &[]).good();
    let rounded = tensors(&out);
    let prefix = "model.layers.1.mlp";
    assert_eq!(rounded[&format!("{prefix}.router.weight")], before[&format!("{prefix}.router.weight")]);
    assert!(!rounded.keys().any(|n| n.contains("gate_up_proj")));
    for e in 0..EXPERTS.0 {
        for matrix in ["gate_proj", "up_proj", "down_proj"] {
            assert!(rounded.contains_key(&format!("{prefix}.experts.{e}.{matrix}.weight_packed")));
            assert!(rounded.contains_key(&format!("{prefix}.experts.{e}.{matrix}.bias")));
        }
    }

    let kept = dir.path().join("kept");
    quantize(&original, "gptq", &kept, &["--keep", "*experts*"]).good();
    let kept = tensors(&kept);
    for (name, tensor) in before.iter().filter(|(name, _)| name.contains(".mlp.")) {
        assert!(kept.get(name) == Some(tensor), "{name}");
    }
    assert!(kept.contains_key("model.layers.1.self_attn.q_proj.weight_packed"));

    // Some experts of a tensor kept: these become linears of their own, with the same numbers.
    let some = dir.path().join("some");
    quantize(&original, "rtn", &some, &["--keep", "*layers.1.mlp.experts.3.*"]).good();
    let mixed = tensors(&some);
    let (shape, data) = &mixed[&format!("{prefix}.experts.3.up_proj.weight")];
    let (_, all) = &before[&format!("{prefix}.experts.gate_up_proj")];
    let [rows, columns] = shape[..] else { panic!("{shape:?}") };
    for (r, c) in [(0, 0), (rows - 1, columns - 1), (5, 7)] {
        let at = 3 * columns * 2 * rows + c * 2 * rows + 2 * r + 1;
        assert_eq!(data[2 * (r * columns + c)..][..2], all[2 * at..][..2]);
    }
    fewbit(&["inspect", some.to_str().unwrap(), "--json"]).good();
}

#[test]
fn experts_that_no_token_reaches_are_said_and_rounded() {
    let dir = tempfile::tempdir().unwrap();
    for shape in ["qwen3-moe", "gpt-oss"] {
        let original = model_of(dir.path(), shape, (24, 2));
        for recipe in ["gptq", "awq", "quantease"] {
            let out = dir.path().join(format!("{shape}-{recipe}"));
            let more: &[&str] = &["--samples", "1", "--length", "6"];
            let search: &[&str] =
                if recipe == "awq" { &["--set", "transform.steps=2", "--set", "grid.steps=4"] } else { &[] };
            let report = quantize(&original, recipe, &out, &[more, search].concat()).good();
            for (i, block) in report["blocks"].as_array().unwrap().iter().enumerate() {
                let counts = block["tokens_per_expert"].as_array().unwrap();
                let none = counts.iter().filter(|n| n.as_u64() == Some(0)).count();
                assert!(none >= 12, "{counts:?}");
                let warning = block["warnings"][0].as_str().unwrap();
                let start = format!("block {i}: 24 of 24 experts got fewer calibration tokens");
                assert!(warning.starts_with(&start) && warning.contains(&format!("{none} none at all")), "{warning}");
            }
            let logits = fewbit(&["logits", out.to_str().unwrap(), "--ids", "1,2,3,400,500", "--json"]).good();
            let rows = logits["logits"].as_array().unwrap();
            assert!(rows.iter().flat_map(|r| r.as_array().unwrap()).all(|v| v.as_f64().is_some_and(f64::is_finite)));
        }
    }
}

/// Experts of another domain than the calibration's are rounded worse; a text of both mends it.
#[test]
fn a_calibration_of_both_domains_mends_what_one_alone_does() {
    let dir = tempfile::tempdir().unwrap();
    let original = model_of(dir.path(), "qwen3-moe", (24, 2));
    let path = |name: &str| dir.path().join(name);
    // Domains that share no token.
    let [one, other] = ["zoo ", "big red "].map(|words| words.repeat(20));
    for (name, text) in [("one", &one), ("other", &other), ("both", &(one.clone() + &other))] {
        fs::write(path(name), text.repeat(15)).unwrap();
    }
    let measured = |text: &str| {
        let (out, text) = (path(&format!("out-{text}")), path(text));
        let more = ["--bits", "2", "--calibration", text.to_str().unwrap(), "--samples", "8", "--length", "64"];
        let report = quantize(&original, "gptq", &out, &more).good();
        let counts =
            report["blocks"].as_array().unwrap().iter().map(|b| b["tokens_per_expert"].as_array().unwrap().clone());
        let unseen = counts.flatten().filter(|n| n.as_u64() == Some(0)).count();
        (unseen, kl(out.to_str().unwrap(), &original, &path("other")))
    };
    let [(most, alone), (fewer, mixed)] = ["one", "both"].map(measured);
    println!("{most} unseen, {alone}; {fewer} unseen, {mixed}");
    assert!(fewer < most && mixed < 0.9 * alone, "{most} unseen, {alone}; {fewer} unseen, {mixed}");
}

#[test]
fn threads_do_not_change_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    let original = model(dir.path(), "gpt-oss");
    for recipe in ["gptq", "awq"] {
        let run = |threads: &str| {
            let out = dir.path().join(format!("{recipe}-{threads}"));
            let args = ["quantize", &original, "--recipe", recipe, "--out", out.to_str().unwrap(), "--samples", "5"];
            let more = ["--length", "60", "--group", "32", "--threads", threads];
            let ran = fewbit(&[&args[..], &more].concat());
            assert_eq!(ran.code, Some(0), "{}", ran.stderr);
            files(&out)
        };
        same_bytes(&run("3"), &run("1"), recipe);
    }
}

#[test]
fn what_is_never_rounded_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let original = model(dir.path(), "mixtral");
    let out = dir.path().join("out");
    quantize(&original, "rtn", &out, &["--override", "*block_sparse_moe.gate:bits=8"])
        .refused(&["which every recipe keeps as it is", "block_sparse_moe.gate"]);
    let args = ["make-model", "x", "--shape", "mixtral", "--experts", "3", "--experts-per-token", "4"];
    fewbit(&args).refused(&["4 of 3 experts"]);
    fewbit(&["make-model", "x", "--experts", "3"]).refused(&["has no experts"]);

    let config = Path::new(&original).join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 7")).unwrap();
    fewbit(&["inspect", &original]).refused(&["`num_experts_per_tok` (7) is more than `num_local_experts` (6)"]);
}

#[test]
fn another_grid_for_one_expert() {
    let dir = tempfile::tempdir().unwrap();
    let original = model(dir.path(), "qwen3-moe");
    let out = dir.path().join("out");
    let report = quantize(&original, "gptq", &out, &["--override", "*layers.0.mlp.experts.2.*:bits=8"]).good();
    for block in report["blocks"].as_array().unwrap() {
        for linear in block["linears"].as_array().unwrap() {
            let is_wide = linear["name"].as_str().unwrap().contains("layers.0.mlp.experts.2.");
            assert_eq!(linear["grid"].as_str().unwrap().starts_with("w8"), is_wide, "{linear}");
        }
    }
    let text = fewbit(&["inspect", out.to_str().unwrap()]).stdout;
    for line in ["  mlp.experts.0-1.gate_proj", "  mlp.experts.2.gate_proj", "  mlp.experts.3-5.gate_proj"] {
        assert!(text.contains(line), "{text}");
    }
}
