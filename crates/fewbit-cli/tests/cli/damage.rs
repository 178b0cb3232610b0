//! Models that are damaged or contradict themselves: each is one sentence with the file, the tensor and the way out.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::bench::Bench;
use crate::fewbit;

/// A copy of the bundled model.
fn model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo-model"));
    for name in
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    {
        fs::copy(source.join(name), dir.path().join(name)).unwrap();
    }
    dir
}

/// Checks that every command that needs the weights refuses with these words, and that nothing is written.
#[track_caller]
fn refused(dir: &TempDir, words: &[&str]) {
    refused_at(dir.path(), words);
}

#[track_caller]
fn refused_at(model: &Path, words: &[&str]) {
    let path = model.display().to_string();
    // The file, what is wrong, and behind a semicolon the way out.
    let words = [&[path.as_str()], words, &["; "]].concat();
    fewbit(&["inspect", &path]).refused(&words);
    fewbit(&["logits", &path, "--ids", "0"]).refused(&words);
    let out = tempfile::tempdir().unwrap();
    let made = out.path().join("out").display().to_string();
    for more in [&[][..], &["--dry-run"]] {
        let args = ["quantize", &path, "--recipe", "rtn", "--requantize", "--out", &made];
        fewbit(&[&args[..], more].concat()).refused(&words);
    }
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
}

fn write(dir: &TempDir, name: &str, bytes: impl AsRef<[u8]>) {
    fs::write(dir.path().join(name), bytes).unwrap();
}

/// The model with one figure of config.json changed.
fn with_figure(key: &str, value: Value) -> TempDir {
    let dir = model();
    let path = dir.path().join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config.insert(key.to_owned(), value);
    fs::write(path, Value::Object(config).to_string()).unwrap();
    dir
}

/// The model with another header before the same weights.
fn with_header(change: impl FnOnce(&mut Map<String, Value>)) -> TempDir {
    let dir = model();
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..end]).unwrap();
    change(&mut header);
    let header = Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length[..], header.as_bytes(), &bytes[end..]].concat()).unwrap();
    dir
}

/// The model with one number of a tensor, which is stored in 16 bits, replaced by a NaN.
pub(crate) fn with_nan(tensor: &str, at: usize) -> TempDir {
    let dir = model();
    let path = dir.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    let start = end + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize + 2 * at;
    bytes[start..start + 2].copy_from_slice(&[0xff, 0x7f]);
    fs::write(path, bytes).unwrap();
    dir
}

const EMBEDDING: &str = "model.embed_tokens.weight";

#[test]
fn figures_of_the_configuration_are_checked() {
    for (key, value, words) in [
        ("num_hidden_layers", json!(0), &["`num_hidden_layers` is 0"][..]),
        ("num_hidden_layers", json!(1_u64 << 40), &["`num_hidden_layers` is 1099511627776"]),
        ("num_hidden_layers", json!(5), &["tensor `model.layers.4.", "missing"]),
        ("hidden_size", json!(0), &["`hidden_size` is 0"]),
        ("hidden_size", json!(1_u64 << 62), &["`hidden_size`"]),
        ("vocab_size", json!(4097), &["embed_tokens", "[4096, 256]", "[4097, 256]"]),
        ("num_key_value_heads", json!(3), &["`num_key_value_heads` (3)"]),
        ("max_position_embeddings", json!(-5), &["`max_position_embeddings` is -5"]),
        ("rope_theta", json!(0), &["`rope_theta` is 0"]),
        ("hidden_act", json!("tanh"), &["`hidden_act` is `tanh`"]),
    ] {
        refused(&with_figure(key, value), words);
    }
}

