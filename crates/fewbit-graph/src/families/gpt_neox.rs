use fewbit_format::{Error, Result};

use super::Architecture;
use super::llama::embedding;
use crate::{Activation, Builder, Config, Container, Graph, Model, Op, Part, Rope, Rows, Source};

/// GPT-NeoX and Pythia: LayerNorms, biases everywhere, q/k/v fused per head, partial rotation, parallel residual.
#[derive(Debug)]
pub(super) struct GptNeox;

impl Architecture for GptNeox {
    fn answers_to(&self) -> &'static [&'static str] {
        &["gpt_neox", "GPTNeoXForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let (hidden, vocabulary) = (c.usize("hidden_size")?, c.usize("vocab_size")?);
        let (heads, _, head_dim) = c.heads()?;
        let (mlp, eps) = (c.usize("intermediate_size")?, c.eps("layer_norm_eps", 1e-5)?);
        let parallel = c.bool_or("use_parallel_residual", true)?;
        let bias = c.bool_or("attention_bias", true)?;
        let activation = match c.str("hidden_act").unwrap_or("gelu") {
            "gelu" => Activation::GeluErf,
            "gelu_fast" | "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            other => {
                return Err(Error::input(format!("config.json: `hidden_act` `{other}` is unknown for this family")));
            }
        };
        let share = match c.object("rope_parameters")?.and_then(|p| p.get("partial_rotary_factor")) {
            Some(v) => v.as_f64().ok_or_else(|| c.wrong("rope_parameters.partial_rotary_factor", v))?,
            None => c.f64_or("rotary_pct", 0.25)?,
        };
        let rotary_dims = (head_dim as f64 * share) as usize / 2 * 2;
        if rotary_dims == 0 || rotary_dims > head_dim {
            return Err(Error::input(format!("config.json: `rotary_pct` is {share}, which is out of range")));
        }
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
            let q = g.linear(n, "attention.query", hidden, bias);
            let k = g.linear(n, "attention.key", hidden, bias);
            let v = g.linear(n, "attention.value", hidden, bias);
            let turn = Op::Rope { rope: 0, heads, head_dim, rotary_dims };
            let (q, k) = (g.apply("q_rope", turn.clone(), &[q]), g.apply("k_rope", turn, &[k]));
            let (k, v) = (g.cache("keys", k), g.cache("values", v));
            let scale = (head_dim as f32).powf(-0.5);
            let op =
                Op::Attention { heads, kv_heads: heads, head_dim, scale, softcap: None, window: None, sinks: None };
            let a = g.apply("o_in", op, &[q, k, v]);
            let o = g.linear(a, "attention.dense", hidden, bias);
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
        let mut head = Builder::new("residual", hidden);
        let n = head.layer_norm("head_in", Graph::INPUT, "final_layer_norm.weight", Some("final_layer_norm.bias"), eps);
        let logits = head.linear(n, "lm_head", vocabulary, false);
        Ok(Model {
            embed: embedding(hidden, vocabulary, None),
            blocks: (0..c.layers()?).map(block).collect(),
            head: head.finish(logits),
            ropes: vec![rope],
            vocabulary,
            hidden,
            context: c.usize_opt("max_position_embeddings")?.unwrap_or(2048),
            is_tied: c.bool_or("tie_word_embeddings", false)?,
        })
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        if container == Container::Gguf {
            return None;
        }
        Some(match part {
            Part::Embed => Source::plain("gpt_neox.embed_in"),
            Part::Head if name == "lm_head" => Source::plain("embed_out"),
            Part::Head => Source::plain(format!("gpt_neox.{name}")),
            Part::Block(i) => {
                let prefix = format!("gpt_neox.layers.{i}");
                let third = match name {
                    "attention.query" => 0,
                    "attention.key" => 1,
                    "attention.value" => 2,
                    _ => return Some(Source::plain(format!("{prefix}.{name}"))),
                };
                let d = c.heads().ok()?.2;
                let rows = Rows::Blocks { block: 3 * d, offset: third * d, rows: d };
                Source { rows, ..Source::plain(format!("{prefix}.attention.query_key_value")) }
            }
        })
    }
}
