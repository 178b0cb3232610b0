//! What the families with experts share: the routed MLP, and where the experts' matrices lie.

use fewbit_format::Result;

use super::llama::swiglu;
use super::{llama_like_gguf, llama_like_module};
use crate::{Activation, Builder, Config, Container, Fused, Op, Part, Routing, Rows, Share, Source, ValueId};

/// The modules of a mixture of experts.
pub(super) struct Names {
    /// Makes the logits of the experts.
    pub(super) router: &'static str,
    /// Stands before each expert's number.
    pub(super) experts: &'static str,
    /// Gate, up and down of an expert.
    pub(super) matrices: [&'static str; 3],
}

/// The names of Qwen's mixtures.
pub(super) const QWEN: Names =
    Names { router: "mlp.gate", experts: "mlp.experts", matrices: ["gate_proj", "up_proj", "down_proj"] };

/// `Σₑ wₑ downₑ(silu(gateₑ x) ⊙ upₑ x)` over the chosen experts of each row.
pub(super) struct Mixture {
    pub(super) experts: usize,
    pub(super) routing: Routing,
    /// Added to the scores where experts are chosen.
    pub(super) choice_bias: Option<&'static str>,
    /// Width of an expert.
    pub(super) width: usize,
    pub(super) has_bias: bool,
    /// What stands for the product of `silu(gate)` and `up`.
    pub(super) glu: Option<Op>,
}

impl Mixture {
    /// Gated by silu, without biases.
    pub(super) fn plain(experts: usize, routing: Routing, width: usize) -> Self {
        Self { experts, routing, choice_bias: None, width, has_bias: false, glu: None }
    }

    /// Adds the mixture to a block.
    pub(super) fn build(&self, g: &mut Builder, x: ValueId, names: &Names) -> ValueId {
        let ([gate, up, down], bias) = (names.matrices, self.has_bias);
        let logits = g.gate(x, names.router, self.experts, bias);
        let routing = g.route(logits, self.routing, self.choice_bias);
        let rows = g.dispatch("expert_in", x, routing);
        let gate = g.expert_linear(rows, names.experts, gate, self.width, bias);
        let up = g.expert_linear(rows, names.experts, up, self.width, bias);
        let h = if let Some(glu) = &self.glu {
            g.apply("down_in", glu.clone(), &[gate, up])
        } else {
            let act = g.apply("gate_act", Op::Activation(Activation::Silu), &[gate]);
            g.apply("down_in", Op::Mul, &[act, up])
        };
        let y = g.expert_linear(h, names.experts, down, g.dim(x), bias);
        g.combine("experts_out", y, routing)
    }
}

/// The mixture of Qwen2-MoE and Qwen3-MoE, and which layers have it.
pub(super) struct Qwen {
    mixture: Mixture,
    shared: Option<usize>,
    dense: usize,
    is_dense: Vec<bool>,
}

impl Qwen {
    pub(super) fn of(c: &Config<'_>, shared: Option<usize>) -> Result<Self> {
        let (experts, top) = c.experts(&["num_experts", "num_local_experts"])?;
        let share = if c.bool_or("norm_topk_prob", false)? { Share::Chosen } else { Share::All };
        let width = c.usize("moe_intermediate_size")?;
        let mixture = Mixture::plain(experts, Routing::softmax(top, share), width);
        let step = c.usize_opt("decoder_sparse_step")?.unwrap_or(1);
        let mut is_dense: Vec<bool> = (1..=c.layers()?).map(|n| !n.is_multiple_of(step)).collect();
        for v in c.array("mlp_only_layers")?.into_iter().flatten() {
            let layer = v.as_u64().and_then(|l| is_dense.get_mut(l as usize));
            *layer.ok_or_else(|| c.wrong("mlp_only_layers", v))? = true;
        }
        let dense = if is_dense.contains(&true) { c.usize("intermediate_size")? } else { 0 };
        Ok(Self { mixture, shared, dense, is_dense })
    }

