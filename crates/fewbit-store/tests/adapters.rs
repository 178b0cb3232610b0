//! LoRA adapters that are refused, and how it is said.
#![expect(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};

use fewbit_format::Dtype;
use fewbit_store::{Elements, GgufWriter, LoraAdapter, ModelFile, TensorPlan, Value};
use serde_json::{Map, json};
use tempfile::TempDir;

const CONFIG: &str = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#;
const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

/// A Llama whose queries have the shape [64, 32], and its embedding [96, 32].
fn model() -> ModelFile {
    ModelFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/families/llama")).unwrap()
}

/// A folder as PEFT saves it, of f32 tensors whose elements are `value`.
fn folder(config: &str, tensors: &[(&str, &[usize])], value: f32) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("adapter_config.json"), config).unwrap();
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        data.extend((0..shape.iter().product()).flat_map(|_: usize| value.to_le_bytes()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        assert!(header.insert((*name).to_owned(), entry).is_none());
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    fs::write(dir.path().join("adapter_model.safetensors"), file).unwrap();
    dir
}

/// Opens an adapter and puts it beside the model; the refusal, if it is one.
fn attach(path: &Path) -> Result<(), String> {
    let adapter = LoraAdapter::open(path).map_err(|e| e.to_string())?;
    model().attach(&adapter, 1.0).map_err(|e| e.to_string())
}

/// What is said of these tensors.
fn refusal(tensors: &[(&str, &[usize])]) -> String {
    attach(folder(CONFIG, tensors, 0.5).path()).unwrap_err()
}

fn named(module: &str, end: &str) -> String {
    format!("{module}.{end}.weight")
}

#[test]
fn names_lead_to_the_same_matrices() {
    for q in [
        Q,
        "model.layers.0.self_attn.q_proj",
        "base_model.model.layers.0.self_attn.q_proj",
        "base_model.model.model.language_model.layers.0.self_attn.q_proj",
    ] {
        for end in ["", ".default"] {
            let [a, b] = ["lora_A", "lora_B"].map(|f| named(q, &format!("{f}{end}")));
            attach(folder(CONFIG, &[(&a, &[2, 32]), (&b, &[64, 2])], 0.5).path()).unwrap();
        }
    }
    // A file of the folder leads to it, and the embedding's own matrix is passed over.
    let e = "base_model.model.model.embed_tokens";
    let [a, b, copy] = ["lora_embedding_A", "lora_embedding_B", "base_layer.weight"].map(|end| format!("{e}.{end}"));
    let dir = folder(CONFIG, &[(&a, &[2, 96]), (&b, &[32, 2]), (&copy, &[96, 32])], 0.5);
    attach(&dir.path().join("adapter_model.safetensors")).unwrap();
    attach(&dir.path().join("adapter_config.json")).unwrap();
}

#[test]
fn what_does_not_fit_is_named() {
    let [a, b] = ["lora_A", "lora_B"].map(|f| named(Q, f));
    let e = refusal(&[(&a, &[2, 32]), (&b, &[32, 2])]);
    assert!(e.contains(&format!("tensor `{b}`: has shape [32, 2], where the model's matrix needs [64, 2]")), "{e}");
    let e = refusal(&[(&a, &[2, 48]), (&b, &[64, 2])]);
    assert!(e.contains(&format!("tensor `{a}`: has shape [2, 48], where the model's matrix needs [2, 32]")), "{e}");
    let e = refusal(&[(&a, &[3, 32]), (&b, &[64, 3])]);
    assert!(e.contains(&format!("tensor `{a}`: has a rank of 3, where adapter_config.json says 2")), "{e}");
    let e = refusal(&[(&a, &[2, 32])]);
    assert!(e.contains(&format!("tensor `{a}`: lacks the other factor of its pair")), "{e}");
    assert!(refusal(&[]).contains("holds no factors"));

    let [other, its_b] = ["lora_A", "lora_B"].map(|f| named("base_model.model.model.layers.3.self_attn.q_proj", f));
    let e = refusal(&[(&other, &[2, 32]), (&its_b, &[64, 2])]);
    assert!(e.contains(&format!("tensor `{other}`: belongs to no matrix of the model")), "{e}");
    let tower = "base_model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight";
    assert!(refusal(&[(tower, &[2, 32]), (&tower.replace("_A", "_B"), &[64, 2])]).contains("belongs to no matrix"));
    let [e_a, e_b] = ["lora_A", "lora_B"].map(|f| named("base_model.model.model.embed_tokens", f));
    assert!(
        refusal(&[(&e_a, &[2, 32]), (&e_b, &[96, 2])]).contains("a factor of a linear, where the model has an emb")
    );

    for value in [f32::NAN, f32::INFINITY] {
        let e = attach(folder(CONFIG, &[(&a, &[2, 32]), (&b, &[64, 2])], value).path()).unwrap_err();
        assert!(e.contains(&format!("tensor `{a}`: holds {value} at [0, 0]")), "{e}");
    }
    for (name, why) in [
        (format!("{Q}.lora_magnitude_vector"), "is of DoRA"),
        (format!("{Q}.lora_B.bias"), "is a trained bias"),
        ("base_model.model.lm_head.weight".to_owned(), "is a whole tensor"),
    ] {
        let e = refusal(&[(&a, &[2, 32]), (&b, &[64, 2]), (&name, &[64])]);
        assert!(e.contains(&format!("tensor `{name}`: {why}")), "{e}");
    }
}

#[test]
fn what_is_no_adapter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(attach(dir.path()).unwrap_err().contains("holds no adapter: there is no `adapter_config.json`"));
    assert!(attach(&dir.path().join("nowhere")).unwrap_err().contains("check the path"));
    fs::write(dir.path().join("adapter_config.json"), CONFIG).unwrap();
    fs::write(dir.path().join("adapter_model.bin"), b"a pickle").unwrap();
    assert!(attach(dir.path()).unwrap_err().contains("a pickle"));
    let given_as_model = ModelFile::open(folder(CONFIG, &[("a", &[1])], 0.0).path()).unwrap_err().to_string();
    assert!(given_as_model.contains("holds an adapter, no model; give it with `--lora`"), "{given_as_model}");
}

