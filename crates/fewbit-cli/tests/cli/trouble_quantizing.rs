//! What really happens to people who quantize: cases of the reference material, and the same kinds on our own models.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bench::{Bench, files, same_bytes, small_model};
use crate::trouble::{case, text};
use crate::{Ran, fewbit, shared};

const EVALUATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/evaluation.txt");
const FAMILIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/families");

fn quantize(model: &str, recipe: &str, out: &Path, more: &[&str]) -> Ran {
    let args = ["quantize", model, "--recipe", recipe, "--out", out.to_str().unwrap(), "--json"];
    fewbit(&[&args[..], more].concat())
}

/// A JSON file of a written folder.
fn json(out: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(out.join(name)).unwrap()).unwrap()
}

/// All tensors of a folder: type, shape and bytes by name.
fn tensors(folder: &Path) -> BTreeMap<String, (Value, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for (_, bytes) in files(folder).iter().filter(|(name, _)| name.ends_with(".safetensors")) {
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..start]).unwrap();
        for (name, mut t) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
            let at = |i: usize| start + t["data_offsets"][i].as_u64().unwrap() as usize;
            let content = bytes[at(0)..at(1)].to_vec();
            t.as_object_mut().unwrap().remove("data_offsets");
            assert!(all.insert(name, (t, content)).is_none());
        }
    }
    all
}

#[test]
fn inputs_that_are_always_zero_do_no_harm() {
    let Some((dir, _)) = case("quant-01") else { return };
    let model = text(dir.path());
    let divergence = |recipe: &str| {
        let out = dir.path().join(recipe);
        let report = quantize(&model, recipe, &out, &["--group", "row", "--samples", "8", "--length", "128"]).good();
        assert_eq!(report["blocks"].as_array().unwrap().len(), 5);
        let args = ["eval", out.to_str().unwrap(), "--against", &model, "--text", EVALUATION, "--length", "128"];
        fewbit(&[&args[..], &["--blocks", "12", "--json"]].concat()).good()["kl_mean"].as_f64().unwrap()
    };
    let [rtn, gptq, awq] = ["rtn", "gptq", "awq"].map(divergence);
    assert!(gptq < rtn && awq < rtn, "{rtn} {gptq} {awq}");
}

#[test]
fn numbers_that_are_none_are_named_before_the_work() {
    for (id, words) in [
        ("quant-02", ["model.layers.1.mlp.up_proj.weight", "NaN at [5, 7]"]),
        ("quant-03", ["model.layers.3.self_attn.o_proj.weight", "inf at [0, 1]"]),
    ] {
        let Some((dir, _)) = case(id) else { return };
        let out = dir.path().join("out");
        for recipe in ["rtn", "gptq", "awq"] {
            quantize(&text(dir.path()), recipe, &out, &["--group", "row"]).refused(&words);
        }
        assert!(!out.exists() && !dir.path().join("out.partial").exists());
    }
}

