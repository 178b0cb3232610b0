//! `fewbit convert` and `fewbit check`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::damage::with_nan;
use crate::{fewbit, shared};

/// A small model and what is made of it.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// The bundled model in a format.
    fn quantized(&self, name: &str, options: &[&str]) -> String {
        let out = self.path(name);
        fewbit(&[&["quantize", "demo", "--recipe", "rtn", "--json", "--out", &out], options].concat()).good();
        out
    }

    fn convert(&self, from: &str, to: &str, format: &str) -> Value {
        fewbit(&["convert", from, &self.path(to), "--format", format, "--json"]).good()
    }
}

/// The logits of a prompt, weights alone.
#[track_caller]
fn logits(model: &str) -> Value {
    fewbit(&["logits", model, "--prompt", "Once upon a time", "--arithmetic", "weights-only", "--json"]).good()["logits"]
        .clone()
}

fn config(folder: &str) -> Value {
    serde_json::from_slice(&fs::read(Path::new(folder).join("config.json")).unwrap()).unwrap()
}

#[test]
fn codes_go_from_format_to_format_and_back() {
    let bench = Bench::new();
    let symmetric =
        bench.quantized("symmetric", &["--bits", "4", "--group", "32", "--symmetric", "--set", "grid.scale=f16"]);
    let original = logits(&symmetric);
    let mut from = symmetric.clone();
    for format in ["gptq", "awq", "gptq_v2", "fewbit", "gguf", "compressed-tensors"] {
        let done = bench.convert(&from, format, format);
        assert_eq!((&done["exact"], &done["max_difference"]), (&json!(true), &json!(0.0)), "{format}");
        from = bench.path(format);
        assert_eq!(logits(&from), original, "{format}");
    }
    assert_eq!(config(&bench.path("gptq"))["quantization_config"]["checkpoint_format"], "gptq");
    assert_eq!(config(&bench.path("awq"))["quantization_config"]["version"], "gemm");
    // After six ways around, the first folder's codes.
    let shard = |folder: &str| fs::read(Path::new(folder).join("model-00002-of-00006.safetensors"));
    if let (Ok(a), Ok(b)) = (shard(&symmetric), shard(&from)) {
        assert!(a == b, "the shards differ");
    }
}

#[test]
fn what_a_format_cannot_hold_is_refused_or_rounded_with_its_error() {
    let bench = Bench::new();
    let asymmetric = bench.quantized("asymmetric", &["--bits", "4", "--group", "64", "--asymmetric"]);
    let out = bench.path("out");
    let to = |format: &str, more: &[&str]| {
        fewbit(&[&["convert", &asymmetric, &out, "--format", format, "--json"], more].concat())
    };
    to("gptq", &[]).refused(&["_proj.weight", "gptq_v2"]);
    to("gguf", &[]).refused(&["zero points"]);
    to("fp8", &[]).refused(&["floats of 8 bits"]);
    assert!(!Path::new(&out).exists() && !PathBuf::from(format!("{out}.partial")).exists());
    to("gguf", &["--bits", "8"]).refused(&["--requantize"]);
    let rounded = to("gguf", &["--requantize"]).good();
    assert_eq!((&rounded["exact"], &rounded["requantized"]), (&json!(false), &json!(true)));
    let off = rounded["relative_rms"].as_f64().unwrap();
    assert!((1e-3..0.2).contains(&off), "{off}");
    to("gguf", &[]).refused(&["exists already"]);
    // Floats hold everything.
    let plain = fewbit(&["convert", &asymmetric, &bench.path("plain"), "--format", "plain", "--json"]).good();
    assert_eq!(plain["exact"], true);
    assert_eq!(logits(&bench.path("plain")), logits(&asymmetric));
    assert!(config(&bench.path("plain")).get("quantization_config").is_none());
}

