use fewbit_graph::{Activation, Graph, Node, Op, ValueId, VectorId, WeightId};
use fewbit_kernel::attention::{Forward, attention_backward, sinks_backward};
use fewbit_kernel::product::{product_nn, product_tn};
use fewbit_kernel::{Team, elementwise};
use fewbit_runtime::{Batch, Rotations, fit_heads};

use crate::function::attention_shape;
use crate::input::seen;
use crate::saved::Pool;
use crate::{Edges, Function, Gradients, Saved, View};

/// Numbers of rows whose parts of a sum are added before they join the others: a constant, so that no sum depends on the
/// threads.
pub(crate) const PIECE: usize = 1 << 14;

impl Function {
    /// Adds the gradients that are asked for, given that of the output, `dy [tokens, output dim]`, and returns the
    /// input's `[tokens, dim]`, if it is asked for; otherwise nothing.
    ///
    /// `saved` is what [`forward`](Self::forward) with the same batch, parameters and edges left; this pass uses it up.
    ///
    /// # Panics
    /// If `dy`, `saved` or `gradients` belong to another graph or batch.
    pub fn backward(
        &self,
        team: &Team,
        batch: &Batch,
        rotations: &Rotations,
        parameters: &View<'_>,
        edges: &mut dyn Edges,
        dy: Vec<f32>,
        saved: &mut Saved,
        gradients: &mut Gradients,
    ) -> Vec<f32> {
        let graph = &*self.graph;
        assert_eq!(dy.len(), batch.tokens() * graph.values[graph.output].dim, "a row for each token");
        assert_eq!((saved.tokens, saved.values.len()), (batch.tokens(), graph.values.len()), "what `forward` saved");
        let mut flow = Flow { is_needed: is_needed(graph, edges, gradients), of: vec![Vec::new(); graph.values.len()] };
        flow.of[graph.output] = dy;
        for (i, node) in graph.nodes.iter().enumerate().rev() {
            let d = flow.arrive(node.output, graph, edges, saved);
            if !d.is_empty() {
                let step = Step { team, batch, graph, rotations, parameters, node, dim: graph.values[node.output].dim };
                step.back(i, d, &mut flow, saved, gradients);
            }
            // Its readers came later, so that nothing needs it any longer.
            saved.give_back(node.output);
        }
        let dx = flow.arrive(Graph::INPUT, graph, edges, saved);
        saved.give_back(Graph::INPUT);
        if gradients.wants_input {
            return if dx.is_empty() { vec![0.0; batch.tokens() * graph.values[Graph::INPUT].dim] } else { dx };
        }
        saved.pool.give_back(dx);
        Vec::new()
    }
}

/// By value: whether anything that is asked for depends on its gradient.
fn is_needed(graph: &Graph, edges: &dyn Edges, gradients: &Gradients) -> Vec<bool> {
    let is_seen = |v: ValueId| edges.wants(v) || edges.watches(v);
    let mut is_needed = vec![false; graph.values.len()];
    is_needed[Graph::INPUT] = gradients.wants_input || is_seen(Graph::INPUT);
    for node in &graph.nodes {
        let is_asked = match node.op {
            Op::Linear { weight } | Op::Embedding { weight } => {
                gradients.weights[weight].is_some() || gradients.biases[weight].is_some()
            }
            Op::ExpertLinear { .. } => (graph.linears_of(node).into_iter())
                .any(|(_, w)| gradients.weights[w].is_some() || gradients.biases[w].is_some()),
            Op::Attention { sinks: Some(vector), .. }
            | Op::RmsNorm { gain: vector, .. }
            | Op::Positions { table: vector, .. } => gradients.vectors[vector].is_some(),
            Op::LayerNorm { gain, bias, .. } => {
                let is_asked = |v: VectorId| gradients.vectors[v].is_some();
                is_asked(gain) || bias.is_some_and(is_asked)
            }
            _ => false,
        };
        is_needed[node.output] = is_asked || is_seen(node.output) || node.inputs.iter().any(|v| is_needed[*v]);
    }
    is_needed
}

