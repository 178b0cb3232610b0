//! Quantized checkpoints of other programs, and our own, through the layouts.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at the first surprise, and says what it skips"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fewbit_format::{Storage, Tensor};
use fewbit_store::layout::{
    Awq, CompressedTensors, Float8, Gptq, Layout, Quantization, Scheme, is_quantized, read_activation, read_linear,
    tensor_names,
};
use fewbit_store::{Checkpoint, Safetensors};
use serde_json::Value;

/// Checkpoints, and whether they are of a form that is written.
const FOLDERS: &[(&str, bool)] = &[
    ("ct-w3a16-g128-sym-rtn", true),
    ("ct-w4a16-channel-sym-rtn-stories260K", true),
    ("ct-w4a16-g128-asym-awq", true),
    ("ct-w4a16-g128-sym-gptq-actstatic", true),
    ("ct-w4a16-g32-asym-rtn", true),
    ("ct-w8a16-channel-sym-rtn", true),
    ("ct-mixed-w4-w8", true),
    ("ct-w8a8-int-dynamic-token", false),
    ("ct-w8a8-int-dynamic-token-stories260K", false),
    ("ct-w8a8-int-static-asym", false),
    ("ct-fp8-block128", true),
    ("ct-fp8-dynamic-token-channel", true),
    ("ct-fp8-static-kvfp8", true),
    ("ct-fp8-static-tensor", true),
    ("ct-mxfp4a16", true),
    ("ct-mxfp8", true),
    ("ct-nvfp4-w4a4", true),
    ("ct-nvfp4a16", true),
    ("gptq-w2-g32-asym", false),
    ("gptq-w3-g128-sym", false),
    ("gptq-w4-g128-sym", false),
    ("gptq-w4-g128-sym-descact", false),
    ("gptq-w4-g32-asym", false),
    ("gptq-w8-g128-sym", false),
    ("gptqv2-w4-g64-asym", false),
    ("awq-gemm-w4-g128-autoawq", false),
    ("awq-gemm-w4-g128-gptqmodel", false),
];

struct Folder {
    config: Value,
    tensors: Checkpoint,
    /// For each quantized module: sum, sum of squares, first and last value of its weight.
    golden: BTreeMap<String, Vec<f64>>,
}

impl Folder {
    fn open(name: &str) -> Option<Self> {
        let shared = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/conformance/quantized"));
        let path: PathBuf = shared.join(name);
        if !path.exists() {
            eprintln!("skipped: {} is not here", path.display());
            return None;
        }
        let config = serde_json::from_slice(&std::fs::read(path.join("config.json")).unwrap()).unwrap();
        let golden = Safetensors::open(&path.join("golden.safetensors")).unwrap();
        let stats = |tensor: &str| {
            let module = tensor.strip_prefix("deq_stats.")?.strip_suffix(".weight")?.to_owned();
            let numbers = golden.tensor(tensor).unwrap();
            Some((module, numbers.bytes.as_chunks::<8>().0.iter().map(|c| f64::from_le_bytes(*c)).collect()))
        };
        let golden = golden.names().filter_map(stats).collect();
        Some(Self { config, tensors: Checkpoint::open(&path).unwrap(), golden })
    }

    fn quantization(&self) -> Quantization {
        Quantization::parse(&self.config, None).unwrap()
    }

    /// `[out, in]` of a module, from its name and the config.
    fn shape(&self, module: &str) -> [usize; 2] {
        let n = |key: &str| self.config[key].as_u64().map(|n| n as usize);
        let hidden = n("hidden_size").unwrap();
        let head = n("head_dim").unwrap_or(hidden / n("num_attention_heads").unwrap());
        match module.rsplit('.').next().unwrap() {
            "q_proj" => [n("num_attention_heads").unwrap() * head, hidden],
            "k_proj" | "v_proj" => [n("num_key_value_heads").unwrap() * head, hidden],
            "o_proj" => [hidden, n("num_attention_heads").unwrap() * head],
            "gate_proj" | "up_proj" => [n("intermediate_size").unwrap(), hidden],
            "down_proj" => [hidden, n("intermediate_size").unwrap()],
            _ => [n("vocab_size").unwrap(), hidden],
        }
    }
}

fn decode(storage: &Storage) -> Vec<f32> {
    let [rows, cols] = storage.shape();
    let mut values = vec![0.0; rows * cols];
    storage.decode_rows(0..rows, &mut values);
    values
}

