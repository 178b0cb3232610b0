//! Experts, and DeepSeek's attention, in the words of config.json.

use fewbit_format::{Error, Result};
use serde_json::{Map, Value, json};

use super::{GgufFamily, Keys, decimal};
use crate::Checkpoint;

/// How many experts there are, how they are chosen, and how wide they are.
pub(super) fn experts(
    keys: &Keys<'_>,
    family: &GgufFamily,
    checkpoint: &Checkpoint,
    config: &mut Map<String, Value>,
) -> Result<()> {
    let mut put = |key: &str, value: Value| _ = config.insert(key.to_owned(), value);
    let is_known =
        matches!(family.model_type, "mixtral" | "qwen2_moe" | "qwen3_moe" | "gpt_oss") || family.name == "deepseek2";
    if !is_known {
        return match keys.u64("expert_count")?.filter(|count| *count > 0) {
            None => Ok(()),
            Some(count) => {
                let what = format!("key `{}.expert_count` is {count}, where this family has no experts", keys.family);
                Err(Error::input(what)
                    .hint("known with experts: llama, qwen2moe, qwen3moe, gpt-oss, deepseek2")
                    .file(keys.gguf.path()))
            }
        };
    }
    let (count, used) = (keys.needed("expert_count")?, keys.needed("expert_used_count")?);
    put("num_experts_per_tok", json!(used));
    let count_key = match family.model_type {
        "mixtral" | "gpt_oss" => "num_local_experts",
        "qwen2_moe" | "qwen3_moe" => "num_experts",
        _ => "n_routed_experts",
    };
    put(count_key, json!(count));
    let width = keys.u64("expert_feed_forward_length")?;
    match family.model_type {
        "mixtral" => {}
        // Without the key, llama.cpp has the width of a dense MLP shared out among the chosen experts.
        "qwen2_moe" | "qwen3_moe" => {
            let all = keys.needed("feed_forward_length")?;
            put("moe_intermediate_size", json!(width.or(all.checked_div(used))));
            put("norm_topk_prob", json!(family.model_type == "qwen3_moe"));
            put(
                "shared_expert_intermediate_size",
                json!(keys.u64("expert_shared_feed_forward_length")?.unwrap_or(all)),
            );
            put("qkv_bias", json!(checkpoint.contains("blk.0.attn_q.bias")));
        }
        "gpt_oss" => put("intermediate_size", json!(keys.needed("expert_feed_forward_length")?)),
        _ => {
            put("moe_intermediate_size", json!(keys.needed("expert_feed_forward_length")?));
            put("n_shared_experts", json!(keys.needed("expert_shared_count")?));
            put("first_k_dense_replace", json!(keys.u64("leading_dense_block_count")?.unwrap_or(0)));
            put(
                "routed_scaling_factor",
                json!(keys.number("expert_weights_scale")?.filter(|s| *s != 0.0).unwrap_or(1.0)),
            );
            let is_normed = keys.gguf.bool(&format!("{}.expert_weights_norm", keys.family))?.unwrap_or(false);
            put("norm_topk_prob", json!(is_normed));
            let groups = keys.u64("expert_group_count")?.unwrap_or(1);
            put("n_group", json!(groups.max(1)));
            put("topk_group", json!(keys.u64("expert_group_used_count")?.unwrap_or(1).max(1)));
            let choice = match (family.model_type, groups) {
                ("deepseek_v3", _) => "noaux_tc",
                (_, 0 | 1) => "greedy",
                _ => "group_limited_greedy",
            };
            put("topk_method", json!(choice));
        }
    }
    Ok(())
}

/// DeepSeek's attention: in newer files as one head of the latent's width, whose keys `key_length_mla` describes.
pub(super) fn latent(keys: &Keys<'_>, checkpoint: &Checkpoint, config: &mut Map<String, Value>) -> Result<()> {
    let turning = keys.needed("rope.dimension_count")?;
    let of_head = |newer: &str, older: &str| match keys.u64(newer)? {
        Some(length) => Ok(length),
        None => keys.needed(older),
    };
    let key = of_head("attention.key_length_mla", "attention.key_length")?;
    let value = of_head("attention.value_length_mla", "attention.value_length")?;
    let nope = key.checked_sub(turning).filter(|n| *n > 0).ok_or_else(|| {
        Error::input(format!("keys of {key} numbers, of which {turning} turn (`deepseek2.rope.dimension_count`)"))
            .hint("the file is damaged: download it again")
            .file(keys.gguf.path())
    })?;
    let mut put = |key: &str, value: Value| _ = config.insert(key.to_owned(), value);
    put("qk_rope_head_dim", json!(turning));
    put("qk_nope_head_dim", json!(nope));
    put("v_head_dim", json!(value));
    put("kv_lora_rank", json!(keys.needed("attention.kv_lora_rank")?));
    let has_queries = checkpoint.contains("blk.0.attn_q_a.weight");
    put("q_lora_rank", if has_queries { json!(keys.needed("attention.q_lora_rank")?) } else { Value::Null });
    // Keys and values are made for every head, of which the file says that there is one.
    put("num_key_value_heads", json!(keys.per_layer("attention.head_count")?));
    put("head_dim", Value::Null);
    Ok(())
}

/// What DeepSeek's YaRN multiplies by: of a file it is known that both weights of the logarithm are equal.
pub(super) fn yarn_weights(keys: &Keys<'_>, scaling: &mut Map<String, Value>) -> Result<()> {
    const PART: f64 = 0.1;
    if let Some(weight) = keys.number("rope.scaling.yarn_log_multiplier")?.filter(|w| *w != 0.0) {
        let weight = decimal((weight / PART) as f32);
        scaling.insert("mscale".into(), json!(weight));
        scaling.insert("mscale_all_dim".into(), json!(weight));
    }
    Ok(())
}
