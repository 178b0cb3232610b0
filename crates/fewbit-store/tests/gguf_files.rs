//! GGUF files of ggml's own tools: metadata, block types, split models, whole checkpoints.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "the helpers of tests fail as tests do, and say what they skip"
)]

use std::path::{Path, PathBuf};

use fewbit_format::{GgmlBlocks, GgmlType, Storage};
use fewbit_store::{Checkpoint, Elements, Gguf, GgufWriter, TensorPlan, Value};
use serde_json::Value as Json;

/// A file of the conformance data, or `None` with a line that says so.
fn conformance(name: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/conformance/gguf")).join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

/// A real model, or `None` with a line that says so.
fn model(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("FEWBIT_MODELS").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/fewbit/models")))?;
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there; `tools/fetch-models.sh all` gets it", path.display());
    None
}

fn json(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The value as the expectations have it: integers of 64 bits as texts.
fn as_json(value: &Value) -> Json {
    match value {
        Value::U64(v) => v.to_string().into(),
        Value::I64(v) => v.to_string().into(),
        Value::Bool(v) => (*v).into(),
        Value::String(v) => v.as_str().into(),
        Value::Strings(v) => v.clone().into(),
        Value::Numbers(v) => v.iter().map(|n| as_json(&n)).collect(),
        other => match (other.as_i64(), other.as_f64()) {
            (Some(v), _) => v.into(),
            (None, v) => v.into(),
        },
    }
}

/// Equal, but for the last place of floats, which the JSON parser may miss.
fn is_equal(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_equal(a, b)),
        (Json::Number(n), Json::Number(m)) if n.is_f64() && m.is_f64() => {
            let (n, m) = (n.as_f64().unwrap(), m.as_f64().unwrap());
            (n - m).abs() <= n.abs() * f64::EPSILON && n.is_sign_negative() == m.is_sign_negative()
        }
        _ => a == b,
    }
}

#[test]
fn metadata_of_every_type() {
    let Some(expected) = conformance("container/metadata.json") else { return };
    let expected = json(&expected);
    for (name, version) in [("metadata-v2", 2), ("metadata-v3", 3), ("metadata-v3-align128", 3)] {
        let gguf = Gguf::open(&conformance(&format!("container/{name}.gguf")).unwrap()).unwrap();
        assert_eq!(gguf.version(), version);
        for entry in expected["kv"].as_array().unwrap() {
            let key = entry["key"].as_str().unwrap();
            let found = as_json(&gguf.metadata()[key]);
            assert!(is_equal(&found, &entry["value"]), "{name}: {key} is {found}, not {}", entry["value"]);
        }
        for tensor in expected["tensors"].as_array().unwrap() {
            let found = gguf.tensors().iter().find(|t| t.name == tensor["name"].as_str().unwrap()).unwrap();
            let shape: Vec<usize> = found.shape.iter().rev().copied().collect();
            assert_eq!(Json::from(shape), tensor["gguf_dims"], "{name}: {}", found.name);
            let Elements::Plain(dtype) = found.elements else { panic!("{}", found.name) };
            if dtype.is_float() {
                let mut values = vec![0.0; found.shape.iter().product()];
                dtype.widen(&gguf.bytes(found), &mut values).unwrap();
                let wanted = tensor["values"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32);
                assert!(wanted.eq(values), "{name}: {}", found.name);
            }
        }
    }
}

#[test]
fn big_endian_is_named() {
    let Some(path) = conformance("container/metadata-v3-big-endian.gguf") else { return };
    let e = Gguf::open(&path).unwrap_err().to_string();
    assert!(e.contains("is a big-endian GGUF (version 3)"), "{e}");
}

