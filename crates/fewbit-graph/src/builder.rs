use std::borrow::Cow;

use crate::{Graph, Node, Op, Routed, Routing, Value, ValueId, Vector, VectorId, Weight, WeightId};

/// Writes a [`Graph`] the way the paper's equations read.
#[derive(Debug)]
pub struct Builder {
    graph: Graph,
    slots: usize,
}

impl Builder {
    /// A graph whose input has rows of `dim`.
    pub fn new(name: &'static str, dim: usize) -> Self {
        Self { graph: Graph { values: vec![Value { name, dim, routed: None }], ..Graph::default() }, slots: 0 }
    }

    fn node(&mut self, name: &'static str, dim: usize, op: Op, inputs: &[ValueId]) -> ValueId {
        let routed = self.graph.values[inputs[0]].routed;
        self.routed_node(name, dim, routed, op, inputs)
    }

    fn routed_node(
        &mut self,
        name: &'static str,
        dim: usize,
        routed: Option<Routed>,
        op: Op,
        inputs: &[ValueId],
    ) -> ValueId {
        let output = self.graph.values.len();
        self.graph.values.push(Value { name, dim, routed });
        self.graph.nodes.push(Node { op, inputs: inputs.to_vec(), output });
        output
    }

    /// A vector that an operation names.
    pub fn vector(&mut self, name: &'static str, dim: usize) -> VectorId {
        self.graph.vectors.push(Vector { name, rows: None, dim });
        self.graph.vectors.len() - 1
    }

    /// Several vectors, one behind the other.
    fn table(&mut self, name: &'static str, rows: usize, dim: usize) -> VectorId {
        self.graph.vectors.push(Vector { name, rows: Some(rows), dim });
        self.graph.vectors.len() - 1
    }

    /// [`Op::Positions`] with a table of `rows` rows, the first position's being `first`.
    pub fn positions(&mut self, x: ValueId, table: &'static str, rows: usize, first: usize) -> ValueId {
        let dim = self.dim(x);
        let table = self.table(table, rows, dim);
        self.node("positioned", dim, Op::Positions { table, first }, &[x])
    }

    /// Width of a value.
    pub fn dim(&self, x: ValueId) -> usize {
        self.graph.values[x].dim
    }

    fn weight(&mut self, name: impl Into<Cow<'static, str>>, shape: [usize; 2], has_bias: bool) -> WeightId {
        self.graph.weights.push(Weight { name: name.into(), shape, has_bias, is_gate: false });
        self.graph.weights.len() - 1
    }

    /// [`Op::Linear`].
    pub fn linear(&mut self, x: ValueId, weight: &'static str, out: usize, has_bias: bool) -> ValueId {
        let w = self.weight(weight, [out, self.dim(x)], has_bias);
        self.node(weight, out, Op::Linear { weight: w }, &[x])
    }

    /// [`Op::Linear`] with a matrix that is never rounded.
    pub fn gate(&mut self, x: ValueId, weight: &'static str, out: usize, has_bias: bool) -> ValueId {
        let y = self.linear(x, weight, out, has_bias);
        self.graph.weights.last_mut().expect("the linear's weight").is_gate = true;
        y
    }

    /// [`Op::ExpertLinear`] with the matrices `experts.0.weight`, `experts.1.weight` and so on.
    pub fn expert_linear(
        &mut self,
        x: ValueId,
        experts: &'static str,
        weight: &'static str,
        out: usize,
        has_bias: bool,
    ) -> ValueId {
        let first = self.graph.weights.len();
        for e in 0..self.graph.values[x].routed.map_or(0, |r| r.experts) {
            self.weight(format!("{experts}.{e}.{weight}"), [out, self.dim(x)], has_bias);
        }
        self.node(weight, out, Op::ExpertLinear { first }, &[x])
    }

    /// [`Op::Route`], with the vector of that name as its bias.
    pub fn route(&mut self, logits: ValueId, routing: Routing, bias: Option<&'static str>) -> ValueId {
        let experts = self.dim(logits);
        let bias = bias.map(|b| self.vector(b, experts));
        self.node("routing", 2 * routing.top, Op::Route { routing, bias }, &[logits])
    }

    /// [`Op::JoinHeads`].
    pub fn join_heads(&mut self, name: &'static str, shared: ValueId, x: ValueId, heads: usize) -> ValueId {
        let dim = heads * self.dim(shared) + self.dim(x);
        self.node(name, dim, Op::JoinHeads { heads }, &[shared, x])
    }

    /// [`Op::FitHeads`].
    pub fn fit_heads(&mut self, name: &'static str, x: ValueId, heads: usize, head_dim: usize) -> ValueId {
        self.node(name, heads * head_dim, Op::FitHeads { heads, head_dim }, &[x])
    }

    /// [`Op::Dispatch`] of `x` to the experts that [`route`](Self::route) chose.
    pub fn dispatch(&mut self, name: &'static str, x: ValueId, routing: ValueId) -> ValueId {
        let route = self.graph.producer(routing).expect("a routing has its node");
        let routed = Routed { by: routing, top: self.dim(routing) / 2, experts: self.dim(route.inputs[0]) };
        self.routed_node(name, self.dim(x), Some(routed), Op::Dispatch, &[x, routing])
    }

    /// [`Op::Combine`] of the experts' rows.
    pub fn combine(&mut self, name: &'static str, x: ValueId, routing: ValueId) -> ValueId {
        self.routed_node(name, self.dim(x), None, Op::Combine, &[x, routing])
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
        bias: Option<&'static str>,
        eps: f32,
    ) -> ValueId {
        let dim = self.dim(x);
        let (gain, bias) = (self.vector(gain, dim), bias.map(|b| self.vector(b, dim)));
        self.node(name, dim, Op::LayerNorm { gain, bias, eps, width: dim }, &[x])
    }

    /// [`Op::LayerNorm`] over each of `heads` heads, with gains of its own: a table `[heads, width]`.
    pub fn head_layer_norm(
        &mut self,
        name: &'static str,
        x: ValueId,
        gain: &'static str,
        eps: f32,
        heads: usize,
    ) -> ValueId {
        let dim = self.dim(x);
        let width = dim / heads;
        let gain = self.table(gain, heads, width);
        self.node(name, dim, Op::LayerNorm { gain, bias: None, eps, width }, &[x])
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
