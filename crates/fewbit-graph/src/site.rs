use std::collections::{BTreeMap, BTreeSet};

use crate::{Activation, Edge, Graph, Node, Op, ValueId, VectorId, WeightId};

/// What kind of map may be applied to a value without changing what the model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Symmetry {
    /// A reordering.
    Permutation,
    /// A factor per element.
    Diagonal,
    /// A constant per element.
    Shift,
    /// An orthogonal matrix.
    Orthogonal,
    /// Any invertible matrix.
    Invertible,
}

impl Symmetry {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Permutation, Self::Diagonal, Self::Shift, Self::Orthogonal, Self::Invertible];
}

/// How the element is bound to repeat or to act on parts of the row alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tied {
    /// Free over the whole row.
    No,
    /// Acts within each head; heads are free of each other.
    PerHead {
        /// Values of a head.
        head_dim: usize,
    },
    /// Acts within each key-value head, and alike on all `group` query heads that read it. The element is given
    /// for the key-value heads.
    PerKvGroup {
        /// Values of a head.
        head_dim: usize,
        /// Query heads of one key-value head.
        group: usize,
    },
    /// Per key-value head, alike on both values of each rotary pair `(i, i + rotary_dims/2)` and on the group's query heads.
    RopePairs {
        /// Values of a head.
        head_dim: usize,
        /// Values of a head that turn.
        rotary_dims: usize,
        /// Query heads of one key-value head.
        group: usize,
    },
}

/// A tensor that can carry an element: `x' = x M` where it makes `x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Producer {
    /// The output rows (and bias) of a linear.
    Rows(WeightId),
    /// The gain of a norm.
    Gain(VectorId),
    /// The bias of a norm.
    NormBias(VectorId),
}

/// Where an element of one symmetry goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fold {
    /// Tensors that make the value: they take `M`.
    pub producers: BTreeSet<Producer>,
    /// For the scores of attention: tensors that make the queries, which take `M⁻ᵀ`.
    pub queries: BTreeSet<Producer>,
}

/// A value that only linears (or only attention's scores) read, and what can be done to it.
///
/// The consumers' columns take the inverse: `W' = W M⁻ᵀ` for `x' = x M` (with `W [out, in]`); a shift `x' = x + d` goes into their biases as `−W d`.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// The value.
    pub value: ValueId,
    /// Whose rows, for a value within experts: each expert has elements of its own.
    pub expert: Option<usize>,
    /// Width of its rows.
    pub dim: usize,
    /// The linears that read it. Empty for the keys, which the scores read.
    pub consumers: Vec<WeightId>,
    /// Per symmetry and tie, where the element folds.
    pub folds: BTreeMap<(Symmetry, Tied), Fold>,
}

impl Site {
    /// What the consumers read.
    pub fn edge(&self) -> Edge {
        Edge { value: self.value, expert: self.expert }
    }
}

/// Derives the sites of a block.
pub fn sites(graph: &Graph) -> Vec<Site> {
    let mut found = Vec::new();
    for (edge, mut consumers) in graph.linears_by_input() {
        let Edge { value, expert } = edge;
        let is_linear = |n: &Node| matches!(n.op, Op::Linear { .. } | Op::ExpertLinear { .. } | Op::Dispatch);
        // What experts get belongs to the value that was sent to them.
        let is_sent = graph.producer(value).is_none_or(|n| n.op == Op::Dispatch);
        if is_sent || !graph.readers(value).all(is_linear) {
            continue;
        }
        for sent in graph.readers(value).filter(|n| n.op == Op::Dispatch) {
            consumers.extend(graph.readers(sent.output).flat_map(|n| graph.linears_of(n)).map(|(_, w)| w));
        }
        let mut folds = BTreeMap::new();
        for symmetry in Symmetry::ALL {
            if let Some((tied, producers)) = absorb(graph, edge, symmetry) {
                folds.insert((symmetry, tied), Fold { producers, queries: BTreeSet::new() });
            }
        }
        found.push(Site { value, expert, dim: graph.values[value].dim, consumers, folds });
    }
    found.extend(graph.nodes.iter().filter_map(|n| key_site(graph, n)));
    found
}

