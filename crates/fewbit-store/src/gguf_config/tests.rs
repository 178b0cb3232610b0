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

#[test]
fn one_name_stands_for_families_with_experts_and_without() {
    let number = |key: &'static str, n| (key, Gv::U32(n));
    let experts = [number("FAMILY.expert_count", 8), number("FAMILY.expert_used_count", 2)];
    let c = config("llama", &experts, &[]);
    assert_eq!((&c["model_type"], &c["num_local_experts"]), (&json!("mixtral"), &json!(8)));
    assert_eq!(config("llama", &[number("FAMILY.expert_count", 0)], &[])["model_type"], "llama");
    let c = config("qwen2moe", &experts, &[]);
    // As llama.cpp has it where a key is absent: the width of an MLP for all that are chosen, and for those that are shared.
    assert_eq!((&c["moe_intermediate_size"], &c["shared_expert_intermediate_size"]), (&json!(48), &json!(96)));
    assert_eq!((&c["norm_topk_prob"], &c["num_experts"]), (&json!(false), &json!(8)));
    let e = open("qwen3", &experts, &[]).unwrap_err().to_string();
    assert!(e.contains("key `qwen3.expert_count` is 8, where this family has no experts"), "{e}");
    let e = open("qwen3moe", &experts[..1], &[]).unwrap_err().to_string();
    assert!(e.contains("key `qwen3moe.expert_used_count` is absent"), "{e}");
}

#[test]
fn deepseek_in_both_forms() {
    let number = |key: &'static str, n| (key, Gv::U32(n));
    let common = [
        number("FAMILY.expert_count", 8),
        number("FAMILY.expert_used_count", 2),
        number("FAMILY.expert_shared_count", 1),
        number("FAMILY.expert_feed_forward_length", 32),
        number("FAMILY.rope.dimension_count", 16),
        number("FAMILY.attention.kv_lora_rank", 24),
    ];
    let lengths = |key: u32, value: u32| {
        [number("FAMILY.attention.key_length", key), number("FAMILY.attention.value_length", value)]
    };
    let older = [&common[..], &lengths(48, 20)].concat();
    let mla = [number("FAMILY.attention.key_length_mla", 48), number("FAMILY.attention.value_length_mla", 20)];
    let sigmoid = [number("FAMILY.expert_gating_func", 2), number("FAMILY.expert_group_count", 4)];
    let newer = [&common[..], &lengths(40, 24), &mla, &sigmoid].concat();
    for (keys, model_type, choice) in [(older, "deepseek_v2", "greedy"), (newer, "deepseek_v3", "noaux_tc")] {
        let c = config("deepseek2", &keys, &[]);
        assert_eq!((&c["model_type"], &c["topk_method"]), (&json!(model_type), &json!(choice)));
        assert_eq!((&c["qk_nope_head_dim"], &c["v_head_dim"]), (&json!(32), &json!(20)));
        assert_eq!((&c["num_key_value_heads"], &c["q_lora_rank"]), (&json!(4), &Value::Null));
    }
    let e = open("deepseek2", &[&common[..], &lengths(16, 20)].concat(), &[]).unwrap_err().to_string();
    assert!(e.contains("keys of 16 numbers, of which 16 turn"), "{e}");
}
