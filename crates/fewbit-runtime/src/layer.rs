use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use fewbit_format::{ActivationFormat, Error, QuantizedLinear, Result};
use fewbit_graph::{Edge, Graph, Node, Op, Rope, Routed, ValueId};
use fewbit_kernel::Team;
use fewbit_kernel::attention::{AttentionShape, CacheType, Sequence, attention, attention_cached};
use fewbit_kernel::elementwise::{self, round_to_f16};
use fewbit_kernel::linear::{Arithmetic, Kernel, choose};
use fewbit_store::PartWeights;
use smallvec::SmallVec;

use crate::routing::Dispatched;
use crate::rowwise::{activation, run_rowwise};
use crate::steps::{Gated, Program, Step};
use crate::{Batch, Hooks, LayerCache};

/// One graph with its weights, ready to run.
pub struct Layer {
    graph: Arc<Graph>,
    pub(crate) program: Program,
    pub(crate) kernels: Vec<Box<dyn Kernel>>,
    arithmetic: Arithmetic,
    vectors: Vec<Vec<f32>>,
    /// By cache slot: how rows are rounded before they are remembered.
    caches: Vec<Option<ActivationFormat>>,
}

/// cos and sin of every rotary table at the rows of one batch.
#[derive(Clone, Debug, Default)]
pub struct Rotations {
    tables: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Rotations {
    /// `ropes` at the batch's positions.
    pub fn new(ropes: &[Rope], batch: &Batch) -> Self {
        let mut rotations = Self::default();
        rotations.fill(ropes, batch);
        rotations
    }

    /// The same in place of what was there.
    pub(crate) fn fill(&mut self, ropes: &[Rope], batch: &Batch) {
        self.tables.resize_with(ropes.len(), Default::default);
        for (rope, (cos, sin)) in ropes.iter().zip(&mut self.tables) {
            let pairs = rope.inverse_frequency.len();
            cos.resize(batch.tokens() * pairs, 0.0);
            sin.resize(batch.tokens() * pairs, 0.0);
            let rows = cos.chunks_exact_mut(pairs).zip(sin.chunks_exact_mut(pairs));
            for (position, (cos, sin)) in batch.positions().zip(rows) {
                rope.fill(position, cos, sin);
            }
        }
    }

    /// cos and sin of one table, `[tokens, pairs]`.
    pub fn table(&self, rope: usize) -> (&[f32], &[f32]) {
        let (cos, sin) = &self.tables[rope];
        (cos, sin)
    }
}

/// Buffers that a run needs, kept from run to run.
#[derive(Debug, Default)]
pub struct Workspace {
    values: Vec<Buffer>,
    free: Vec<Buffer>,
    /// The outputs of the linears that run.
    outs: Vec<Buffer>,
}

/// `len` numbers from `first` on are a value; what follows was one of an earlier run, and is not written anew for each.
#[derive(Debug, Default)]
struct Buffer {
    data: Vec<f32>,
    first: usize,
    len: usize,
}

impl Buffer {
    /// Numbers of a cache line, on which a buffer of zeros begins: vectors that cross lines cost two.
    const LINE: usize = 16;

    fn of(data: Vec<f32>) -> Self {
        Self { first: 0, len: data.len(), data }
    }

    fn zeros(len: usize) -> Self {
        let data = vec![0.0; len + Self::LINE - 1];
        let first = data.as_ptr().align_offset(Self::LINE * size_of::<f32>()).min(Self::LINE - 1);
        Self { data, first, len }
    }

    fn capacity(&self) -> usize {
        self.data.len() - self.first
    }

    fn into_vec(mut self) -> Vec<f32> {
        self.data.truncate(self.first + self.len);
        self.data.drain(..self.first);
        self.data
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[self.first..][..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[self.first..][..self.len]
    }
}

impl Workspace {
    /// A value of the graph that was run.
    pub fn value(&self, value: ValueId) -> &[f32] {
        &self.values[value]
    }