#[test]
fn what_was_read_is_written_again() {
    let Some(path) = conformance("container/metadata-v3.gguf") else { return };
    let gguf = Gguf::open(&path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy.gguf");
    let metadata: Vec<(String, Value)> = gguf.metadata().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let plan = |t: &fewbit_store::GgufTensor| TensorPlan {
        name: t.name.clone(),
        elements: t.elements,
        shape: t.shape.clone(),
    };
    let plans: Vec<TensorPlan> = gguf.tensors().iter().map(plan).collect();
    let mut writer = GgufWriter::create(&copy, &metadata, &plans).unwrap();
    assert!(!copy.exists(), "nothing has the name before the end");
    for tensor in gguf.tensors() {
        writer.tensor(&gguf.bytes(tensor)).unwrap();
    }
    writer.finish().unwrap();
    let back = Gguf::open(&copy).unwrap();
    assert_eq!(back.metadata(), gguf.metadata());
    for (a, b) in gguf.tensors().iter().zip(back.tensors()) {
        assert_eq!((&a.name, a.elements, &a.shape), (&b.name, b.elements, &b.shape));
        assert_eq!(gguf.bytes(a), back.bytes(b));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// The types of all tensors of the small files, and their bytes' number.
#[test]
fn small_models_have_the_types_of_their_index() {
    let Some(index) = conformance("tiny/index.json") else { return };
    for file in json(&index)["files"].as_array().unwrap() {
        let name = file["file"].as_str().unwrap();
        let path = match file["shards"].as_array() {
            Some(shards) => index.with_file_name(shards[1]["file"].as_str().unwrap()),
            None => index.with_file_name(name),
        };
        let checkpoint = Checkpoint::open(&path).unwrap();
        let types = file["tensors"].as_object().unwrap();
        assert_eq!(checkpoint.names().count(), types.len(), "{name}");
        for (tensor, wanted) in types {
            assert_eq!(checkpoint.elements(tensor).unwrap().name(), wanted.as_str().unwrap(), "{name}: {tensor}");
        }
        let config = checkpoint.config();
        assert_eq!(config["vocab_size"], 512, "{name}");
        assert_eq!(config["model_type"], "llama");
        let q = checkpoint.storage("blk.0.attn_q.weight");
        assert_eq!(q.unwrap().shape()[1] as u64, config["hidden_size"].as_u64().unwrap(), "{name}");
    }
}

/// From the same source the same bytes as `llama-quantize`.
#[test]
fn a_whole_model_encodes_to_the_same_bytes() {
    let Some(path) = conformance("tiny/tiny-f16-00001-of-00002.gguf") else { return };
    let source = Checkpoint::open(&path).unwrap();
    let quantized = Checkpoint::open(&path.with_file_name("tiny-q4_0.gguf")).unwrap();
    let mut compared = 0;
    for name in quantized.names().filter(|n| quantized.elements(n).unwrap() == Elements::Blocks(GgmlType::Q4_0)) {
        let values = source.tensor(name).unwrap();
        let encoded =
            GgmlBlocks::encode(GgmlType::Q4_0, values.shape[0], values.shape[1], &values.to_f32().unwrap(), None);
        let Storage::Ggml(expected) = quantized.storage(name).unwrap() else { panic!("{name}") };
        assert!(encoded.unwrap().bytes == expected.bytes, "{name}");
        compared += 1;
    }
    assert_eq!(compared, 15);
}

#[test]
fn smollm2() {
    let Some(path) = model("SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.names().count(), 272);
    let expected = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 8192,
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "attention_bias": false,
        "rope_theta": 100000.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    });
    assert_eq!(Json::Object(checkpoint.config().clone()), expected);
    assert_eq!(
        Json::Object(checkpoint.generation_config().unwrap().clone()),
        serde_json::json!({"bos_token_id": 1, "eos_token_id": 2})
    );
    let Storage::Ggml(down) = checkpoint.storage("blk.29.ffn_down.weight").unwrap() else { panic!() };
    assert_eq!((down.kind, down.shape()), (GgmlType::Q4_1, [576, 1536]));
    for name in checkpoint.names() {
        assert_eq!(checkpoint.non_finite(name).unwrap(), None, "{name}");
    }
}

#[test]
fn gemma3() {
    let Some(path) = model("gemma-3-270m-q4_k_m.gguf") else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.names().count(), 236);
    let mut config = checkpoint.config().clone();
    let layers = config.remove("layer_types").unwrap();
    let full: Vec<usize> = (0..18).filter(|l| layers[l] == "full_attention").collect();
    assert_eq!((layers.as_array().unwrap().len(), &full[..]), (18, &[5, 11, 17][..]));
    let expected = serde_json::json!({
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
        "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "max_position_embeddings": 32768,
        "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        "attention_bias": false, "sliding_window": 512, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
    });
    assert_eq!(Json::Object(config), expected);
}