/// `[sum, sum of squares, first, last]` in f64.
fn stats(values: &[f32]) -> [f64; 4] {
    let wide = || values.iter().map(|v| f64::from(*v));
    [wide().sum(), wide().map(|v| v * v).sum(), wide().next().unwrap(), wide().next_back().unwrap()]
}

#[test]
fn weights_decode_to_the_golden_values() {
    for (name, _) in FOLDERS {
        let Some(folder) = Folder::open(name) else { continue };
        let q = folder.quantization();
        assert!(!folder.golden.is_empty());
        for (module, golden) in &folder.golden {
            assert!(is_quantized(&q, &folder.tensors, module), "{name} {module}");
            let storage = read_linear(&q, &folder.tensors, module, folder.shape(module)).unwrap();
            let [sum, squares, first, last] = stats(&decode(&storage));
            assert!(
                (sum - golden[0]).abs() < 1e-9 && (squares - golden[1]).abs() < 1e-12 * golden[1].max(1e3),
                "{name} {module}: {sum} {golden:?}"
            );
            assert_eq!([first, last], [golden[2], golden[3]], "{name} {module}");
        }
    }
}

#[test]
fn every_tensor_belongs_to_a_module_and_plain_ones_are_read() {
    for (name, _) in FOLDERS {
        let Some(folder) = Folder::open(name) else { continue };
        let q = folder.quantization();
        let known: Vec<String> = folder.golden.keys().flat_map(|m| tensor_names(&q, m)).collect();
        for tensor in folder.tensors.names().filter(|t| t.contains("_proj.")) {
            assert!(known.iter().any(|k| k == tensor), "{name} {tensor}");
        }
        let embedding = read_linear(&q, &folder.tensors, "model.embed_tokens", folder.shape("model.embed_tokens"));
        assert!(matches!(embedding.unwrap(), Storage::Dense(_)));
        assert!(!is_quantized(&q, &folder.tensors, "model.embed_tokens"));
    }
}

#[test]
fn what_is_written_is_what_was_read() {
    for (name, _) in FOLDERS.iter().filter(|(_, is_written)| *is_written) {
        let Some(folder) = Folder::open(name) else { continue };
        let q = folder.quantization();
        let mut modules = vec![("lm_head".to_owned(), None)];
        for module in folder.golden.keys() {
            let storage = read_linear(&q, &folder.tensors, module, folder.shape(module)).unwrap();
            modules.push((module.clone(), Scheme::of(&storage)));
            assert_eq!(Scheme::of(&storage).as_ref(), q.scheme_of(module).map(Scheme::weights));
            // This one has scales in F32, which vLLM does not load.
            if name.ends_with("stories260K") {
                assert!(CompressedTensors.can_hold(&storage).unwrap_err().contains("F32"));
                continue;
            }
            for (tensor, ours) in CompressedTensors.tensors(module, &storage).unwrap() {
                let theirs = folder.tensors.tensor(&tensor).unwrap();
                assert_eq!(
                    (ours.dtype, &ours.shape, &ours.bytes),
                    (theirs.dtype, &theirs.shape, &theirs.bytes),
                    "{tensor}"
                );
            }
        }
        let ours = CompressedTensors.quantization_config(&modules, None);
        let back = Quantization::parse(&serde_json::json!({ "quantization_config": ours }), None).unwrap();
        for (module, scheme) in &modules {
            assert_eq!(back.scheme_of(module), scheme.as_ref(), "{name} {module}");
        }
    }
}

/// Files of other programs, written again: the same bytes.
#[test]
fn gptq_and_awq_are_written_as_others_write_them() {
    let folders: [(&str, &dyn Layout); 8] = [
        ("gptq-w4-g128-sym", &Gptq { is_v2: false }),
        ("gptq-w4-g128-sym-descact", &Gptq { is_v2: false }),
        ("gptq-w8-g128-sym", &Gptq { is_v2: false }),
        ("gptq-w3-g128-sym", &Gptq { is_v2: false }),
        ("gptqv2-w4-g64-asym", &Gptq { is_v2: true }),
        ("awq-gemm-w4-g128-autoawq", &Awq),
        ("awq-gemm-w4-g128-gptqmodel", &Awq),
        ("ct-fp8-block128", &Float8),
    ];
    for (name, layout) in folders {
        let Some(folder) = Folder::open(name) else { continue };
        let q = folder.quantization();
        for module in folder.golden.keys() {
            let storage = read_linear(&q, &folder.tensors, module, folder.shape(module)).unwrap();
            assert_eq!(layout.can_hold(&storage), Ok(()), "{name}");
            for (tensor, ours) in layout.tensors(module, &storage).unwrap() {
                // compressed-tensors has another name for the same scales, and they are not of the same type.
                let Ok(theirs) = folder.tensors.tensor(&tensor) else {
                    assert!(tensor.ends_with("weight_scale_inv"), "{name} {tensor}");
                    continue;
                };
                assert_eq!((ours.dtype, &ours.shape), (theirs.dtype, &theirs.shape), "{name} {tensor}");
                assert!(ours.bytes == theirs.bytes, "{name} {tensor}");
            }
        }
    }
}