    /// Makes room for the `len` numbers of a value that is there before a run, and returns it.
    pub fn begin(&mut self, value: ValueId, len: usize) -> &mut [f32] {
        if self.values.len() <= value {
            self.values.resize_with(value + 1, Buffer::default);
        }
        self.take(value, len);
        &mut self.values[value]
    }

    /// Forgets all values; their buffers are kept.
    pub fn clear(&mut self) {
        (0..self.values.len()).for_each(|v| self.give_back(v));
    }

    fn take(&mut self, value: ValueId, len: usize) {
        // The smallest buffer that holds it, else the largest: growing that one wastes least. A much larger one is left
        // for a value that needs it.
        let fit = (0..self.free.len()).filter(|i| self.free[*i].capacity() <= 2 * len).min_by_key(|i| {
            let size = self.free[*i].capacity();
            if size >= len { (0, size) } else { (1, usize::MAX - size) }
        });
        let mut buffer = fit.map(|i| self.free.swap_remove(i)).unwrap_or_default();
        if buffer.capacity() < len {
            // The old content is of no use: what it lay in goes first.
            drop(buffer);
            buffer = Buffer::zeros(len);
        }
        buffer.len = len;
        self.values[value] = buffer;
    }

    fn give_back(&mut self, value: ValueId) {
        let buffer = std::mem::take(&mut self.values[value]);
        if !buffer.data.is_empty() {
            self.free.push(buffer);
        }
    }
}

impl Layer {
    /// Chooses the kernels for the linears of a graph.
    ///
    /// # Errors
    /// If a weight's shape is not the graph's.
    pub fn new(graph: Arc<Graph>, weights: PartWeights, arithmetic: Arithmetic) -> Result<Self> {
        let shapes = graph.weights.iter().zip(&weights.linears);
        for (expected, found) in shapes {
            if expected.shape != found.shape {
                let reason = format!("has shape {:?}, where {:?} is needed", found.shape, expected.shape);
                return Err(Error::input(reason).tensor(&expected.name));
            }
        }
        let program = Program::of(&graph);
        let linears = |ws: &Vec<usize>| ws.iter().map(|w| weights.linears[*w].clone()).collect();
        let kernels = program.kernels.iter().map(|ws| choose(linears(ws), arithmetic)).collect();
        let caches = if arithmetic == Arithmetic::WeightsOnly { Vec::new() } else { weights.caches };
        Ok(Self { graph, program, kernels, arithmetic, vectors: weights.vectors, caches })
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// How keys and values are remembered: as f16 where inputs may be rounded anyway.
    pub fn cache_type(&self) -> CacheType {
        if self.arithmetic == Arithmetic::Fast { CacheType::F16 } else { CacheType::F32 }
    }

    /// Runs the graph on `x [tokens, dim]`; `x` becomes the output `[tokens, output dim]`.
    ///
    /// With `caches` (one per span) each span continues its sequence and is remembered; without, spans are whole sequences.
    pub fn run(
        &self,
        team: &Team,
        batch: &Batch,
        rotations: &Rotations,
        caches: Option<&mut [&mut LayerCache]>,
        hooks: &mut dyn Hooks,
        workspace: &mut Workspace,
        x: &mut Vec<f32>,
    ) {
        workspace.values.resize_with(self.graph.values.len(), Buffer::default);
        workspace.values[Graph::INPUT] = Buffer::of(std::mem::take(x));
        self.show(Graph::INPUT, hooks, workspace);
        self.run_steps(team, batch, rotations, caches, hooks, workspace, 0..self.steps());
        *x = std::mem::take(&mut workspace.values[self.graph.output]).into_vec();
        workspace.clear();
    }

    /// Runs some of the graph's [`steps`](Self::steps) on the values in `workspace`: what they read must be there
    /// ([`live`](Self::live)), and what later steps read is there afterwards.
    pub fn run_steps(
        &self,
        team: &Team,
        batch: &Batch,
        rotations: &Rotations,
        mut caches: Option<&mut [&mut LayerCache]>,
        hooks: &mut dyn Hooks,
        workspace: &mut Workspace,
        steps: Range<usize>,
    ) {
        let tokens = batch.tokens();
        workspace.values.resize_with(self.graph.values.len(), Buffer::default);
        let mut at = steps.start;
        while at < steps.end {
            if at + Gated::STEPS <= steps.end && self.run_gated(team, tokens, at, hooks, workspace) {
                at += Gated::STEPS;
                continue;
            }
            let (step, dead) = (&self.program.steps[at], &self.program.dead_after[at]);
            match step {
                Step::Linears { inputs, outputs, kernels, routed } => {
                    for v in outputs {
                        workspace.take(*v, tokens * self.graph.values[*v].width());
                    }
                    let Workspace { values, outs, .. } = workspace;
                    outs.extend(outputs.iter().map(|v| std::mem::take(&mut values[*v])));
                    self.multiply(team, inputs, kernels.clone(), *routed, values, outs);
                    for (v, out) in outputs.iter().zip(outs.drain(..)) {
                        values[*v] = out;
                    }
                }
                Step::Node(node) => {
                    let reused = reusable(node, dead);
                    match reused {
                        Some(i) => workspace.values.swap(node.inputs[i], node.output),
                        None => workspace.take(node.output, tokens * self.graph.values[node.output].width()),
                    }
                    let mut out = std::mem::take(&mut workspace.values[node.output]);
                    self.node(team, batch, rotations, caches.as_deref_mut(), node, reused, &workspace.values, &mut out);
                    workspace.values[node.output] = out;
                }
            }
            for v in step.outputs() {
                self.show(*v, hooks, workspace);
            }
            for v in dead {
                workspace.give_back(*v);
            }
            at += 1;
        }
    }

    /// Runs the gated unit that begins with a step in one go, if there is one whose kernel can and whose insides nobody
    /// wants to see.
    fn run_gated(
        &self,
        team: &Team,
        tokens: usize,
        step: usize,
        hooks: &mut dyn Hooks,
        workspace: &mut Workspace,
    ) -> bool {
        let Some(gated) = &self.program.gated[step] else { return false };
        if gated.between.iter().any(|v| hooks.wants(*v)) {
            return false;
        }
        workspace.take(gated.output, tokens * self.graph.values[gated.output].width());
        let mut out = std::mem::take(&mut workspace.values[gated.output]);
        let x = &workspace.values[gated.input];
        let kernel = &self.kernels[gated.kernel];
        let done = kernel.run_gated(team, tokens, x, gated.gate, activation(gated.activation), &mut out);
        workspace.values[gated.output] = out;
        if !done {
            workspace.give_back(gated.output);
            return false;
        }
        self.show(gated.output, hooks, workspace);
        let dead = &self.program.dead_after[step..step + Gated::STEPS];
        dead.iter().flatten().for_each(|v| workspace.give_back(*v));
        true
    }

    /// How many steps the graph has: nodes, with the linears that share an input as one.
    pub fn steps(&self) -> usize {
        self.program.steps.len()
    }

    /// How many steps are done once a value is there.
    pub fn until(&self, value: ValueId) -> usize {
        self.program.until(value)
    }

    /// Where to go on after a stop behind `done` steps: what only copies rows is done again, not kept.
    pub fn resume(&self, done: usize) -> usize {
        self.program.resume(done)
    }

    /// The values that are there after `done` steps and are read later, the input among them.
    pub fn live(&self, done: usize) -> Vec<ValueId> {
        self.program.live(done)
    }

    /// Other weights for all linears that read `input`.
    ///
    /// # Panics
    /// If their shapes are not the graph's.
    pub fn replace(&mut self, input: Edge, linears: Vec<Arc<QuantizedLinear>>) {
        let groups = self.graph.linears_by_input();
        let Some(kernel) = groups.iter().position(|(e, _)| *e == input) else { return };
        let shapes = self.program.kernels[kernel].iter().map(|w| self.graph.weights[*w].shape);
        assert!(shapes.eq(linears.iter().map(|l| l.shape)), "linears of the graph's shapes");
        self.kernels[kernel] = choose(linears, self.arithmetic);
    }

    /// Shows a value that is there to hooks that want it.
    pub fn show(&self, value: ValueId, hooks: &mut dyn Hooks, workspace: &mut Workspace) {
        if !hooks.wants(value) {
            return;
        }
        let (dim, routed) = (self.graph.values[value].dim, self.graph.values[value].routed);
        let mut rows = std::mem::take(&mut workspace.values[value]);
        match routed {
            None => hooks.edge(Edge { value, expert: None }, &mut rows, dim),
            Some(routed) => {
                let dispatched = Dispatched::new(&workspace.values[routed.by], routed);
                for (e, of_expert) in dispatched.experts().enumerate().filter(|(_, rows)| !rows.is_empty()) {
                    let rows = &mut rows[of_expert.start * dim..of_expert.end * dim];
                    hooks.edge(Edge { value, expert: Some(e) }, rows, dim);
                }
            }
        }
        workspace.values[value] = rows;
    }

    /// Runs the kernels of linears that share an input.
    fn multiply(
        &self,
        team: &Team,
        inputs: &[ValueId],
        kernels: Range<usize>,
        routed: Option<Routed>,
        values: &[Buffer],
        outs: &mut [Buffer],
    ) {
        let (x, dim) = (&*values[inputs[0]], self.graph.values[inputs[0]].dim);
        let rows = x.len() / dim;
        let kernels = &self.kernels[kernels];
        let mut run = |kernel: &dyn Kernel, of: Range<usize>| {
            let mut slices: SmallVec<[&mut [f32]; FEW]> = SmallVec::new();
            for out in &mut *outs {
                let width = out.len() / rows;
                slices.push(&mut out[of.start * width..of.end * width]);
            }
            kernel.run(team, of.len(), &x[of.start * dim..of.end * dim], &mut slices);
        };
        let Some(routed) = routed else {
            return run(&*kernels[0], 0..rows);
        };
        let experts = Dispatched::new(&values[routed.by], routed);
        for (kernel, of) in kernels.iter().zip(experts.experts()).filter(|(_, rows)| !rows.is_empty()) {
            run(&**kernel, of);
        }
    }

    /// Computes a node's output; `reused` says which input `out` holds already, if any.
    fn node(
        &self,
        team: &Team,
        batch: &Batch,
        rotations: &Rotations,
        caches: Option<&mut [&mut LayerCache]>,
        node: &Node,
        reused: Option<usize>,
        values: &[Buffer],
        out: &mut [f32],
    ) {
        let dim = self.graph.values[node.output].dim;
        let inputs: SmallVec<[&[f32]; FEW]> = node.inputs.iter().map(|v| &*values[*v]).collect();
        let vector = |v: usize| &*self.vectors[v];
        if run_rowwise(team, rotations, &vector, &node.op, &inputs, reused, dim, out) {
            return;
        }
        match &node.op {
            Op::Cache { slot } => {
                if reused.is_none() {
                    out.copy_from_slice(inputs[0]);
                }
                if let Some(Some(format)) = self.caches.get(*slot) {
                    team.for_pieces(out, dim, &|_, row| format.round(row));
                }
                if self.cache_type() == CacheType::F16 {
                    // Whether there is a cache or not: a row's numbers do not depend on it.
                    team.for_rows(dim, out, &|_, rows| round_to_f16(rows));
                }
                if let Some(caches) = caches {
                    for ((span, rows), cache) in batch.rows().zip(caches) {
                        cache.write(team, *slot, span.start, &out[rows.start * dim..rows.end * dim]);
                    }
                }
            }
            Op::Positions { table, first } => {
                if reused.is_none() {
                    out.copy_from_slice(inputs[0]);
                }
                add_positions(out, dim, &self.vectors[*table], *first, batch);
            }
            Op::Attention { heads, kv_heads, head_dim, scale, softcap, window, sinks } => {
                let shape = AttentionShape {
                    heads: *heads,
                    kv_heads: *kv_heads,
                    head_dim: *head_dim,
                    scale: *scale,
                    softcap: *softcap,
                    window: *window,
                    sinks: sinks.map(|v| &*self.vectors[v]),
                };
                self.attend(team, batch, caches, node, values, &shape, out);
            }
            Op::Dispatch => {
                let dispatched = self.dispatched(node.output, values);
                team.for_rows(dim, out, &|at, out| dispatched.dispatch(inputs[0], dim, at / dim, out));
            }
            Op::Combine => {
                let dispatched = self.dispatched(node.inputs[0], values);
                team.for_rows(dim, out, &|at, out| dispatched.combine(inputs[0], dim, at / dim, out));
            }
            _ => unreachable!("linears are steps of their own; ids are embedded by `Runtime`"),
        }
    }

    /// Where the rows of a value within experts are.
    fn dispatched<'v>(&self, value: ValueId, values: &'v [Buffer]) -> Dispatched<'v> {
        let routed = self.graph.values[value].routed.expect("a value within experts");
        Dispatched::new(&values[routed.by], routed)
    }

