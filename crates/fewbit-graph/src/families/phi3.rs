use fewbit_format::Result;

use super::attention::{PARTIAL, Reach, SelfAttention};
use super::decoder::Decoder;
use super::llama::{MLP, silu_only, swiglu, window};
use super::{Architecture, llama_like_gguf, llama_like_module};
use crate::{Activation, Builder, Config, Container, Graph, Model, Part, Rope, Rows, Source};

/// Phi-3 and Phi-4: one matrix for q, k and v, one for gate and up, partial rotation, longrope.
#[derive(Debug)]
pub(super) struct Phi3;

impl Architecture for Phi3 {
    fn answers_to(&self) -> &'static [&'static str] {
        &["phi3", "Phi3ForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let hidden = c.usize("hidden_size")?;
        let (mlp, eps) = (c.usize("intermediate_size")?, c.eps("rms_norm_eps", 1e-5)?);
        silu_only(c)?;
        let attention = SelfAttention::of(c)?.partly_rotated(c, PARTIAL, 1.0)?;
        let rope = Rope::from_config(c, attention.rotary_dims)?;
        let window = window(c, true)?;
        let block = |layer: usize| {
            let mut g = Builder::new("residual", hidden);
            let x = Graph::INPUT;
            let n = g.rms_norm("attn_in", x, "input_layernorm.weight", eps);
            let o = attention.build(&mut g, n, Reach { rope: Some(0), window: window.at(layer) });
            let x = g.add("residual_mid", x, o);
            let n = g.rms_norm("mlp_in", x, "post_attention_layernorm.weight", eps);
            let m = swiglu(&mut g, n, &MLP, mlp, false, Activation::Silu);
            let y = g.add("residual_out", x, m);
            g.finish(y)
        };
        Decoder { context: 4096, ..Decoder::rms(eps) }.model(c, vec![rope], block)
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        if let (Part::Block(i), Some((fused, rows))) = (part, fused(c, name)) {
            let name = match (container, fused) {
                (Container::HuggingFace, Fused::Qkv) => format!("model.layers.{i}.self_attn.qkv_proj"),
                (Container::HuggingFace, Fused::GateUp) => format!("model.layers.{i}.mlp.gate_up_proj"),
                (Container::Gguf, Fused::Qkv) => format!("blk.{i}.attn_qkv"),
                (Container::Gguf, Fused::GateUp) => format!("blk.{i}.ffn_up"),
            };
            return Some(Source { rows, ..Source::plain(name) });
        }
        Some(Source::plain(match container {
            Container::HuggingFace => llama_like_module(part, name),
            Container::Gguf => llama_like_gguf(part, name)?,
        }))
    }
}

enum Fused {
    Qkv,
    GateUp,
}

/// In which matrix a linear lies together with others, and where.
fn fused(c: &Config<'_>, name: &str) -> Option<(Fused, Rows)> {
    let (heads, kv_heads, head_dim) = c.heads().ok()?;
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let of_qkv = |offset, rows| Some((Fused::Qkv, Rows::Blocks { block: q + 2 * kv, offset, rows }));
    match name {
        "self_attn.q_proj" => of_qkv(0, q),
        "self_attn.k_proj" => of_qkv(q, kv),
        "self_attn.v_proj" => of_qkv(q + kv, kv),
        "mlp.gate_proj" | "mlp.up_proj" => {
            let offset = usize::from(name == "mlp.up_proj");
            Some((Fused::GateUp, gate_up(c.usize("intermediate_size").ok()?, offset)))
        }
        _ => None,
    }
}

/// The rows of gate (0) or up (1) in one matrix in which up follows gate.
pub(super) fn gate_up(width: usize, which: usize) -> Rows {
    Rows::Blocks { block: 2 * width, offset: which * width, rows: width }
}
