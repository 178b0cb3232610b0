use fewbit_format::Result;

use super::Architecture;
use super::experts::{Qwen, qwen_source};
use super::llama::{PreNorm, pre_norm_model_with, window};
use crate::{Config, Container, Model, Part, Source};

/// Qwen3-MoE: Qwen3 with routed experts.
#[derive(Debug)]
pub(super) struct Qwen3Moe;

impl Architecture for Qwen3Moe {
    fn answers_to(&self) -> &'static [&'static str] {
        &["qwen3_moe", "Qwen3MoeForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let (mlp, bias) = (Qwen::of(c, None)?, c.bool_or("attention_bias", false)?);
        let family = PreNorm { qkv_bias: bias, output_bias: bias, has_qk_norm: true, ..PreNorm::default() };
        pre_norm_model_with(c, &family, &window(c, false)?, &|g, layer, n| mlp.build(g, layer, n))
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        qwen_source(container, c, part, name)
    }
}