#[test]
fn a_number_that_is_none_is_said_where_it_is_copied_and_refused_where_it_is_rounded() {
    let bench = Bench::new();
    let model = with_nan("model.layers.1.mlp.up_proj.weight", 5 * 256 + 7);
    let model = model.path().to_str().unwrap();
    let words = ["model.layers.1.mlp.up_proj.weight", "holds NaN at [5, 7]", "repair the checkpoint"];
    let plain = fewbit(&["convert", model, &bench.path("plain"), "--format", "plain", "--json"]);
    assert_eq!(plain.good()["exact"], true);
    words.iter().for_each(|w| assert!(plain.stderr.contains(w), "{}", plain.stderr));
    for more in [&[][..], &["--bits", "8"]] {
        let out = bench.path("out");
        let args = ["convert", model, &out, "--format", "gguf", "--requantize"];
        let ran = fewbit(&[&args[..], more].concat());
        ran.refused(&words);
        assert!(!ran.stderr.contains("rounded anew") && !Path::new(&out).exists(), "{}", ran.stderr);
    }
}

#[test]
fn one_option_of_a_grid_leaves_the_others_as_the_format_has_them() {
    let bench = Bench::new();
    let asymmetric = bench.quantized("asymmetric", &["--bits", "4", "--group", "64", "--asymmetric"]);
    for (i, options) in [&["--bits", "8"][..], &["--group", "32"], &["--set", "grid.symmetric=true"]].iter().enumerate()
    {
        let out = bench.path(&format!("{i}.gguf"));
        let args = ["convert", &asymmetric, &out, "--format", "gguf", "--requantize", "--json"];
        assert_eq!(fewbit(&[&args[..], options].concat()).good()["requantized"], true, "{options:?}");
    }
}

#[test]
fn a_vocabulary_that_cannot_be_written_is_no_matter_of_rounding() {
    let bench = Bench::new();
    let model = bench.quantized("model", &["--bits", "4", "--group", "32"]);
    let path = Path::new(&model).join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["normalizer"] = json!({"type": "Lowercase"});
    fs::write(&path, tokenizer.to_string()).unwrap();
    let out = bench.path("out.gguf");
    let ran = fewbit(&["convert", &model, &out, "--format", "gguf", "--requantize"]);
    ran.refused(&["--format compressed-tensors"]);
    assert!(!ran.stderr.contains("rounded anew"), "{}", ran.stderr);
}

#[test]
fn formats_that_recipes_write_are_read() {
    let bench = Bench::new();
    let gptq = bench.quantized("gptq", &["--bits", "3", "--group", "128", "--symmetric", "--format", "gptq"]);
    assert_eq!(config(&gptq)["quantization_config"]["bits"], 3);
    let awq = bench.quantized("awq", &["--bits", "4", "--group", "64", "--asymmetric", "--format", "awq"]);
    let ct = bench.quantized("ct", &["--bits", "4", "--group", "64", "--asymmetric"]);
    assert_eq!(logits(&awq), logits(&ct));
    let out = bench.path("fp8");
    fewbit(&["quantize", "demo", "--recipe", "fp8-block", "--format", "fp8", "--out", &out, "--json"]).good();
    assert_eq!(config(&out)["quantization_config"]["weight_block_size"], json!([128, 128]));
    let out = bench.path("no");
    let refused = |options: &[&str]| fewbit(&[&["quantize", "demo", "--out", &out, "--json"], options].concat());
    refused(&["--recipe", "rtn", "--bits", "5", "--format", "awq"]).refused(&["4 bits"]);
    refused(&["--recipe", "rtn", "--bits", "4", "--format", "gptq", "--asymmetric"]).refused(&["gptq_v2"]);
    refused(&[
        "--recipe",
        "rtn",
        "--bits",
        "4",
        "--format",
        "awq",
        "--group",
        "64",
        "--override",
        "down_proj:group=32",
    ])
    .refused(&["different groups"]);
}