type Absorbed = Option<(Tied, BTreeSet<Producer>)>;

/// Into which tensors an element of `symmetry` on `value` folds, walking back through the nodes that it passes.
fn absorb(graph: &Graph, Edge { value, expert }: Edge, symmetry: Symmetry) -> Absorbed {
    use Symmetry::{Diagonal, Permutation, Shift};
    let node = graph.producer(value)?;
    let only = |p: Producer| Some((Tied::No, BTreeSet::from([p])));
    // An input that others read too would carry the element to them.
    let through = |i: usize| {
        let input = node.inputs[i];
        if graph.readers(input).count() == 1 { absorb(graph, Edge { value: input, expert }, symmetry) } else { None }
    };
    match node.op {
        Op::Linear { weight } => only(Producer::Rows(weight)),
        Op::ExpertLinear { first } => only(Producer::Rows(first + expert?)),
        Op::RmsNorm { gain, width, .. } if symmetry == Diagonal && width == graph.values[value].dim => {
            only(Producer::Gain(gain))
        }
        Op::LayerNorm { gain, bias, .. } => match symmetry {
            Diagonal => {
                let bias = bias.map(Producer::NormBias);
                Some((Tied::No, [Producer::Gain(gain)].into_iter().chain(bias).collect()))
            }
            Shift => only(Producer::NormBias(bias?)),
            _ => None,
        },
        Op::Cache { .. } => through(0),
        // Zeros behind the values on their way into attention, and what is cut off behind it: the values are the same.
        Op::FitHeads { head_dim, .. } => {
            let (tied, producers) = through(0)?;
            let tied = if let Tied::PerHead { .. } = tied { Tied::PerHead { head_dim } } else { tied };
            Some((tied, producers))
        }
        Op::Activation(Activation::Relu | Activation::Silu | Activation::GeluErf | Activation::GeluTanh)
            if symmetry == Permutation =>
        {
            through(0)
        }
        // A diagonal rides on one factor alone; a permutation must be on both.
        Op::Mul => match symmetry {
            Diagonal => through(1).or_else(|| through(0)),
            Permutation => both(through(0), through(1)),
            _ => None,
        },
        Op::ClampedGlu { .. } if symmetry == Permutation => both(through(0), through(1)),
        Op::Add if symmetry != Shift => both(through(0), through(1)),
        // The scores' rows sum to one, unless a sink takes a part: what is linear in the values, and constants too, pass
        // through attention.
        Op::Attention { heads, kv_heads, head_dim, sinks, .. } if symmetry != Shift || sinks.is_none() => {
            let (tied, producers) = through(2)?;
            let tie = match (heads == kv_heads, symmetry) {
                _ if tied != Tied::No => return None,
                (true, Diagonal | Shift) => Tied::No,
                (true, _) => Tied::PerHead { head_dim },
                (false, _) => Tied::PerKvGroup { head_dim, group: heads / kv_heads },
            };
            Some((tie, producers))
        }
        _ => None,
    }
}

fn both(a: Absorbed, b: Absorbed) -> Absorbed {
    let ((tied, mut producers), (other, more)) = (a?, b?);
    producers.extend(more);
    (tied == other).then_some((tied, producers))
}

/// Keys and queries: a factor on the keys that the queries undo, alike on both values of a rotary pair.
fn key_site(graph: &Graph, node: &Node) -> Option<Site> {
    let Op::Attention { heads, kv_heads, head_dim, .. } = node.op else { return None };
    let (queries, _) = before_rope(graph, node.inputs[0])?;
    let (keys, rotary_dims) = before_rope(graph, node.inputs[1])?;
    let linear = |v: ValueId| match graph.producer(v)?.op {
        Op::Linear { weight } if graph.readers(v).count() == 1 => Some(BTreeSet::from([Producer::Rows(weight)])),
        _ => None,
    };
    let fold = Fold { producers: linear(keys)?, queries: linear(queries)? };
    let tied = Tied::RopePairs { head_dim, rotary_dims, group: heads / kv_heads };
    let value = node.inputs[1];
    Some(Site {
        value,
        expert: None,
        dim: graph.values[value].dim,
        consumers: Vec::new(),
        folds: BTreeMap::from([((Symmetry::Diagonal, tied), fold)]),
    })
}

