use fewbit_format::Result;

use super::llama::{PreNorm, pre_norm_model};
use super::{Architecture, llama_like_gguf, llama_like_module};
use crate::{Config, Container, Model, Part, Source};

/// Qwen3 (dense): Llama with RMS norms on the heads of q and k, before the rotation.
#[derive(Debug)]
pub(super) struct Qwen3;

impl Architecture for Qwen3 {
    fn answers_to(&self) -> &'static [&'static str] {
        &["qwen3", "Qwen3ForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let bias = c.bool_or("attention_bias", false)?;
        pre_norm_model(c, &PreNorm { qkv_bias: bias, output_bias: bias, has_qk_norm: true, ..PreNorm::default() })
    }

    fn source(&self, container: Container, _: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        Some(Source::plain(match container {
            Container::HuggingFace => llama_like_module(part, name),
            Container::Gguf => llama_like_gguf(part, name)?,
        }))
    }
}
