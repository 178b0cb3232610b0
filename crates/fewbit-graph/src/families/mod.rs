use fewbit_format::{Error, Result};
use serde_json::{Map, Value};

use crate::{Config, Container, Model, Part, Source};

mod attention;
mod cohere;
mod decoder;
mod deepseek;
mod experts;
mod falcon;
mod gemma;
mod glm4;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod llama;
mod mixtral;
mod olmo2;
mod opt;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod stablelm;

/// A family of models: its graph and its names.
pub trait Architecture: Sync + std::fmt::Debug {
    /// The `model_type` values that it answers to (Hugging Face's and GGUF's).
    fn answers_to(&self) -> &'static [&'static str];

    /// The graph that a configuration describes.
    ///
    /// # Errors
    /// If a figure is absent, absurd, or asks for something that the family's graph does not have.
    fn model(&self, config: &Config<'_>) -> Result<Model>;

    /// Where weight or vector `name` of `part` lies in a container. `None` where the container has no name for it.
    fn source(&self, container: Container, config: &Config<'_>, part: Part, name: &str) -> Option<Source>;
}

/// All families.
pub const FAMILIES: &[&dyn Architecture] = &[
    &llama::Llama,
    &qwen2::Qwen2,
    &qwen3::Qwen3,
    &gemma::Gemma2,
    &gemma::Gemma3,
    &gpt2::Gpt2,
    &gpt_neox::GptNeox,
    &mixtral::Mixtral,
    &qwen2_moe::Qwen2Moe,
    &qwen3_moe::Qwen3Moe,
    &gpt_oss::GptOss,
    &phi3::Phi3,
    &olmo2::Olmo2,
    &granite::Granite,
    &stablelm::StableLm,
    &cohere::Cohere { has_window: false },
    &cohere::Cohere { has_window: true },
    &glm4::Glm { has_post_norms: false },
    &glm4::Glm { has_post_norms: true },
    &falcon::Falcon,
    &deepseek::DeepSeek { is_v3: false },
    &deepseek::DeepSeek { is_v3: true },
    &opt::Opt,
];

/// The family of a configuration, by `model_type` or by the first of `architectures`: one of them is enough.
///
/// # Errors
/// Names the unknown architecture, and what is known; or two names of different families.
pub fn architecture_of(config: &Map<String, Value>) -> Result<&'static dyn Architecture> {
    let model_type = config.get("model_type").and_then(Value::as_str);
    let class = (config.get("architectures").and_then(Value::as_array)).and_then(|a| a.first()).and_then(Value::as_str);
    let by = |name: &str| FAMILIES.iter().copied().find(|f| f.answers_to().contains(&name));
    match (model_type.and_then(by), class.and_then(by)) {
        (Some(a), Some(b)) if a.answers_to() != b.answers_to() => {
            let (model_type, class) = (model_type.unwrap_or_default(), class.unwrap_or_default());
            return Err(Error::input(format!(
                "config.json: `model_type` is `{model_type}`, and `architectures` names `{class}`, another family"
            ))
            .hint("take the configuration that belongs to the model"));
        }
        (Some(found), _) | (None, Some(found)) => return Ok(found),
        (None, None) => {}
    }
    let known: Vec<&str> =
        FAMILIES.iter().flat_map(|f| f.answers_to()).copied().filter(|n| !n.contains("For")).collect();
    let what = match model_type.or(class) {
        Some(name) => format!("architecture `{name}` is unknown"),
        None => "config.json names no architecture (`model_type`)".to_owned(),
    };
    Err(Error::input(what).hint(format!("known are {}", known.join(", "))))
}

/// Module path in a Hugging Face folder of the families that are named as Llama is.
fn llama_like_module(part: Part, name: &str) -> String {
    match part {
        Part::Embed => "model.embed_tokens".to_owned(),
        Part::Block(i) => format!("model.layers.{i}.{name}"),
        Part::Head if name == "lm_head" => "lm_head".to_owned(),
        Part::Head => format!("model.{name}"),
    }
}

/// GGUF's name of a Llama-like weight or vector.
fn llama_like_gguf(part: Part, name: &str) -> Option<String> {
    let (module, tensor) = match name.rsplit_once('.') {
        Some((module, "weight")) => (module, ".weight"),
        Some((module, "bias")) => (module, ".bias"),
        _ => (name, ""),
    };
    let local = match (part, module) {
        (Part::Embed, _) => return Some("token_embd".to_owned()),
        (Part::Head, "lm_head") => return Some("output".to_owned()),
        (Part::Head, _) => return Some(format!("output_norm{tensor}")),
        (_, "self_attn.q_proj") => "attn_q",
        (_, "self_attn.k_proj") => "attn_k",
        (_, "self_attn.v_proj") => "attn_v",
        (_, "self_attn.o_proj") => "attn_output",
        (_, "mlp.gate_proj") => "ffn_gate",
        (_, "mlp.up_proj") => "ffn_up",
        (_, "mlp.down_proj") => "ffn_down",
        (_, "self_attn.q_norm") => "attn_q_norm",
        (_, "self_attn.k_norm") => "attn_k_norm",
        (_, "input_layernorm") => "attn_norm",
        (_, "post_attention_layernorm") => "ffn_norm",
        _ => return None,
    };
    let Part::Block(i) = part else { return None };
    Some(format!("blk.{i}.{local}{tensor}"))
}
