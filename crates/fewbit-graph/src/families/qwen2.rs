use fewbit_format::Result;

use super::llama::{PreNorm, pre_norm_model};
use super::{Architecture, llama_like_gguf, llama_like_module};
use crate::{Config, Container, Model, Part, Source};

/// Qwen2 and Qwen2.5: Llama with biases on q, k and v.
#[derive(Debug)]
pub(super) struct Qwen2;

impl Architecture for Qwen2 {
    fn answers_to(&self) -> &'static [&'static str] {
        &["qwen2", "Qwen2ForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        pre_norm_model(c, &PreNorm { qkv_bias: true, ..PreNorm::default() })
    }

    fn source(&self, container: Container, _: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        Some(Source::plain(match container {
            Container::HuggingFace => llama_like_module(part, name),
            Container::Gguf => llama_like_gguf(part, name)?,
        }))
    }
}
