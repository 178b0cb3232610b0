//! LoRA adapters beside models, quantized ones among them.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::fewbit;

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests");
const IDS: &str = "5,1,9,33,7,60,2,41,18,3";

fn family(name: &str) -> String {
    format!("{TESTS}/families/{name}")
}

fn adapter(name: &str) -> String {
    format!("{TESTS}/adapters/{name}")
}

/// Logits of all positions.
fn logits(model: &str, more: &[&str]) -> Vec<f32> {
    let args = ["logits", model, "--ids", IDS, "--arithmetic", "exact", "--json"];
    let object = fewbit(&[&args[..], more].concat()).good();
    let rows = object["logits"].as_array().unwrap().iter();
    rows.flat_map(|row| row.as_array().unwrap()).map(|v| v.as_f64().unwrap() as f32).collect()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    let greatest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / greatest
}

/// Beside codes an adapter gives what it gives beside the floats that the codes stand for.
#[test]
fn a_quantized_model_is_adapted_as_its_decoded_weights_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    for (recipe, case) in [("rtn", "llama"), ("lqer", "llama"), ("rtn", "gpt2")] {
        let (small, plain) = (path(&format!("{recipe}-{case}")), path(&format!("{recipe}-{case}-plain")));
        let good = |args: &[&str]| {
            let ran = fewbit(args);
            assert_eq!(ran.code, Some(0), "{recipe}, {case}: {}", ran.stderr);
        };
        // A correction of low rank beside the codes already, which needs no text when all errors count alike.
        let correction = ["--set", "residual.rank=3", "--set", "residual.weighting=none"];
        let quantize = ["quantize", &family(case), "--recipe", recipe, "--out", &small, "--bits", "4", "--group", "16"];
        let more = if recipe == "lqer" { &correction[..] } else { &[] };
        good(&[&quantize[..], more, &["--format", "fewbit", "--quiet"]].concat());
        good(&["convert", &small, &plain, "--format", "plain", "--quiet"]);
        let adapter = adapter(case);
        let [of_small, of_plain] = [&small, &plain].map(|model| logits(model, &["--lora", &adapter]));
        let worst = difference(&of_small, &of_plain);
        assert!(worst < 2e-5, "{recipe}, {case}: {worst}");
        let without = logits(&small, &[]);
        assert!(difference(&without, &of_small) > 0.05, "the adapter does something");
        assert!(difference(&logits(&family(case), &["--lora", &adapter]), &of_small) > 1e-4, "and so do the codes");
    }
}

#[test]
fn the_scale_stands_behind_a_colon() {
    let (model, adapter) = (family("llama"), adapter("llama-gguf"));
    let file = format!("{adapter}/adapter.gguf");
    let whole = logits(&model, &["--lora", &adapter]);
    let halves = logits(&model, &["--lora", &format!("{adapter}:0.5"), "--lora", &format!("{file}:0.5")]);
    assert!(difference(&halves, &whole) < 1e-5);
    let none = logits(&model, &["--lora", &format!("{file}:0")]);
    assert_eq!(none, logits(&model, &[]));
}