/// Gradients of values on their way; empty where there is none (yet).
pub(crate) struct Flow {
    pub(crate) is_needed: Vec<bool>,
    pub(crate) of: Vec<Vec<f32>>,
}

impl Flow {
    /// The complete gradient of a value as it was computed; empty where none is needed.
    fn arrive(&mut self, value: ValueId, graph: &Graph, edges: &mut dyn Edges, saved: &mut Saved) -> Vec<f32> {
        let mut d = std::mem::take(&mut self.of[value]);
        if !self.is_needed[value] {
            saved.pool.give_back(d);
            return Vec::new();
        }
        if !d.is_empty() {
            let dim = graph.values[value].dim;
            if edges.wants(value) {
                edges.backward(value, &saved.unchanged[value], &mut d, dim);
            }
            if edges.watches(value) {
                edges.gradient(value, &d, dim, saved);
            }
        }
        d
    }

    /// Adds `d` to the gradient of a value.
    pub(crate) fn add(&mut self, team: &Team, value: ValueId, dim: usize, d: Vec<f32>, pool: &mut Pool) {
        let sum = &mut self.of[value];
        if !self.is_needed[value] {
            pool.give_back(d);
        } else if sum.is_empty() {
            *sum = d;
        } else {
            team.for_rows(dim, sum, &|at, sum| elementwise::add(sum, &d[at..at + sum.len()]));
            pool.give_back(d);
        }
    }
}

/// The way back through one node.
pub(crate) struct Step<'a> {
    pub(crate) team: &'a Team,
    pub(crate) batch: &'a Batch,
    pub(crate) graph: &'a Graph,
    pub(crate) rotations: &'a Rotations,
    pub(crate) parameters: &'a View<'a>,
    pub(crate) node: &'a Node,
    pub(crate) dim: usize,
}

