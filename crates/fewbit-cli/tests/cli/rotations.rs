//! Rotations leave every family's function as it is, before anything is rounded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fewbit_store::Safetensors;
use serde_json::{Map, Value, json};

use crate::bench::{Bench, files, same_bytes};
use crate::fewbit;

/// Largest difference of a logit, as a share of their root mean square: what rounding in f32 makes of these models.
const TOLERANCE: f64 = 3e-5;
const IDS: &str = "1,5,9,3,17,2,30,11";

fn families() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/families");
    let mut all: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    all.sort();
    assert!(all.len() >= 8, "{all:?}");
    all
}

/// A copy of a folder with all tensors in f32, so that nothing but the rotation is seen.
fn in_f32(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|e| e.unwrap().path()) {
        let target = to.join(entry.file_name().unwrap());
        let is_shard = |name: &str| name.starts_with("model") && name.ends_with(".safetensors");
        if !entry.file_name().and_then(|n| n.to_str()).is_some_and(is_shard) {
            fs::copy(&entry, &target).unwrap();
            continue;
        }
        let (mut header, mut data) = (Map::new(), Vec::new());
        let shard = Safetensors::open(&entry).unwrap();
        for name in shard.names() {
            let tensor = shard.tensor(name).unwrap();
            // Masks that older exporters stored.
            let Ok(values) = tensor.to_f32() else { continue };
            let at = data.len();
            data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            let spans = json!({ "dtype": "F32", "shape": tensor.shape, "data_offsets": [at, data.len()] });
            header.insert(name.to_owned(), spans);
        }
        let header = serde_json::to_vec(&header).unwrap();
        fs::write(target, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
    }
}

fn logits(model: &Path) -> Vec<f64> {
    let ran = fewbit(&["logits", model.to_str().unwrap(), "--ids", IDS, "--arithmetic", "weights-only", "--json"]);
    let logits = ran.good()["logits"].take();
    let rows = logits.as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap().clone());
    rows.map(|v| v.as_f64().unwrap()).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let rms = (a.iter().map(|v| v * v).sum::<f64>() / a.len() as f64).sqrt();
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / rms
}

/// Families whose stream cannot be rotated: norms stand between it and the linears, or learned positions are added.
const FIXED: [&str; 8] = ["gemma2", "gemma3", "gemma3-six", "glm4", "gpt2", "gpt2-inner", "olmo2", "opt"];

/// A recipe that rotates these spaces and rounds nothing.
fn recipe(kind: &str, spaces: &[&str]) -> String {
    let head = "name = \"rotate\"\ncite = \"nobody\"\nsummary = \"a test\"\ncost = \"little\"\n".to_owned();
    spaces.iter().fold(head, |text, space| {
        format!("{text}[[pass]]\nuse = \"transform.rotate\"\nspace = \"{space}\"\nkind = \"{kind}\"\n")
    })
}

#[test]
fn rotations_leave_the_logits_of_every_family() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out, text) = (dir.path().join("model"), dir.path().join("out"), dir.path().join("recipe.toml"));
    let run = |recipe: String, more: &[&str]| {
        fs::write(&text, recipe).unwrap();
        let [model, out, text] = [&model, &out, &text].map(|p| p.to_str().unwrap());
        fewbit(&[&["quantize", model, "--out", out, "--recipe", text, "--force", "--json"][..], more].concat())
    };
    for family in families() {
        let name = family.file_name().unwrap().to_string_lossy().into_owned();
        in_f32(&family, &model);
        let before = logits(&model);
        for kind in ["hadamard", "random"] {
            let ran = run(recipe(kind, &["residual", "heads"]), &[]);
            let spaces: &[&str] = if FIXED.contains(&&*name) {
                ran.refused(&["a rotation of the", "stream"]);
                &["heads"]
            } else {
                ran.good();
                &["residual", "heads"]
            };
            run(recipe(kind, spaces), &[]).good();
            let off = distance(&before, &logits(&out));
            println!("{name} {kind}: {off:.1e}");
            assert!(off < TOLERANCE, "{name} {kind}: {off}");
            let config: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
            assert_eq!(
                config["tie_word_embeddings"],
                json!(name.starts_with("gemma") || name.starts_with("gpt2") || name == "opt"),
                "{name}"
            );
            let made = files(&out);
            run(recipe(kind, spaces), &["--threads", "3"]).good();
            same_bytes(&made, &files(&out), &format!("{name} {kind} with another number of threads"));
            run(recipe(kind, spaces), &["--seed", "5"]).good();
            let shard = made.keys().find(|f| f.ends_with(".safetensors")).unwrap();
            assert!(made[shard] != files(&out)[shard], "{name} {kind}: the seed does not count");
        }
        fs::remove_dir_all(&model).unwrap();
    }
}

