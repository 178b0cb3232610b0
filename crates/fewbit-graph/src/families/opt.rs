use fewbit_format::Result;

use super::Architecture;
use super::attention::{Names, Reach, SelfAttention};
use super::decoder::{Decoder, LastNorm};
use crate::{Activation, Builder, Config, Container, Graph, Model, Op, Part, Source};

/// OPT: learned positions, LayerNorms, biases everywhere, relu.
#[derive(Debug)]
pub(super) struct Opt;

/// The first two rows of the table of positions belong to none.
const FIRST: usize = 2;

const NAMES: Names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"];

impl Architecture for Opt {
    fn answers_to(&self) -> &'static [&'static str] {
        &["opt", "OPTForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let hidden = c.usize("hidden_size")?;
        let (mlp, context) = (c.usize("ffn_dim")?, c.usize("max_position_embeddings")?);
        if c.usize_opt("word_embed_proj_dim")?.is_some_and(|d| d != hidden)
            || !c.bool_or("do_layer_norm_before", true)?
        {
            return Err(c.error("OPT-350m's projections and norms behind attention are not supported"));
        }
        if !c.bool_or("layer_norm_elementwise_affine", true)? {
            return Err(c.error("norms without gains are not supported in this family"));
        }
        let activation = match c.str("activation_function").unwrap_or("relu") {
            "relu" => Activation::Relu,
            "gelu" => Activation::GeluErf,
            other => {
                return Err(c.error_at("activation_function", format_args!("`{other}` is unknown for OPT")));
            }
        };
        let (bias, eps) = (c.bool_or("enable_bias", true)?, 1e-5);
        let attention = SelfAttention { names: NAMES, qkv_bias: bias, output_bias: bias, ..SelfAttention::of(c)? };
        let block = |layer: usize| {
            let mut g = Builder::new("residual", hidden);
            let mut x = Graph::INPUT;
            if layer == 0 {
                x = g.positions(x, "embed_positions.weight", context + FIRST, FIRST);
            }
            let norm = ["self_attn_layer_norm.weight", "self_attn_layer_norm.bias"];
            let n = g.layer_norm("attn_in", x, norm[0], Some(norm[1]), eps);
            let o = attention.build(&mut g, n, Reach::default());
            let x = g.add("residual_mid", x, o);
            let n = g.layer_norm("mlp_in", x, "final_layer_norm.weight", Some("final_layer_norm.bias"), eps);
            let h = g.linear(n, "fc1", mlp, bias);
            let h = g.apply("down_in", Op::Activation(activation), &[h]);
            let m = g.linear(h, "fc2", hidden, bias);
            let y = g.add("residual_out", x, m);
            g.finish(y)
        };
        let norm = LastNorm::Layer("final_layer_norm.weight", Some("final_layer_norm.bias"), eps);
        Decoder { norm, is_tied: true, ..Decoder::rms(eps) }.model(c, Vec::new(), block)
    }

    fn source(&self, container: Container, _: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        if container == Container::Gguf {
            return None;
        }
        Some(Source::plain(match part {
            Part::Head if name == "lm_head" => "lm_head".to_owned(),
            Part::Block(i) if name != "embed_positions.weight" => format!("model.decoder.layers.{i}.{name}"),
            _ => format!("model.decoder.{name}"),
        }))
    }
}
