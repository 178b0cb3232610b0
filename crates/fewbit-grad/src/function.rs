use std::sync::Arc;

use fewbit_format::{Error, Result};
use fewbit_graph::{Graph, Node, Op, ValueId, WeightId};
use fewbit_kernel::attention::{AttentionShape, attention_with_log_sums};
use fewbit_kernel::product::{Weights, product_nt};
use fewbit_kernel::{Team, elementwise};
use fewbit_runtime::{Batch, Dispatched, Rotations, add_positions, run_rowwise};

use crate::input::seen;
use crate::{Edges, Saved, View};

/// A graph as a differentiable function of its input and its parameters.
///
/// Forward gives the runtime's numbers. Sequences are whole: every span of a batch begins at position 0, and there are no
/// caches. The input of an embedding graph is ids as numbers `[tokens, 1]`.
#[derive(Clone, Debug)]
pub struct Function {
    pub(crate) graph: Arc<Graph>,
    /// By value: whether a backward step reads it.
    is_kept: Vec<bool>,
    /// By node: the values that nothing reads afterwards, neither forward nor backward.
    dead_after: Vec<Vec<ValueId>>,
}

impl Function {
    /// The function of a graph.
    ///
    /// # Errors
    /// If the graph has an operation without a derivative here, or an embedding of more rows than f32 can number.
    pub fn new(graph: Arc<Graph>) -> Result<Self> {
        for node in &graph.nodes {
            check(&graph, node)?;
        }
        let mut is_kept = vec![false; graph.values.len()];
        let mut last_use: Vec<Option<usize>> = vec![None; graph.values.len()];
        for (i, node) in graph.nodes.iter().enumerate() {
            for v in kept_by(node) {
                is_kept[v] = true;
            }
            if let Some(routed) = graph.values[node.output].routed {
                is_kept[routed.by] = true;
            }
            for v in node.inputs.iter().chain([&node.output]) {
                last_use[*v] = Some(i);
            }
        }
        let mut dead_after = vec![Vec::new(); graph.nodes.len()];
        for (v, at) in last_use.into_iter().enumerate() {
            if let Some(i) = at
                && !is_kept[v]
                && v != graph.output
            {
                dead_after[i].push(v);
            }
        }
        Ok(Self { graph, is_kept, dead_after })
    }

    /// The graph.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// The output `[tokens, output dim]` for `x [tokens, dim]`; what [`backward`](Self::backward) needs is in `saved`.
    ///
    /// # Panics
    /// If `x`, `batch` and `parameters` do not fit the graph ([`View::check`]), an id has no row in its embedding, or a
    /// span does not begin at position 0.
    pub fn forward(
        &self,
        team: &Team,
        batch: &Batch,
        rotations: &Rotations,
        parameters: &View<'_>,
        edges: &mut dyn Edges,
        x: Vec<f32>,
        saved: &mut Saved,
    ) -> Vec<f32> {
        let (graph, tokens) = (&*self.graph, batch.tokens());
        assert!(batch.spans().iter().all(|s| s.start == 0), "whole sequences");
        assert_eq!(x.len(), tokens * graph.values[Graph::INPUT].dim, "a row for each token");
        saved.begin(tokens, graph.values.len(), graph.nodes.len());
        saved.values[Graph::INPUT] = x;
        self.after(Graph::INPUT, edges, saved);
        for (i, node) in graph.nodes.iter().enumerate() {
            let reused = reusable(node, &self.dead_after[i]);
            let mut out = match reused {
                Some(input) => std::mem::take(&mut saved.values[node.inputs[input]]),
                None => saved.pool.take(tokens * graph.values[node.output].width()),
            };
            self.node(team, batch, rotations, parameters, i, reused, &mut out, saved);
            saved.values[node.output] = out;
            self.after(node.output, edges, saved);
            for v in &self.dead_after[i] {
                let buffer = std::mem::take(&mut saved.values[*v]);
                saved.pool.give_back(buffer);
            }
        }
        if self.is_kept[graph.output] {
            let mut y = saved.pool.take(saved.values[graph.output].len());
            y.copy_from_slice(&saved.values[graph.output]);
            y
        } else {
            std::mem::take(&mut saved.values[graph.output])
        }
    }

