//! Written files, read again: the source's ids and numbers.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]
#![expect(clippy::print_stdout, reason = "tests say what they skip")]

mod folder;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fewbit_export::{CardInfo, card, verify_folder, write_gguf};
use fewbit_format::Storage;
use fewbit_graph::Part;
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Batch, Runtime, language};
use fewbit_store::layout::{CompressedTensors, Fewbit};
use fewbit_store::{Elements, GgufWriter, ModelFile, TensorPlan, Value};
use fewbit_text::{Special, check_round_trip};

const IDS: [u32; 12] = [1, 5, 9, 2, 30, 17, 4, 4, 11, 28, 3, 7];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A model beside the repository, or a line that says what the test lacks.
fn shared(name: &str) -> Option<PathBuf> {
    let path = root().join("../shared/models").join(name);
    if !path.exists() {
        println!("skipped: there is no {}", path.display());
    }
    path.exists().then_some(path)
}

fn logits(file: &ModelFile, ids: &[u32]) -> Vec<f32> {
    let runtime = Runtime::load(file, Arithmetic::Exact, Arc::new(Team::new(1))).unwrap();
    let rows: Vec<usize> = (0..ids.len()).collect();
    runtime.logits(&Batch::one(0, ids.len()), ids, None, &rows).unwrap().into_vec()
}

fn open(path: &Path) -> ModelFile {
    ModelFile::open(path).unwrap()
}

/// The largest difference, relative to the largest number.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = a.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / scale
}

/// A folder of a family, with a tokenizer of a few letters that fits its small vocabulary.
fn family(name: &str, dir: &Path) -> ModelFile {
    let from = root().join("tests/families").join(name);
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "golden.safetensors" {
            std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
        }
    }
    let letters = ["<|end|>", "a", "b", "c", "Ġ", "o", "n", "e", "on", "one", "Ġa"];
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        letters.iter().enumerate().map(|(i, l)| ((*l).to_owned(), i.into())).collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 0, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": [["o", "n"], ["on", "e"], ["Ġ", "a"]]},
    });
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::write(dir.join("tokenizer_config.json"), r#"{"eos_token": "<|end|>"}"#).unwrap();
    open(dir)
}

