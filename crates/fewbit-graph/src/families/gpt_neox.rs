use fewbit_format::Result;

use super::Architecture;
use super::attention::{Names, Reach, SelfAttention};
use super::decoder::{Decoder, LastNorm};
use crate::{Activation, Builder, Config, Container, Graph, Model, Op, Part, Rope, Rows, Source};

/// GPT-NeoX and Pythia: LayerNorms, biases everywhere, q/k/v fused per head, partial rotation, parallel residual.
#[derive(Debug)]
pub(super) struct GptNeox;

const NAMES: Names = ["attention.query", "attention.key", "attention.value", "attention.dense"];

impl Architecture for GptNeox {
    fn answers_to(&self) -> &'static [&'static str] {
        &["gpt_neox", "GPTNeoXForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let hidden = c.usize("hidden_size")?;
        let (mlp, eps) = (c.usize("intermediate_size")?, c.eps("layer_norm_eps", 1e-5)?);
        let parallel = c.bool_or("use_parallel_residual", true)?;
        let bias = c.bool_or("attention_bias", true)?;
        let activation = match c.str("hidden_act").unwrap_or("gelu") {
            "gelu" => Activation::GeluErf,
            "gelu_fast" | "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            other => {
                return Err(c.error_at("hidden_act", format_args!("`{other}` is unknown for this family")));
            }
        };
        let attention = SelfAttention { names: NAMES, qkv_bias: bias, output_bias: bias, ..SelfAttention::of(c)? };
        let attention = attention.partly_rotated(c, "rotary_pct", 0.25)?;
        let rotary_dims = attention.rotary_dims;
        // `rotary_emb_base` is the older name of `rope_theta`.
        let has_theta = c.object("rope_parameters")?.is_some() || c.f64_or("rope_theta", 0.0)? > 0.0;
        let rope = if has_theta {
            Rope::from_config(c, rotary_dims)?
        } else {
            Rope::scaled(c, c.f64_or("rotary_emb_base", 10000.0)?, rotary_dims, c.object("rope_scaling")?)?
        };
        let block = |_| {
            let mut g = Builder::new("residual", hidden);
            let x = Graph::INPUT;
            let n = g.layer_norm("attn_in", x, "input_layernorm.weight", Some("input_layernorm.bias"), eps);
            let o = attention.build(&mut g, n, Reach { rope: Some(0), window: None });
            let mid = g.add("residual_mid", x, o);
            let mlp_from = if parallel { x } else { mid };
            let n = g.layer_norm(
                "mlp_in",
                mlp_from,
                "post_attention_layernorm.weight",
                Some("post_attention_layernorm.bias"),
                eps,
            );
            let h = g.linear(n, "mlp.dense_h_to_4h", mlp, true);
            let h = g.apply("down_in", Op::Activation(activation), &[h]);
            let m = g.linear(h, "mlp.dense_4h_to_h", hidden, true);
            let y = g.add("residual_out", mid, m);
            g.finish(y)
        };
        let norm = LastNorm::Layer("final_layer_norm.weight", Some("final_layer_norm.bias"), eps);
        Decoder { norm, ..Decoder::rms(eps) }.model(c, vec![rope], block)
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        if container == Container::Gguf {
            return gguf(c, part, name);
        }
        Some(match part {
            Part::Embed => Source::plain("gpt_neox.embed_in"),
            Part::Head if name == "lm_head" => Source::plain("embed_out"),
            Part::Head => Source::plain(format!("gpt_neox.{name}")),
            Part::Block(i) => {
                let prefix = format!("gpt_neox.layers.{i}");
                let Some(third) = third(name) else { return Some(Source::plain(format!("{prefix}.{name}"))) };
                let d = c.heads().ok()?.2;
                let rows = Rows::Blocks { block: 3 * d, offset: third * d, rows: d };
                Source { rows, ..Source::plain(format!("{prefix}.attention.query_key_value")) }
            }
        })
    }
}

/// Which of queries, keys and values a linear makes.
fn third(name: &str) -> Option<usize> {
    NAMES[..3].iter().position(|n| *n == name)
}

/// Where a weight or vector lies in a GGUF file: all queries, all keys, all values in one matrix.
fn gguf(c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
    let Part::Block(i) = part else {
        return Some(Source::plain(match name {
            "embed_tokens" => "token_embd".to_owned(),
            "lm_head" => "output".to_owned(),
            _ => name.replace("final_layer_norm", "output_norm"),
        }));
    };
    if let Some(third) = third(name) {
        let (heads, _, head_dim) = c.heads().ok()?;
        let rows = heads * head_dim;
        let rows = Rows::Blocks { block: 3 * rows, offset: third * rows, rows };
        return Some(Source { rows, ..Source::plain(format!("blk.{i}.attn_qkv")) });
    }
    let local = match name {
        "attention.dense" => "attn_output".to_owned(),
        "mlp.dense_h_to_4h" => "ffn_up".to_owned(),
        "mlp.dense_4h_to_h" => "ffn_down".to_owned(),
        _ => name.replace("input_layernorm", "attn_norm").replace("post_attention_layernorm", "ffn_norm"),
    };
    Some(Source::plain(format!("blk.{i}.{local}")))
}
