use std::collections::BTreeMap;

use super::GgufFamily;

/// Keys of config.json, and the keys of a GGUF file (behind the family's name) that they are made of.
const NAMES: [(&str, &str); 44] = [
    ("activation", "hidden_activation"),
    ("ffn_hidden_size", "feed_forward_length"),
    ("first_k_dense_replace", "leading_dense_block_count"),
    ("head_dim", "attention.key_length"),
    ("hidden_act", "hidden_activation"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("kv_lora_rank", "attention.kv_lora_rank"),
    ("layer_norm_eps", "attention.layer_norm_epsilon"),
    ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
    ("max_position_embeddings", "context_length"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("n_group", "expert_group_count"),
    ("n_inner", "feed_forward_length"),
    ("n_routed_experts", "expert_count"),
    ("n_shared_experts", "expert_shared_count"),
    ("norm_topk_prob", "expert_weights_norm"),
    ("num_attention_heads", "attention.head_count"),
    ("num_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("num_hidden_layers", "block_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("num_kv_heads", "attention.head_count_kv"),
    ("num_local_experts", "expert_count"),
    ("original_max_position_embeddings", "rope.scaling.original_context_length"),
    ("partial_rotary_factor", "rope.dimension_count"),
    ("q_lora_rank", "attention.q_lora_rank"),
    ("qk_nope_head_dim", "attention.key_length_mla"),
    ("qk_rope_head_dim", "rope.dimension_count"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("rope_local_base_freq", "rope.freq_base_swa"),
    ("rope_scaling.attention_factor", "rope.scaling.attn_factor"),
    ("rope_scaling.factor", "rope.scaling.factor"),
    ("rope_scaling.mscale_all_dim", "rope.scaling.yarn_log_multiplier"),
    ("rope_scaling.original_max_position_embeddings", "rope.scaling.original_context_length"),
    ("rope_theta", "rope.freq_base"),
    ("rotary_pct", "rope.dimension_count"),
    ("routed_scaling_factor", "expert_weights_scale"),
    ("scoring_func", "expert_gating_func"),
    ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
    ("sliding_window", "attention.sliding_window"),
    ("topk_group", "expert_group_used_count"),
    ("use_parallel_residual", "use_parallel_residual"),
    ("v_head_dim", "attention.value_length_mla"),
];

/// By key of config.json, the key of a file of this family that an error names.
pub(super) fn key_names(family: &GgufFamily) -> BTreeMap<String, String> {
    let of_family = family.numbers.iter().map(|(from, to)| (*to, *from));
    let width = (family.model_type == "gpt_oss").then_some(("intermediate_size", "expert_feed_forward_length"));
    let pairs = NAMES.into_iter().chain(of_family).chain(width);
    pairs.map(|(to, from)| (to.to_owned(), format!("{}.{from}", family.name))).collect()
}
