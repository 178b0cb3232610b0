use fewbit_format::{Error, Result};

use super::attention::{Norm, Reach, SelfAttention};
use super::decoder::Decoder;
use super::llama::{MLP, Window, swiglu, window};
use super::{Architecture, llama_like_gguf, llama_like_module};
use crate::{Activation, Builder, Config, Container, Graph, Model, Op, Part, Rope, Source, Stored};

/// Gemma 2: gains stored without their one, norms before and after attention and MLP, alternating windows, soft caps.
#[derive(Debug)]
pub(super) struct Gemma2;

/// Gemma 3 (text): as Gemma 2 without its caps, norms over the heads of q and k, two rotary bases.
#[derive(Debug)]
pub(super) struct Gemma3;

impl Architecture for Gemma2 {
    fn answers_to(&self) -> &'static [&'static str] {
        &["gemma2", "Gemma2ForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let window = match c.array("layer_types")? {
            Some(_) => window(c, true)?,
            None => Window::alternating(c.usize_opt("sliding_window")?, c.layers()?),
        };
        let rope = Rope::from_config(c, c.heads()?.2)?;
        sandwich_model(c, Norm::None, vec![rope], &|layer| Reach { rope: Some(0), window: window.at(layer) })
    }

    fn source(&self, container: Container, _: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        source(container, part, name)
    }
}

impl Architecture for Gemma3 {
    fn answers_to(&self) -> &'static [&'static str] {
        &["gemma3_text", "gemma3", "Gemma3ForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let window = window(c, true)?;
        let has_types = c.array("layer_types")?.is_some();
        let pattern = c.usize_opt("sliding_window_pattern")?.unwrap_or(6);
        let reach = |layer: usize| {
            let is_full = if has_types { window.at(layer).is_none() } else { (layer + 1).is_multiple_of(pattern) };
            let (rope, window) = if is_full { (0, None) } else { (1, window.at(layer)) };
            Reach { rope: Some(rope), window }
        };
        let norm = Norm::Heads(c.eps("rms_norm_eps", 1e-6)?);
        sandwich_model(c, norm, ropes(c, c.heads()?.2)?, &reach)
    }

    fn source(&self, container: Container, _: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        source(container, part, name)
    }
}

/// `x += norm attention(norm x); x += norm mlp(norm x)`, with what each layer sees.
fn sandwich_model(c: &Config<'_>, norm: Norm, ropes: Vec<Rope>, reach: &dyn Fn(usize) -> Reach) -> Result<Model> {
    let hidden = c.usize("hidden_size")?;
    let (mlp, eps) = (c.usize("intermediate_size")?, c.eps("rms_norm_eps", 1e-6)?);
    if let Some(act) = c.str("hidden_activation").filter(|a| *a != "gelu_pytorch_tanh") {
        return Err(c.error_at("hidden_activation", format_args!("is `{act}`, where Gemma has gelu_pytorch_tanh")));
    }
    let softcap = |key: &str| Ok::<_, Error>(Some(c.f64_or(key, 0.0)? as f32).filter(|cap| *cap > 0.0));
    let logit_cap = softcap("final_logit_softcapping")?;
    let attention = SelfAttention {
        scale: c.f64_or("query_pre_attn_scalar", 256.0)?.powf(-0.5) as f32,
        softcap: softcap("attn_logit_softcapping")?,
        norm,
        ..SelfAttention::of(c)?
    };
    let block = |reach: Reach| {
        let mut g = Builder::new("residual", hidden);
        let x = Graph::INPUT;
        let n = g.rms_norm("attn_in", x, "input_layernorm.weight", eps);
        let o = attention.build(&mut g, n, reach);
        let o = g.rms_norm("attn_out", o, "post_attention_layernorm.weight", eps);
        let x = g.add("residual_mid", x, o);
        let n = g.rms_norm("mlp_in", x, "pre_feedforward_layernorm.weight", eps);
        let m = swiglu(&mut g, n, &MLP, mlp, false, Activation::GeluTanh);
        let m = g.rms_norm("mlp_out", m, "post_feedforward_layernorm.weight", eps);
        let y = g.add("residual_out", x, m);
        g.finish(y)
    };
    let decoder = Decoder {
        embedding_scale: Some((hidden as f32).sqrt()),
        logits: logit_cap.map(|cap| Op::Softcap { cap }),
        context: 8192,
        is_tied: true,
        ..Decoder::rms(eps)
    };
    decoder.model(c, ropes, |layer| block(reach(layer)))
}

fn source(container: Container, part: Part, name: &str) -> Option<Source> {
    if container == Container::Gguf {
        let norm = match name {
            "post_attention_layernorm.weight" => "post_attention_norm",
            "pre_feedforward_layernorm.weight" => "ffn_norm",
            "post_feedforward_layernorm.weight" => "post_ffw_norm",
            _ => return llama_like_gguf(part, name).map(Source::plain),
        };
        let Part::Block(i) = part else { return None };
        return Some(Source::plain(format!("blk.{i}.{norm}.weight")));
    }
    let stored = if name.ends_with("norm.weight") { Stored::MinusOne } else { Stored::AsIs };
    Some(Source { stored, ..Source::plain(llama_like_module(part, name)) })
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
