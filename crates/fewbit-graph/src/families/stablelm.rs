use fewbit_format::Result;

use super::attention::{PARTIAL, Reach, SelfAttention};
use super::decoder::{Decoder, LastNorm};
use super::llama::{MLP, silu_only, swiglu};
use super::{Architecture, llama_like_gguf, llama_like_module};
use crate::{Activation, Builder, Config, Container, Graph, Model, Part, Rope, Source};

/// StableLM: LayerNorms, partial rotation, attention and MLP one after the other or side by side.
#[derive(Debug)]
pub(super) struct StableLm;

impl Architecture for StableLm {
    fn answers_to(&self) -> &'static [&'static str] {
        &["stablelm", "stablelm_epoch", "StableLmForCausalLM", "StableLMEpochForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let hidden = c.usize("hidden_size")?;
        let (mlp, eps) = (c.usize("intermediate_size")?, c.eps("layer_norm_eps", 1e-5)?);
        silu_only(c)?;
        if c.bool_or("qk_layernorm", false)? {
            return Err(c.error_at("qk_layernorm", "is true, which is not supported in this family"));
        }
        let parallel = c.bool_or("use_parallel_residual", false)?;
        let attention = SelfAttention { qkv_bias: c.bool_or("use_qkv_bias", false)?, ..SelfAttention::of(c)? };
        let attention = attention.partly_rotated(c, PARTIAL, 0.25)?;
        let rope = Rope::from_config(c, attention.rotary_dims)?;
        let block = |_| {
            let mut g = Builder::new("residual", hidden);
            let x = Graph::INPUT;
            let name = if parallel { "block_in" } else { "attn_in" };
            let n = g.layer_norm(name, x, "input_layernorm.weight", Some("input_layernorm.bias"), eps);
            let o = attention.build(&mut g, n, Reach { rope: Some(0), window: None });
            let x = g.add("residual_mid", x, o);
            let n = if parallel {
                n
            } else {
                let bias = Some("post_attention_layernorm.bias");
                g.layer_norm("mlp_in", x, "post_attention_layernorm.weight", bias, eps)
            };
            let m = swiglu(&mut g, n, &MLP, mlp, false, Activation::Silu);
            let y = g.add("residual_out", x, m);
            g.finish(y)
        };
        let norm = LastNorm::Layer("norm.weight", Some("norm.bias"), eps);
        Decoder { norm, context: 4096, ..Decoder::rms(eps) }.model(c, vec![rope], block)
    }

    fn source(&self, container: Container, _: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        Some(Source::plain(match container {
            Container::HuggingFace => llama_like_module(part, name),
            Container::Gguf => llama_like_gguf(part, name)?,
        }))
    }
}