#[test]
fn programs_that_load_a_model_are_told_apart() {
    let bench = Bench::new();
    let checked = |model: &str| {
        let all = fewbit(&["check", model, "--json"]).good();
        let loads =
            |name: &str| all["checks"].as_array().unwrap().iter().find(|c| c["for"] == name).unwrap()["loads"] == true;
        [loads("vllm"), loads("transformers"), loads("llama.cpp")]
    };
    assert_eq!(checked(&bench.quantized("w4", &["--bits", "4", "--group", "128", "--symmetric"])), [true, true, false]);
    let w3 = bench.quantized("w3", &["--bits", "3", "--group", "128"]);
    assert_eq!(checked(&w3), [false, true, false]);
    fewbit(&["check", &w3, "--for", "vllm"]).refused(&["vllm cannot load it"]);
    assert_eq!(checked(&bench.quantized("own", &["--bits", "1", "--group", "64"])), [false, false, false]);
    let gguf = bench.quantized("q4.gguf", &["--bits", "4", "--group", "32", "--symmetric", "--format", "gguf"]);
    assert_eq!(checked(&gguf), [true, true, true]);
}

/// Files of other programs are described, whoever wrote them.
#[test]
fn files_of_others_are_checked() {
    for name in ["bnb-nf4-doublequant", "awq-gemm-w4-g128-autoawq", "gptq-w4-g128-sym-descact"] {
        let Some(model) = shared(&format!("conformance/quantized/{name}")) else { return };
        let checks = fewbit(&["check", model.to_str().unwrap(), "--json"]).good()["checks"].take();
        assert_eq!(checks.as_array().unwrap().len(), 3, "{name}");
    }
}

/// What tools without a layout of ours wrote (tools/make_layout_goldens.py).
#[test]
fn layouts_that_are_read_alone_are_converted_exactly_or_refused() {
    let bench = Bench::new();
    let cases = [
        ("hqq-widths", "fewbit", None),
        ("hqq-widths", "plain", None),
        ("hqq-columns", "fewbit", None),
        ("hqq-widths", "gptq_v2", Some("real offsets")),
        ("torchao-weights", "fewbit", None),
        ("torchao-weights", "compressed-tensors", Some("cannot hold")),
        ("torchao-dynamic", "fewbit", None),
        ("ct-naive", "compressed-tensors", None),
        ("ct-naive", "awq", None),
        ("ct-hadamard", "fewbit", None),
        ("ct-hadamard", "plain", Some("maps that run with the model")),
    ];
    let logits = |model: &str| {
        fewbit(&["logits", model, "--ids", "1,7,30,12", "--arithmetic", "exact", "--json"]).good()["logits"].clone()
    };
    for (name, format, refusal) in cases {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/layouts/").to_owned() + name;
        let out = bench.path(&format!("{name}-{format}"));
        let ran = fewbit(&["convert", &model, &out, "--format", format, "--json"]);
        match refusal {
            None => {
                assert_eq!(ran.good()["exact"], true, "{name} {format}");
                assert_eq!(logits(&out), logits(&model), "{name} {format}");
            }
            Some(why) => ran.refused(&[why]),
        }
    }
}

/// What is stored is named, and who loads it.
#[test]
fn layouts_of_others_are_named() {
    let quantization = |name: &str| {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/layouts/").to_owned() + name;
        assert_eq!(fewbit(&["check", &model, "--for", "transformers", "--json"]).good()["checks"][0]["loads"], true);
        fewbit(&["inspect", &model, "--json"]).good()["quantization"].as_str().unwrap().to_owned()
    };
    assert!(quantization("hqq-widths").contains("4 bit group 32 asymmetric"));
    assert!(quantization("hqq-columns").contains("4 bit groups of 64 across rows, read as floats"));
    assert!(quantization("torchao-dynamic").starts_with("torchao 4 bit group 32"));
    assert_eq!(quantization("ct-naive"), "compressed-tensors 4 bit group 32 asymmetric");
}

