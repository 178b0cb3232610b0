use fewbit_format::Result;

use super::Architecture;
use super::decoder::Decoder;
use super::experts::{FusedLayout, Mixture, QWEN, source};
use super::llama::{MLP, silu_only, swiglu};
use crate::{
    Activation, Builder, Config, Container, Graph, Groups, Model, Op, Part, Rope, Routing, Rows, Score, Share, Source,
    ValueId,
};

/// DeepSeek-V2, V2-Lite and V3: keys and values from a latent, experts in groups behind some dense layers.
#[derive(Debug)]
pub(super) struct DeepSeek {
    /// Experts are scored by a sigmoid and chosen with a bias.
    pub(super) is_v3: bool,
}

/// Of the norms within attention, which no configuration says.
const LATENT_EPS: f32 = 1e-6;

impl Architecture for DeepSeek {
    fn answers_to(&self) -> &'static [&'static str] {
        if self.is_v3 { &["deepseek_v3", "DeepseekV3ForCausalLM"] } else { &["deepseek_v2", "DeepseekV2ForCausalLM"] }
    }

    fn model(&self, c: &Config<'_>) -> Result<Model> {
        let (hidden, eps) = (c.usize("hidden_size")?, c.eps("rms_norm_eps", 1e-6)?);
        silu_only(c)?;
        let attention = Latent::of(c)?;
        let mixture = self.mixture(c)?;
        let shared_experts = c.count_or("n_shared_experts", 0)?;
        if shared_experts > 4096 {
            return Err(c.wrong("n_shared_experts", &shared_experts.into()));
        }
        let shared = shared_experts * mixture.width;
        let (first, step) = (c.count_or("first_k_dense_replace", 0)?, c.usize_opt("moe_layer_freq")?.unwrap_or(1));
        let is_dense = |layer: usize| layer < first || !layer.is_multiple_of(step);
        let dense = if (0..c.layers()?).any(is_dense) { c.usize("intermediate_size")? } else { 0 };
        let block = |layer: usize| {
            let mut g = Builder::new("residual", hidden);
            let x = Graph::INPUT;
            let n = g.rms_norm("attn_in", x, "input_layernorm.weight", eps);
            let o = attention.build(&mut g, n);
            let x = g.add("residual_mid", x, o);
            let n = g.rms_norm("mlp_in", x, "post_attention_layernorm.weight", eps);
            let m = if is_dense(layer) {
                swiglu(&mut g, n, &MLP, dense, false, Activation::Silu)
            } else {
                experts(&mut g, n, &mixture, shared)
            };
            let y = g.add("residual_out", x, m);
            g.finish(y)
        };
        let rope = Rope::from_config(c, attention.rope)?;
        Decoder::rms(eps).model(c, vec![rope], block)
    }

    fn source(&self, container: Container, c: &Config<'_>, part: Part, name: &str) -> Option<Source> {
        let layout = FusedLayout {
            experts: c.experts(&EXPERTS).ok()?.0,
            width: c.usize("moe_intermediate_size").ok()?,
            is_interleaved: false,
            is_transposed: false,
        };
        let (Part::Block(i), Some(of)) = (part, name.strip_prefix("self_attn.")) else {
            return source(container, part, name, &QWEN, &layout);
        };
        let Latent { heads, rope, nope, value, rank, .. } = Latent::of(c).ok()?;
        let blocks = |block, offset, rows| Rows::Blocks { block, offset, rows };
        let (module, rows) = match of {
            "q_proj" | "q_b_proj" => (of, Rows::PairsBehind { block: nope + rope, offset: nope, rest: nope }),
            "kv_a_proj" => ("kv_a_proj_with_mqa", blocks(rank + rope, 0, rank)),
            "k_rope_proj" => ("kv_a_proj_with_mqa", Rows::PairsBehind { block: rank + rope, offset: rank, rest: 0 }),
            "k_b_proj" => ("kv_b_proj", blocks(nope + value, 0, nope)),
            "v_b_proj" => ("kv_b_proj", blocks(nope + value, nope, value)),
            _ => (of, Rows::All),
        };
        if container == Container::HuggingFace {
            return Some(Source { rows, ..Source::plain(format!("model.layers.{i}.self_attn.{module}")) });
        }
        let at = |local: &str| Source::plain(format!("blk.{i}.{local}"));
        Some(match of {
            "q_proj" => Source { rows, ..at("attn_q") },
            "q_a_proj" => at("attn_q_a"),
            "q_b_proj" => Source { rows, ..at("attn_q_b") },
            "q_a_layernorm.weight" => at("attn_q_a_norm.weight"),
            "kv_a_proj" | "k_rope_proj" => Source { rows, ..at("attn_kv_a_mqa") },
            "kv_a_layernorm.weight" => at("attn_kv_a_norm.weight"),
            "k_b_proj" | "v_b_proj" => {
                // Older files have both in one matrix, as a Hugging Face folder does.
                let alias = Some(Box::new(Source { rows, ..at("attn_kv_b") }));
                let (local, is_transposed) = if of == "k_b_proj" { ("attn_k_b", true) } else { ("attn_v_b", false) };
                Source { alias, heads: Some(heads), is_transposed, ..at(local) }
            }
            _ => return source(container, part, name, &QWEN, &layout),
        })
    }
}

