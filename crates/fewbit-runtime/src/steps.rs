use fewbit_graph::{Graph, Node, Op, ValueId, WeightId};

/// One step of the straight-line program: a node, or all linears that share an input.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Any node but a linear.
    Node(Node),
    /// `kernel` multiplies `input`; its outputs are `outputs`.
    Linears { input: ValueId, outputs: Vec<ValueId>, kernel: usize },
}

impl Step {
    fn inputs(&self) -> &[ValueId] {
        match self {
            Self::Node(n) => &n.inputs,
            Self::Linears { input, .. } => std::slice::from_ref(input),
        }
    }

    pub(crate) fn outputs(&self) -> &[ValueId] {
        match self {
            Self::Node(n) => std::slice::from_ref(&n.output),
            Self::Linears { outputs, .. } => outputs,
        }
    }
}

/// The steps of a graph, and the linears of each kernel.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    pub(crate) kernels: Vec<Vec<WeightId>>,
    /// For each step, the values that nothing reads after it.
    pub(crate) dead_after: Vec<Vec<ValueId>>,
}

impl Program {
    /// Linears move up to the first that shares their input.
    pub(crate) fn of(graph: &Graph) -> Self {
        let groups = graph.linears_by_input();
        let (mut steps, mut done) = (Vec::new(), vec![false; groups.len()]);
        for node in &graph.nodes {
            if !matches!(node.op, Op::Linear { .. }) {
                steps.push(Step::Node(node.clone()));
                continue;
            }
            let kernel = groups.iter().position(|(v, _)| *v == node.inputs[0]).expect("every linear is in a group");
            if !std::mem::replace(&mut done[kernel], true) {
                let outputs = groups[kernel].1.iter().map(|w| output_of(graph, *w)).collect();
                steps.push(Step::Linears { input: node.inputs[0], outputs, kernel });
            }
        }
        let dead_after = dead_after(graph, &steps);
        Self { steps, kernels: groups.into_iter().map(|(_, ws)| ws).collect(), dead_after }
    }

    /// How many steps are done once a value is there.
    pub(crate) fn until(&self, value: ValueId) -> usize {
        self.steps.iter().position(|s| s.outputs().contains(&value)).map_or(0, |i| i + 1)
    }

    /// The values that are there after `done` steps and are read by a later one.
    pub(crate) fn live(&self, done: usize) -> Vec<ValueId> {
        let (before, after) = self.steps.split_at(done);
        let made = before.iter().flat_map(Step::outputs).chain([&Graph::INPUT]);
        made.filter(|v| after.iter().any(|s| s.inputs().contains(v))).copied().collect()
    }
}

/// Numbers per token, beside the block's input, that must be kept where a run stops at the input of linears: the most
/// over these stops.
pub fn kept_between(graph: &Graph) -> usize {
    let steps = Program::of(graph);
    let stops = graph.linears_by_input().into_iter().scan(0, |done, (v, _)| {
        *done = steps.until(v).max(*done);
        Some(*done)
    });
    let width = |done| steps.live(done).iter().filter(|v| **v != Graph::INPUT).map(|v| graph.values[*v].dim).sum();
    stops.map(width).max().unwrap_or(0)
}

fn output_of(graph: &Graph, weight: WeightId) -> ValueId {
    let node = graph.nodes.iter().find(|n| matches!(n.op, Op::Linear { weight: w } if w == weight));
    node.expect("a weight of a group has its linear").output
}

fn dead_after(graph: &Graph, steps: &[Step]) -> Vec<Vec<ValueId>> {
    let mut last = vec![None; graph.values.len()];
    for (i, step) in steps.iter().enumerate() {
        for v in step.inputs().iter().chain(step.outputs()) {
            last[*v] = Some(i);
        }
    }
    let mut dead = vec![Vec::new(); steps.len()];
    for (v, at) in last.iter().enumerate() {
        if let Some(i) = at
            && v != graph.output
            && v != Graph::INPUT
        {
            dead[*i].push(v);
        }
    }
    dead
}