    /// Adds one layer's MLP.
    pub(super) fn build(&self, g: &mut Builder, layer: usize, x: ValueId) -> ValueId {
        if self.is_dense[layer] {
            return swiglu(g, x, &super::llama::MLP, self.dense, false, Activation::Silu);
        }
        let y = self.mixture.build(g, x, &QWEN);
        let Some(width) = self.shared else { return y };
        let names = ["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"];
        let shared = swiglu(g, x, &names, width, false, Activation::Silu);
        let gate = g.gate(x, "mlp.shared_expert_gate", 1, false);
        let shared = g.apply("shared_out", Op::Gate, &[shared, gate]);
        g.add("mlp_out", y, shared)
    }
}

/// Where a weight or vector of Qwen2-MoE and Qwen3-MoE lies.
pub(super) fn qwen_source(container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
    let layout = FusedLayout {
        experts: c.experts(&["num_experts", "num_local_experts"]).ok()?.0,
        width: c.usize("moe_intermediate_size").ok()?,
        is_interleaved: false,
        is_transposed: false,
    };
    source(container, part, name, &QWEN, &layout)
}

/// Where a weight or vector of a family with experts lies: each matrix by itself, or in the tensors in which GGUF files
/// and transformers 5 (`gate_up_proj` and `down_proj`) keep the matrices of all experts.
pub(super) fn source(
    container: Container,
    part: Part,
    name: &str,
    names: &Names,
    layout: &FusedLayout,
) -> Option<Source> {
    Some(match container {
        Container::HuggingFace => {
            Source { fused: fused(part, name, names, layout), ..Source::plain(llama_like_module(part, name)) }
        }
        Container::Gguf => gguf(part, name, names, layout.experts)?,
    })
}

/// The same in a GGUF file; older files have each expert's matrix by itself, by its number.
fn gguf(part: Part, name: &str, names: &Names, experts: usize) -> Option<Source> {
    let Part::Block(i) = part else { return llama_like_gguf(part, name).map(Source::plain) };
    if let Some((expert, which)) = expert_matrix(name, names) {
        let local = ["ffn_gate", "ffn_up", "ffn_down"][which];
        let [tensor, bias] = ["weight", "bias"].map(|end| format!("blk.{i}.{local}_exps.{end}"));
        let fused = Fused { tensor, bias, expert, experts, rows: Rows::All, is_transposed: false };
        return Some(Source { fused: Some(fused), ..Source::plain(format!("blk.{i}.{local}.{expert}")) });
    }
    let shared = name.strip_prefix("mlp.shared_experts.").or_else(|| name.strip_prefix("mlp.shared_expert."));
    let local = match (name, shared) {
        (_, Some("gate_proj")) => "ffn_gate_shexp",
        (_, Some("up_proj")) => "ffn_up_shexp",
        (_, Some("down_proj")) => "ffn_down_shexp",
        ("mlp.shared_expert_gate", _) => "ffn_gate_inp_shexp",
        ("mlp.gate.e_score_correction_bias", _) => "exp_probs_b.bias",
        ("self_attn.sinks", _) => "attn_sinks.weight",
        (router, _) if router == names.router => "ffn_gate_inp",
        _ => return llama_like_gguf(part, name).map(Source::plain),
    };
    Some(Source::plain(format!("blk.{i}.{local}")))
}

/// The number of an expert and which of its matrices it is, if it is one.
fn expert_matrix(name: &str, names: &Names) -> Option<(usize, usize)> {
    let (expert, matrix) = name.strip_prefix(names.experts)?.strip_prefix('.')?.split_once('.')?;
    Some((expert.parse().ok()?, names.matrices.iter().position(|m| *m == matrix)?))
}

fn fused(part: Part, name: &str, names: &Names, layout: &FusedLayout) -> Option<Fused> {
    let Part::Block(i) = part else { return None };
    let (expert, which) = expert_matrix(name, names)?;
    let tensor = format!("model.layers.{i}.mlp.experts.{}", if which == 2 { "down_proj" } else { "gate_up_proj" });
    let (width, offset) = (layout.width, which);
    let rows = match (which, layout.is_interleaved) {
        (2, _) => Rows::All,
        (_, true) => Rows::Blocks { block: 2, offset, rows: 1 },
        (_, false) => Rows::Blocks { block: 2 * width, offset: offset * width, rows: width },
    };
    let bias = format!("{tensor}_bias");
    let (experts, is_transposed) = (layout.experts, layout.is_transposed);
    Some(Fused { tensor, bias, expert, experts, rows, is_transposed })
}

/// How the matrices of all experts lie in one tensor.
pub(super) struct FusedLayout {
    pub(super) experts: usize,
    /// Rows of `gate` and of `up`.
    pub(super) width: usize,
    /// Whether rows of `gate` and `up` alternate; else all of `gate` come first.
    pub(super) is_interleaved: bool,
    /// Whether matrices are stored `[in, out]`.
    pub(super) is_transposed: bool,
}