/// A GGUF file of f32 tensors of ones, in the place of the last.
fn gguf(dir: &Path, keys: &[(&str, Value)], tensors: &[(&str, &[usize])]) -> PathBuf {
    let path = dir.join("adapter.gguf");
    let keys: Vec<(String, Value)> = keys.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    let _ = fs::remove_file(&path);
    let elements = Elements::Plain(Dtype::F32);
    let plan =
        |(name, shape): &(&str, &[usize])| TensorPlan { name: (*name).to_owned(), elements, shape: shape.to_vec() };
    let plans: Vec<TensorPlan> = tensors.iter().map(plan).collect();
    let mut writer = GgufWriter::create(&path, &keys, &plans).unwrap();
    for (_, shape) in tensors {
        let count: usize = shape.iter().product();
        writer.tensor(&1f32.to_le_bytes().repeat(count)).unwrap();
    }
    writer.finish().unwrap();
    path
}

#[test]
fn ggufs_say_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let text = |t: &str| Value::String(t.to_owned());
    let keys = |architecture: &str, kind: &str| {
        vec![
            ("general.type", text("adapter")),
            ("general.architecture", text(architecture)),
            ("adapter.type", text(kind)),
            ("adapter.lora.alpha", Value::F32(4.0)),
        ]
    };
    let pair: [(&str, &[usize]); 2] =
        [("blk.0.attn_q.weight.lora_a", &[2, 32]), ("blk.0.attn_q.weight.lora_b", &[64, 2])];
    let of = |keys: &[(&str, Value)], tensors: &[(&str, &[usize])]| attach(&gguf(dir.path(), keys, tensors));
    of(&keys("llama", "lora"), &pair).unwrap();
    attach(dir.path()).unwrap();
    let refused = |keys: &[(&str, Value)], tensors: &[(&str, &[usize])]| of(keys, tensors).unwrap_err();
    assert!(refused(&keys("qwen2", "lora"), &pair).contains("adapter for models of the architecture `qwen2`"));
    assert!(refused(&keys("llama", "control_vector"), &pair).contains("`adapter.type` is `control_vector`"));
    assert!(refused(&keys("llama", "lora")[1..], &pair).contains("is no adapter: `general.type` is not `adapter`"));
    let e = refused(&keys("llama", "lora"), &[pair[0], ("blk.0.attn_q.weight.lora_b", &[32, 2])]);
    assert!(e.contains("tensor `blk.0.attn_q.weight.lora_b`: has shape [32, 2]"), "{e}");
    let e = refused(&keys("llama", "lora"), &[pair[0], pair[1], ("blk.0.attn_norm.weight", &[32])]);
    assert!(e.contains("tensor `blk.0.attn_norm.weight`: is no factor of an adapter"), "{e}");
    let experts: [(&str, &[usize]); 1] = [("blk.0.ffn_up_exps.weight.lora_a", &[4, 2, 32])];
    assert!(refused(&keys("llama", "lora"), &experts).contains("adapters of fused experts are not read"));
    let path = gguf(dir.path(), &keys("llama", "lora"), &pair);
    let e = ModelFile::open(&path).unwrap_err().to_string();
    assert!(e.contains("holds an adapter, no model"), "{e}");
}
