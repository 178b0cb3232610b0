/// A family as GGUF files name it, and as transformers does.
#[derive(Debug)]
pub struct GgufFamily {
    /// `general.architecture`.
    pub name: &'static str,
    /// `model_type` of config.json.
    pub model_type: &'static str,
    /// Its class in transformers.
    pub class: &'static str,
    /// Whether norms subtract the mean.
    pub has_layer_norm: bool,
    /// Whether part of a head turns.
    pub turns_partly: bool,
    /// Keys of the family in GGUF with a number, and in config.json.
    pub numbers: &'static [(&'static str, &'static str)],
    /// A key and the least number under it that tell the family from another of the same name.
    pub mark: Option<(&'static str, u64)>,
    /// Blocks of the model whose queries are scaled by the width of a head in the residual stream (Gemma).
    pub layers_of_largest: Option<u64>,
}

const fn plain(name: &'static str, model_type: &'static str, class: &'static str) -> GgufFamily {
    GgufFamily {
        name,
        model_type,
        class,
        has_layer_norm: false,
        turns_partly: false,
        numbers: &[],
        mark: None,
        layers_of_largest: None,
    }
}

const LOGIT_CAP: (&str, &str) = ("final_logit_softcapping", "final_logit_softcapping");
const LOGIT_SCALE: &[(&str, &str)] = &[("logit_scale", "logit_scale")];

impl GgufFamily {
    /// Those that are known.
    pub const ALL: [Self; 21] = [
        Self { mark: Some(("expert_count", 1)), ..plain("llama", "mixtral", "MixtralForCausalLM") },
        plain("llama", "llama", "LlamaForCausalLM"),
        plain("qwen2", "qwen2", "Qwen2ForCausalLM"),
        plain("qwen3", "qwen3", "Qwen3ForCausalLM"),
        Self {
            numbers: &[("attn_logit_softcapping", "attn_logit_softcapping"), LOGIT_CAP],
            layers_of_largest: Some(46),
            ..plain("gemma2", "gemma2", "Gemma2ForCausalLM")
        },
        Self {
            numbers: &[LOGIT_CAP],
            layers_of_largest: Some(62),
            ..plain("gemma3", "gemma3_text", "Gemma3ForCausalLM")
        },
        Self { has_layer_norm: true, ..plain("falcon", "falcon", "FalconForCausalLM") },
        Self { has_layer_norm: true, ..plain("gpt2", "gpt2", "GPT2LMHeadModel") },
        plain("olmo2", "olmo2", "Olmo2ForCausalLM"),
        Self {
            numbers: &[
                ("embedding_scale", "embedding_multiplier"),
                ("residual_scale", "residual_multiplier"),
                ("attention.scale", "attention_multiplier"),
                ("logit_scale", "logits_scaling"),
            ],
            ..plain("granite", "granite", "GraniteForCausalLM")
        },
        Self { turns_partly: true, ..plain("phi3", "phi3", "Phi3ForCausalLM") },
        Self { turns_partly: true, ..plain("glm4", "glm4", "Glm4ForCausalLM") },
        Self { turns_partly: true, has_layer_norm: true, ..plain("stablelm", "stablelm", "StableLmForCausalLM") },
        Self { has_layer_norm: true, numbers: LOGIT_SCALE, ..plain("command-r", "cohere", "CohereForCausalLM") },
        Self { has_layer_norm: true, numbers: LOGIT_SCALE, ..plain("cohere2", "cohere2", "Cohere2ForCausalLM") },
        Self { has_layer_norm: true, turns_partly: true, ..plain("gptneox", "gpt_neox", "GPTNeoXForCausalLM") },
        plain("qwen2moe", "qwen2_moe", "Qwen2MoeForCausalLM"),
        plain("qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM"),
        plain("gpt-oss", "gpt_oss", "GptOssForCausalLM"),
        Self {
            mark: Some(("expert_gating_func", Self::SIGMOID)),
            ..plain("deepseek2", "deepseek_v3", "DeepseekV3ForCausalLM")
        },
        plain("deepseek2", "deepseek_v2", "DeepseekV2ForCausalLM"),
    ];

    /// `expert_gating_func` where experts are scored by a sigmoid; 1 is a softmax.
    pub const SIGMOID: u64 = 2;
}
