//! Gradients against slopes.

use std::collections::BTreeMap;
use std::sync::Arc;

use fewbit_format::Mat;
use fewbit_grad::{Edges, Function, Gradients, Parameters, Saved};
use fewbit_graph::{Graph, Op, Rope, ValueId};
use fewbit_kernel::Team;
use fewbit_runtime::{Batch, Rotations, Span};

use crate::twin::{Point, Tensor, Twin};

/// Numbers in -1..1 that look random.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// Parameters in which every part of a graph matters.
pub(crate) fn random_parameters(graph: &Graph, noise: &mut Noise) -> Parameters {
    let mut weights = Vec::new();
    for w in &graph.weights {
        let size = 1.5 / (w.shape[1] as f32).sqrt();
        let values = noise.vec(w.shape[0] * w.shape[1]).into_iter().map(|v| v * size).collect();
        weights.push(Mat::from_vec(w.shape[0], w.shape[1], values));
    }
    let biases = graph.weights.iter().map(|w| w.has_bias.then(|| noise.vec(w.shape[0]))).collect();
    let vectors =
        graph.vectors.iter().map(|v| noise.vec(v.len()).into_iter().map(|v| 1.0 + 0.5 * v).collect()).collect();
    Parameters { weights, biases, vectors, inputs: Vec::new() }
}

/// Keeps the gradient of every value.
#[derive(Default)]
pub(crate) struct Watch(pub(crate) BTreeMap<ValueId, Vec<f32>>);

impl Edges for Watch {
    fn watches(&self, _: ValueId) -> bool {
        true
    }

    fn gradient(&mut self, value: ValueId, gradient: &[f32], _: usize, _: &Saved) {
        self.0.insert(value, gradient.to_vec());
    }
}

pub(crate) fn batch_of(lengths: &[usize]) -> Batch {
    Batch::new(lengths.iter().map(|len| Span { start: 0, len: *len }).collect())
}

/// Compares values and all gradients of `Σ c ⊙ y` (for random `c`) with the twin's: values within 1e-5 of the largest,
/// gradients within 1e-4 of the largest of their tensor (plus 1e-6 where they cancel to nothing, beside others near 1).
/// The slopes are central differences in f64, good to 1e-9.
pub(crate) fn check(what: &str, graph: &Graph, ropes: &[Rope], lengths: &[usize], parameters: &Parameters, x: &[f32]) {
    let team = Team::new(2);
    let batch = batch_of(lengths);
    let rotations = Rotations::new(ropes, &batch);
    let function = Function::new(Arc::new(graph.clone())).unwrap();
    let view = parameters.view();
    view.check(graph).unwrap();
    let (mut watch, mut saved, mut gradients) = (Watch::default(), Saved::default(), Gradients::all(graph));
    let y = function.forward(&team, &batch, &rotations, &view, &mut watch, x.to_vec(), &mut saved);
    let c = Noise::new(77).vec(y.len());
    function.backward(&team, &batch, &rotations, &view, &mut watch, c.clone(), &mut saved, &mut gradients);

    let twin = Twin { graph, ropes, sequences: batch.rows().map(|(_, rows)| rows).collect() };
    let point = Point::new(x, parameters);
    let expected = twin.run(&point, Tensor::Value(graph.output), &[]);
    let output = &expected[graph.output];
    let scale = output.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    for (i, (got, want)) in y.iter().zip(output).enumerate() {
        assert!((f64::from(*got) - want).abs() <= 1e-5 * scale, "{what}: output {i} is {got}, not {want}");
    }

    let loss = |nudged: Tensor, by: &[f64]| -> f64 {
        let values = twin.run(&point, nudged, by);
        values[graph.output].iter().zip(&c).map(|(y, c)| y * f64::from(*c)).sum()
    };
    let compare = |tensor: Tensor, gradient: &[f32]| {
        let size = gradient.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let norm = gradient.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let slope = |direction: &[f64]| {
            let by = |h: f64| -> Vec<f64> { direction.iter().map(|d| d * h).collect() };
            (loss(tensor, &by(1e-5)) - loss(tensor, &by(-1e-5))) / 2e-5
        };
        let mut noise = Noise::new(gradient.len() as u64);
        for _ in 0..5.min(gradient.len()) {
            let i = ((noise.next() + 1.0) * 0.5 * gradient.len() as f32) as usize % gradient.len();
            let mut direction = vec![0.0; gradient.len()];
            direction[i] = 1.0;
            let (got, want) = (f64::from(gradient[i]), slope(&direction));
            let error = (got - want).abs();
            assert!(error <= 1e-4 * f64::from(size) + 1e-6, "{what}: {tensor:?}[{i}] is {got}, not {want}");
        }
        // One random direction sees all of them at once.
        let direction = noise.vec(gradient.len());
        let direction: Vec<f64> = direction.iter().map(|v| f64::from(*v)).collect();
        let length = direction.iter().map(|v| v * v).sum::<f64>().sqrt();
        let got: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * d).sum();
        let error = (got - slope(&direction)).abs();
        assert!(error <= (1e-4 * norm + 1e-6) * length, "{what}: {tensor:?} along a direction: {error} of {norm}");
    };
    for (i, w) in gradients.weights.iter().enumerate() {
        compare(Tensor::Weight(i), w.as_ref().unwrap().data());
    }
    for (i, b) in gradients.biases.iter().enumerate() {
        if let Some(b) = b {
            assert_eq!(b.len(), point.len(Tensor::Bias(i)));
            compare(Tensor::Bias(i), b);
        }
    }
    for (i, v) in gradients.vectors.iter().enumerate() {
        compare(Tensor::Vector(i), v.as_ref().unwrap());
    }
    for (v, gradient) in &watch.0 {
        compare(Tensor::Value(*v), gradient);
    }
    // Ids have no gradient.
    let ids = usize::from(graph.readers(Graph::INPUT).any(|n| matches!(n.op, Op::Embedding { .. })));
    assert_eq!(watch.0.len(), graph.values.len() - ids, "{what}: every value has a gradient");
}
