use fewbit_format::Result;

use super::attention::{PARTIAL, Reach, SelfAttention};
use super::decoder::Decoder;
use super::llama::{MLP, silu_only, swiglu};
use super::phi3::gate_up;
use super::{Architecture, llama_like_gguf, llama_like_module};
use crate::{Activation, Builder, Config, Container, Graph, Model, Part, Rope, Rows, Source};

/// GLM-4: half of each head turns, by adjacent pairs; gate and up in one matrix.
#[derive(Debug)]
pub(super) struct Glm {
    /// Norms behind attention and MLP too, as from 0414 on.
    pub(super) has_post_norms: bool,
}

impl Architecture for Glm {
    fn answers_to(&self) -> &'static [&'static str] {
        if self.has_post_norms { &["glm4", "Glm4ForCausalLM"] } else { &["glm", "GlmForCausalLM"] }
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let hidden = c.usize("hidden_size")?;
        let (mlp, eps) = (c.usize("intermediate_size")?, c.eps("rms_norm_eps", 1.562_5e-7)?);
        silu_only(c)?;
        let has_post_norms = self.has_post_norms;
        let attention = SelfAttention { qkv_bias: c.bool_or("attention_bias", false)?, ..SelfAttention::of(c)? };
        let attention = attention.partly_rotated(c, PARTIAL, 0.5)?;
        let rope = Rope::from_config(c, attention.rotary_dims)?;
        let block = |_| {
            let mut g = Builder::new("residual", hidden);
            let x = Graph::INPUT;
            let n = g.rms_norm("attn_in", x, "input_layernorm.weight", eps);
            let mut o = attention.build(&mut g, n, Reach { rope: Some(0), window: None });
            if has_post_norms {
                o = g.rms_norm("attn_out", o, "post_self_attn_layernorm.weight", eps);
            }
            let x = g.add("residual_mid", x, o);
            let n = g.rms_norm("mlp_in", x, "post_attention_layernorm.weight", eps);
            let mut m = swiglu(&mut g, n, &MLP, mlp, false, Activation::Silu);
            if has_post_norms {
                m = g.rms_norm("mlp_out", m, "post_mlp_layernorm.weight", eps);
            }
            let y = g.add("residual_out", x, m);
            g.finish(y)
        };
        Decoder { context: 131_072, ..Decoder::rms(eps) }.model(c, vec![rope], block)
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        if container == Container::Gguf && !self.has_post_norms {
            return None;
        }
        let Part::Block(i) = part else {
            return Some(Source::plain(match container {
                Container::HuggingFace => llama_like_module(part, name),
                Container::Gguf => llama_like_gguf(part, name)?,
            }));
        };
        let name_of = |module: &str, tensor: &str| match container {
            Container::HuggingFace => format!("model.layers.{i}.{module}"),
            Container::Gguf => format!("blk.{i}.{tensor}"),
        };
        let plain = |module: &str, tensor: &str| Some(Source::plain(name_of(module, tensor)));
        match name {
            "mlp.gate_proj" | "mlp.up_proj" => {
                let rows = gate_up(c.usize("intermediate_size").ok()?, usize::from(name == "mlp.up_proj"));
                Some(Source { rows, ..Source::plain(name_of("mlp.gate_up_proj", "ffn_up")) })
            }
            "self_attn.q_proj" | "self_attn.k_proj" => {
                let attention = SelfAttention::of(c).ok()?.partly_rotated(c, PARTIAL, 0.5).ok()?;
                let rows = Rows::RopePairs { head_dim: attention.head_dim, rotary_dims: attention.rotary_dims };
                let tensor = if name == "self_attn.q_proj" { "attn_q" } else { "attn_k" };
                Some(Source { rows, ..Source::plain(name_of(name, tensor)) })
            }
            "post_self_attn_layernorm.weight" => plain(name, "post_attention_norm.weight"),
            "post_mlp_layernorm.weight" => plain(name, "post_ffw_norm.weight"),
            _ if container == Container::HuggingFace => Some(Source::plain(llama_like_module(part, name))),
            _ => llama_like_gguf(part, name).map(Source::plain),
        }
    }
}