/// The value before cache and rotation, and how many values of a head turn.
fn before_rope(graph: &Graph, mut value: ValueId) -> Option<(ValueId, usize)> {
    let mut turning = 0;
    loop {
        let node = graph.producer(value)?;
        match node.op {
            Op::Cache { .. } => {}
            Op::Rope { rotary_dims, .. } => turning = rotary_dims,
            _ => return Some((value, turning)),
        }
        value = node.inputs[0];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, architecture_of};

    fn block(config: &serde_json::Value) -> Graph {
        let map = config.as_object().unwrap();
        let model = architecture_of(map).unwrap().model(&Config::new(map)).unwrap();
        model.blocks[0].clone()
    }

    fn names<'g>(graph: &'g Graph, fold: &Fold) -> Vec<&'g str> {
        (fold.producers.iter())
            .map(|p| match *p {
                Producer::Rows(w) => &*graph.weights[w].name,
                Producer::Gain(v) | Producer::NormBias(v) => graph.vectors[v].name,
            })
            .collect()
    }

    #[test]
    fn llama_with_grouped_queries() {
        let g = block(&serde_json::json!({"model_type": "llama", "hidden_size": 16, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 8}));
        let sites = sites(&g);
        let at = |name: &str| sites.iter().find(|s| g.values[s.value].name == name).unwrap();
        let diagonal = |s: &Site| names(&g, &s.folds[&(Symmetry::Diagonal, Tied::No)]);
        assert_eq!(diagonal(at("attn_in")), ["input_layernorm.weight"]);
        assert_eq!(at("attn_in").consumers.len(), 3);
        assert_eq!(diagonal(at("mlp_in")), ["post_attention_layernorm.weight"]);
        assert_eq!(diagonal(at("down_in")), ["mlp.up_proj"]);
        let permutation = &at("down_in").folds[&(Symmetry::Permutation, Tied::No)];
        assert_eq!(names(&g, permutation), ["mlp.gate_proj", "mlp.up_proj"]);
        assert!(!at("down_in").folds.keys().any(|(s, _)| *s == Symmetry::Orthogonal));
        let tied = Tied::PerKvGroup { head_dim: 4, group: 2 };
        assert_eq!(names(&g, &at("o_in").folds[&(Symmetry::Orthogonal, tied)]), ["self_attn.v_proj"]);
        let pairs = Tied::RopePairs { head_dim: 4, rotary_dims: 4, group: 2 };
        assert_eq!(names(&g, &at("keys").folds[&(Symmetry::Diagonal, pairs)]), ["self_attn.k_proj"]);
    }

    #[test]
    fn a_norm_after_the_values_keeps_the_query_side_out() {
        let g = block(&serde_json::json!({"model_type": "qwen3", "hidden_size": 16, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 8}));
        assert!(sites(&g).iter().all(|s| g.values[s.value].name != "keys"));
    }

    #[test]
    fn experts_and_their_router_share_the_norm_and_nothing_else() {
        let g = block(&serde_json::json!({"model_type": "mixtral", "hidden_size": 16, "num_attention_heads": 4,
            "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 8, "num_local_experts": 3,
            "num_experts_per_tok": 2}));
        let sites = sites(&g);
        let all = |name: &str| sites.iter().filter(|s| g.values[s.value].name == name).collect::<Vec<_>>();
        assert_eq!(all("mlp_in").len(), 1);
        assert_eq!(all("mlp_in")[0].consumers.len(), 1 + 2 * 3, "the router, and gate and up of each expert");
        assert!(all("expert_in").is_empty());
        let down = all("down_in");
        assert_eq!(down.iter().map(|s| s.expert).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
        let diagonal = &down[1].folds[&(Symmetry::Diagonal, Tied::No)];
        assert_eq!(names(&g, diagonal), ["block_sparse_moe.experts.1.w3"]);
        assert_eq!(g.weights[down[1].consumers[0]].name, "block_sparse_moe.experts.1.w2");
    }
}
