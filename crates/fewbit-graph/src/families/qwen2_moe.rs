use fewbit_format::Result;

use super::Architecture;
use super::experts::{Qwen, qwen_source};
use super::llama::{PreNorm, pre_norm_model_with, window};
use crate::{Config, Container, Model, Part, Source};

/// Qwen1.5-MoE and Qwen2-MoE: Qwen2 with routed experts, and one that every token takes, by a gate of its own.
#[derive(Debug)]
pub(super) struct Qwen2Moe;

impl Architecture for Qwen2Moe {
    fn answers_to(&self) -> &'static [&'static str] {
        &["qwen2_moe", "Qwen2MoeForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let mlp = Qwen::of(c, Some(c.usize("shared_expert_intermediate_size")?))?;
        let family = PreNorm { qkv_bias: c.bool_or("qkv_bias", true)?, ..PreNorm::default() };
        pre_norm_model_with(c, &family, &window(c, false)?, &|g, layer, n| mlp.build(g, layer, n))
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        qwen_source(container, c, part, name)
    }
}
