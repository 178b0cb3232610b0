use std::borrow::Cow;

/// Index of a value (an edge) in [`Graph::values`].
pub type ValueId = usize;
/// Index of a matrix in [`Graph::weights`].
pub type WeightId = usize;
/// Index of a vector in [`Graph::vectors`].
pub type VectorId = usize;

/// An edge: rows of `dim` numbers, one row a token, or one for each expert that a token goes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// For messages and statistics, such as `attn_in`.
    pub name: &'static str,
    /// Width of a row.
    pub dim: usize,
    /// For a value within experts, how its rows went there.
    pub routed: Option<Routed>,
}

impl Value {
    /// Numbers that a token has in it: all its rows.
    pub fn width(&self) -> usize {
        self.dim * self.routed.map_or(1, |r| r.top)
    }
}

/// How rows went to experts: expert after expert, within each in the order of the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed {
    /// The value that [`Op::Route`] made.
    pub by: ValueId,
    /// Experts that a token goes to.
    pub top: usize,
    /// All experts.
    pub experts: usize,
}

/// What a linear reads: a value, or those rows of it that one expert has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// The value.
    pub value: ValueId,
    /// Whose rows, for a value within experts.
    pub expert: Option<usize>,
}

/// A matrix `[out, in]` that a linear or an embedding reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Path within the block, such as `self_attn.q_proj` or `mlp.experts.7.down_proj`.
    pub name: Cow<'static, str>,
    /// `[out, in]`; `[vocabulary, hidden]` for an embedding.
    pub shape: [usize; 2],
    /// Whether a bias `[out]` belongs to it.
    pub has_bias: bool,
    /// Whether it decides where tokens go, or how much an expert counts: such a small matrix is never rounded.
    pub is_gate: bool,
}

/// A vector of a norm, the sinks of attention, or a vector for each position.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector {
    /// Path within the block, such as `input_layernorm.weight`.
    pub name: &'static str,
    /// How many vectors, one behind the other, where it is a table; else one.
    pub rows: Option<usize>,
    /// Length of one.
    pub dim: usize,
}

impl Vector {
    /// Numbers in all.
    pub fn len(&self) -> usize {
        self.rows.unwrap_or(1) * self.dim
    }

    /// Whether there is no number.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shape of the tensor.
    pub fn shape(&self) -> Vec<usize> {
        self.rows.into_iter().chain([self.dim]).collect()
    }
}

/// The non-linearities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(x)`.
    Silu,
    /// `x · Φ(x)`.
    GeluErf,
    /// `x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³)))`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// What an expert's score is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Its share of a softmax over all logits.
    Softmax,
    /// The sigmoid of its own logit (DeepSeek-V3).
    Sigmoid,
}

/// What the weights of the chosen experts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Their scores: of a softmax, the weights sum to less than one (Qwen2-MoE).
    All,
    /// Their scores divided by the sum of these: the weights sum to one (Mixtral, gpt-oss, `norm_topk_prob`).
    Chosen,
}

/// Only experts of the best groups can be chosen (DeepSeek): the experts of a group stand side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Groups of equal size.
    pub count: usize,
    /// How many of them stay.
    pub kept: usize,
    /// How many of a group's best experts are summed to what it is measured by.
    pub best: usize,
}

/// How experts are chosen and weighted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts that a token goes to.
    pub top: usize,
    /// What they are chosen by.
    pub score: Score,
    /// What their weights are.
    pub share: Share,
    /// Which of them can be chosen, if not all.
    pub groups: Option<Groups>,
    /// Multiplies the weights.
    pub scale: f32,
}

impl Routing {
    /// The `top` greatest of a softmax.
    pub fn softmax(top: usize, share: Share) -> Self {
        Self { top, score: Score::Softmax, share, groups: None, scale: 1.0 }
    }
}

