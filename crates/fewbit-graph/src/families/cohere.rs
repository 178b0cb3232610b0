use fewbit_format::Result;

use super::attention::{K_NORM, Norm, Q_NORM, Reach, SelfAttention};
use super::decoder::{Decoder, LastNorm};
use super::llama::{MLP, silu_only, swiglu, window};
use super::{Architecture, llama_like_gguf, llama_like_module};
use crate::{Activation, Builder, Config, Container, Graph, Model, Op, Part, Rope, Rows, Source};

/// Cohere's Command R, R+ and R7B: attention and MLP side by side behind one norm without bias, norms of queries and keys
/// in R+, adjacent rotary pairs, a factor on the logits.
#[derive(Debug)]
pub(super) struct Cohere {
    /// A window, as R7B has it; every fourth layer sees everything, without positions.
    pub(super) has_window: bool,
}

impl Architecture for Cohere {
    fn answers_to(&self) -> &'static [&'static str] {
        if self.has_window { &["cohere2", "Cohere2ForCausalLM"] } else { &["cohere", "CohereForCausalLM"] }
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let hidden = c.usize("hidden_size")?;
        let (mlp, eps) = (c.usize("intermediate_size")?, c.eps("layer_norm_eps", 1e-5)?);
        silu_only(c)?;
        let has_norms = c.bool_or("use_qk_norm", false)?;
        if has_norms && self.has_window {
            return Err(c.error_at("use_qk_norm", "is true, which is not supported in this family"));
        }
        let bias = c.bool_or("attention_bias", false)?;
        let norm = if has_norms { Norm::OwnHeads(eps) } else { Norm::None };
        let attention = SelfAttention { norm, qkv_bias: bias, output_bias: bias, ..SelfAttention::of(c)? };
        let rope = Rope::from_config(c, attention.head_dim)?;
        let reach = reaches(c, self.has_window)?;
        let block = |layer: usize| {
            let mut g = Builder::new("residual", hidden);
            let x = Graph::INPUT;
            let n = g.layer_norm("block_in", x, "input_layernorm.weight", None, eps);
            let o = attention.build(&mut g, n, reach(layer));
            let x = g.add("residual_mid", x, o);
            let m = swiglu(&mut g, n, &MLP, mlp, false, Activation::Silu);
            let y = g.add("residual_out", x, m);
            g.finish(y)
        };
        let decoder = Decoder {
            norm: LastNorm::Layer("norm.weight", None, eps),
            logits: Some(Op::Scale { factor: c.f64_or("logit_scale", 0.0625)? as f32 }),
            context: 8192,
            is_tied: true,
            ..Decoder::rms(eps)
        };
        decoder.model(c, vec![rope], block)
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        let mut source = Source::plain(match container {
            Container::HuggingFace => llama_like_module(part, name),
            Container::Gguf => llama_like_gguf(part, name)?,
        });
        if matches!(name, "self_attn.q_proj" | "self_attn.k_proj" | Q_NORM | K_NORM) {
            let head_dim = c.heads().ok()?.2;
            source.rows = Rows::RopePairs { head_dim, rotary_dims: head_dim };
        }
        Some(source)
    }
}

/// What each layer sees: all without a window in the configuration; else all in the layers that `layer_types` or a
/// pattern says, which know no positions.
fn reaches(c: &Config<'_>, has_window: bool) -> Result<impl Fn(usize) -> Reach> {
    let size = if has_window { c.usize_opt("sliding_window")? } else { None };
    let pattern = c.usize_opt("sliding_window_pattern")?.unwrap_or(4);
    let types = if c.array("layer_types")?.is_some() { Some(window(c, true)?) } else { None };
    Ok(move |layer: usize| {
        let Some(size) = size else { return Reach { rope: Some(0), window: None } };
        let is_full = match &types {
            Some(types) => types.at(layer).is_none(),
            None => (layer + 1).is_multiple_of(pattern),
        };
        if is_full { Reach::default() } else { Reach { rope: Some(0), window: Some(size) } }
    })
}