#[test]
fn a_folded_demo_model_keeps_its_perplexity() {
    let dir = tempfile::tempdir().unwrap();
    let (out, text) = (dir.path().join("out"), dir.path().join("recipe.toml"));
    fs::write(&text, recipe("hadamard", &["residual", "heads"])).unwrap();
    let [out, text] = [&out, &text].map(|p| p.to_str().unwrap());
    fewbit(&["quantize", "demo", "--out", out, "--recipe", text, "--json"]).good();
    let stories = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/evaluation.txt");
    let perplexity = |model: &str| {
        let ran = fewbit(&["eval", model, "--text", stories, "--length", "256", "--blocks", "12", "--json"]);
        ran.good()["perplexity"].as_f64().unwrap()
    };
    let (before, after) = (perplexity("demo"), perplexity(out));
    println!("perplexity {before:.4}, rotated {after:.4}");
    assert!((before - after).abs() < 0.01, "{before} became {after}");
}

#[test]
fn tokens_that_count_the_same_are_no_weights_at_all() {
    let bench = Bench::new("2");
    let rsq = |name: &str, more: &[&str]| bench.whole(name, &[&["--recipe", "rsq"][..], more].concat());
    let shards = |mut files: BTreeMap<String, Vec<u8>>| {
        files.retain(|name, _| name.ends_with(".safetensors"));
        files
    };
    let even = shards(rsq("even", &["--set", "calibration.least=1"]));
    let plain = bench.whole("plain", &["--recipe", "quarot", "--bits", "3"]);
    same_bytes(&even, &shards(plain), "weights of one");
    let weighted = shards(rsq("weighted", &[]));
    assert!(weighted.iter().any(|(name, bytes)| *bytes != even[name]), "the weights do not count");
    same_bytes(&weighted, &shards(rsq("threads", &["--threads", "3"])), "another number of threads");
    bench
        .run(&bench.path("wrong"), &["--recipe", "rsq", "--set", "calibration.least=2"])
        .refused(&["calibration.least", "0 to 1"]);
}

/// Families of which eight bits alone, without any map, move some logits as far: tokens go to other experts, or what 64
/// layers round adds up.
const FRAGILE: [&str; 3] = ["cohere-plus-deep", "deepseek_v2-lite-deep", "qwen3_moe-every"];

/// What no rotation reaches is mapped while the model runs: eight bits then say the same as the original.
#[test]
fn inputs_of_every_family_take_hadamard_matrices() {
    let dir = tempfile::tempdir().unwrap();
    let (out, text) = (dir.path().join("out"), dir.path().join("recipe.toml"));
    let rounds = "[[pass]]\nuse = \"transform.hadamard\"\n[[pass]]\nuse = \"grid.int\"\nbits = 8\ngroup = \"row\"\n[[pass]]\nuse = \"solve.nearest\"\n";
    for family in families() {
        let name = family.file_name().unwrap().to_string_lossy().into_owned();
        let is_fixed = FIXED.contains(&&*name);
        let spaces: &[&str] = if is_fixed { &["heads"] } else { &["residual", "heads"] };
        fs::write(&text, recipe("hadamard", spaces) + rounds).unwrap();
        let [model, out, text] = [&family, &out, &text].map(|p| p.to_str().unwrap());
        fewbit(&["quantize", model, "--out", out, "--recipe", text, "--force", "--json"]).good();
        let off = distance(&logits(&family), &logits(Path::new(out)));
        println!("{name}: {off:.1e}");
        assert!(off < 0.2 || FRAGILE.contains(&&*name), "{name}: {off}");
        let index = fs::read_to_string(Path::new(out).join("model.safetensors.index.json")).unwrap();
        let has_map = |linear: &str| {
            let is_first = |l: &str| l.contains(".layers.0.") || l.contains(".h.0.");
            index.lines().any(|l| is_first(l) && l.contains(linear) && l.contains("input.0.hadamard"))
        };
        let (down, query) = match &*name {
            n if n.starts_with("gpt_neox") || n.starts_with("falcon") => ("dense_4h_to_h", "query_key_value"),
            "opt" => ("fc2", "q_proj"),
            n if n.starts_with("gpt2") => ("mlp.c_proj", "attn.c_attn"),
            n if n.starts_with("phi3") => ("down_proj", "qkv_proj"),
            _ => ("down_proj", "q_proj"),
        };
        assert!(has_map(down) || index.contains("w2.input.0.hadamard"), "{name}: {index}");
        assert_eq!(has_map(query), is_fixed, "{name}: what a rotation reaches needs no map");
        assert!(!has_map("o_proj") && !has_map("attention.dense.") && !has_map("attn.c_proj"), "{name}");
    }
}
