use fewbit_format::Result;

use super::attention::{K_NORM, Norm, PARTIAL, Q_NORM, Reach, SelfAttention};
use super::decoder::{Decoder, LastNorm};
use super::llama::{MLP, silu_only, swiglu};
use super::{Architecture, llama_like_gguf, llama_like_module};
use crate::{Activation, Builder, Config, Container, Graph, Model, Part, Rope, Source};

/// StableLM: LayerNorms, of queries and keys too in the 12B, partial rotation, attention and MLP one after the other or
/// side by side.
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
        let norm = if c.bool_or("qk_layernorm", false)? { Norm::OwnHeads(eps) } else { Norm::None };
        let parallel = c.bool_or("use_parallel_residual", false)?;
        let attention = SelfAttention { norm, qkv_bias: c.bool_or("use_qkv_bias", false)?, ..SelfAttention::of(c)? };
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

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        let one_a_head = |norm: &str, heads: usize| {
            let name = llama_like_module(part, &format!("self_attn.{norm}.norms"));
            Source { heads: Some(heads), ..Source::plain(name) }
        };
        Some(match (container, name) {
            (Container::HuggingFace, Q_NORM) => one_a_head("q_layernorm", c.heads().ok()?.0),
            (Container::HuggingFace, K_NORM) => one_a_head("k_layernorm", c.heads().ok()?.1),
            (Container::HuggingFace, _) => Source::plain(llama_like_module(part, name)),
            (Container::Gguf, _) => Source::plain(llama_like_gguf(part, name)?),
        })
    }
}