impl Step<'_> {
    /// Takes the gradient of the output of node `index` to its inputs and parameters.
    fn back(&self, index: usize, d: Vec<f32>, flow: &mut Flow, saved: &mut Saved, gradients: &mut Gradients) {
        let Self { team, node, dim, .. } = *self;
        let inputs = &node.inputs;
        match &node.op {
            Op::Linear { weight } => {
                self.linear(*weight, d, flow, saved, gradients);
            }
            Op::Embedding { weight } => {
                if let Some(sum) = &mut gradients.weights[*weight] {
                    for (id, d) in saved.values[inputs[0]].iter().zip(d.chunks_exact(dim)) {
                        elementwise::add(sum.row_mut(*id as usize), d);
                    }
                }
                saved.pool.give_back(d);
            }
            Op::Add => {
                if flow.is_needed[inputs[1]] {
                    let mut copy = saved.pool.take(d.len());
                    copy.copy_from_slice(&d);
                    flow.add(team, inputs[1], dim, copy, &mut saved.pool);
                }
                flow.add(team, inputs[0], dim, d, &mut saved.pool);
            }
            Op::Mul => {
                for (to, other) in [(inputs[0], inputs[1]), (inputs[1], inputs[0])] {
                    if flow.is_needed[to] {
                        let mut part = saved.pool.take(d.len());
                        let other = &saved.values[other];
                        team.for_rows(dim, &mut part, &|at, part| {
                            part.copy_from_slice(&d[at..at + part.len()]);
                            elementwise::mul(part, &other[at..at + part.len()]);
                        });
                        flow.add(team, to, dim, part, &mut saved.pool);
                    }
                }
                saved.pool.give_back(d);
            }
            Op::Attention { .. } => self.attention(index, d, flow, saved, gradients),
            Op::Gate => self.gate(d, flow, saved),
            Op::ClampedGlu { alpha, limit } => {
                let [mut gate, mut up] = [0, 1].map(|i| {
                    let mut side = saved.pool.take(d.len());
                    side.copy_from_slice(&saved.values[inputs[i]]);
                    side
                });
                let piece = (PIECE / dim).max(1) * dim;
                team.for_paired_pieces(&mut gate, piece, &mut up, piece, |i, gate, up| {
                    let d = &d[i * piece..i * piece + gate.len()];
                    elementwise::clamped_glu_backward(gate, up, d, *alpha, *limit);
                });
                flow.add(team, inputs[0], dim, gate, &mut saved.pool);
                flow.add(team, inputs[1], dim, up, &mut saved.pool);
                saved.pool.give_back(d);
            }
            Op::Route { routing, .. } => self.route(routing, d, flow, saved),
            Op::JoinHeads { heads } => self.join_heads(*heads, d, flow, saved),
            Op::FitHeads { heads, head_dim } => self.fit_heads(*heads, *head_dim, d, flow, saved),
            Op::Dispatch => self.dispatch(d, flow, saved),
            Op::ExpertLinear { first } => self.expert_linear(*first, d, flow, saved, gradients),
            Op::Combine => self.combine(d, flow, saved),
            // The others have one input of the output's width, and the gradient changes in its place.
            _ => {
                let mut d = d;
                self.in_place(&mut d, saved, gradients);
                flow.add(team, inputs[0], dim, d, &mut saved.pool);
            }
        }
    }

    fn linear(&self, weight: usize, d: Vec<f32>, flow: &mut Flow, saved: &mut Saved, gradients: &mut Gradients) {
        let input = self.node.inputs[0];
        let mut dx = self.open(input, flow, saved);
        multiply_back(self.team, self.parameters, weight, &saved.values[input], &d, &mut dx, gradients);
        flow.of[input] = dx;
        saved.pool.give_back(d);
    }

    /// The gradient of a value so far, zeros at first, taken out of the flow; empty where it is not needed.
    pub(crate) fn open(&self, value: ValueId, flow: &mut Flow, saved: &mut Saved) -> Vec<f32> {
        if flow.is_needed[value] && flow.of[value].is_empty() {
            return saved.pool.take_zeroed(self.batch.tokens() * self.graph.values[value].width());
        }
        std::mem::take(&mut flow.of[value])
    }

    /// What all heads share is the sum over them.
    fn join_heads(&self, heads: usize, d: Vec<f32>, flow: &mut Flow, saved: &mut Saved) {
        let Self { team, node, dim, .. } = *self;
        let [shared, own] = [0, 1].map(|i| self.graph.values[node.inputs[i]].dim);
        let (tokens, piece) = (d.len() / dim, (PIECE / dim).max(1));
        let mut of_shared = saved.pool.take_zeroed(tokens * shared);
        let mut of_own = saved.pool.take(tokens * own);
        team.for_paired_pieces(&mut of_shared, piece * shared, &mut of_own, piece * own, |i, of_shared, of_own| {
            let rows = d[i * piece * dim..].chunks_exact(dim);
            for ((a, b), d) in of_shared.chunks_exact_mut(shared).zip(of_own.chunks_exact_mut(own)).zip(rows) {
                for (d, b) in d.chunks_exact(dim / heads).zip(b.chunks_exact_mut(own / heads)) {
                    elementwise::add(a, &d[..shared]);
                    b.copy_from_slice(&d[shared..]);
                }
            }
        });
        flow.add(team, node.inputs[0], shared, of_shared, &mut saved.pool);
        flow.add(team, node.inputs[1], own, of_own, &mut saved.pool);
        saved.pool.give_back(d);
    }

    /// What was cut off has no gradient, and zeros take none.
    fn fit_heads(&self, heads: usize, head_dim: usize, d: Vec<f32>, flow: &mut Flow, saved: &mut Saved) {
        let Self { team, node, dim, .. } = *self;
        let width = self.graph.values[node.inputs[0]].dim;
        let mut dx = saved.pool.take(d.len() / dim * width);
        team.for_rows(width, &mut dx, &|at, dx| {
            let rows = at / width * dim..(at + dx.len()) / width * dim;
            fit_heads(&d[rows], head_dim, width / heads, dx);
        });
        flow.add(team, node.inputs[0], width, dx, &mut saved.pool);
        saved.pool.give_back(d);
    }

    fn attention(&self, index: usize, d: Vec<f32>, flow: &mut Flow, saved: &mut Saved, gradients: &mut Gradients) {
        let Self { team, batch, node, .. } = *self;
        let shape = attention_shape(&node.op, self.parameters).expect("an attention");
        let sequences: Vec<_> = batch.rows().map(|(_, rows)| rows).collect();
        let Saved { values, unchanged, log_sums, pool, .. } = saved;
        let widths = [shape.heads, shape.kv_heads, shape.kv_heads].map(|h| h * shape.head_dim);
        let [mut dq, mut dk, mut dv] = widths.map(|w| pool.take(batch.tokens() * w));
        let [q, k, v] = [0, 1, 2].map(|i| &*values[node.inputs[i]]);
        let made = &unchanged[node.output];
        let out = if made.is_empty() { &values[node.output] } else { made };
        let forward = Forward { q, k, v, out, log_sums: &log_sums[index] };
        attention_backward(team, &shape, &sequences, &forward, &d, [&mut dq, &mut dk, &mut dv]);
        if let Op::Attention { sinks: Some(vector), .. } = node.op
            && let Some(sum) = &mut gradients.vectors[vector]
        {
            sinks_backward(team, &shape, &forward, &d, sum);
        }
        for ((to, width), part) in node.inputs.iter().zip(widths).zip([dq, dk, dv]) {
            flow.add(team, *to, width, part, pool);
        }
        pool.give_back(d);
        pool.give_back(std::mem::take(&mut log_sums[index]));
    }

    /// `d` becomes the gradient of the only input.
    fn in_place(&self, d: &mut [f32], saved: &Saved, gradients: &mut Gradients) {
        let Self { team, parameters, node, dim, .. } = *self;
        let x = &saved.values[node.inputs[0]];
        let each = |d: &mut [f32], f: &(dyn Fn(&[f32], &mut [f32]) + Sync)| {
            team.for_rows(dim, d, &|at, d| f(&x[at..at + d.len()], d));
        };
        match &node.op {
            Op::Cache { .. } => {}
            Op::Positions { table, first } => {
                if let Some(sum) = &mut gradients.vectors[*table] {
                    for (d, position) in d.chunks_exact(dim).zip(self.batch.positions()) {
                        elementwise::add(&mut sum[(position + first) * dim..][..dim], d);
                    }
                }
            }
            Op::Scale { factor } => team.for_rows(dim, d, &|_, d| elementwise::scale(d, *factor)),
            Op::Softcap { cap } => each(d, &|x, d| elementwise::softcap_backward(x, d, *cap)),
            Op::Activation(f) => each(
                d,
                match f {
                    Activation::Silu => &elementwise::silu_backward,
                    Activation::GeluErf => &elementwise::gelu_erf_backward,
                    Activation::GeluTanh => &elementwise::gelu_tanh_backward,
                    Activation::Relu => &elementwise::relu_backward,
                },
            ),
            Op::RmsNorm { gain, eps, width } => {
                let g = parameters.vectors[*gain];
                match &mut gradients.vectors[*gain] {
                    None => each(d, &|x, d| elementwise::rms_norm_backward(x, *width, g, *eps, d, None)),
                    Some(sum) => with_sums(team, x, dim, d, sum, |x, d, sum| {
                        elementwise::rms_norm_backward(x, *width, g, *eps, d, Some(sum));
                    }),
                }
            }
            Op::LayerNorm { gain, bias, eps, width } => {
                let g = parameters.vectors[*gain];
                let vectors = [Some(*gain), *bias];
                if !vectors.iter().flatten().any(|v| gradients.vectors[*v].is_some()) {
                    return each(d, &|x, d| elementwise::layer_norm_backward(x, *width, g, *eps, d, None));
                }
                let mut sums = vec![0.0; 2 * dim];
                with_sums(team, x, dim, d, &mut sums, |x, d, sums| {
                    let (gains, biases) = sums.split_at_mut(dim);
                    elementwise::layer_norm_backward(x, *width, g, *eps, d, Some([gains, biases]));
                });
                for (vector, part) in vectors.into_iter().zip(sums.chunks_exact(dim)) {
                    if let Some(sum) = vector.and_then(|v| gradients.vectors[v].as_mut()) {
                        elementwise::add(sum, part);
                    }
                }
            }
            Op::Rope { rope, heads, head_dim, rotary_dims } => {
                let (cos, sin) = self.rotations.table(*rope);
                let pairs = rotary_dims / 2;
                team.for_rows(dim, d, &|at, d| {
                    let table = at / dim * pairs..(at + d.len()) / dim * pairs;
                    elementwise::rope_backward(d, *heads, *head_dim, *rotary_dims, &cos[table.clone()], &sin[table]);
                });
            }
            _ => unreachable!("`Function::new` refuses what it does not know"),
        }
    }
}