/// What a node computes. Inputs are in the order that the comment gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// ids → rows of the matrix.
    Embedding {
        /// `[vocabulary, hidden]`.
        weight: WeightId,
    },
    /// `x` → `x Wᵀ + b`.
    Linear {
        /// `[out, in]`.
        weight: WeightId,
    },
    /// `x` → `x / √(mean(x²) + eps) · g` over each consecutive `width` values (a row, or each head of it).
    RmsNorm {
        /// `[width]`.
        gain: VectorId,
        /// Added to the mean square.
        eps: f32,
        /// Values that are normalised together.
        width: usize,
    },
    /// `x` → `(x − mean) / √(var + eps) · g + b` over each consecutive `width` values (a row, or each head of it).
    LayerNorm {
        /// `[dim]`.
        gain: VectorId,
        /// `[dim]`, where the norm has one.
        bias: Option<VectorId>,
        /// Added to the variance.
        eps: f32,
        /// Values that are normalised together.
        width: usize,
    },
    /// `x` → `factor · x`.
    Scale {
        /// The factor.
        factor: f32,
    },
    /// `a, b` → `a + b`.
    Add,
    /// `a, b` → `a ⊙ b`.
    Mul,
    /// `x` → `f(x)`.
    Activation(Activation),
    /// `x` → `cap · tanh(x / cap)`.
    Softcap {
        /// The cap.
        cap: f32,
    },
    /// `x` → rotated by its position, half-split pairs `(i, i + rotary_dims/2)` in the first `rotary_dims` of each head.
    Rope {
        /// Index in [`crate::Model::ropes`].
        rope: usize,
        /// Heads in a row.
        heads: usize,
        /// Values of a head.
        head_dim: usize,
        /// Values of a head that turn.
        rotary_dims: usize,
    },
    /// `x` → `x + table[position + first]`: learned positions.
    Positions {
        /// `[rows, dim]`.
        table: VectorId,
        /// Row of the first position.
        first: usize,
    },
    /// `x` → all rows of the sequence up to this one, remembered in `slot`.
    Cache {
        /// Number within the block.
        slot: usize,
    },
    /// `a, b` → for each of `heads` heads all of `a`, then the head's values of `b`.
    JoinHeads {
        /// Heads of `b`.
        heads: usize,
    },
    /// `x` → the first `head_dim` values of each head, with zeros behind them where a head has fewer.
    FitHeads {
        /// Heads in a row.
        heads: usize,
        /// Values that a head then has.
        head_dim: usize,
    },
    /// `q, k, v` → causal attention, `[heads · head_dim]`.
    Attention {
        /// Query heads.
        heads: usize,
        /// Key and value heads; divides `heads`.
        kv_heads: usize,
        /// Values of a head.
        head_dim: usize,
        /// Multiplies the scores.
        scale: f32,
        /// Soft cap of the scores, before the mask.
        softcap: Option<f32>,
        /// A position sees this many positions, itself included.
        window: Option<usize>,
        /// `[heads]`: the logit of one more position with values of zero, per head.
        sinks: Option<VectorId>,
    },
    /// `x, g` with one number `g` per row → `σ(g) · x`.
    Gate,
    /// `gate, up` → `(clamp(up, ±limit) + 1) ⊙ g σ(alpha g)` with `g = min(gate, limit)` (gpt-oss).
    ClampedGlu {
        /// Steepness of the sigmoid.
        alpha: f32,
        /// Where both inputs are cut off.
        limit: f32,
    },
    /// Logits of experts → the indices of the chosen, ascending, then their weights: `[2 · top]`.
    Route {
        /// How they are chosen and weighted.
        routing: Routing,
        /// `[experts]`: added to the scores where experts are chosen, not where they are weighted.
        bias: Option<VectorId>,
    },
    /// `x, routing` → each token's row once for each of its experts, in the order of [`Routed`].
    Dispatch,
    /// `x` within experts → `x Wᵉᵀ + bᵉ` with the matrix of each row's expert.
    ExpertLinear {
        /// `[out, in]` of expert 0; those of the others follow it.
        first: WeightId,
    },
    /// `x` within experts, routing → the sum of a token's rows times their weights, in the order of the experts.
    Combine,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What.
    pub op: Op,
    /// From which values.
    pub inputs: Vec<ValueId>,
    /// To which value.
    pub output: ValueId,
}

/// A straight-line program over values; value 0 is the input (for a block: the residual stream).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// All edges.
    pub values: Vec<Value>,
    /// In an order in which they can run.
    pub nodes: Vec<Node>,
    /// The result.
    pub output: ValueId,
    /// Matrices.
    pub weights: Vec<Weight>,
    /// Vectors.
    pub vectors: Vec<Vector>,
}

impl Graph {
    /// The input.
    pub const INPUT: ValueId = 0;

    /// The node that makes a value; `None` for the input.
    pub fn producer(&self, value: ValueId) -> Option<&Node> {
        self.nodes.iter().find(|n| n.output == value)
    }

    /// The nodes that read a value.
    pub fn readers(&self, value: ValueId) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |n| n.inputs.contains(&value))
    }

    /// For each value that linears read, those linears, in order of first use: what shares an input. Within experts,
    /// each has inputs of its own.
    pub fn linears_by_input(&self) -> Vec<(Edge, Vec<WeightId>)> {
        let mut groups: Vec<(Edge, Vec<WeightId>)> = Vec::new();
        for node in &self.nodes {
            for (edge, weight) in self.linears_of(node) {
                match groups.iter_mut().find(|(e, _)| *e == edge) {
                    Some((_, ws)) => ws.push(weight),
                    None => groups.push((edge, vec![weight])),
                }
            }
        }
        groups
    }

    /// The matrices of a linear, one per expert, with what each reads; none for other operations.
    pub fn linears_of(&self, node: &Node) -> Vec<(Edge, WeightId)> {
        let value = node.inputs[0];
        match (&node.op, self.values[value].routed) {
            (Op::Linear { weight }, _) => vec![(Edge { value, expert: None }, *weight)],
            (Op::ExpertLinear { first }, Some(routed)) => {
                (0..routed.experts).map(|e| (Edge { value, expert: Some(e) }, first + e)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Number of cache slots.
    pub fn slots(&self) -> usize {
        self.nodes.iter().filter(|n| matches!(n.op, Op::Cache { .. })).count()
    }

    /// For each cache slot the linear that makes what is remembered there, and whether these are keys (else values).
    pub fn cached(&self) -> Vec<(WeightId, bool)> {
        let is_keys = |v: ValueId| {
            let attention = self.nodes.iter().filter(|n| matches!(n.op, Op::Attention { .. }));
            attention.map(|n| n.inputs[1]).any(|k| k == v)
        };
        let maker = |mut value: ValueId| loop {
            let node = self.producer(value)?;
            if let Op::Linear { weight } = node.op {
                return Some(weight);
            }
            value = node.inputs[0];
        };
        let caches = self.nodes.iter().filter(|n| matches!(n.op, Op::Cache { .. }));
        caches.filter_map(|n| Some((maker(n.inputs[0])?, is_keys(n.output)))).collect()
    }

    /// Numbers in all matrices, biases and vectors.
    pub fn parameters(&self) -> u64 {
        let weights: u64 = (self.weights.iter())
            .map(|w| (w.shape[0] * w.shape[1] + if w.has_bias { w.shape[0] } else { 0 }) as u64)
            .sum();
        weights + self.vectors.iter().map(|v| v.len() as u64).sum::<u64>()
    }
}