/// What the number of experts is called.
const EXPERTS: [&str; 3] = ["n_routed_experts", "num_local_experts", "num_experts"];

impl DeepSeek {
    fn mixture(&self, c: &Config<'_>) -> Result<Mixture> {
        let (experts, top) = c.experts(&EXPERTS)?;
        let (score, name) = if self.is_v3 { (Score::Sigmoid, "sigmoid") } else { (Score::Softmax, "softmax") };
        if let Some(other) = c.str("scoring_func").filter(|f| *f != name) {
            return Err(c.error_at("scoring_func", format_args!("is `{other}`, where this family has `{name}`")));
        }
        let scale = c.f64_or("routed_scaling_factor", if self.is_v3 { 2.5 } else { 1.0 })?;
        if scale <= 0.0 {
            return Err(c.wrong("routed_scaling_factor", &scale.into()));
        }
        let share = if c.bool_or("norm_topk_prob", self.is_v3)? { Share::Chosen } else { Share::All };
        let routing = Routing { top, score, share, groups: self.groups(c, experts, top)?, scale: scale as f32 };
        let choice_bias = self.is_v3.then_some("mlp.gate.e_score_correction_bias");
        Ok(Mixture { choice_bias, ..Mixture::plain(experts, routing, c.usize("moe_intermediate_size")?) })
    }

    fn groups(&self, c: &Config<'_>, experts: usize, top: usize) -> Result<Option<Groups>> {
        let has_groups = match (self.is_v3, c.str("topk_method")) {
            (true, None | Some("noaux_tc")) | (false, Some("group_limited_greedy")) => true,
            (false, None | Some("greedy")) => false,
            (_, Some(other)) => {
                return Err(c.error_at("topk_method", format_args!("`{other}` is unknown for this family")));
            }
        };
        let (count, kept) = (c.usize_opt("n_group")?.unwrap_or(1), c.usize_opt("topk_group")?.unwrap_or(1));
        if !has_groups || count == 1 {
            return Ok(None);
        }
        let best = if self.is_v3 { 2 } else { 1 };
        let size = experts / count;
        if !experts.is_multiple_of(count) || size < best || kept > count || top > kept * size {
            let [of_count, of_kept] = ["n_group", "topk_group"].map(|key| c.name(key));
            return Err(c.error(format_args!(
                "{count} groups ({of_count}), of which {kept} stay ({of_kept}), do not fit {top} of {experts} experts"
            )));
        }
        Ok(Some(Groups { count, kept, best }))
    }
}

/// The experts, and what every token takes beside them: one MLP, `shared` wide.
fn experts(g: &mut Builder, x: ValueId, mixture: &Mixture, shared: usize) -> ValueId {
    let y = mixture.build(g, x, &QWEN);
    if shared == 0 {
        return y;
    }
    let names = ["mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj"];
    let shared = swiglu(g, x, &names, shared, false, Activation::Silu);
    g.add("mlp_out", y, shared)
}

