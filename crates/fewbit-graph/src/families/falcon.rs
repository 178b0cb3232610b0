use fewbit_format::Result;

use super::Architecture;
use super::attention::{Names, Reach, SelfAttention};
use super::decoder::{Decoder, LastNorm};
use crate::{Activation, Builder, Config, Container, Graph, Model, Op, Part, Rope, Rows, Source};

/// Falcon: LayerNorms, attention and MLP side by side behind one norm or two, q, k and v in one matrix by key-value head.
#[derive(Debug)]
pub(super) struct Falcon;

impl Architecture for Falcon {
    fn answers_to(&self) -> &'static [&'static str] {
        &["falcon", "RefinedWeb", "RefinedWebModel", "FalconForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let hidden = c.usize("hidden_size")?;
        let mlp = c.usize_opt("ffn_hidden_size")?.unwrap_or(4 * hidden);
        let eps = c.eps("layer_norm_epsilon", 1e-5)?;
        let bias = c.bool_or("bias", false)?;
        if c.bool_or("alibi", false)? {
            return Err(c.error_at("alibi", "is true: positions by ALiBi are not supported"));
        }
        if let Some(act) = c.str("activation").filter(|a| *a != "gelu") {
            return Err(c.error_at("activation", format_args!("is `{act}`, where Falcon has gelu")));
        }
        let norms = Norms::of(c)?;
        let attention = attention(c, bias)?;
        let rope = Rope::from_config(c, attention.head_dim)?;
        let block = |_| {
            let mut g = Builder::new("residual", hidden);
            let x = Graph::INPUT;
            let (name, [gain, offset]) = match norms {
                Norms::Two => ("attn_in", ["ln_attn.weight", "ln_attn.bias"]),
                Norms::One => ("block_in", ["input_layernorm.weight", "input_layernorm.bias"]),
                Norms::OneByOne => ("attn_in", ["input_layernorm.weight", "input_layernorm.bias"]),
            };
            let n = g.layer_norm(name, x, gain, Some(offset), eps);
            let o = attention.build(&mut g, n, Reach { rope: Some(0), window: None });
            let mid = g.add("residual_mid", x, o);
            let n = match norms {
                Norms::One => n,
                Norms::Two => g.layer_norm("mlp_in", x, "ln_mlp.weight", Some("ln_mlp.bias"), eps),
                Norms::OneByOne => {
                    let bias = Some("post_attention_layernorm.bias");
                    g.layer_norm("mlp_in", mid, "post_attention_layernorm.weight", bias, eps)
                }
            };
            let h = g.linear(n, "mlp.dense_h_to_4h", mlp, bias);
            let h = g.apply("down_in", Op::Activation(Activation::GeluErf), &[h]);
            let m = g.linear(h, "mlp.dense_4h_to_h", hidden, bias);
            let y = g.add("residual_out", mid, m);
            g.finish(y)
        };
        let norm = LastNorm::Layer("ln_f.weight", Some("ln_f.bias"), eps);
        Decoder { norm, is_tied: true, ..Decoder::rms(eps) }.model(c, vec![rope], block)
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        let is_gguf = container == Container::Gguf;
        let Part::Block(i) = part else {
            return Some(Source::plain(match (part, name, is_gguf) {
                (Part::Embed, _, false) => "transformer.word_embeddings".to_owned(),
                (Part::Embed, _, true) => "token_embd".to_owned(),
                (_, "lm_head", false) => "lm_head".to_owned(),
                (_, "lm_head", true) => "output".to_owned(),
                (.., false) => format!("transformer.{name}"),
                (.., true) => name.replace("ln_f", "output_norm"),
            }));
        };
        let rows = rows(c, name, is_gguf);
        let name = match (is_gguf, rows) {
            (false, Some(_)) => format!("transformer.h.{i}.self_attention.query_key_value"),
            (false, None) => format!("transformer.h.{i}.{name}"),
            (true, Some(_)) => format!("blk.{i}.attn_qkv"),
            (true, None) => format!("blk.{i}.{}", gguf(name)?),
        };
        Some(Source { rows: rows.unwrap_or(Rows::All), ..Source::plain(name) })
    }
}

/// The norms in front of attention and MLP.
#[derive(Clone, Copy, PartialEq)]
enum Norms {
    /// One for both.
    One,
    /// Of the same input.
    Two,
    /// The MLP comes behind attention.
    OneByOne,
}

impl Norms {
    fn of(c: &Config<'_>) -> Result<Self> {
        let is_new = c.bool_or("new_decoder_architecture", false)?;
        Ok(match (is_new, c.usize_opt("num_ln_in_parallel_attn")?) {
            (true, None | Some(2)) => Self::Two,
            (true, _) => Self::One,
            (false, _) if c.bool_or("parallel_attn", true)? => Self::One,
            (false, _) => Self::OneByOne,
        })
    }
}

const NAMES: Names = ["self_attention.query", "self_attention.key", "self_attention.value", "self_attention.dense"];

fn attention(c: &Config<'_>, bias: bool) -> Result<SelfAttention> {
    let plain = SelfAttention { names: NAMES, qkv_bias: bias, output_bias: bias, ..SelfAttention::of(c)? };
    let kv_heads = if c.bool_or("new_decoder_architecture", false)? {
        c.usize_opt("num_kv_heads")?.unwrap_or(plain.heads)
    } else if c.bool_or("multi_query", true)? {
        1
    } else {
        plain.heads
    };
    if !plain.heads.is_multiple_of(kv_heads) {
        return Err(c.wrong("num_kv_heads", &kv_heads.into()));
    }
    Ok(SelfAttention { kv_heads, ..plain })
}

/// The rows of q, k or v in their one matrix: for each key-value head its queries, its keys, its values; in GGUF files all
/// queries, all keys, all values.
fn rows(c: &Config<'_>, name: &str, is_gguf: bool) -> Option<Rows> {
    let third = NAMES[..3].iter().position(|n| *n == name)?;
    let SelfAttention { heads, kv_heads, head_dim, .. } = attention(c, false).ok()?;
    let (queries, each) = if is_gguf { (heads, kv_heads) } else { (heads / kv_heads, 1) };
    let (offset, rows) = [(0, queries), (queries, each), (queries + each, each)][third];
    Some(Rows::Blocks { block: (queries + 2 * each) * head_dim, offset: offset * head_dim, rows: rows * head_dim })
}

/// The name of a block's tensor in a GGUF file.
fn gguf(name: &str) -> Option<String> {
    Some(match name {
        "self_attention.dense" => "attn_output".to_owned(),
        "mlp.dense_h_to_4h" => "ffn_up".to_owned(),
        "mlp.dense_4h_to_h" => "ffn_down".to_owned(),
        _ => {
            let (module, tensor) = name.rsplit_once('.')?;
            let norm = match module {
                "input_layernorm" | "ln_mlp" => "attn_norm",
                "ln_attn" => "attn_norm_2",
                _ => return None,
            };
            format!("{norm}.{tensor}")
        }
    })
}