/// Gradients of `y = x Wᵀ + b` on some rows: adds those of the parameters that are asked for, and that of `x` to `dx`,
/// unless this is empty.
pub(crate) fn multiply_back(
    team: &Team,
    parameters: &View<'_>,
    weight: WeightId,
    x: &[f32],
    d: &[f32],
    dx: &mut [f32],
    gradients: &mut Gradients,
) {
    let (w, input) = (parameters.weights[weight], parameters.input(weight));
    let (out, width) = (w.rows(), w.cols());
    let rows = d.len() / out;
    if let Some(sum) = &mut gradients.weights[weight] {
        let x = seen(team, input, x, width);
        product_tn(team, out, width, rows, d, out, &x, width, sum.data_mut(), width);
    }
    if let Some(sum) = &mut gradients.biases[weight] {
        add_columns(team, d, sum);
    }
    match input.filter(|i| !i.maps.is_empty() && !dx.is_empty()) {
        Some(input) => {
            let mut own = vec![0.0; dx.len()];
            product_nn(team, rows, width, out, 1.0, d, out, w.data(), width, &mut own, width);
            input.backward(team, &mut own, width);
            team.for_rows(width, dx, &|at, dx| elementwise::add(dx, &own[at..at + dx.len()]));
        }
        None if !dx.is_empty() => {
            product_nn(team, rows, width, out, 1.0, d, out, w.data(), width, dx, width);
        }
        None => {}
    }
}

