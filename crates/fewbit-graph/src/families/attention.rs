//! Self-attention with separate queries, keys and values, as most families have it.

use fewbit_format::Result;

use crate::{Builder, Config, Op, ValueId};

/// The modules for queries, keys, values and output.
pub(super) type Names = [&'static str; 4];

/// The share of a head that turns, in most families.
pub(super) const PARTIAL: &str = "partial_rotary_factor";

/// The gains of the norms of queries.
pub(super) const Q_NORM: &str = "self_attn.q_norm.weight";

/// The gains of the norms of keys.
pub(super) const K_NORM: &str = "self_attn.k_norm.weight";

/// As Llama names them.
pub(super) const LLAMA: Names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];

/// In what the attention of families differs.
pub(super) struct SelfAttention {
    pub(super) names: Names,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Values of a head that turn with the position.
    pub(super) rotary_dims: usize,
    /// Multiplies the scores.
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    pub(super) norm: Norm,
    pub(super) qkv_bias: bool,
    pub(super) output_bias: bool,
    pub(super) has_sinks: bool,
}

/// Norms of queries and keys, `self_attn.q_norm` and `self_attn.k_norm`, with their epsilon.
#[derive(Clone, Copy)]
pub(super) enum Norm {
    None,
    /// RMS norms over each head, all with one gain.
    Heads(f32),
    /// RMS norms over the whole row.
    Rows(f32),
    /// LayerNorms over each head, each with gains of its own and no bias.
    OwnHeads(f32),
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Default)]
pub(super) struct Reach {
    /// The rotary table, where positions enter by rotation.
    pub(super) rope: Option<usize>,
    /// How many positions are seen, if not all.
    pub(super) window: Option<usize>,
}

impl SelfAttention {
    /// Heads of the configuration that turn as a whole, scores by `head_dim^-0.5`, no biases.
    pub(super) fn of(c: &Config<'_>) -> Result<Self> {
        let (heads, kv_heads, head_dim) = c.heads()?;
        Ok(Self {
            names: LLAMA,
            heads,
            kv_heads,
            head_dim,
            rotary_dims: head_dim,
            scale: (head_dim as f32).powf(-0.5),
            softcap: None,
            norm: Norm::None,
            qkv_bias: false,
            output_bias: false,
            has_sinks: false,
        })
    }

    /// Turns a share of each head: `key` of the configuration, or `partial_rotary_factor` of its `rope_parameters`.
    pub(super) fn partly_rotated(mut self, c: &Config<'_>, key: &str, default: f64) -> Result<Self> {
        let share = match c.object("rope_parameters")?.and_then(|p| p.get("partial_rotary_factor")) {
            Some(v) => v.as_f64().ok_or_else(|| c.wrong("rope_parameters.partial_rotary_factor", v))?,
            None => c.f64_or(key, default)?,
        };
        self.rotary_dims = (self.head_dim as f64 * share) as usize / 2 * 2;
        if self.rotary_dims == 0 || self.rotary_dims > self.head_dim {
            return Err(c.error_at(key, format_args!("is {share}, which is out of range")));
        }
        Ok(self)
    }

    /// From the normed stream to what is added to the stream.
    pub(super) fn build(&self, g: &mut Builder, x: ValueId, reach: Reach) -> ValueId {
        let Self { heads, kv_heads, head_dim, scale, softcap, .. } = *self;
        let ([q, k, v, o], hidden) = (self.names, g.dim(x));
        let q = g.linear(x, q, heads * head_dim, self.qkv_bias);
        let k = g.linear(x, k, kv_heads * head_dim, self.qkv_bias);
        let v = g.linear(x, v, kv_heads * head_dim, self.qkv_bias);
        let (q, k) = self.norms(g, q, k);
        let q = self.turn(g, "q_rope", q, heads, reach.rope);
        let k = self.turn(g, "k_rope", k, kv_heads, reach.rope);
        let (k, v) = (g.cache("keys", k), g.cache("values", v));
        let sinks = self.has_sinks.then(|| g.vector("self_attn.sinks", heads));
        let op = Op::Attention { heads, kv_heads, head_dim, scale, softcap, window: reach.window, sinks };
        let a = g.apply("o_in", op, &[q, k, v]);
        g.linear(a, o, hidden, self.output_bias)
    }

    fn norms(&self, g: &mut Builder, q: ValueId, k: ValueId) -> (ValueId, ValueId) {
        let (eps, widths) = match self.norm {
            Norm::None => return (q, k),
            Norm::Heads(eps) => (eps, [self.head_dim; 2]),
            Norm::Rows(eps) => (eps, [g.dim(q), g.dim(k)]),
            Norm::OwnHeads(eps) => {
                let q = g.head_layer_norm("q_norm", q, Q_NORM, eps, self.heads);
                return (q, g.head_layer_norm("k_norm", k, K_NORM, eps, self.kv_heads));
            }
        };
        let q = g.head_norm("q_norm", q, Q_NORM, eps, widths[0]);
        (q, g.head_norm("k_norm", k, K_NORM, eps, widths[1]))
    }

    fn turn(&self, g: &mut Builder, name: &'static str, x: ValueId, heads: usize, rope: Option<usize>) -> ValueId {
        let &Self { head_dim, rotary_dims, .. } = self;
        let Some(rope) = rope else { return x };
        g.apply(name, Op::Rope { rope, heads, head_dim, rotary_dims }, &[x])
    }
}
