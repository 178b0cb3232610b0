use super::*;
use crate::{GgufWriter, Numbers, TensorPlan, Value as Gv};

/// A file of one family with the least keys, these, and an embedding; with `rope_freqs` if there are factors.
fn open(family: &str, more: &[(&str, Gv)], factors: &[f32]) -> Result<Checkpoint> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let own = |key: &str| format!("{family}.{key}");
    let mut keys = vec![
        ("general.architecture".to_owned(), Gv::String(family.into())),
        (own("embedding_length"), Gv::U32(64)),
        (own("feed_forward_length"), Gv::U32(96)),
        (own("block_count"), Gv::U32(8)),
        (own("attention.head_count"), Gv::U32(4)),
        (own("attention.layer_norm_rms_epsilon"), Gv::F32(1e-6)),
    ];
    keys.extend(more.iter().map(|(k, v)| (k.replace("FAMILY", family), v.clone())));
    let plan = |name: &str, shape: &[usize]| TensorPlan {
        name: name.into(),
        elements: crate::Elements::Plain(fewbit_format::Dtype::F32),
        shape: shape.into(),
    };
    let mut plans = vec![plan("token_embd.weight", &[5, 64])];
    if !factors.is_empty() {
        plans.push(plan("rope_freqs.weight", &[factors.len()]));
    }
    let mut writer = GgufWriter::create(&path, &keys, &plans).unwrap();
    writer.tensor(&[0; 5 * 64 * 4]).unwrap();
    if !factors.is_empty() {
        writer.tensor(Numbers::from_f32s(factors).bytes()).unwrap();
    }
    writer.finish().unwrap();
    Checkpoint::open(&path)
}

fn config(family: &str, more: &[(&str, Gv)], factors: &[f32]) -> Map<String, Value> {
    open(family, more, factors).unwrap().config().clone()
}

#[test]
fn families_and_defaults() {
    for (family, class) in [("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")] {
        let c = config(family, &[("FAMILY.attention.head_count_kv", Gv::Numbers(Numbers::from_i32s(&[2; 8])))], &[]);
        assert_eq!((&c["architectures"][0], &c["vocab_size"]), (&json!(class), &json!(5)));
        assert_eq!((&c["num_key_value_heads"], &c["head_dim"]), (&json!(2), &json!(16)));
        assert_eq!((&c["rms_norm_eps"], &c["tie_word_embeddings"]), (&json!(1e-6), &json!(true)));
    }
    let e = open("mamba", &[], &[]).unwrap_err().to_string();
    assert!(e.contains("has the unknown architecture `mamba`; known in GGUF files: llama, qwen2, qwen3, "), "{e}");
}

#[test]
fn a_key_of_another_type_or_layout_is_named() {
    let e = open("llama", &[("FAMILY.context_length", Gv::String("8k".into()))], &[]).unwrap_err().to_string();
    assert!(e.contains("key `llama.context_length` is a text, where a whole number"), "{e}");
    let uneven = Gv::Numbers(Numbers::from_i32s(&[2, 4]));
    let e = open("llama", &[("FAMILY.attention.head_count_kv", uneven)], &[]).unwrap_err().to_string();
    assert!(e.contains("key `llama.attention.head_count_kv` differs from layer to layer"), "{e}");
    let mut zero = vec![("FAMILY.rope.dimension_count", Gv::U32(16))];
    zero.push(("FAMILY.rope.scaling.type", Gv::String("longrope".into())));
    let e = open("llama", &zero, &[]).unwrap_err().to_string();
    assert!(e.contains("`llama.rope.scaling.type` is `longrope`, where none, linear and yarn are known"), "{e}");
}

#[test]
fn scaled_rotations() {
    let linear =
        [("FAMILY.rope.scaling.type", Gv::String("linear".into())), ("FAMILY.rope.scaling.factor", Gv::F32(8.0))];
    assert_eq!(config("gemma3", &linear, &[])["rope_scaling"], json!({"rope_type": "linear", "factor": 8.0}));
    assert_eq!(config("llama", &[("FAMILY.rope.scale_linear", Gv::F32(4.0))], &[])["rope_scaling"]["factor"], 4.0);
    assert!(!config("llama", &[], &[]).contains_key("rope_scaling"));
    let yarn = [
        ("FAMILY.rope.scaling.type", Gv::String("yarn".into())),
        ("FAMILY.rope.scaling.factor", Gv::F32(4.0)),
        ("FAMILY.rope.scaling.original_context_length", Gv::U32(32768)),
    ];
    let expected = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    assert_eq!(config("qwen2", &yarn, &[])["rope_scaling"], expected);
}

#[test]
fn divisors_of_frequencies() {
    // The rule as llama.cpp's converter has it, for heads of 16 with base 500000.
    let factors: Vec<f32> = (0..8)
        .map(|i| {
            let wave = 2.0 * std::f64::consts::PI * 500000f64.powf(f64::from(i) / 8.0);
            if wave < 8192.0 / 4.0 {
                1.0
            } else if wave > 8192.0 {
                32.0
            } else {
                let smooth = (8192.0 / wave - 1.0) / 3.0;
                (1.0 / ((1.0 - smooth) / 32.0 + smooth)) as f32
            }
        })
        .collect();
    let base = [("FAMILY.rope.freq_base", Gv::F32(500000.0))];
    let c = config("llama", &base, &factors);
    assert_eq!(c["rope_scaling"]["rope_type"], "llama3");
    assert_eq!(c["rope_scaling"]["factor"], 32.0);
    assert!(!c.contains_key("rope_freq_factors"));
    let other = config("llama", &base, &[1.0, 1.5, 2.25]);
    assert_eq!(other["rope_freq_factors"], json!([1.0, 1.5, 2.25]));
    assert!(!other.contains_key("rope_scaling"));
}

#[test]
fn every_token_that_ends_is_in_the_list() {
    let ends = [("tokenizer.ggml.eos_token_id", Gv::U32(1)), ("tokenizer.ggml.eot_token_id", Gv::U32(4))];
    let checkpoint = open("llama", &ends, &[]).unwrap();
    assert_eq!(checkpoint.generation_config().unwrap()["eos_token_id"], json!([1, 4]));
    assert_eq!(open("llama", &[], &[]).unwrap().generation_config(), None);
}