#[test]
fn every_command_that_runs_a_model_takes_adapters() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = demo_adapter(dir.path());
    let lora = ["--lora", &adapter];
    let of = |args: &[&str]| [fewbit(args).good(), fewbit(&[args, &lora].concat()).good()];
    let run =
        ["run", "demo", "--raw", "--prompt", "Once upon a time", "--max-tokens", "12", "--temperature", "0", "--json"];
    let [without, with] = of(&run);
    assert_ne!(without["text"], with["text"]);
    let drafted = fewbit(&[&run[..], &lora, &["--draft", "ngram"]].concat()).good();
    assert_eq!(drafted["text"], with["text"]);

    let text = dir.path().join("text.txt");
    fs::write(&text, include_str!("../../../../assets/evaluation.txt").split_at(4000).0).unwrap();
    let eval = ["eval", "demo", "--text", text.to_str().unwrap(), "--length", "64", "--json"];
    let [without, with] = of(&eval);
    assert!(with["perplexity"].as_f64() > without["perplexity"].as_f64(), "{with}");
    let against = fewbit(&[&eval[..], &lora, &["--against", "demo"]].concat()).good();
    assert!(against["kl_mean"].as_f64().unwrap() > 0.01, "the original has no adapter: {against}");
    let card = fewbit(&[&eval[..], &lora, &["--against", "demo", "--card"]].concat());
    assert!(card.code == Some(2) && card.stderr.contains("cannot be used with"), "{}", card.stderr);

    let bench = ["bench", "demo", "--prompt", "8", "--generate", "4", "--rounds", "1", "--threads", "1", "--json"];
    let [without, with] = of(&bench);
    let bytes = |v: &Value| v["bytes_per_token"].as_f64().unwrap();
    assert!(bytes(&with) > bytes(&without), "{} {}", bytes(&with), bytes(&without));
}

/// An adapter of rank 2 for the queries and outputs of the bundled model's first block.
fn demo_adapter(dir: &Path) -> String {
    let folder = dir.join("adapter");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("adapter_config.json"), r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2}"#).unwrap();
    let inspected = fewbit(&["inspect", "demo", "--json"]).good();
    let tensors = inspected["tensors"].as_array().unwrap();
    let shape = |name: &str| -> [usize; 2] {
        let tensor = tensors.iter().find(|t| t["name"] == format!("{name}.weight")).unwrap();
        [0, 1].map(|i| tensor["shape"][i].as_u64().unwrap() as usize)
    };
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for module in ["q_proj", "o_proj"].map(|m| format!("model.layers.0.self_attn.{m}")) {
        let [out, columns] = shape(&module);
        for (end, shape) in [("lora_A", [2, columns]), ("lora_B", [out, 2])] {
            let start = data.len();
            data.extend((0..shape[0] * shape[1]).flat_map(|i| (((start + i) as f32 * 0.7).sin()).to_le_bytes()));
            let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(format!("base_model.model.{module}.{end}.weight"), entry);
        }
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
    folder.display().to_string()
}

#[test]
fn what_cannot_be_added_is_refused() {
    let refused = |args: &[&str], words: &[&str]| {
        fewbit(&[&["logits", &family("llama"), "--ids", "1"][..], args].concat()).refused(words);
    };
    refused(&["--lora", "/nowhere/at/all"], &["/nowhere/at/all", "check the path"]);
    refused(&["--lora", &adapter("phi3")], &["`base_model.model.model.layers.0.mlp.down_proj.lora_", "has shape"]);
    refused(&["--lora", &adapter("gpt2")], &["c_attn.lora_A.weight`", "belongs to no matrix of the model"]);
    refused(&["--lora", &format!("{}:nan", adapter("llama"))], &["the scale is NaN"]);
    refused(&["--lora", &family("qwen2")], &["holds no adapter"]);
    let dir = tempfile::tempdir().unwrap();
    let as_model = fewbit(&["logits", &demo_adapter(dir.path()), "--ids", "1"]);
    as_model.refused(&["holds an adapter, no model", "--lora"]);
}

/// What a recipe folded into the weights changes what an adapter sees.
#[test]
fn a_folded_transform_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out").display().to_string();
    let text = ["--calibration", "bundled", "--samples", "2", "--length", "32", "--quiet"];
    let quantize = ["quantize", "demo", "--recipe", "awq", "--out", &out];
    let ran = fewbit(&[&quantize[..], &text].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let adapter = demo_adapter(dir.path());
    let ran = fewbit(&["logits", &out, "--ids", "1", "--lora", &adapter]);
    assert!(ran.code == Some(0) && ran.stderr.contains("`transform.scale` changed what the linears"), "{}", ran.stderr);
    assert!(!fewbit(&["logits", &out, "--ids", "1"]).stderr.contains("changed"));
}