#[test]
fn a_configuration_that_is_none_is_named() {
    let dir = model();
    write(&dir, "config.json", r#"{"model_type": "mammoth", "architectures": ["MammothForCausalLM"]}"#);
    refused(&dir, &["`mammoth` is unknown; known are llama"]);
    fs::remove_file(dir.path().join("config.json")).unwrap();
    refused(&dir, &["holds no `config.json`"]);
    for (text, words) in [
        ("{".to_owned(), "not valid JSON"),
        ("[]".to_owned(), "no JSON object"),
        ("[".repeat(200_000), "recursion limit"),
        ("{\"a\":".repeat(200_000), "recursion limit"),
    ] {
        write(&dir, "config.json", text);
        refused(&dir, &["config.json", words]);
    }
}

#[test]
fn files_of_weights_are_checked() {
    let dir = model();
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    write(&dir, "model.safetensors", &whole[..whole.len() - 1]);
    refused(&dir, &["model.safetensors", "truncated"]);
    write(&dir, "model.safetensors", []);
    refused(&dir, &["0 bytes long"]);
    write(&dir, "model.safetensors", [&(1_u64 << 62).to_le_bytes()[..], b"{}"].concat());
    refused(&dir, &["header takes 4611686018427387904 bytes"]);
    fs::remove_file(path).unwrap();
    refused(&dir, &["holds no weights"]);
    write(&dir, "pytorch_model.bin", "");
    refused(&dir, &["pickle", "save_pretrained"]);
}

#[test]
fn tensors_are_checked() {
    let embedding = |key: &'static str, value: Value| with_header(move |h| h[EMBEDDING][key] = value);
    refused(&embedding("shape", json!([-4096, 256])), &[EMBEDDING, "-4096"]);
    refused(&embedding("shape", json!([256, 4096])), &[EMBEDDING, "[256, 4096]", "[4096, 256]"]);
    refused(&embedding("shape", json!([1_u64 << 62, 1_u64 << 62])), &[EMBEDDING]);
    refused(&embedding("dtype", json!("F13")), &[EMBEDDING, "unknown type `F13`"]);
    let overlap = with_header(|h| h["model.norm.weight"]["data_offsets"] = json!([0, 512]));
    refused(&overlap, &["overlaps"]);
    let renamed = with_header(|h| {
        let tensor = h.remove("model.layers.2.mlp.up_proj.weight").unwrap();
        h.insert("other".to_owned(), tensor);
    });
    refused(&renamed, &["`model.layers.2.mlp.up_proj.weight`: is missing"]);
}

#[test]
fn what_surrounds_the_weights_is_checked_where_it_is_used() {
    let dir = model();
    let path = dir.path().display().to_string();
    let run = || fewbit(&["run", &path, "--prompt", "Hi", "--max-tokens", "2"]);
    write(&dir, "chat_template.jinja", "{% for %}");
    run().refused(&[&path, "the chat template", "line 1"]);
    write(&dir, "chat_template.jinja", "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}");
    run().refused(&[&path, "the chat template"]);
    write(&dir, "chat_template.jinja", b"\xff");
    run().refused(&[&path, "chat_template.jinja", "UTF-8"]);
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    write(&dir, "generation_config.json", r#"{"do_sample": true, "temperature": -3}"#);
    run().refused(&[&path, "generation_config.json", "`temperature` is -3"]);
    assert_eq!(fewbit(&["run", &path, "--prompt", "Hi", "--max-tokens", "2", "--temperature", "0"]).code, Some(0));
    write(&dir, "tokenizer.json", "{");
    run().refused(&["tokenizer.json"]);
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    run().refused(&[&path, "neither `tokenizer.json` nor `tokenizer.model`"]);
    assert_eq!(fewbit(&["logits", &path, "--ids", "0,1"]).code, Some(0));
}

#[test]
fn paths_that_are_no_model() {
    for (path, words) in
        [("", "check the path"), ("/nowhere", "check the path"), ("/dev/null", "no model that can be read")]
    {
        fewbit(&["inspect", path]).refused(&[words]);
    }
    let dir = tempfile::tempdir().unwrap();
    let empty: PathBuf = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    fewbit(&["inspect", &empty.display().to_string()]).refused(&["holds no weights"]);
}

#[test]
fn a_model_with_a_number_that_is_none_is_refused_before_the_work() {
    let bench = Bench::new("2");
    let shard = Path::new(&bench.model).join("model-00003-of-00004.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let end = bytes.len();
    for (value, word) in [([0xc0, 0x7f], "NaN"), ([0x80, 0x7f], "inf")] {
        bytes[end - 2..].copy_from_slice(&value);
        fs::write(&shard, &bytes).unwrap();
        for recipe in ["rtn", "gptq"] {
            bench.run(&bench.path("out"), &["--recipe", recipe]).refused(&[
                "model-00003-of-00004.safetensors",
                "model.layers.1.mlp.down_proj.weight",
                word,
                "[63, 127]",
            ]);
            bench.holds_only(&[]);
        }
    }
}

#[test]
fn a_number_that_is_none_is_found_wherever_it_stands() {
    for (tensor, at, position, words) in [
        ("model.norm.weight", 3, json!([3]), &["not finite after the final norm"][..]),
        ("model.layers.2.input_layernorm.weight", 7, json!([7]), &["not finite after layer 2"]),
        (EMBEDDING, 5 * 256 + 1, json!([5, 1]), &["the embedding of id 5 is not finite"]),
        (EMBEDDING, 6 * 256, json!([6, 0]), &["the logits are not finite", "the head, which is the embedding,"]),
    ] {
        let dir = with_nan(tensor, at);
        let path = dir.path().display().to_string();
        fewbit(&["logits", &path, "--ids", "5"]).refused(&[words, &["inspect --outliers"]].concat());
        let found = fewbit(&["inspect", &path, "--outliers", "--json"]).good()["not_finite"].take();
        assert_eq!(found, json!([{"tensor": tensor, "first": position, "value": "NaN"}]));
        let text = fewbit(&["inspect", &path, "--outliers"]).stdout;
        assert!(text.contains(&format!("tensor `{tensor}` holds NaN at {position}").replace(',', ", ")), "{text}");
    }
}

#[test]
fn a_shard_that_is_missing_cut_or_another_is_named() {
    let bench = Bench::new("2");
    let folder = Path::new(&bench.model);
    let shard = |i: u32| folder.join(format!("model-0000{i}-of-00004.safetensors"));
    let whole = fs::read(shard(2)).unwrap();
    fs::remove_file(shard(2)).unwrap();
    refused_at(folder, &["model-00002-of-00004.safetensors", "missing"]);
    fs::write(shard(2), &whole[..whole.len() - 2]).unwrap();
    refused_at(folder, &["model-00002-of-00004.safetensors", "truncated"]);
    fs::copy(shard(3), shard(2)).unwrap();
    refused_at(folder, &["model-00002-of-00004.safetensors", "model.layers.0."]);
    fs::write(shard(2), whole).unwrap();
    let index = folder.join("model.safetensors.index.json");
    for (text, words) in [
        ("{", "JSON"),
        ("{}", "does not hold what is needed: missing field `weight_map`"),
        ("{\"weight_map\": {\"a\": 3}}", "expected a string"),
    ] {
        fs::write(&index, text).unwrap();
        refused_at(folder, &["model.safetensors.index.json", words]);
    }
    fs::write(&index, "{\"weight_map\": {\"a\": \"../../etc/passwd\"}}").unwrap();
    refused_at(folder, &["model.safetensors.index.json", "../../etc/passwd"]);
}

#[test]
fn counts_and_lengths_of_a_gguf_file_are_checked() {
    let bench = Bench::new("2");
    let path = bench.path("model.gguf");
    let blocks = ["--recipe", "rtn", "--format", "gguf", "--symmetric", "--set", "grid.scale=f16"];
    assert_eq!(bench.run(&path, &blocks).code, Some(0));
    let whole = fs::read(&path).unwrap();
    // Version, number of tensors, number of keys; then the length of the first key.
    for (at, value, words) in [
        (4, 0, "is GGUF version 0"),
        (8, 1 << 63, "9223372036854775808 tensors"),
        (8, u64::MAX, "18446744073709551615 tensors"),
        (16, 1 << 61, "2305843009213693952 keys"),
        (24, 1 << 63, "name of a key: says that it holds 9223372036854775808 bytes"),
        (24, u64::MAX, "name of a key: says that it holds 18446744073709551615 bytes"),
    ] {
        let mut bytes = whole.clone();
        let width = if at == 4 { 4 } else { 8 };
        bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        fs::write(&path, bytes).unwrap();
        refused_at(&path, &[words, "again"]);
    }
    for length in [0, 3, 20, 100, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        refused_at(&path, &["download it again"]);
    }
}

#[test]
fn figures_of_a_gguf_file_are_named_as_it_has_them() {
    let bench = Bench::new("2");
    let path = bench.path("model.gguf");
    let blocks = ["--recipe", "rtn", "--format", "gguf", "--symmetric", "--set", "grid.scale=f16"];
    assert_eq!(bench.run(&path, &blocks).code, Some(0));
    let whole = fs::read(&path).unwrap();
    for (key, value, words) in [
        ("llama.block_count", 1_u32, &["blk.1.", "where `llama.block_count` says that there are 1 blocks"][..]),
        ("llama.block_count", 3, &["blk.2.", "is missing", "download the file again"]),
        ("llama.block_count", 9999, &["`llama.block_count` is 9999, but there are only"]),
        ("llama.block_count", 4_000_000_000, &["`llama.block_count` is 4000000000, which is out of range"]),
        ("llama.attention.head_count", 0, &["`llama.attention.head_count` is 0"]),
        (
            "llama.attention.head_count_kv",
            3,
            &["`llama.attention.head_count_kv` (3) does not divide `llama.attention.head_count` (2)"],
        ),
        ("llama.feed_forward_length", 96, &["ffn_", "where the file's header implies [96, 64]"]),
        ("llama.context_length", 0, &["`llama.context_length` is 0"]),
    ] {
        let mut bytes = whole.clone();
        // The key, its type, its value.
        let found = bytes.windows(key.len() + 4).position(|w| w == [key.as_bytes(), &[4, 0, 0, 0]].concat());
        let at = found.unwrap() + key.len() + 4;
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        refused_at(&path, words);
        let said = fewbit(&["inspect", &path.display().to_string()]).stderr;
        assert!(!said.contains("config.json") && !said.contains("num_"), "{said}");
    }
}

#[test]
fn a_pointer_of_git_lfs_is_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    for name in ["config.json", "model.safetensors", "model.safetensors.index.json", "generation_config.json"] {
        let dir = model();
        write(&dir, name, pointer);
        refused(&dir, &[name, "is a Git LFS pointer", "`git lfs pull`"]);
    }
    let dir = model();
    write(&dir, "model.gguf", pointer);
    refused_at(&dir.path().join("model.gguf"), &["is a Git LFS pointer", "`git lfs pull`"]);
    write(&dir, "tokenizer.json", pointer);
    let path = dir.path().display().to_string();
    fewbit(&["tokenize", &path, "Hi"]).refused(&["tokenizer.json", "is a Git LFS pointer", "`git lfs pull`"]);
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_is_named() {
    let linked = |name: &str, target: &str| {
        let dir = model();
        fs::remove_file(dir.path().join(name)).unwrap();
        std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
        dir
    };
    for name in ["config.json", "generation_config.json", "model.safetensors"] {
        refused(&linked(name, "../../blobs/01ab"), &[name, "is a link to `../../blobs/01ab`, which is gone"]);
    }
    refused(&linked("config.json", "config.json"), &["is a link to `config.json`, which leads nowhere"]);
    let path = linked("tokenizer.json", "../../blobs/01ab");
    let path = path.path().display().to_string();
    fewbit(&["tokenize", &path, "Hi"]).refused(&["tokenizer.json", "is a link to `../../blobs/01ab`, which is gone"]);
}

#[test]
fn a_vocabulary_that_contradicts_itself_is_warned_about() {
    let said = |change: &dyn Fn(&mut Value)| {
        let dir = model();
        let path = dir.path().join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut tokenizer);
        write(&dir, "tokenizer.json", tokenizer.to_string());
        let ran = fewbit(&["tokenize", &dir.path().display().to_string(), "Once upon a time", "--json"]);
        ran.good();
        ran.stderr
    };
    assert_eq!(said(&|_| {}), "");
    let moved = said(&|tokenizer| {
        let token = json!({"id": 403, "content": "<new>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false});
        tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    });
    assert!(
        moved.starts_with("warning: tokenizer.json: added token `<new>` has id 403 in the file, which is `"),
        "{moved}"
    );
    let twins = said(&|tokenizer| {
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocabulary.values_mut().filter(|id| **id == 4001).for_each(|id| *id = json!(4002));
    });
    assert!(twins.starts_with("warning: the tokenizer: id 4002 stands for 2 entries of the vocabulary"), "{twins}");
}

#[test]
fn tensors_that_are_not_used_are_all_named() {
    let dir = with_header(|h| {
        for i in 0..3 {
            h.insert(format!("vision.{i}"), json!({"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}));
        }
    });
    let path = dir.path().display().to_string();
    let object = fewbit(&["inspect", &path, "--json"]).good();
    assert_eq!(object["unused"], json!(["vision.0", "vision.1", "vision.2"]));
    assert!(object["notes"][0].as_str().unwrap().contains("`vision.0` and 2 more"), "{}", object["notes"]);
    let text = fewbit(&["inspect", &path]).stdout;
    assert!(["vision.0", "vision.1", "vision.2"].iter().all(|name| text.matches(name).count() == 1), "{text}");
}

#[test]
fn a_token_without_a_row_is_named_where_it_is_used() {
    let dir = model();
    let path = dir.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let token = json!({"id": 4096, "content": "<more>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": false});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    write(&dir, "tokenizer.json", tokenizer.to_string());
    write(&dir, "text.txt", "Once upon a time <more> there was a dog. ".repeat(9));
    let (model, text) = (dir.path().display().to_string(), dir.path().join("text.txt").display().to_string());
    let out = dir.path().join("out").display().to_string();
    assert_eq!(fewbit(&["logits", &model, "--prompt", "Once"]).code, Some(0));
    fewbit(&["logits", &model, "--prompt", "Once <more>"]).refused(&["id 4096", "4096 rows"]);
    fewbit(&["eval", &model, "--text", &text, "--length", "16"]).refused(&["id 4096", "4096 rows"]);
    let args = ["quantize", &model, "--recipe", "gptq", "--out", &out, "--calibration", &text, "--length", "16"];
    fewbit(&args).refused(&["the calibration text", "id 4096", "4096 rows"]);
    assert!(!dir.path().join("out").exists() && !dir.path().join("out.partial").exists());
}

#[test]
fn a_family_is_known_by_either_of_its_names() {
    let dir = model();
    let path = dir.path().display().to_string();
    let whole = fewbit(&["logits", &path, "--ids", "0,5,9", "--json"]).good();
    for (key, value) in [
        ("model_type", json!("mammoth")),
        ("model_type", Value::Null),
        ("architectures", json!(["MammothForCausalLM"])),
        ("architectures", json!([])),
        ("architectures", Value::Null),
    ] {
        let dir = with_figure(key, value.clone());
        let path = dir.path().display().to_string();
        assert_eq!(fewbit(&["logits", &path, "--ids", "0,5,9", "--json"]).good(), whole, "{key} {value}");
    }
    // Two families at once: one of them is a mistake.
    let dir = with_figure("architectures", json!(["GPTNeoXForCausalLM"]));
    refused(&dir, &["`model_type` is `llama`", "`GPTNeoXForCausalLM`"]);
}
