use fewbit_format::Result;

use super::Architecture;
use super::attention::{Names, Reach, SelfAttention};
use super::decoder::{Decoder, LastNorm};
use crate::{Activation, Builder, Config, Container, Graph, Model, Op, Part, Rows, Source};

/// GPT-2: learned positions, LayerNorms, biases everywhere, q, k and v in one matrix; matrices are stored `[in, out]`.
#[derive(Debug)]
pub(super) struct Gpt2;

const NAMES: Names = ["attn.query", "attn.key", "attn.value", "attn.c_proj"];

impl Architecture for Gpt2 {
    fn answers_to(&self) -> &'static [&'static str] {
        &["gpt2", "GPT2LMHeadModel"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let (hidden, context) = (c.usize("hidden_size")?, c.usize("max_position_embeddings")?);
        let (mlp, eps) = (c.usize_opt("n_inner")?.unwrap_or(4 * hidden), c.eps("layer_norm_epsilon", 1e-5)?);
        if c.bool_or("add_cross_attention", false)? {
            return Err(c.error_at("add_cross_attention", "is true: only decoders without it are read"));
        }
        let activation = match c.str("activation_function").unwrap_or("gelu_new") {
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "gelu" => Activation::GeluErf,
            "relu" => Activation::Relu,
            other => {
                return Err(c.error_at("activation_function", format_args!("`{other}` is unknown for GPT-2")));
            }
        };
        let by_layer = c.bool_or("scale_attn_by_inverse_layer_idx", false)?;
        let of = SelfAttention::of(c)?;
        let scale = if c.bool_or("scale_attn_weights", true)? { of.scale } else { 1.0 };
        let mut attention = SelfAttention { names: NAMES, qkv_bias: true, output_bias: true, ..of };
        let block = |layer: usize| {
            attention.scale = if by_layer { scale / (layer + 1) as f32 } else { scale };
            let mut g = Builder::new("residual", hidden);
            let mut x = Graph::INPUT;
            if layer == 0 {
                x = g.positions(x, "wpe.weight", context, 0);
            }
            let n = g.layer_norm("attn_in", x, "ln_1.weight", Some("ln_1.bias"), eps);
            let o = attention.build(&mut g, n, Reach::default());
            let x = g.add("residual_mid", x, o);
            let n = g.layer_norm("mlp_in", x, "ln_2.weight", Some("ln_2.bias"), eps);
            let h = g.linear(n, "mlp.c_fc", mlp, true);
            let h = g.apply("down_in", Op::Activation(activation), &[h]);
            let m = g.linear(h, "mlp.c_proj", hidden, true);
            let y = g.add("residual_out", x, m);
            g.finish(y)
        };
        let norm = LastNorm::Layer("ln_f.weight", Some("ln_f.bias"), eps);
        Decoder { norm, is_tied: true, ..Decoder::rms(eps) }.model(c, Vec::new(), block)
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        let third = NAMES[..3].iter().position(|n| *n == name);
        let is_matrix = third.is_some() || matches!(name, "attn.c_proj" | "mlp.c_fc" | "mlp.c_proj");
        let mut source = Source::plain(match container {
            Container::HuggingFace => module(part, if third.is_some() { "attn.c_attn" } else { name }),
            Container::Gguf => gguf(part, if third.is_some() { "attn.c_attn" } else { name })?,
        });
        if let Some(third) = third {
            let hidden = c.usize("hidden_size").ok()?;
            source.rows = Rows::Blocks { block: 3 * hidden, offset: third * hidden, rows: hidden };
        }
        source.is_transposed = is_matrix && container == Container::HuggingFace;
        Some(source)
    }
}

/// The tensor or module in a Hugging Face folder.
fn module(part: Part, name: &str) -> String {
    match (part, name) {
        (Part::Embed, _) => "transformer.wte".to_owned(),
        (Part::Head, "lm_head") => name.to_owned(),
        (Part::Block(i), _) if name != "wpe.weight" => format!("transformer.h.{i}.{name}"),
        _ => format!("transformer.{name}"),
    }
}

/// The tensor or module in a GGUF file.
fn gguf(part: Part, name: &str) -> Option<String> {
    let Part::Block(i) = part else {
        return Some(match name {
            "embed_tokens" => "token_embd".to_owned(),
            "lm_head" => "output".to_owned(),
            _ => name.replace("ln_f", "output_norm"),
        });
    };
    let (module, tensor) = match name.rsplit_once('.') {
        Some((module, tensor @ ("weight" | "bias"))) => (module, format!(".{tensor}")),
        _ => (name, String::new()),
    };
    let local = match module {
        "wpe" => return Some("position_embd.weight".to_owned()),
        "attn.c_attn" => "attn_qkv",
        "attn.c_proj" => "attn_output",
        "mlp.c_fc" => "ffn_up",
        "mlp.c_proj" => "ffn_down",
        "ln_1" => "attn_norm",
        "ln_2" => "ffn_norm",
        _ => return None,
    };
    Some(format!("blk.{i}.{local}{tensor}"))
}