/// Multi-head latent attention: keys and values of all heads are made from one narrow row, and the part of the keys that
/// turns is one for all heads. A head is stored with its turning part last, and read with it first.
struct Latent {
    heads: usize,
    /// Values of a head that turn.
    rope: usize,
    /// Values of a head that do not.
    nope: usize,
    /// Values of a head behind attention.
    value: usize,
    /// Width of the row that keys and values are made from.
    rank: usize,
    /// Width of the row that queries are made from, if there is one.
    queries: Option<usize>,
    /// Multiplies the scores.
    scale: f32,
    has_bias: bool,
}

impl Latent {
    fn of(c: &Config<'_>) -> Result<Self> {
        const MOST: usize = 1 << 24;
        let heads = c.usize("num_attention_heads")?;
        let [rope, nope, value] = ["qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"].map(|key| c.usize(key));
        let (rope, nope, value) = (rope?, nope?, value?);
        if !rope.is_multiple_of(2) || heads.saturating_mul(rope + nope + value) > MOST {
            return Err(c.error(format_args!("heads of size {nope} and {rope} cannot be rotated or are too large")));
        }
        if value > nope + rope {
            return Err(c.error_at(
                "v_head_dim",
                format_args!("({value}) is more than the size of a key ({}), which is not supported", nope + rope),
            ));
        }
        if !c.bool_or("rope_interleave", true)? {
            return Err(c.error_at("rope_interleave", "is false, which is not supported"));
        }
        let scale = ((nope + rope) as f64).powf(-0.5) * Rope::scores_scale(c)?;
        Ok(Self {
            heads,
            rope,
            nope,
            value,
            rank: c.usize("kv_lora_rank")?,
            queries: c.usize_opt("q_lora_rank")?,
            scale: scale as f32,
            has_bias: c.bool_or("attention_bias", false)?,
        })
    }

    /// From the normed stream to what is added to the stream.
    fn build(&self, g: &mut Builder, x: ValueId) -> ValueId {
        let Self { heads, rope, nope, value, has_bias, scale, .. } = *self;
        let (hidden, head_dim) = (g.dim(x), nope + rope);
        let q = match self.queries {
            None => g.linear(x, "self_attn.q_proj", heads * head_dim, false),
            Some(rank) => {
                let a = g.linear(x, "self_attn.q_a_proj", rank, has_bias);
                let n = g.rms_norm("q_latent", a, "self_attn.q_a_layernorm.weight", LATENT_EPS);
                g.linear(n, "self_attn.q_b_proj", heads * head_dim, false)
            }
        };
        let latent = g.linear(x, "self_attn.kv_a_proj", self.rank, has_bias);
        let turning = g.linear(x, "self_attn.k_rope_proj", rope, has_bias);
        let n = g.rms_norm("kv_latent", latent, "self_attn.kv_a_layernorm.weight", LATENT_EPS);
        let k = g.linear(n, "self_attn.k_b_proj", heads * nope, false);
        let v = g.linear(n, "self_attn.v_b_proj", heads * value, false);
        let q = g.apply("q_rope", Op::Rope { rope: 0, heads, head_dim, rotary_dims: rope }, &[q]);
        let turning = g.apply("k_rope", Op::Rope { rope: 0, heads: 1, head_dim: rope, rotary_dims: rope }, &[turning]);
        let k = g.join_heads("k_heads", turning, k, heads);
        let v = if value < head_dim { g.fit_heads("v_heads", v, heads, head_dim) } else { v };
        let (k, v) = (g.cache("keys", k), g.cache("values", v));
        let (softcap, window, sinks) = (None, None, None);
        let op = Op::Attention { heads, kv_heads: heads, head_dim, scale, softcap, window, sinks };
        let a = if value < head_dim {
            let wide = g.apply("o_heads", op, &[q, k, v]);
            g.fit_heads("o_in", wide, heads, value)
        } else {
            g.apply("o_in", op, &[q, k, v])
        };
        g.linear(a, "self_attn.o_proj", hidden, has_bias)
    }
}
