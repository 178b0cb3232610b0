use fewbit_format::Result;

use super::attention::{Norm, Reach, SelfAttention};
use super::decoder::Decoder;
use super::llama::{MLP, silu_only, swiglu};
use super::{Architecture, llama_like_gguf, llama_like_module};
use crate::{Activation, Builder, Config, Container, Graph, Model, Part, Rope, Source};

/// OLMo 2: norms behind attention and MLP and none before, norms over the whole rows of q and k.
#[derive(Debug)]
pub(super) struct Olmo2;

impl Architecture for Olmo2 {
    fn answers_to(&self) -> &'static [&'static str] {
        &["olmo2", "Olmo2ForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let hidden = c.usize("hidden_size")?;
        let (mlp, eps) = (c.usize("intermediate_size")?, c.eps("rms_norm_eps", 1e-5)?);
        silu_only(c)?;
        let bias = c.bool_or("attention_bias", false)?;
        let attention =
            SelfAttention { norm: Norm::Rows(eps), qkv_bias: bias, output_bias: bias, ..SelfAttention::of(c)? };
        let rope = Rope::from_config(c, attention.head_dim)?;
        let block = |_| {
            let mut g = Builder::new("residual", hidden);
            let x = Graph::INPUT;
            let o = attention.build(&mut g, x, Reach { rope: Some(0), window: None });
            let o = g.rms_norm("attn_out", o, "post_attention_layernorm.weight", eps);
            let x = g.add("residual_mid", x, o);
            let m = swiglu(&mut g, x, &MLP, mlp, false, Activation::Silu);
            let m = g.rms_norm("mlp_out", m, "post_feedforward_layernorm.weight", eps);
            let y = g.add("residual_out", x, m);
            g.finish(y)
        };
        Decoder::rms(eps).model(c, vec![rope], block)
    }

    fn source(&self, container: Container, _: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        Some(Source::plain(match (container, part, name) {
            (Container::HuggingFace, ..) => llama_like_module(part, name),
            (_, Part::Block(i), "post_attention_layernorm.weight") => format!("blk.{i}.post_attention_norm.weight"),
            (_, Part::Block(i), "post_feedforward_layernorm.weight") => format!("blk.{i}.post_ffw_norm.weight"),
            _ => llama_like_gguf(part, name)?,
        }))
    }
}