    fn after(&self, value: ValueId, edges: &mut dyn Edges, saved: &mut Saved) {
        if edges.wants(value) {
            let mut copy = saved.pool.take(saved.values[value].len());
            copy.copy_from_slice(&saved.values[value]);
            saved.unchanged[value] = copy;
            edges.forward(value, &mut saved.values[value], self.graph.values[value].dim);
        }
    }

    /// Computes the output of node `index`; `reused` says which input `out` holds already, if any.
    fn node(
        &self,
        team: &Team,
        batch: &Batch,
        rotations: &Rotations,
        parameters: &View<'_>,
        index: usize,
        reused: Option<usize>,
        out: &mut [f32],
        saved: &mut Saved,
    ) {
        let node = &self.graph.nodes[index];
        let Saved { values, pool, log_sums, .. } = saved;
        let inputs: Vec<&[f32]> = node.inputs.iter().map(|v| &*values[*v]).collect();
        let dim = self.graph.values[node.output].dim;
        match &node.op {
            Op::Linear { weight } => {
                multiply(team, parameters, *weight, inputs[0], out);
            }
            Op::ExpertLinear { first } => {
                let width = self.graph.values[node.inputs[0]].dim;
                for (e, rows) in dispatched(&self.graph, node.output, values).experts().enumerate() {
                    let (x, out) =
                        (&inputs[0][rows.start * width..rows.end * width], &mut out[rows.start * dim..rows.end * dim]);
                    multiply(team, parameters, first + e, x, out);
                }
            }
            Op::Dispatch => {
                let dispatched = dispatched(&self.graph, node.output, values);
                team.for_rows(dim, out, &|at, out| dispatched.dispatch(inputs[0], dim, at / dim, out));
            }
            Op::Combine => {
                let dispatched = dispatched(&self.graph, node.inputs[0], values);
                team.for_rows(dim, out, &|at, out| dispatched.combine(inputs[0], dim, at / dim, out));
            }
            Op::Embedding { weight } => {
                for (id, row) in inputs[0].iter().zip(out.chunks_exact_mut(dim)) {
                    row.copy_from_slice(parameters.weights[*weight].row(*id as usize));
                }
            }
            Op::Cache { .. } => {
                if reused.is_none() {
                    out.copy_from_slice(inputs[0]);
                }
            }
            Op::Positions { table, first } => {
                if reused.is_none() {
                    out.copy_from_slice(inputs[0]);
                }
                add_positions(out, dim, parameters.vectors[*table], *first, batch);
            }
            Op::Attention { .. } => {
                let shape = attention_shape(&node.op, parameters).expect("the arm's operation");
                let mut sums = pool.take(batch.tokens() * shape.heads);
                let (wide, narrow) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
                for (_, rows) in batch.rows() {
                    let (w, n) = (rows.start * wide..rows.end * wide, rows.start * narrow..rows.end * narrow);
                    let (q, k, v) = (&inputs[0][w.clone()], &inputs[1][n.clone()], &inputs[2][n]);
                    let sums = &mut sums[rows.start * shape.heads..rows.end * shape.heads];
                    attention_with_log_sums(team, &shape, q, k, v, &mut out[w], sums);
                }
                log_sums[index] = sums;
            }
            op => {
                let vector = |v: usize| parameters.vectors[v];
                let is_done = run_rowwise(team, rotations, &vector, op, &inputs, reused, dim, out);
                assert!(is_done, "`Function::new` refuses what it does not know");
            }
        }
    }
}