    fn attend(
        &self,
        team: &Team,
        batch: &Batch,
        caches: Option<&mut [&mut LayerCache]>,
        node: &Node,
        values: &[Buffer],
        shape: &AttentionShape<'_>,
        out: &mut [f32],
    ) {
        let [q, k, v] = [0, 1, 2].map(|i| &*values[node.inputs[i]]);
        if let Some(caches) = caches {
            let [keys, values] = [1, 2].map(|i| match self.graph.producer(node.inputs[i]).map(|n| &n.op) {
                Some(Op::Cache { slot }) => *slot,
                _ => unreachable!("an attention reads what is remembered"),
            });
            let sequences: SmallVec<[Sequence<'_>; FEW]> = (batch.spans().iter().zip(caches.iter()))
                .map(|(span, cache)| {
                    let (keys, values) = (cache.slot(keys), cache.slot(values));
                    Sequence { start: span.start, len: span.len, keys, values }
                })
                .collect();
            return attention_cached(team, shape, &sequences, q, out);
        }
        let (wide, narrow) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        for (_, rows) in batch.rows() {
            let (of_q, of_kv) = (rows.start * wide..rows.end * wide, rows.start * narrow..rows.end * narrow);
            attention(team, shape, &q[of_q.clone()], &k[of_kv.clone()], &v[of_kv], &mut out[of_q]);
        }
    }
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kernels: Vec<&str> = self.kernels.iter().map(|k| k.name()).collect();
        f.debug_struct("Layer").field("kernels", &kernels).finish_non_exhaustive()
    }
}

/// Adds to each row of `x [tokens, dim]` the row of `table` for its position.
///
/// # Panics
/// If the table ends before a position does.
pub fn add_positions(x: &mut [f32], dim: usize, table: &[f32], first: usize, batch: &Batch) {
    for (row, position) in x.chunks_exact_mut(dim).zip(batch.positions()) {
        elementwise::add(row, &table[(position + first) * dim..][..dim]);
    }
}

/// Inputs of a node, or linears of one input, for lists on the stack: more are possible.
const FEW: usize = 4;

/// The input whose place the output of an elementwise node may take, because nothing reads it afterwards.
fn reusable(node: &Node, dead: &[ValueId]) -> Option<usize> {
    let is_free =
        |i: usize| dead.contains(&node.inputs[i]) && node.inputs.iter().filter(|v| **v == node.inputs[i]).count() == 1;
    match node.op {
        Op::Scale { .. }
        | Op::Activation(_)
        | Op::Softcap { .. }
        | Op::Rope { .. }
        | Op::Positions { .. }
        | Op::Cache { .. }
        | Op::Gate
        | Op::ClampedGlu { .. } => Some(0).filter(|i| is_free(*i)),
        // Both are commutative, to the bit.
        Op::Add | Op::Mul => [0, 1].into_iter().find(|i| is_free(*i)),
        _ => None,
    }
}
