/// Index of a value (an edge) in [`Graph::values`].
pub type ValueId = usize;
/// Index of a matrix in [`Graph::weights`].
pub type WeightId = usize;
/// Index of a vector in [`Graph::vectors`].
pub type VectorId = usize;

/// An edge: rows of `dim` numbers, one row a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// For messages and statistics, such as `attn_in`.
    pub name: &'static str,
    /// Width of a row.
    pub dim: usize,
}

/// A matrix `[out, in]` that a linear or an embedding reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Path within the block, such as `self_attn.q_proj`.
    pub name: &'static str,
    /// `[out, in]`; `[vocabulary, hidden]` for an embedding.
    pub shape: [usize; 2],
    /// Whether a bias `[out]` belongs to it.
    pub has_bias: bool,
}

/// A vector of a norm.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector {
    /// Path within the block, such as `input_layernorm.weight`.
    pub name: &'static str,
    /// Length.
    pub dim: usize,
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
    /// `x` → `(x − mean) / √(var + eps) · g + b`.
    LayerNorm {
        /// `[dim]`.
        gain: VectorId,
        /// `[dim]`.
        bias: VectorId,
        /// Added to the variance.
        eps: f32,
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
    /// `x` → all rows of the sequence up to this one, remembered in `slot`.
    Cache {
        /// Number within the block.
        slot: usize,
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
    },
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

    /// For each value that linears read, those linears, in order of first use: what shares an input.
    pub fn linears_by_input(&self) -> Vec<(ValueId, Vec<WeightId>)> {
        let mut groups: Vec<(ValueId, Vec<WeightId>)> = Vec::new();
        for node in &self.nodes {
            if let Op::Linear { weight } = node.op {
                match groups.iter_mut().find(|(v, _)| *v == node.inputs[0]) {
                    Some((_, ws)) => ws.push(weight),
                    None => groups.push((node.inputs[0], vec![weight])),
                }
            }
        }
        groups
    }

    /// Number of cache slots.
    pub fn slots(&self) -> usize {
        self.nodes.iter().filter(|n| matches!(n.op, Op::Cache { .. })).count()
    }

    /// Numbers in all matrices, biases and vectors.
    pub fn parameters(&self) -> u64 {
        let weights: u64 = (self.weights.iter())
            .map(|w| (w.shape[0] * w.shape[1] + if w.has_bias { w.shape[0] } else { 0 }) as u64)
            .sum();
        weights + self.vectors.iter().map(|v| v.dim as u64).sum::<u64>()
    }
}

/// Writes a [`Graph`] the way the paper's equations read.
#[derive(Debug)]
pub struct Builder {
    graph: Graph,
    slots: usize,
}

impl Builder {
    /// A graph whose input has rows of `dim`.
    pub fn new(name: &'static str, dim: usize) -> Self {
        Self { graph: Graph { values: vec![Value { name, dim }], ..Graph::default() }, slots: 0 }
    }

    fn node(&mut self, name: &'static str, dim: usize, op: Op, inputs: &[ValueId]) -> ValueId {
        let output = self.graph.values.len();
        self.graph.values.push(Value { name, dim });
        self.graph.nodes.push(Node { op, inputs: inputs.to_vec(), output });
        output
    }

    fn vector(&mut self, name: &'static str, dim: usize) -> VectorId {
        self.graph.vectors.push(Vector { name, dim });
        self.graph.vectors.len() - 1
    }

    /// Width of a value.
    pub fn dim(&self, x: ValueId) -> usize {
        self.graph.values[x].dim
    }

    fn weight(&mut self, name: &'static str, shape: [usize; 2], has_bias: bool) -> WeightId {
        self.graph.weights.push(Weight { name, shape, has_bias });
        self.graph.weights.len() - 1
    }

    /// [`Op::Linear`].
    pub fn linear(&mut self, x: ValueId, weight: &'static str, out: usize, has_bias: bool) -> ValueId {
        let w = self.weight(weight, [out, self.dim(x)], has_bias);
        self.node(weight, out, Op::Linear { weight: w }, &[x])
    }

    /// [`Op::Embedding`] of the input ids.
    pub fn embedding(&mut self, weight: &'static str, vocabulary: usize, dim: usize) -> ValueId {
        let w = self.weight(weight, [vocabulary, dim], false);
        self.node("embedding", dim, Op::Embedding { weight: w }, &[Graph::INPUT])
    }

    /// [`Op::RmsNorm`] over the whole row.
    pub fn rms_norm(&mut self, name: &'static str, x: ValueId, gain: &'static str, eps: f32) -> ValueId {
        let width = self.dim(x);
        self.head_norm(name, x, gain, eps, width)
    }

    /// [`Op::RmsNorm`] over each head of `width` values.
    pub fn head_norm(&mut self, name: &'static str, x: ValueId, gain: &'static str, eps: f32, width: usize) -> ValueId {
        let gain = self.vector(gain, width);
        let dim = self.dim(x);
        self.node(name, dim, Op::RmsNorm { gain, eps, width }, &[x])
    }

    /// [`Op::LayerNorm`].
    pub fn layer_norm(
        &mut self,
        name: &'static str,
        x: ValueId,
        gain: &'static str,
        bias: &'static str,
        eps: f32,
    ) -> ValueId {
        let dim = self.dim(x);
        let (gain, bias) = (self.vector(gain, dim), self.vector(bias, dim));
        self.node(name, dim, Op::LayerNorm { gain, bias, eps }, &[x])
    }

    /// An operation that keeps the width of its first input.
    pub fn apply(&mut self, name: &'static str, op: Op, inputs: &[ValueId]) -> ValueId {
        let dim = self.dim(inputs[0]);
        self.node(name, dim, op, inputs)
    }

    /// [`Op::Add`].
    pub fn add(&mut self, name: &'static str, a: ValueId, b: ValueId) -> ValueId {
        self.apply(name, Op::Add, &[a, b])
    }

    /// [`Op::Cache`] in the next slot.
    pub fn cache(&mut self, name: &'static str, x: ValueId) -> ValueId {
        let slot = self.slots;
        self.slots += 1;
        self.apply(name, Op::Cache { slot }, &[x])
    }

    /// The graph that ends in `output`.
    pub fn finish(mut self, output: ValueId) -> Graph {
        self.graph.output = output;
        self.graph
    }
}
