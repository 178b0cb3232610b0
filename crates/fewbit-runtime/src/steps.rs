use std::ops::Range;

use fewbit_graph::{Activation, Graph, Node, Op, Routed, ValueId, WeightId};

/// One step of the straight-line program: a node, or all linears that share an input.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Any node but a linear.
    Node(Node),
    /// The kernels multiply the first of `inputs`, which may be within experts (then the routing is the second): the
    /// only one all rows, or each those of its expert.
    Linears { inputs: Vec<ValueId>, outputs: Vec<ValueId>, kernels: Range<usize>, routed: Option<Routed> },
}

impl Step {
    fn inputs(&self) -> &[ValueId] {
        match self {
            Self::Node(n) => &n.inputs,
            Self::Linears { inputs, .. } => inputs,
        }
    }

    pub(crate) fn outputs(&self) -> &[ValueId] {
        match self {
            Self::Node(n) => std::slice::from_ref(&n.output),
            Self::Linears { outputs, .. } => outputs,
        }
    }
}

/// A gated unit: two linears, an activation of one's output, and the product with the other's. What lies in between
/// is read by nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Gated {
    pub(crate) input: ValueId,
    pub(crate) kernel: usize,
    /// Which of the linears is the gate.
    pub(crate) gate: usize,
    pub(crate) activation: Activation,
    pub(crate) between: [ValueId; 3],
    pub(crate) output: ValueId,
}

impl Gated {
    /// Steps that it stands for.
    pub(crate) const STEPS: usize = 3;

    fn of(graph: &Graph, steps: &[Step]) -> Option<Self> {
        let [Step::Linears { inputs, outputs, kernels, routed: None }, Step::Node(first), Step::Node(second), ..] =
            steps
        else {
            return None;
        };
        let (&[a, b], &Op::Activation(activation), Op::Mul) = (&**outputs, &first.op, &second.op) else { return None };
        let gate = [a, b].iter().position(|v| *v == first.inputs[0])?;
        let between = [a, b, first.output];
        let factors = [first.output, [b, a][gate]];
        let is_product = factors.iter().all(|v| second.inputs.contains(v));
        let read_once = between.iter().all(|v| graph.readers(*v).count() == 1 && *v != graph.output);
        (is_product && read_once).then(|| Self {
            input: inputs[0],
            kernel: kernels.start,
            gate,
            activation,
            between,
            output: second.output,
        })
    }
}

/// The steps of a graph, and the linears of each kernel.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    pub(crate) kernels: Vec<Vec<WeightId>>,
    /// For each step, the values that nothing reads after it.
    pub(crate) dead_after: Vec<Vec<ValueId>>,
    /// The gated unit that begins with each step.
    pub(crate) gated: Vec<Option<Gated>>,
}

impl Program {
    /// Linears move up to the first that shares their input.
    pub(crate) fn of(graph: &Graph) -> Self {
        let groups = graph.linears_by_input();
        let (mut steps, mut done) = (Vec::new(), vec![false; graph.values.len()]);
        for node in &graph.nodes {
            if !is_linear(node) {
                steps.push(Step::Node(node.clone()));
                continue;
            }
            let input = node.inputs[0];
            if std::mem::replace(&mut done[input], true) {
                continue;
            }
            let routed = graph.values[input].routed;
            let first = groups.iter().position(|(e, _)| e.value == input).expect("every linear is in a group");
            let kernels = first..first + routed.map_or(1, |r| r.experts);
            let inputs = std::iter::once(input).chain(routed.map(|r| r.by)).collect();
            let outputs = graph.readers(input).filter(|n| is_linear(n)).map(|n| n.output).collect();
            steps.push(Step::Linears { inputs, outputs, kernels, routed });
        }
        let dead_after = dead_after(graph, &steps);
        let gated = (0..steps.len()).map(|i| Gated::of(graph, &steps[i..])).collect();
        Self { steps, kernels: groups.into_iter().map(|(_, ws)| ws).collect(), dead_after, gated }
    }

    /// How many steps are done once a value is there.
    pub(crate) fn until(&self, value: ValueId) -> usize {
        self.steps.iter().position(|s| s.outputs().contains(&value)).map_or(0, |i| i + 1)
    }

    /// Where to go on after `done` steps: steps at the end that only copy rows are done again rather than kept.
    pub(crate) fn resume(&self, mut done: usize) -> usize {
        while let Some(Step::Node(Node { op: Op::Dispatch, .. })) = done.checked_sub(1).map(|i| &self.steps[i]) {
            done -= 1;
        }
        done
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
    let stops = graph.linears_by_input().into_iter().scan(0, |done, (edge, _)| {
        *done = steps.until(edge.value).max(*done);
        Some(steps.resume(*done))
    });
    let width = |done| steps.live(done).iter().filter(|v| **v != Graph::INPUT).map(|v| graph.values[*v].width()).sum();
    stops.map(width).max().unwrap_or(0)
}

fn is_linear(node: &Node) -> bool {
    matches!(node.op, Op::Linear { .. } | Op::ExpertLinear { .. })
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use fewbit_store::ModelFile;

    use super::*;

    /// In blocks with a gate, but not within experts.
    #[test]
    fn gated_units_are_found() {
        let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/families");
        for (family, units) in [("llama", 1), ("gemma3", 1), ("qwen2", 1), ("gpt_neox", 0), ("mixtral", 0)] {
            let file = ModelFile::open(&families.join(family)).unwrap_or_else(|e| panic!("{family}: {e}"));
            let program = Program::of(&file.model().blocks[0]);
            assert_eq!(program.gated.iter().flatten().count(), units, "{family}");
            for (i, gated) in program.gated.iter().enumerate().filter_map(|(i, g)| Some((i, g.as_ref()?))) {
                let dead: Vec<_> = program.dead_after[i..i + Gated::STEPS].iter().flatten().collect();
                assert!(gated.between.iter().all(|v| dead.contains(&v)), "{family}: nothing reads them later");
            }
        }
    }
}
