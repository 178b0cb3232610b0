use std::collections::BTreeMap;
use std::sync::Arc;

use fewbit_grad::{Edges, Function, Gradients, Saved};
use fewbit_graph::{Builder, Graph, Op, ValueId};
use fewbit_kernel::{Team, elementwise};
use fewbit_runtime::Rotations;

use crate::check::{Noise, batch_of, random_parameters};

const CAP: f32 = 1.5;
const NAMES: [&str; 5] = ["x", "q", "keys", "o", "y"];

/// A block whose values `NAMES` pass through a soft cap: as an operation, or not at all.
fn graph(has_caps: bool) -> Graph {
    fn capped(g: &mut Builder, v: ValueId, has_caps: bool) -> ValueId {
        if has_caps { g.apply("capped", Op::Softcap { cap: CAP }, &[v]) } else { v }
    }
    let mut g = Builder::new("x", 10);
    let x = capped(&mut g, Graph::INPUT, has_caps);
    let q = g.linear(x, "q", 12, true);
    let q = capped(&mut g, q, has_caps);
    let (k, v) = (g.linear(x, "k", 6, false), g.linear(x, "v", 6, false));
    let (k, v) = (g.cache("keys", k), g.cache("values", v));
    let k = capped(&mut g, k, has_caps);
    let op = Op::Attention { heads: 2, kv_heads: 1, head_dim: 6, scale: 0.8, softcap: None, window: None, sinks: None };
    let o = g.apply("o", op, &[q, k, v]);
    let o = capped(&mut g, o, has_caps);
    let y = g.linear(o, "y", 10, false);
    let y = g.add("y", x, y);
    let y = capped(&mut g, y, has_caps);
    g.finish(y)
}

/// The same caps as changes of edges; keeps the gradients of the values before them, and looks at the linears' inputs.
struct Caps<'a> {
    graph: &'a Graph,
    changes: bool,
    gradients: BTreeMap<&'static str, Vec<f32>>,
    has_seen_input: bool,
}

impl<'a> Caps<'a> {
    fn new(graph: &'a Graph, changes: bool) -> Self {
        Self { graph, changes, gradients: BTreeMap::new(), has_seen_input: false }
    }

    fn is_named(&self, value: ValueId) -> bool {
        // Of two values named `y` the sum is meant.
        let name = self.graph.values[value].name;
        let is_linear = matches!(self.graph.producer(value).map(|n| &n.op), Some(Op::Linear { .. }));
        NAMES.contains(&name) && !(name == "y" && is_linear)
    }
}

impl Edges for Caps<'_> {
    fn wants(&self, value: ValueId) -> bool {
        self.changes && self.is_named(value)
    }

    fn forward(&mut self, _: ValueId, rows: &mut [f32], _: usize) {
        elementwise::softcap(rows, CAP);
    }

    fn backward(&mut self, _: ValueId, input: &[f32], gradient: &mut [f32], _: usize) {
        elementwise::softcap_backward(input, gradient, CAP);
    }

    fn watches(&self, value: ValueId) -> bool {
        self.is_named(value)
    }

    fn gradient(&mut self, value: ValueId, gradient: &[f32], dim: usize, saved: &Saved) {
        let name = self.graph.values[value].name;
        assert_eq!(dim, self.graph.values[value].dim);
        if name == "q" {
            // What made it is still there.
            let input = self.graph.producer(value).map(|n| n.inputs[0]).unwrap();
            self.has_seen_input = saved.value(input).is_some_and(|x| x.len() * 12 == gradient.len() * 10);
        }
        self.gradients.insert(name, gradient.to_vec());
    }
}

#[test]
fn a_changed_edge_is_an_operation() {
    let (plain, with_caps) = (graph(false), graph(true));
    let parameters = random_parameters(&plain, &mut Noise::new(4));
    let (team, batch) = (Team::new(2), batch_of(&[9, 4]));
    let rotations = Rotations::new(&[], &batch);
    let x = Noise::new(6).vec(130).into_iter().map(|v| 2.0 * v).collect::<Vec<_>>();
    let run = |graph: &Graph, mut edges: Caps<'_>| {
        let function = Function::new(Arc::new(graph.clone())).unwrap();
        let (view, mut saved, mut gradients) = (parameters.view(), Saved::default(), Gradients::all(graph));
        let y = function.forward(&team, &batch, &rotations, &view, &mut edges, x.clone(), &mut saved);
        let d = Noise::new(8).vec(y.len());
        let dx = function.backward(&team, &batch, &rotations, &view, &mut edges, d, &mut saved, &mut gradients);
        assert!(edges.has_seen_input);
        (y, dx, gradients, edges.gradients)
    };
    let by_edges = run(&plain, Caps::new(&plain, true));
    let by_operations = run(&with_caps, Caps::new(&with_caps, false));
    assert!(by_edges == by_operations);
    assert_eq!(by_edges.3.len(), NAMES.len());
    let without = run(&plain, Caps::new(&plain, false));
    assert!(without.0 != by_edges.0, "the caps change something");
}
