use fewbit_format::Result;

use super::attention::{Norm, Reach, SelfAttention};
use super::decoder::Decoder;
use super::{Architecture, llama_like_gguf, llama_like_module};
use crate::{Activation, Builder, Config, Container, Graph, Model, Op, Part, Rope, Rows, Source, ValueId};

/// Llama 1 to 3, SmolLM, TinyLlama, Mistral without a window.
#[derive(Debug)]
pub(super) struct Llama;

impl Architecture for Llama {
    fn answers_to(&self) -> &'static [&'static str] {
        &["llama", "mistral", "LlamaForCausalLM", "MistralForCausalLM"]
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let bias = c.bool_or("attention_bias", false)?;
        let mlp_bias = c.bool_or("mlp_bias", false)?;
        pre_norm_model(
            c,
            &PreNorm { qkv_bias: bias, output_bias: bias, mlp_bias, has_window: true, ..PreNorm::default() },
        )
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        llama_source(container, c, part, name)
    }
}

/// Where a weight or vector lies whose rotary pairs are adjacent in GGUF files.
pub(super) fn llama_source(container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
    if container == Container::HuggingFace {
        return Some(Source::plain(llama_like_module(part, name)));
    }
    let mut source = Source::plain(llama_like_gguf(part, name)?);
    if matches!(name, "self_attn.q_proj" | "self_attn.k_proj") {
        source.rows = rope_pairs(c)?;
    }
    Some(source)
}

/// The rows of queries and keys in the GGUF files of families whose whole heads turn in adjacent pairs.
pub(super) fn rope_pairs(c: &Config<'_>) -> Option<Rows> {
    let head_dim = c.heads().ok()?.2;
    Some(Rows::RopePairs { head_dim, rotary_dims: head_dim })
}

/// In what the families of the pre-norm decoder differ.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each says whether a member of the family has a thing")]
pub(super) struct PreNorm {
    pub(super) qkv_bias: bool,
    pub(super) output_bias: bool,
    pub(super) mlp_bias: bool,
    /// RMS norms over the heads of q and k.
    pub(super) has_qk_norm: bool,
    /// A learned logit per head that takes part in the softmax of attention.
    pub(super) has_sinks: bool,
    /// Whether `sliding_window` counts where `use_sliding_window` is absent.
    pub(super) has_window: bool,
}

/// Writes the MLP of one layer: from the normed stream to what is added to the stream.
pub(super) type Mlp<'a> = &'a dyn Fn(&mut Builder, usize, ValueId) -> ValueId;

/// The pre-norm decoder that Llama, Mistral, Qwen2 and Qwen3 share: `x += attention(norm x); x += swiglu(norm x)`.
pub(super) fn pre_norm_model(c: &Config<'_>, family: &PreNorm) -> Result<Model> {
    let mlp = c.usize("intermediate_size")?;
    pre_norm_model_with(c, family, &window(c, family.has_window)?, &|g, _, n| {
        swiglu(g, n, &MLP, mlp, family.mlp_bias, Activation::Silu)
    })
}

/// The same with the family's own windows and MLP.
pub(super) fn pre_norm_model_with(c: &Config<'_>, family: &PreNorm, window: &Window, mlp: Mlp<'_>) -> Result<Model> {
    let hidden = c.usize("hidden_size")?;
    let eps = c.eps("rms_norm_eps", 1e-6)?;
    silu_only(c)?;
    let attention = SelfAttention {
        norm: if family.has_qk_norm { Norm::Heads(eps) } else { Norm::None },
        qkv_bias: family.qkv_bias,
        output_bias: family.output_bias,
        has_sinks: family.has_sinks,
        ..SelfAttention::of(c)?
    };
    let rope = Rope::from_config(c, attention.head_dim)?;
    let block = |layer: usize| {
        let mut g = Builder::new("residual", hidden);
        let x = Graph::INPUT;
        let n = g.rms_norm("attn_in", x, "input_layernorm.weight", eps);
        let o = attention.build(&mut g, n, Reach { rope: Some(0), window: window.at(layer) });
        let x = g.add("residual_mid", x, o);
        let n = g.rms_norm("mlp_in", x, "post_attention_layernorm.weight", eps);
        let m = mlp(&mut g, layer, n);
        let y = g.add("residual_out", x, m);
        g.finish(y)
    };
    Decoder::rms(eps).model(c, vec![rope], block)
}

/// Refuses another activation than this family's.
pub(super) fn silu_only(c: &Config<'_>) -> Result<()> {
    match c.str("hidden_act").filter(|a| !matches!(*a, "silu" | "swish")) {
        None => Ok(()),
        Some(act) => Err(c.error_at("hidden_act", format_args!("is `{act}`, where this family has silu"))),
    }
}

/// The matrices of an MLP: gate, up, down.
pub(super) const MLP: [&str; 3] = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];

/// `down(act(gate x) ⊙ up x)`, back to the width of the residual stream.
pub(super) fn swiglu(
    g: &mut Builder,
    x: ValueId,
    [gate, up, down]: &[&'static str; 3],
    mlp: usize,
    bias: bool,
    activation: Activation,
) -> ValueId {
    let hidden = g.dim(x);
    let gate = g.linear(x, gate, mlp, bias);
    let up = g.linear(x, up, mlp, bias);
    let act = g.apply("gate_act", Op::Activation(activation), &[gate]);
    let h = g.apply("down_in", Op::Mul, &[act, up]);
    g.linear(h, down, hidden, bias)
}

/// Which layers see only a window of positions.
pub(super) struct Window {
    size: Option<usize>,
    is_local: Vec<bool>,
}

impl Window {
    /// A window on every second layer, beginning with the first.
    pub(super) fn alternating(size: Option<usize>, layers: usize) -> Self {
        Self { size, is_local: (0..layers).map(|l| l.is_multiple_of(2)).collect() }
    }

    /// The window of one layer.
    pub(super) fn at(&self, layer: usize) -> Option<usize> {
        self.size.filter(|_| self.is_local.get(layer).copied().unwrap_or(true))
    }
}

/// The configuration's sliding window: absent, null or switched off (`use_sliding_window: false`) means none;
/// `layer_types` or `max_window_layers` say which layers have it.
pub(super) fn window(c: &Config<'_>, by_default: bool) -> Result<Window> {
    let switched_on = c.bool_or("use_sliding_window", by_default)?;
    let size = if switched_on { c.usize_opt("sliding_window")? } else { None };
    let mut is_local = Vec::new();
    if let Some(types) = c.array("layer_types")? {
        for t in types {
            is_local.push(match t.as_str() {
                Some("sliding_attention") => true,
                Some("full_attention") => false,
                _ => return Err(c.wrong("layer_types", t)),
            });
        }
    } else if let Some(first) = c.usize_opt("max_window_layers")? {
        is_local = (0..c.layers()?).map(|l| l >= first).collect();
    }
    Ok(Window { size, is_local })
}
