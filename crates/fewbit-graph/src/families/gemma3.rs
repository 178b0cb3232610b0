use fewbit_format::{Error, Result};

use super::llama::{MLP, embedding, swiglu, window};
use super::{Architecture, llama_like_gguf, llama_like_module};
use crate::{Activation, Builder, Config, Container, Graph, Model, Op, Part, Rope, Source, Stored};

/// Gemma 3 (text): gains stored without their one, norms before and after attention and MLP, alternating windows, two rotary bases.
#[derive(Debug)]
pub(super) struct Gemma3;

impl Architecture for Gemma3 {
    fn answers_to(&self) -> &'static [&'static str] {
        &["gemma3_text", "gemma3", "Gemma3ForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let (hidden, vocabulary, layers) = (c.usize("hidden_size")?, c.usize("vocab_size")?, c.layers()?);
        let (heads, kv_heads, head_dim) = c.heads()?;
        let (mlp, eps) = (c.usize("intermediate_size")?, c.eps("rms_norm_eps", 1e-6)?);
        if let Some(act) = c.str("hidden_activation").filter(|a| *a != "gelu_pytorch_tanh") {
            return Err(Error::input(format!(
                "config.json: `hidden_activation` is `{act}`, where Gemma 3 has gelu_pytorch_tanh"
            )));
        }
        let scale = c.f64_or("query_pre_attn_scalar", 256.0)?.powf(-0.5) as f32;
        let softcap = |key: &str| Ok::<_, Error>(Some(c.f64_or(key, 0.0)? as f32).filter(|cap| *cap > 0.0));
        let (attention_cap, logit_cap) = (softcap("attn_logit_softcapping")?, softcap("final_logit_softcapping")?);
        let window = window(c, true)?;
        let has_types = c.array("layer_types")?.is_some();
        let pattern = c.usize_opt("sliding_window_pattern")?.unwrap_or(6);
        let ropes = ropes(c, head_dim)?;
        let block = |layer: usize| {
            let is_full = if has_types { window.at(layer).is_none() } else { (layer + 1).is_multiple_of(pattern) };
            let (rope, window) = if is_full { (0, None) } else { (1, window.at(layer)) };
            let mut g = Builder::new("residual", hidden);
            let x = Graph::INPUT;
            let n = g.rms_norm("attn_in", x, "input_layernorm.weight", eps);
            let q = g.linear(n, "self_attn.q_proj", heads * head_dim, false);
            let k = g.linear(n, "self_attn.k_proj", kv_heads * head_dim, false);
            let v = g.linear(n, "self_attn.v_proj", kv_heads * head_dim, false);
            let q = g.head_norm("q_norm", q, "self_attn.q_norm.weight", eps, head_dim);
            let k = g.head_norm("k_norm", k, "self_attn.k_norm.weight", eps, head_dim);
            let q = g.apply("q_rope", Op::Rope { rope, heads, head_dim, rotary_dims: head_dim }, &[q]);
            let k = g.apply("k_rope", Op::Rope { rope, heads: kv_heads, head_dim, rotary_dims: head_dim }, &[k]);
            let (k, v) = (g.cache("keys", k), g.cache("values", v));
            let a = g.apply(
                "o_in",
                Op::Attention { heads, kv_heads, head_dim, scale, softcap: attention_cap, window, sinks: None },
                &[q, k, v],
            );
            let o = g.linear(a, "self_attn.o_proj", hidden, false);
            let o = g.rms_norm("attn_out", o, "post_attention_layernorm.weight", eps);
            let x = g.add("residual_mid", x, o);
            let n = g.rms_norm("mlp_in", x, "pre_feedforward_layernorm.weight", eps);
            let m = swiglu(&mut g, n, &MLP, mlp, false, Activation::GeluTanh);
            let m = g.rms_norm("mlp_out", m, "post_feedforward_layernorm.weight", eps);
            let y = g.add("residual_out", x, m);
            g.finish(y)
        };
        let mut head = Builder::new("residual", hidden);
        let n = head.rms_norm("head_in", Graph::INPUT, "norm.weight", eps);
        let mut logits = head.linear(n, "lm_head", vocabulary, false);
        if let Some(cap) = logit_cap {
            logits = head.apply("capped", Op::Softcap { cap }, &[logits]);
        }
        Ok(Model {
            embed: embedding(hidden, vocabulary, Some((hidden as f32).sqrt())),
            blocks: (0..layers).map(block).collect(),
            head: head.finish(logits),
            ropes,
            vocabulary,
            hidden,
            context: c.usize_opt("max_position_embeddings")?.unwrap_or(32768),
            is_tied: c.bool_or("tie_word_embeddings", true)?,
        })
    }

    fn source(&self, container: Container, _: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        match container {
            Container::HuggingFace => {
                let mut source = Source::plain(llama_like_module(part, name));
                if name.ends_with("norm.weight") {
                    source.stored = Stored::MinusOne;
                }
                Some(source)
            }
            Container::Gguf => match (part, name) {
                (Part::Block(i), "post_attention_layernorm.weight") => {
                    Some(Source::plain(format!("blk.{i}.post_attention_norm.weight")))
                }
                (Part::Block(i), "pre_feedforward_layernorm.weight") => {
                    Some(Source::plain(format!("blk.{i}.ffn_norm.weight")))
                }
                (Part::Block(i), "post_feedforward_layernorm.weight") => {
                    Some(Source::plain(format!("blk.{i}.post_ffw_norm.weight")))
                }
                _ => llama_like_gguf(part, name).map(Source::plain),
            },
        }
    }
}

/// Table 0 turns the full layers (scaled), table 1 the local ones (unscaled, `rope_local_base_freq`).
fn ropes(c: &Config<'_>, head_dim: usize) -> Result<Vec<Rope>> {
    if let Some(p) = c.object("rope_parameters")?.filter(|p| p.contains_key("full_attention")) {
        let of = |key: &str, default: f64| {
            let s = p.get(key).and_then(serde_json::Value::as_object);
            let theta = s.and_then(|s| s.get("rope_theta")).and_then(serde_json::Value::as_f64).unwrap_or(default);
            Rope::scaled(c, theta, head_dim, s)
        };
        return Ok(vec![of("full_attention", 1e6)?, of("sliding_attention", 1e4)?]);
    }
    let global = Rope::scaled(c, c.f64_or("rope_theta", 1e6)?, head_dim, c.object("rope_scaling")?)?;
    let local = Rope::scaled(c, c.f64_or("rope_local_base_freq", 1e4)?, head_dim, None)?;
    Ok(vec![global, local])
}