/// Files of other programs.
#[test]
fn files_of_others_are_converted_exactly() {
    let bench = Bench::new();
    let cases = [
        ("gptq-w4-g128-sym", "compressed-tensors", true),
        ("gptq-w4-g128-sym-descact", "compressed-tensors", false),
        ("gptq-w4-g128-sym-descact", "awq", false),
        ("gptq-w4-g128-sym-descact", "gptq", true),
        ("gptq-w4-g128-sym-descact", "fewbit", true),
        ("gptqv2-w4-g64-asym", "awq", true),
        ("awq-gemm-w4-g128-autoawq", "compressed-tensors", true),
        ("ct-w4a16-g32-asym-rtn", "gptq_v2", true),
        ("ct-w4a16-g32-asym-rtn", "gptq", false),
        ("ct-w4a16-g128-sym-gptq-actstatic", "gptq", true),
        ("bnb-nf4-doublequant", "compressed-tensors", false),
        ("bnb-nf4-doublequant", "fewbit", true),
        ("ct-nvfp4a16", "gptq", false),
    ];
    for (name, format, is_exact) in cases {
        let Some(model) = shared(&format!("conformance/quantized/{name}")) else { return };
        let out = bench.path(&format!("{name}-{format}"));
        let ran = fewbit(&["convert", model.to_str().unwrap(), &out, "--format", format, "--json"]);
        if is_exact {
            assert_eq!(ran.good()["exact"], true, "{name} {format}");
        } else {
            ran.refused(&["cannot hold"]);
        }
    }
}

/// Readers look at `g_idx` where `desc_act` says so.
#[test]
fn an_act_order_is_written_as_one() {
    let bench = Bench::new();
    for (name, desc_act) in [("gptq-w4-g128-sym-descact", true), ("gptq-w4-g128-sym", false)] {
        let Some(model) = shared(&format!("conformance/quantized/{name}")) else { return };
        bench.convert(model.to_str().unwrap(), name, "gptq");
        let settings = &config(&bench.path(name))["quantization_config"];
        assert_eq!(settings["desc_act"], desc_act, "{name}");
    }
    // Through our own layout, which has it too.
    let own = bench.convert(&bench.path("gptq-w4-g128-sym-descact"), "own", "fewbit");
    let back = bench.convert(&bench.path("own"), "back", "gptq");
    assert_eq!((&own["exact"], &back["exact"]), (&json!(true), &json!(true)));
    assert_eq!(config(&bench.path("back"))["quantization_config"]["desc_act"], true);
}

#[test]
fn gptq_becomes_blocks_of_ggml_where_these_hold_its_codes() {
    let bench = Bench::new();
    let cases = [
        ("gptq-w4-g128-sym", None),
        ("gptq-w8-g128-sym", None),
        ("gptq-w4-g128-sym-descact", Some("columns of a group lie apart")),
        ("gptq-w4-g32-asym", Some("no blocks of 4-bit codes with zero points")),
        ("gptq-w3-g128-sym", Some("no blocks of 3-bit codes")),
    ];
    for (name, why) in cases {
        let Some(folder) = shared(&format!("conformance/quantized/{name}")) else { return };
        let model = bench.path(name);
        fs::create_dir(&model).unwrap();
        for file in ["config.json", "quantize_config.json", "model.safetensors"] {
            fs::write(Path::new(&model).join(file), fs::read(folder.join(file)).unwrap()).unwrap();
        }
        // It comes without a tokenizer: one of three letters.
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [], "pre_tokenizer": bytes, "decoder": bytes,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2}, "merges": []},
        });
        fs::write(Path::new(&model).join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let out = bench.path(&format!("{name}.gguf"));
        let ran = fewbit(&["convert", &model, &out, "--format", "gguf", "--json"]);
        let Some(why) = why else {
            assert_eq!(ran.good()["exact"], true, "{name}");
            let logits = |model: &str| {
                fewbit(&["logits", model, "--ids", "1,20,300", "--arithmetic", "weights-only", "--json"]).good()
            };
            assert_eq!(logits(&out)["logits"], logits(&model)["logits"], "{name}");
            continue;
        };
        ran.refused(&["down_proj.weight", why][usize::from(!name.ends_with("descact"))..]);
    }
}