/// Calls `task(x, d, sums)` on pieces of rows with sums of their own, and adds these to `sums` in order.
fn with_sums(
    team: &Team,
    x: &[f32],
    dim: usize,
    d: &mut [f32],
    sums: &mut [f32],
    task: impl Fn(&[f32], &mut [f32], &mut [f32]) + Sync,
) {
    let piece = (PIECE / dim).max(1) * dim;
    let width = sums.len();
    let mut parts = vec![0.0; d.len().div_ceil(piece) * width];
    team.for_paired_pieces(d, piece, &mut parts, width, |i, d, part| {
        task(&x[i * piece..i * piece + d.len()], d, part);
    });
    parts.chunks_exact(width).for_each(|part| elementwise::add(sums, part));
}

/// Adds the rows of `d [tokens, width]` to `sum [width]`.
fn add_columns(team: &Team, d: &[f32], sum: &mut [f32]) {
    let width = sum.len();
    let piece = (PIECE / width).max(1) * width;
    let mut parts = vec![0.0; d.len().div_ceil(piece) * width];
    team.for_pieces(&mut parts, width, &|i, part| {
        let rows = &d[i * piece..((i + 1) * piece).min(d.len())];
        rows.chunks_exact(width).for_each(|row| elementwise::add(part, row));
    });
    parts.chunks_exact(width).for_each(|part| elementwise::add(sum, part));
}
