use fewbit_format::{Error, Result};

use super::Architecture;
use super::experts::{FusedLayout, Mixture, Names, source};
use super::llama::{PreNorm, Window, pre_norm_model_with, window};
use crate::{Config, Container, Model, Op, Part, Routing, Share, Source};

/// gpt-oss: biases everywhere, sinks in attention, windows on every second layer, experts with a clamped gate.
#[derive(Debug)]
pub(super) struct GptOss;

/// The experts are named as tools name them that take the fused tensors apart.
const NAMES: Names =
    Names { router: "mlp.router", experts: "mlp.experts", matrices: ["gate_proj", "up_proj", "down_proj"] };

/// Steepness of the gate's sigmoid, which no configuration says.
const ALPHA: f32 = 1.702;

impl Architecture for GptOss {
    fn answers_to(&self) -> &'static [&'static str] {
        &["gpt_oss", "GptOssForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let quantization = c.object("quantization_config")?.and_then(|q| q.get("quant_method"));
        if quantization.is_some_and(|m| m == "mxfp4") {
            return Err(Error::input("the experts are stored in blocks of MXFP4, which are not read yet")
                .hint("save it in bf16 with transformers: `Mxfp4Config(dequantize=True)`"));
        }
        let (experts, top) = c.experts(&["num_local_experts"])?;
        let (width, limit) = (c.usize("intermediate_size")?, c.f64_or("swiglu_limit", 7.0)? as f32);
        if limit <= 0.0 {
            return Err(c.wrong("swiglu_limit", &f64::from(limit).into()));
        }
        let window = match c.array("layer_types")? {
            Some(_) => window(c, true)?,
            None => Window::alternating(c.usize_opt("sliding_window")?, c.layers()?),
        };
        let bias = c.bool_or("attention_bias", true)?;
        let family = PreNorm { qkv_bias: bias, output_bias: bias, has_sinks: true, ..PreNorm::default() };
        let glu = Some(Op::ClampedGlu { alpha: ALPHA, limit });
        let routing = Routing::softmax(top, Share::Chosen);
        let mixture = Mixture { has_bias: true, glu, ..Mixture::plain(experts, routing, width) };
        pre_norm_model_with(c, &family, &window, &|g, _, x| mixture.build(g, x, &NAMES))
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        let layout = FusedLayout {
            experts: c.experts(&["num_local_experts"]).ok()?.0,
            width: c.usize("intermediate_size").ok()?,
            is_interleaved: true,
            is_transposed: true,
        };
        if let (Container::Gguf, Part::Block(i), "post_attention_layernorm.weight") = (container, part, name) {
            return Some(Source::plain(format!("blk.{i}.post_attention_norm.weight")));
        }
        source(container, part, name, &NAMES, &layout)
    }
}