#[test]
fn every_family_that_is_written_has_its_logits() {
    let names = [
        "llama",
        "llama-bias",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3-six",
        "olmo2",
        "granite",
        "stablelm",
        "stablelm-parallel",
        "stablelm-norms",
        "cohere",
        "cohere-plus-deep",
        "cohere2",
        "glm4",
        "falcon",
        "falcon-new",
        "gpt2",
        "gpt_neox",
        "gpt_neox-sequential",
        "phi3-longrope",
        "phi3-longrope-wide",
        "mixtral-fused",
        "qwen2_moe-every",
        "qwen3_moe-every",
        "gpt_oss",
        "gpt_oss-whole",
        "deepseek_v2-greedy",
        "deepseek_v2-lite-deep",
        "deepseek_v3",
    ];
    for name in names {
        let dir = tempfile::tempdir().unwrap();
        let source = family(name, dir.path());
        let path = dir.path().join("m.gguf");
        write_gguf(&source, &path, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        // Weights of F32 are F16 in the file.
        let worst = apart(&logits(&source, &IDS), &logits(&open(&path), &IDS));
        assert!(worst < 2e-3, "{name}: {worst}");
    }
}

#[test]
fn what_llama_cpp_does_not_run_is_refused_in_a_sentence() {
    for (name, why) in [
        ("gemma3", "layer 2 has another window"),
        ("opt", "this is `opt`"),
        ("cohere-plus", "attention has norms of queries and keys in a model of 2 layers"),
        ("mixtral", "a window of 8"),
        ("qwen2_moe", "layer 0 has no experts"),
        ("qwen3_moe", "layer 0 has no experts"),
        ("deepseek_v2", "3 groups of experts are chosen by their best expert"),
        ("deepseek_v2-lite", "it has biases"),
        ("mistral", "a window of 16"),
        ("phi3", "a window of 8"),
        ("glm", "this is `glm`"),
        ("gpt2-inner", "scales the scores of layer 1 otherwise"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        family(name, dir.path());
        if name == "mistral" {
            let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
            let config = config.trim_end().strip_suffix('}').unwrap().to_owned() + r#", "sliding_window": 16}"#;
            std::fs::write(dir.path().join("config.json"), config.replacen(r#""sliding_window": null,"#, "", 1))
                .unwrap();
        }
        let e = write_gguf(&open(dir.path()), &dir.path().join("m.gguf"), None).unwrap_err().to_string();
        assert!(e.contains(why) && e.contains("; write it with `--format"), "{name}: {e}");
        assert!(!dir.path().join("m.gguf.unchecked").exists());
    }
}

/// The parts of a file that say how a model of experts lies in it.
#[test]
fn experts_lie_in_one_tensor_and_run_where_they_lie() {
    let dir = tempfile::tempdir().unwrap();
    let source = family("gpt_oss", dir.path());
    let path = dir.path().join("m.gguf");
    let report = write_gguf(&source, &path, None).unwrap();
    assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
    let written = open(&path);
    let shape = |name: &str| written.checkpoint().shape(name).unwrap();
    assert_eq!(shape("blk.1.ffn_gate_exps.weight"), [4, 16, 24]);
    assert_eq!(shape("blk.1.ffn_down_exps.bias"), [4, 24]);
    assert_eq!(shape("blk.1.attn_sinks.weight"), [4]);
    // Of the expert's matrix nothing is copied: it is the file's map.
    let weights = &written.model().blocks[1].weights;
    let third = weights.iter().position(|w| w.name == "mlp.experts.2.up_proj").unwrap();
    let linear = written.linear(Part::Block(1), third).unwrap();
    let Storage::Dense(matrix) = &linear.bands[0].storage else { panic!("{linear:?}") };
    let all = written.checkpoint().raw_bytes("blk.1.ffn_up_exps.weight").unwrap();
    assert_eq!(matrix.bytes.as_ptr(), all[all.len() / 4 * 2..].as_ptr());
    assert_eq!(written.checkpoint().elements("blk.0.ffn_gate_inp.weight").unwrap().name(), "F32");
}

/// Older files have each expert's matrices by themselves, and DeepSeek's keys and values in one tensor.
#[test]
fn older_files_are_read_and_written_anew() {
    for (name, of_older) in [("mixtral-fused", ".ffn_down.2.weight"), ("deepseek_v3", ".attn_kv_b.weight")] {
        let dir = tempfile::tempdir().unwrap();
        let source = family(name, dir.path());
        let [new, old, again] = ["new.gguf", "old.gguf", "again.gguf"].map(|name| dir.path().join(name));
        write_gguf(&source, &new, None).unwrap();
        older(&source, &new, &old);
        let read = open(&old);
        assert!(read.checkpoint().names().any(|n| n.ends_with(of_older)), "{name}");
        assert_eq!(logits(&open(&new), &IDS), logits(&read, &IDS), "{name}");
        write_gguf(&read, &again, None).unwrap();
        let [new, again] = [&new, &again].map(|path| open(path).checkpoint().gguf().unwrap().metadata().clone());
        assert_eq!(new, again, "{name}");
        assert_eq!(logits(&source, &IDS), logits(&open(&dir.path().join("again.gguf")), &IDS), "{name}");
    }
}

/// The file as it was written before llama's experts were put together and DeepSeek's keys and values parted.
fn older(source: &ModelFile, new: &Path, old: &Path) {
    let file = open(new);
    let (checkpoint, gguf) = (file.checkpoint(), file.checkpoint().gguf().unwrap());
    let is_llama = gguf.string("general.architecture").unwrap() == Some("llama");
    let (mut plans, mut bytes) = (Vec::new(), Vec::new());
    let mut add = |name: String, elements, shape: Vec<usize>, data: bytes::Bytes| {
        plans.push(TensorPlan { name, elements, shape });
        bytes.push(data);
    };
    for tensor in gguf.tensors() {
        let data = checkpoint.raw_bytes(&tensor.name).unwrap();
        if let Some(stem) = tensor.name.strip_suffix("_exps.weight").filter(|_| is_llama) {
            let size = data.len() / tensor.shape[0];
            for expert in 0..tensor.shape[0] {
                let part = data.slice(expert * size..(expert + 1) * size);
                add(format!("{stem}.{expert}.weight"), tensor.elements, tensor.shape[1..].to_vec(), part);
            }
        } else if let Some(block) = tensor.name.strip_suffix(".attn_k_b.weight") {
            let layer = block.strip_prefix("blk.").unwrap();
            let both = format!("model.layers.{layer}.self_attn.kv_b_proj.weight");
            let both = source.checkpoint().tensor(&both).unwrap();
            add(format!("{block}.attn_kv_b.weight"), Elements::Plain(both.dtype), both.shape, both.bytes);
        } else if !tensor.name.ends_with(".attn_v_b.weight") {
            add(tensor.name.clone(), tensor.elements, tensor.shape.clone(), data);
        }
    }
    let number = |key: &str| gguf.metadata()[&format!("deepseek2.attention.{key}_mla")].clone();
    let keys = gguf.metadata().iter().filter(|(key, _)| !key.ends_with("_mla")).map(|(key, value)| {
        let value = match key.strip_prefix("deepseek2.attention.") {
            Some("head_count_kv") => gguf.metadata()["deepseek2.attention.head_count"].clone(),
            Some(length @ ("key_length" | "value_length")) => number(length),
            _ => value.clone(),
        };
        (key.clone(), value)
    });
    let mut writer = GgufWriter::create(old, &keys.collect::<Vec<_>>(), &plans).unwrap();
    bytes.iter().for_each(|data| writer.tensor(data).unwrap());
    writer.finish().unwrap();
}

/// Counts and shapes that do not fit each other are refused before anything is read.
#[test]
fn experts_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = family("mixtral-fused", dir.path());
    let path = dir.path().join("m.gguf");
    write_gguf(&source, &path, None).unwrap();
    let with = |key: &str, value: u32| {
        let file = open(&path);
        let gguf = file.checkpoint().gguf().unwrap();
        let mut keys: Vec<(String, Value)> = gguf.metadata().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        keys.iter_mut().filter(|(k, _)| k == key).for_each(|(_, v)| *v = Value::U32(value));
        let other = dir.path().join(format!("{key}-{value}.gguf"));
        let plans: Vec<TensorPlan> = (gguf.tensors().iter())
            .map(|t| TensorPlan { name: t.name.clone(), elements: t.elements, shape: t.shape.clone() })
            .collect();
        let mut writer = GgufWriter::create(&other, &keys, &plans).unwrap();
        plans.iter().for_each(|p| writer.tensor(&file.checkpoint().raw_bytes(&p.name).unwrap()).unwrap());
        writer.finish().unwrap();
        ModelFile::open(&other).unwrap_err().to_string()
    };
    for (key, value, why) in [
        ("llama.expert_count", 2, "ffn_gate_inp.weight`: has shape [3, 24], where the file's header implies [2, 24]"),
        (
            "llama.expert_count",
            4096,
            "ffn_gate_inp.weight`: has shape [3, 24], where the file's header implies [4096, 24]",
        ),
        ("llama.expert_count", u32::MAX, "`llama.expert_count` is 4294967295, which is out of range"),
        ("llama.expert_used_count", 7, "`llama.expert_used_count` (7) is more than `llama.expert_count` (3)"),
        (
            "llama.feed_forward_length",
            20,
            "ffn_gate_exps.weight`: has shape [3, 16, 24], where the file's header implies [3, 20, 24]",
        ),
    ] {
        let e = with(key, value);
        assert!(e.contains(why), "{key} = {value}: {e}");
    }
}

#[test]
fn codes_become_blocks_of_the_same_numbers() {
    let demo = open(&root().join("assets/demo-model"));
    for (bits, kind) in [(4, "Q4_0"), (8, "Q8_0")] {
        for layout in [&CompressedTensors as &dyn fewbit_store::layout::Layout, &Fewbit] {
            let dir = tempfile::tempdir().unwrap();
            folder::write(&demo, dir.path(), layout, Some(bits));
            verify_folder(dir.path()).unwrap();
            let quantized = open(dir.path());
            let path = dir.path().join("m.gguf");
            let report = write_gguf(&quantized, &path, None).unwrap();
            assert_eq!(report.types[kind], 28, "{:?}", report.types);
            let written = open(&path);
            // The embedding alone is rounded, from F32 (that was BF16) to F16.
            assert!(apart(&logits(&quantized, &IDS), &logits(&written, &IDS)) < 1e-4);
            let info = CardInfo {
                file: &quantized,
                source: &demo,
                base_model: "fewbit/demo",
                recipe: "rtn",
                cite: "",
                settings: vec![format!("grid.bits={bits}")],
                calibration: None,
                format: "gguf",
            };
            let text = card(&info);
            assert!(text.contains(&format!("included) | {bits}.500 |")), "{text}");
            assert!(text.starts_with("---\nbase_model: fewbit/demo\n") && text.contains("<!-- fewbit eval -->"));
        }
    }
}

#[test]
fn a_plain_model_keeps_its_type_and_its_tokenizer() {
    let demo = open(&root().join("assets/demo-model"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let report = write_gguf(&demo, &path, None).unwrap();
    assert_eq!(report.types["BF16"], 29);
    assert!(report.notes.is_empty(), "{:?}", report.notes);
    let written = open(&path);
    assert_eq!(logits(&demo, &IDS), logits(&written, &IDS));
    let metadata = written.checkpoint().gguf().unwrap().metadata();
    assert_eq!(metadata["tokenizer.ggml.pre"], Value::String("gpt-2".into()));
    assert_eq!(metadata["tokenizer.ggml.add_bos_token"], Value::Bool(true));
    let source = language::chat_template_source(demo.checkpoint()).unwrap();
    assert_eq!(language::chat_template_source(written.checkpoint()).unwrap(), source);
    assert!(write_gguf(&demo, &path, None).unwrap_err().to_string().contains("exists already"));

    // And back: the folder of the file, and the file of that folder.
    let back = dir.path().join("back");
    folder::write(&written, &back, &Fewbit, None);
    verify_folder(&back).unwrap();
    let back = open(&back);
    assert_eq!(logits(&demo, &IDS), logits(&back, &IDS));
    let ids = |file: &ModelFile| language::tokenizer_of(file.checkpoint()).unwrap();
    assert_eq!(check_round_trip(&ids(&demo), &ids(&back)), None);
}

/// What a GGUF file cannot say is said in the report: a normalization, and tokens beyond the embedding.
#[test]
fn what_is_left_out_is_noted() {
    let (from, dir) = (root().join("assets/demo-model"), tempfile::tempdir().unwrap());
    for name in ["config.json", "model.safetensors", "tokenizer_config.json"] {
        std::fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    let json = std::fs::read(from.join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    json["normalizer"] = serde_json::json!({"type": "NFC"});
    let mut beyond = json["added_tokens"][1].clone();
    (beyond["id"], beyond["content"]) = (4096.into(), "<pad>".into());
    json["added_tokens"].as_array_mut().unwrap().push(beyond);
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, json.to_string()).unwrap();
    let report = write_gguf(&open(dir.path()), &dir.path().join("m.gguf"), None).unwrap();
    assert_eq!(report.notes.len(), 2, "{:?}", report.notes);
    assert!(report.notes[0].contains("from `<pad>` (id 4096) on") && report.notes[1].contains("(NFC)"));

    json["normalizer"] = serde_json::json!({"type": "Lowercase"});
    std::fs::write(&path, json.to_string()).unwrap();
    let e = write_gguf(&open(dir.path()), &dir.path().join("other.gguf"), None).unwrap_err().to_string();
    assert!(e.contains("would give other ids than the tokenizer, first on the text"), "{e}");
}

#[test]
fn all_ends_of_a_text_are_kept_or_named() {
    let dir = tempfile::tempdir().unwrap();
    family("llama", dir.path());
    let written = |ends: &str| {
        let config = format!(r#"{{"eos_token_id": {ends}}}"#);
        std::fs::write(dir.path().join("generation_config.json"), config).unwrap();
        let path = dir.path().join(format!("{}.gguf", ends.len()));
        let report = write_gguf(&open(dir.path()), &path, None).unwrap();
        (language::end_ids(open(&path).checkpoint(), None), report.notes)
    };
    assert_eq!(written("0"), (vec![0], vec![]));
    assert_eq!(written("[0, 5]"), (vec![0, 5], vec![]));
    assert_eq!(written("[7, 0, 5]"), (vec![0, 7, 5], vec![]));
    let (ends, notes) = written("[0, 7, 5, 8, 9]");
    assert_eq!((ends, notes.len()), (vec![0, 7, 5], 1));
    assert!(notes[0].contains("8, 9") && notes[0].contains("end a text"), "{notes:?}");
}

#[test]
fn stories() {
    let Some(path) = shared("stories260K") else { return };
    let (source, dir) = (open(&path), tempfile::tempdir().unwrap());
    let path = dir.path().join("m.gguf");
    write_gguf(&source, &path, None).unwrap();
    let written = open(&path);
    let tokenizer = language::tokenizer_of(written.checkpoint()).unwrap();
    let ids = tokenizer.encode("Once upon a time", Special::PlainWithBos).unwrap();
    assert_eq!(ids, [1, 403, 407, 261, 378]);
    assert!(apart(&logits(&source, &ids), &logits(&written, &ids)) < 2e-3);
}

#[test]
fn a_tokenizer_that_no_gguf_has_is_refused_with_a_text() {
    let Some(path) = shared("TinyStories-656K") else { return };
    let dir = tempfile::tempdir().unwrap();
    let e = write_gguf(&open(&path), &dir.path().join("m.gguf"), None).unwrap_err().to_string();
    assert!(e.contains("would give other ids than the tokenizer, first on the text \""), "{e}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn smollm2_there_and_back() {
    let name = "SmolLM2-135M-Instruct.Q4_1.gguf";
    let folder = std::env::var_os("FEWBIT_MODELS").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/fewbit/models")));
    let Some(path) = folder.map(|f| f.join(name)).filter(|p| p.exists()) else {
        println!("skipped: there is no {name}; `tools/fetch-models.sh` gets it");
        return;
    };
    let (source, dir) = (open(&path), tempfile::tempdir().unwrap());
    let there = dir.path().join("folder");
    folder::write(&source, &there, &Fewbit, None);
    verify_folder(&there).unwrap();
    let there = open(&there);
    let ids = |file: &ModelFile| language::tokenizer_of(file.checkpoint()).unwrap();
    assert_eq!(check_round_trip(&ids(&source), &ids(&there)), None);
    let expected = logits(&source, &IDS);
    assert_eq!(expected, logits(&there, &IDS));
    let back = dir.path().join("back.gguf");
    let report = write_gguf(&there, &back, None).unwrap();
    println!("{report:?}");
    assert!(apart(&expected, &logits(&open(&back), &IDS)) < 2e-3);
}
