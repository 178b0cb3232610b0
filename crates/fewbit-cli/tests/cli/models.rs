//! Logits and tokens of real files against other programs' figures.

use std::path::{Path, PathBuf};

use crate::{fewbit, shared};

/// The tensors `f32` and `i32` of a safetensors file, as f64.
fn tensor(path: &Path, name: &str) -> Vec<f64> {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let at = |i: usize| 8 + length + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
    let words = bytes[at(0)..at(1)].as_chunks::<4>().0.iter();
    match header[name]["dtype"].as_str() {
        Some("F32") => words.map(|w| f64::from(f32::from_le_bytes(*w))).collect(),
        _ => words.map(|w| f64::from(i32::from_le_bytes(*w))).collect(),
    }
}

fn list(ids: &[f64]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn last_logits(model: &str, ids: &[f64], arithmetic: &str) -> Vec<f64> {
    let args = ["logits", model, "--ids", &list(ids), "--last", "1", "--arithmetic", arithmetic, "--json"];
    fewbit(&args).good()["logits"][0].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn the_bundled_model_gives_its_own_golden_logits() {
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo-model/golden.safetensors"));
    let bytes = std::fs::read(golden).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let names: Vec<&String> = header.as_object().unwrap().keys().filter(|k| *k != "__metadata__").collect();
    let mut checked = 0;
    for name in names.iter().filter(|n| n.rsplit('.').next() == Some("ids")) {
        let wanted = tensor(golden, &name.replace(".ids", ".logits"));
        let found = last_logits("demo", &tensor(golden, name), "exact");
        let last = &wanted[wanted.len() - found.len()..];
        let worst = found.iter().zip(last).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-3, "{name}: {worst}");
        checked += 1;
    }
    assert!(checked > 0, "{names:?}");
}

/// A file of `tools/fetch-models.sh`: its folder is named by `FEWBIT_MODELS`, or is the user's cache.
fn fetched(name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache/fewbit/models"));
    let folder = std::env::var_os("FEWBIT_MODELS").map(PathBuf::from).or(cache)?;
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there (tools/fetch-models.sh gets it)", path.display());
    None
}

#[test]
fn gguf_files_give_the_logits_of_their_weights() {
    for (file, golden) in [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct-q4_1"),
        ("gemma-3-270m-q4_k_m.gguf", "gemma-3-270m-q4_k_m"),
    ] {
        let golden = shared(&format!("conformance/gguf/models/{golden}.golden.safetensors"));
        let (Some(model), Some(golden)) = (fetched(file), golden) else { continue };
        let model = model.display().to_string();
        let ids = tensor(&golden, "english.input_ids");
        let (tensor_name, stride) = if file.starts_with("Smol") {
            ("english.exact.logits_last", 1)
        } else {
            ("english.exact.logits_sample", 32)
        };
        let wanted = tensor(&golden, tensor_name);
        let found: Vec<f64> = last_logits(&model, &ids, "weights-only").into_iter().step_by(stride).collect();
        let last = &wanted[wanted.len() - found.len()..];
        let worst = found.iter().zip(last).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-3, "{file}: {worst}");
        // 8-bit activations stay near.
        let fast = last_logits(&model, &ids, "fast");
        let mean = fast.iter().step_by(stride).zip(last).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / last.len() as f64;
        assert!(mean.sqrt() < 0.6, "{file}: {}", mean.sqrt());
    }
}