/// Matrices that MLX packed (tools/make_mlx_fixture.py), and what it decodes them to.
#[test]
fn mlx_is_read_in_every_mode() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/mlx.safetensors");
    let file = Safetensors::open(Path::new(path)).unwrap();
    let tensors: BTreeMap<String, Tensor> = file.names().map(|n| (n.to_owned(), file.tensor(n).unwrap())).collect();
    let mut settings = serde_json::json!({ "group_size": 32, "bits": 4 });
    let names: Vec<&str> = tensors.keys().filter_map(|n| n.strip_suffix(".decoded")).collect();
    assert_eq!(names.len(), 8);
    for name in &names {
        let bits: u64 = name.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
        let mode = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let mode = if mode == "affine" { "affine" } else { *name };
        settings[*name] = serde_json::json!({ "group_size": 32, "bits": bits, "mode": mode });
    }
    let config = serde_json::json!({ "quantization": settings.clone(), "quantization_config": settings });
    let q = Quantization::parse(&config, None).unwrap();
    for name in names {
        assert!(is_quantized(&q, &tensors, name));
        let storage = read_linear(&q, &tensors, name, [3, 64]).unwrap();
        assert_eq!(Scheme::of(&storage).as_ref(), q.scheme_of(name));
        let golden = tensors[&format!("{name}.decoded")].to_f32().unwrap();
        for (ours, theirs) in decode(&storage).iter().zip(&golden) {
            // MLX multiplies and adds in one rounding on some machines.
            assert!((ours - theirs).abs() <= 1e-6 * theirs.abs().max(1.0), "{name}: {ours} {theirs}");
        }
    }
    let wrong = serde_json::json!({ "quantization": { "group_size": 32, "bits": 7 } });
    assert!(Quantization::parse(&wrong, None).unwrap_err().to_string().contains("7 bits"));
}

#[test]
fn forms_that_are_not_read_give_one_sentence() {
    let Some(mut folder) = Folder::open("awq-gemm-w4-g128-autoawq") else { return };
    folder.config["quantization_config"]["quant_method"] = "aqlm".into();
    let module = "model.layers.0.self_attn.q_proj";
    let error = read_linear(&folder.quantization(), &folder.tensors, module, folder.shape(module)).unwrap_err();
    assert!(error.to_string().starts_with(&format!("`{module}` is quantized with `aqlm`, which is not read yet;")));
}

#[test]
fn rounding_at_run_time_is_known() {
    let sentences = [
        ("ct-w8a8-int-dynamic-token", Some("activations to int8 per token")),
        ("ct-fp8-static-kvfp8", Some("activations to e4m3 static and the cache to e4m3 static")),
        ("ct-w4a16-g32-asym-rtn", None),
        ("gptq-w4-g128-sym", None),
    ];
    for (name, what) in sentences {
        let Some(folder) = Folder::open(name) else { continue };
        let q = folder.quantization();
        assert_eq!(q.runtime_rounding().as_deref(), what);
        assert!(q.check(false).is_ok() && q.check(true).is_ok());
        let module = "model.layers.0.self_attn.q_proj";
        let activation = read_activation(&q, &folder.tensors, module, folder.shape(module)).unwrap();
        assert_eq!(activation.is_some(), what.is_some());
        assert_eq!(activation.map(|a| a.grid), q.scheme_of(module).unwrap().input());
    }
}

#[test]
fn quantized_tensors_without_settings_are_named() {
    let Some(folder) = Folder::open("gptq-w4-g128-sym") else { return };
    let module = "model.layers.0.self_attn.q_proj";
    let error =
        read_linear(&Quantization::None, &folder.tensors, module, folder.shape(module)).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("tensor `{module}.qweight`: `qweight` tensors, but no quantization settings")),
        "{error}"
    );
}
