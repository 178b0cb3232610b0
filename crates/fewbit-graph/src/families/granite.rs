use fewbit_format::Result;

use super::Architecture;
use super::attention::{Reach, SelfAttention};
use super::decoder::Decoder;
use super::llama::{MLP, llama_source, silu_only, swiglu};
use crate::{Activation, Builder, Config, Container, Graph, Model, Op, Part, Rope, Source};

/// Granite: Llama with factors on the embedding, on what is added to the stream, on scores and logits.
#[derive(Debug)]
pub(super) struct Granite;

impl Architecture for Granite {
    fn answers_to(&self) -> &'static [&'static str] {
        &["granite", "GraniteForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let hidden = c.usize("hidden_size")?;
        let (mlp, eps) = (c.usize("intermediate_size")?, c.eps("rms_norm_eps", 1e-6)?);
        silu_only(c)?;
        let (bias, mlp_bias) = (c.bool_or("attention_bias", false)?, c.bool_or("mlp_bias", false)?);
        let scale = c.f64_or("attention_multiplier", 1.0)? as f32;
        let attention = SelfAttention { scale, qkv_bias: bias, output_bias: bias, ..SelfAttention::of(c)? };
        let rope = Rope::from_config(c, attention.head_dim)?;
        let residual = Op::Scale { factor: c.f64_or("residual_multiplier", 1.0)? as f32 };
        let scaling = c.f64_or("logits_scaling", 1.0)?;
        if scaling == 0.0 {
            return Err(c.wrong("logits_scaling", &scaling.into()));
        }
        let block = |_| {
            let mut g = Builder::new("residual", hidden);
            let x = Graph::INPUT;
            let n = g.rms_norm("attn_in", x, "input_layernorm.weight", eps);
            let o = attention.build(&mut g, n, Reach { rope: Some(0), window: None });
            let o = g.apply("attn_out", residual.clone(), &[o]);
            let x = g.add("residual_mid", x, o);
            let n = g.rms_norm("mlp_in", x, "post_attention_layernorm.weight", eps);
            let m = swiglu(&mut g, n, &MLP, mlp, mlp_bias, Activation::Silu);
            let m = g.apply("mlp_out", residual.clone(), &[m]);
            let y = g.add("residual_out", x, m);
            g.finish(y)
        };
        let decoder = Decoder {
            embedding_scale: Some(c.f64_or("embedding_multiplier", 1.0)? as f32),
            logits: Some(Op::Scale { factor: (1.0 / scaling) as f32 }),
            is_tied: true,
            ..Decoder::rms(eps)
        };
        decoder.model(c, vec![rope], block)
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        llama_source(container, c, part, name)
    }
}