/// The kernel's description of an attention; `None` for another operation.
pub(crate) fn attention_shape<'a>(op: &Op, parameters: &View<'a>) -> Option<AttentionShape<'a>> {
    match *op {
        Op::Attention { heads, kv_heads, head_dim, scale, softcap, window, sinks } => {
            let sinks = sinks.map(|v| parameters.vectors[v]);
            Some(AttentionShape { heads, kv_heads, head_dim, scale, softcap, window, sinks })
        }
        _ => None,
    }
}

/// `y = x Wᵀ + b` on the rows of `x`, as the linear sees them.
fn multiply(team: &Team, parameters: &View<'_>, weight: WeightId, x: &[f32], y: &mut [f32]) {
    let w = parameters.weights[weight];
    let (n, k) = (w.rows(), w.cols());
    let x = seen(team, parameters.input(weight), x, k);
    product_nt(team, x.len() / k, n, k, &x, k, Weights::F32(w.data()), y, n, false);
    if let Some(bias) = parameters.biases[weight] {
        team.for_rows(n, y, &|_, y| elementwise::add_bias(y, bias));
    }
}

/// Where the rows of a value within experts are.
pub(crate) fn dispatched<'v>(graph: &Graph, value: ValueId, values: &'v [Vec<f32>]) -> Dispatched<'v> {
    let routed = graph.values[value].routed.expect("a value within experts");
    Dispatched::new(&values[routed.by], routed)
}

fn check(graph: &Graph, node: &Node) -> Result<()> {
    /// Whole numbers up to here are exact in f32.
    const MOST_IDS: usize = 1 << 24;
    let is_known = matches!(
        node.op,
        Op::Embedding { .. }
            | Op::Linear { .. }
            | Op::RmsNorm { .. }
            | Op::LayerNorm { .. }
            | Op::Scale { .. }
            | Op::Add
            | Op::Mul
            | Op::Activation(_)
            | Op::Softcap { .. }
            | Op::Rope { .. }
            | Op::Positions { .. }
            | Op::Cache { .. }
            | Op::JoinHeads { .. }
            | Op::FitHeads { .. }
            | Op::Attention { .. }
            | Op::Gate
            | Op::ClampedGlu { .. }
            | Op::Route { .. }
            | Op::Dispatch
            | Op::ExpertLinear { .. }
            | Op::Combine
    );
    let name = graph.values[node.output].name;
    if !is_known {
        return Err(Error::input(format!("`{name}` is made by an operation that has no gradient yet"))
            .hint("choose a recipe that needs no gradients for this architecture"));
    }
    if let Op::Embedding { weight } = node.op
        && graph.weights[weight].shape[0] > MOST_IDS
    {
        let rows = graph.weights[weight].shape[0];
        return Err(Error::input(format!("an embedding of {rows} rows, where gradients go up to {MOST_IDS}")));
    }
    Ok(())
}

/// The values that the backward step of a node reads.
fn kept_by(node: &Node) -> Vec<ValueId> {
    match node.op {
        Op::Scale { .. }
        | Op::Add
        | Op::Rope { .. }
        | Op::Cache { .. }
        | Op::JoinHeads { .. }
        | Op::FitHeads { .. } => Vec::new(),
        // The weights of routing are a softmax, whose slopes are made of its values.
        Op::Attention { .. } | Op::Route { .. } => node.inputs.iter().copied().chain([node.output]).collect(),
        Op::Dispatch => vec![node.inputs[1]],
        _ => node.inputs.clone(),
    }
}

/// The input whose place the output may take, because nothing reads it afterwards, neither forward nor backward.
fn reusable(node: &Node, dead: &[ValueId]) -> Option<usize> {
    let is_free =
        |i: usize| dead.contains(&node.inputs[i]) && node.inputs.iter().filter(|v| **v == node.inputs[i]).count() == 1;
    match node.op {
        Op::Scale { .. } | Op::Rope { .. } | Op::Cache { .. } => Some(0).filter(|i| is_free(*i)),
        // Commutative, to the bit.
        Op::Add => [0, 1].into_iter().find(|i| is_free(*i)),
        _ => None,
    }
}