#[test]
fn texts_that_are_too_short_say_what_they_give() {
    let (Some((dir, _)), Some(model)) = (case("quant-06"), shared("models/TinyStories-656K")) else { return };
    let out = dir.path().join("out");
    let run = |name: &str, more: &[&str]| {
        let file = text(dir.path().join(name));
        quantize(&text(&model), "gptq", &out, &[&["--calibration", &file], more].concat())
    };
    run("empty.txt", &[]).refused(&["empty.txt", "0 tokens"]);
    run("blank.txt", &[]).refused(&["blank.txt", "0 tokens"]);
    run("latin1.txt", &[]).refused(&["latin1.txt", "byte 0xE9 at offset 3"]);
    run("short.txt", &[]).refused(&["short.txt", "has 9 tokens", "`--length 10`"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
    // Ten tokens for matrices of 128 and 384 columns: far from full rank.
    let ran = run("short.txt", &["--length", "10"]);
    assert_eq!(ran.good()["blocks"].as_array().unwrap().len(), 2);
    assert!(ran.stderr.contains("gives 1 sequences of 10 tokens, where 128 were asked for"), "{}", ran.stderr);
    assert_eq!(json(&out, "fewbit.json")["calibration"]["samples"], 1);
}

#[test]
fn damping_is_raised_where_it_is_not_enough_and_said_for_each_linear() {
    let bench = Bench::new("2");
    let out = bench.path("out");
    // 96 tokens for the 128 columns of a `down_proj`.
    let ran = bench.run(&out, &["--recipe", "gptq", "--set", "solve.damping=1e-12", "--json"]);
    let report = ran.good();
    let warnings = |i: usize| report["blocks"][i]["warnings"].as_array().unwrap().clone();
    for i in 0..2 {
        let of_block: Vec<String> = warnings(i).iter().map(|w| w.as_str().unwrap().to_owned()).collect();
        let named = format!("model.layers.{i}.mlp.down_proj");
        assert!(of_block.iter().any(|w| w.contains(&named) && w.contains("damping")), "{of_block:?}");
        assert!(of_block.iter().all(|w| ran.stderr.contains(w)), "{}", ran.stderr);
    }
}

#[test]
fn biases_are_carried_over() {
    let Some((dir, _)) = case("quant-09") else { return };
    let made = tempfile::tempdir().unwrap();
    let out = made.path().join("out");
    let biases = |folder: &Path| {
        let all = tensors(folder).into_iter();
        all.filter(|(name, _)| name.rsplit_once('.').is_some_and(|(_, last)| last == "bias"))
            .collect::<BTreeMap<_, _>>()
    };
    for (recipe, format) in [("gptq", "fewbit"), ("rtn", "compressed-tensors")] {
        let more = ["--group", "row", "--format", format, "--samples", "4", "--length", "32", "--force"];
        quantize(&text(dir.path()), recipe, &out, &more).good();
        let after = biases(&out);
        assert_eq!(after.len(), 15);
        assert!(after == biases(dir.path()), "{recipe}: {:?}", after.keys());
    }
}

#[test]
fn groups_that_do_not_divide_are_refused_with_those_that_do() {
    let Some(model) = shared("models/stories260K") else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = |group: &str| quantize(&text(&model), "rtn", &dir.path().join(group), &["--group", group]);
    let (attention, mlp) = ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight");
    for (group, tensor, rows, fit) in [
        ("128", attention, "64", "1, 2, 4, 8, 16, 32, 64, or `row`"),
        ("32", mlp, "172", "1, 2, 4, 43, 86, 172, or `row`"),
        ("64", mlp, "172", "1, 2, 4, 43, 86, 172, or `row`"),
        ("43", attention, "64", "1, 2, 4, 8, 16, 32, 64, or `row`"),
    ] {
        run(group).refused(&[tensor, &format!("group size {group} does not divide rows of {rows}"), fit]);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    for group in ["4", "row", "-1", "tensor"] {
        let args = format!("--group={group}");
        quantize(&text(&model), "rtn", &dir.path().join(group), &[&args]).good();
    }
}

#[test]
fn memory_depends_neither_on_depth_nor_on_the_amount_of_text() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text.txt");
    fs::write(&file, fs::read_to_string(EVALUATION).unwrap().repeat(2)).unwrap();
    let peak = |layers: &str, samples: &str| {
        let model = dir.path().join(layers);
        if !model.exists() {
            let args = ["make-model", model.to_str().unwrap(), "--layers", layers, "--hidden", "256", "--mlp", "512"];
            let more = ["--heads", "4", "--kv-heads", "4", "--vocabulary", "4096"];
            assert_eq!(fewbit(&[&args[..], &more].concat()).code, Some(0));
        }
        let out = dir.path().join("out");
        let more = ["--calibration", file.to_str().unwrap(), "--samples", samples, "--length", "128", "--force"];
        let report = quantize(&text(&model), "gptq", &out, &more).good();
        assert_eq!(json(&out, "fewbit.json")["calibration"]["samples"].to_string(), samples);
        report["peak_anon_bytes"].as_f64().unwrap()
    };
    // A block is 2.6 MB in f32; the residual stream of 128 sequences is 16.8 MB.
    let base = peak("2", "16");
    for (layers, samples) in [("10", "16"), ("2", "128")] {
        let more = peak(layers, samples);
        assert!(more < base + 8e6, "{layers} layers, {samples} samples: {more} bytes, and {base} before");
    }
}

#[test]
fn text_of_the_model_s_own_is_the_same_for_all_threads_and_another_for_each_seed() {
    let dir = tempfile::tempdir().unwrap();
    let model = small_model(&dir.path().join("model"), "2", "0");
    let run = |name: &str, seed: &str, threads: &str| {
        let out = dir.path().join(name);
        let more = ["--calibration", "self", "--samples", "2", "--length", "24", "--group", "32", "--seed", seed];
        quantize(&model, "gptq", &out, &[&more[..], &["--threads", threads]].concat()).good();
        files(&out)
    };
    let first = run("a", "7", "1");
    same_bytes(&first, &run("b", "7", "2"), "two threads");
    let other = run("c", "8", "1");
    assert!(first["model-00001-of-00003.safetensors"] != other["model-00001-of-00003.safetensors"]);
}

#[test]
fn a_head_that_shares_the_embedding_becomes_a_matrix_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let more = ["--bits", "8", "--group", "row", "--override", "lm_head:bits=8"];
    let logits = |model: &str| {
        let args = ["logits", model, "--ids", "0,100,200", "--last", "1", "--arithmetic", "weights-only", "--json"];
        let row = fewbit(&args).good()["logits"][0].take();
        row.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>()
    };
    for format in ["compressed-tensors", "fewbit"] {
        let out = dir.path().join(format);
        let args = [&more[..], &["--format", format]].concat();
        let plan = quantize("demo", "rtn", &out, &[&args[..], &["--dry-run"]].concat()).good();
        let said = "head and embedding share a matrix";
        assert!(plan["notes"].as_array().unwrap().iter().any(|n| n.as_str().unwrap().contains(said)), "{plan}");
        let ran = quantize("demo", "rtn", &out, &args);
        let report = ran.good();
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
        assert_eq!(json(&out, "config.json")["tie_word_embeddings"], false);
        let stored = tensors(&out);
        let original = tensors(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo-model")));
        assert!(stored["model.embed_tokens.weight"] == original["model.embed_tokens.weight"]);
        assert!(stored.keys().any(|k| k.starts_with("lm_head.") && k != "lm_head.weight"), "{:?}", stored.keys());
        assert_eq!(report["blocks"][4]["linears"][0]["name"], "lm_head");
        // The embedding counts as stored, 16 bits, and the head, 8 and a little.
        let bytes: usize = stored.values().map(|(_, bytes)| bytes.len()).sum();
        let read = fewbit(&["inspect", out.to_str().unwrap(), "--json"]).good();
        assert_eq!(read["is_tied"], false);
        assert_eq!(read["size_bytes"], bytes);
        let (a, b) = (logits("demo"), logits(out.to_str().unwrap()));
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let apart = norm(&mut a.iter().zip(&b).map(|(x, y)| x - y)) / norm(&mut a.iter().copied());
        assert!(apart > 0.0 && apart < 0.05, "{format}: {apart}");
    }
}

#[test]
fn a_source_that_is_quantized_says_how() {
    let dir = tempfile::tempdir().unwrap();
    let (out, unread) = (dir.path().join("out"), dir.path().join("unread"));
    for (name, what) in [
        ("gptq-w4-g128-sym", "GPTQ 4 bit group 128 symmetric"),
        ("awq-gemm-w4-g128-autoawq", "AWQ 4 bit group 128"),
        ("bnb-nf4-doublequant", "bitsandbytes 4 bit"),
    ] {
        let Some(model) = shared(&format!("conformance/quantized/{name}")) else { return };
        quantize(&text(&model), "rtn", &out, &[]).refused(&["is already quantized", what, "--requantize"]);
        let ran = quantize(&text(&model), "rtn", &out, &["--requantize"]);
        ran.good();
        assert!(ran.stderr.contains("its decoded weights are the original"), "{}", ran.stderr);
        assert_eq!(json(&out, "fewbit.json")["dequantized_first"], true);
        fs::remove_dir_all(&out).unwrap();
        if name.starts_with("awq") {
            fs::create_dir(&unread).unwrap();
            for (name, bytes) in files(&model) {
                fs::write(unread.join(name), bytes).unwrap();
            }
        }
    }
    let mut config = json(&unread, "config.json");
    config["quantization_config"]["quant_method"] = "aqlm".into();
    fs::write(unread.join("config.json"), config.to_string()).unwrap();
    let words = ["model.layers.0.self_attn.q_proj", "`aqlm`", "not read yet"];
    quantize(&text(&unread), "rtn", &out, &["--requantize"]).refused(&words);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn linears_that_runtimes_fuse_need_one_scheme() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for (option, value, words) in [
        ("--keep", "*q_proj", "k_proj 4 bit group 128 asymmetric, q_proj plain"),
        ("--override", "up_proj:bits=8", "gate_proj 4 bit group 128 asymmetric, up_proj 8 bit"),
    ] {
        for more in [&["--dry-run"][..], &["--force"]] {
            let ran = quantize("demo", "rtn", &out, &[&[option, value], more].concat());
            ran.good();
            for layer in 0..4 {
                let notes = ran.stderr.lines().filter(|l| l.contains(&format!("model.layers.{layer}.")));
                let notes: Vec<&str> = notes.collect();
                assert!(notes.len() == 1 && notes[0].contains(words) && notes[0].contains("vLLM"), "{}", ran.stderr);
            }
        }
        // A layout that vLLM does not read has no such note.
        let ran = quantize("demo", "rtn", &out, &[option, value, "--format", "fewbit", "--dry-run"]);
        assert!(ran.code == Some(0) && !ran.stderr.contains("vLLM"), "{}", ran.stderr);
    }
}

#[test]
fn the_configuration_names_what_is_plain_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let kept = ["model.layers.0.self_attn.o_proj", "model.layers.2.mlp.down_proj", "model.layers.3.mlp.down_proj"];
    let keep: Vec<&str> = kept.iter().flat_map(|k| ["--keep", *k]).collect();
    quantize("demo", "rtn", &out, &[&keep[..], &["--format", "compressed-tensors"]].concat()).good();
    let settings = &json(&out, "config.json")["quantization_config"];
    let list = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(list(&settings["ignore"]), [&["lm_head"], &kept[..]].concat());
    assert_eq!(settings["config_groups"].as_object().unwrap().len(), 1);
    // The one group names every kind of linear of these blocks, and no linear by itself that is plain.
    let targets = list(&settings["config_groups"]["group_0"]["targets"]);
    assert!(targets.iter().all(|t| !kept.contains(&t.as_str())), "{targets:?}");
    for name in tensors(&out).keys().filter_map(|n| n.strip_suffix(".weight")).filter(|n| n.ends_with("_proj")) {
        assert!(kept.contains(&name), "{name}");
    }
}

#[test]
fn what_cannot_be_written_is_refused_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("made");
    fs::create_dir(&made).unwrap();
    let blocks = ["--group", "32", "--symmetric", "--set", "grid.scale=f16", "--format", "gguf"];
    let refused = |model: &Path, more: &[&str], words: &[&str]| {
        let out = made.join("out");
        for dry in [&[][..], &["--dry-run"]] {
            quantize(&text(model), "rtn", &out, &[&blocks[..], more, dry].concat()).refused(words);
            assert_eq!(fs::read_dir(&made).unwrap().count(), 0);
        }
    };
    // What llama.cpp does otherwise, and a family that we do not write.
    let folder = |family: &str| PathBuf::from(FAMILIES).join(family);
    refused(&folder("gemma3"), &["--keep", "proj"], &["layer 2 has another window than llama.cpp"]);
    refused(&folder("opt"), &["--keep", "*"], &["GGUF is written for", "this is `opt`"]);
    // A tokenizer that no GGUF file has.
    let model = dir.path().join("lower");
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo-model"));
    fs::create_dir(&model).unwrap();
    for (name, bytes) in files(source) {
        fs::write(model.join(name), bytes).unwrap();
    }
    let mut tokenizer = json(&model, "tokenizer.json");
    tokenizer["normalizer"] = serde_json::json!({"type": "Lowercase"});
    fs::write(model.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    refused(&model, &[], &["lower`", "other ids than the tokenizer", "--format fewbit"]);
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    refused(&model, &[], &["lower`", "tokenizer.json"]);
    if let Some(tiny) = shared("models/TinyStories-656K") {
        refused(&tiny, &[], &["TinyStories-656K`", "other ids than the tokenizer"]);
    }
}

#[test]
fn formats_that_cannot_hold_a_model_are_refused_in_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let sizes = ["--layers", "1", "--hidden", "64", "--mlp", "172", "--heads", "4", "--kv-heads", "2"];
    let made = fewbit(&[&["make-model", &text(&model), "--shape", "tinyllama-1.1b"], &sizes[..]].concat());
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    let out = dir.path().join("out");
    let refused = |model: &str, recipe: &str, more: &[&str], words: &[&str]| {
        for dry in [&[][..], &["--dry-run"]] {
            quantize(model, recipe, &out, &[more, dry].concat()).refused(words);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    };
    // Rows of its matrices do not fill words.
    refused(&text(&model), "rtn", &["--group", "4", "--format", "awq"], &["awq", "172 outputs", "words of 8"]);
    let symmetric = ["--group", "4", "--symmetric", "--format", "gptq"];
    refused(&text(&model), "rtn", &symmetric, &["gptq", "[172, 64]", "words of 32"]);
    // What happens while the model runs.
    for format in ["gptq", "gptq_v2"] {
        refused("demo", "smoothquant-w8a8", &["--format", format], &["inputs that are rounded"]);
    }
    refused("demo", "fp8-static", &["--format", "fp8"], &["fp8", "keys and values"]);
}

/// Multiplies a tensor of F32 in a file of safetensors.
fn multiply(path: &Path, tensor: &str, factor: f32) {
    let mut bytes = fs::read(path).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    assert_eq!(header[tensor]["dtype"], "F32");
    let at = |i: usize| start + header[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    for value in bytes[at(0)..at(1)].as_chunks_mut::<4>().0 {
        *value = (f32::from_le_bytes(*value) * factor).to_le_bytes();
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn weights_that_no_scale_reaches_are_refused_before_the_work() {
    let (down, up) = ("model.layers.1.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight");
    for (tensor, factor, words) in [(up, 1e9, "holds weights up to"), (down, 1e-9, "holds no weight above")] {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        for (name, bytes) in files(&PathBuf::from(FAMILIES).join("qwen3")) {
            fs::write(model.join(name), bytes).unwrap();
        }
        multiply(&model.join("model.safetensors"), tensor, factor);
        let out = dir.path().join("out");
        let with = |more: &[&str]| quantize(&text(&model), "rtn", &out, &[&["--group", "16"], more].concat());
        with(&[]).refused(&[tensor, words, "grid.scale=f32"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        if tensor == up {
            let words = [tensor, "holds the weight", "`--keep` it"];
            quantize(&text(&model), "gguf", &out, &["--set", "grid.type=Q8_0", "--format", "fewbit"]).refused(&words);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
        with(&["--set", "grid.scale=f32"]).good();
    }
}

#[test]
fn a_plan_looks_at_the_calibration_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(dir.path().join(name));
    fs::write(path("empty.txt"), "").unwrap();
    fs::write(path("short.txt"), "Once upon a time there was a dog. ".repeat(20)).unwrap();
    let plan = |file: &str, more: &[&str]| {
        let args = ["--calibration", &*path(file), "--dry-run"];
        quantize("demo", "gptq", &dir.path().join("out"), &[&args[..], more].concat())
    };
    plan("nothing.txt", &[]).refused(&["nothing.txt"]);
    plan("empty.txt", &[]).refused(&["empty.txt", "is empty"]);
    plan("short.txt", &["--length", "512"]).refused(&["short.txt", "fewer than one sequence"]);
    let notes = plan("short.txt", &["--length", "16"]).good()["notes"].to_string();
    assert!(notes.contains("sequences of 16 tokens, where 128 were asked for"), "{notes}");
}

#[test]
fn an_override_of_nothing_but_kept_linears_is_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let overridden = ["--keep", "self_attn", "--override", "q_proj:bits=4"];
    quantize("demo", "rtn", &out, &overridden).refused(&["--override q_proj", "--keep"]);
    let plan = quantize("demo", "rtn", &out, &["--keep", "*", "--dry-run"]).good();
    assert!(plan["notes"].to_string().contains("no linear is rounded"), "{plan}");
}
