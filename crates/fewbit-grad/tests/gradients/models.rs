use std::collections::BTreeMap;
use std::sync::Arc;

use fewbit_format::Result;
use fewbit_grad::loss::cross_entropy;
use fewbit_grad::model::{ModelFunction, Visit};
use fewbit_grad::{Function, Gradients, NoEdges, Parameters, Saved};
use fewbit_graph::{Graph, Model, Part};
use fewbit_kernel::Team;
use fewbit_runtime::{Batch, Rotations};

use crate::blocks::families;
use crate::check::{Noise, batch_of, random_parameters};
use crate::twin::{Point, Tensor, Twin};

/// Parameters in memory, and gradients as they came.
pub(crate) struct Memory {
    pub(crate) parameters: BTreeMap<Part, Arc<Parameters>>,
    pub(crate) found: Vec<(Part, Gradients)>,
    /// The first part whose gradients are asked for; the others too, those of the blocks before it excepted.
    pub(crate) first: Part,
}

impl Memory {
    pub(crate) fn new(parameters: BTreeMap<Part, Arc<Parameters>>) -> Self {
        Self { parameters, found: Vec::new(), first: Part::Embed }
    }

    fn random(model: &Model) -> Self {
        let mut parameters = BTreeMap::new();
        for (part, graph) in model.parts() {
            parameters.insert(part, random_parameters(graph, &mut Noise::new(part_seed(part))));
        }
        if model.is_tied {
            let matrix = parameters[&Part::Embed].weights[0].clone();
            parameters.entry(Part::Head).and_modify(|p| p.weights[0] = matrix);
        }
        Self::new(parameters.into_iter().map(|(part, p)| (part, Arc::new(p))).collect())
    }
}

fn part_seed(part: Part) -> u64 {
    match part {
        Part::Embed => 1,
        Part::Head => 2,
        Part::Block(i) => 10 + i as u64,
    }
}

impl Visit for Memory {
    fn parameters(&mut self, part: Part) -> Result<Arc<Parameters>> {
        Ok(self.parameters[&part].clone())
    }

    fn asked(&mut self, part: Part, graph: &Graph) -> Gradients {
        Gradients { wants_input: part != self.first, ..Gradients::all(graph) }
    }

    fn done(&mut self, part: Part, gradients: Gradients) -> Result<()> {
        self.found.push((part, gradients));
        Ok(())
    }
}

fn targets(ids: &[u32], batch: &Batch) -> (Vec<u32>, Vec<f32>) {
    let mut targets: Vec<u32> = ids[1..].to_vec();
    targets.push(0);
    let mut weights = vec![1.0 / ids.len() as f32; ids.len()];
    for (_, rows) in batch.rows() {
        weights[rows.end - 1] = 0.0;
    }
    (targets, weights)
}

/// Everything in memory at once, each part once forward and once backward.
fn at_once(model: &Model, memory: &Memory, batch: &Batch, ids: &[u32], team: &Team) -> (f64, Vec<(Part, Gradients)>) {
    let rotations = Rotations::new(&model.ropes, batch);
    let mut x: Vec<f32> = ids.iter().map(|i| *i as f32).collect();
    let mut done = Vec::new();
    for (part, graph) in model.parts() {
        let function = Function::new(Arc::new(graph.clone())).unwrap();
        let mut saved = Saved::default();
        let view = memory.parameters[&part].view();
        x = function.forward(team, batch, &rotations, &view, &mut NoEdges, x, &mut saved);
        done.push((part, function, saved));
    }
    let (targets, weights) = targets(ids, batch);
    let loss = cross_entropy(team, &mut x, model.vocabulary, &targets, &weights);
    let mut found = Vec::new();
    for (part, function, mut saved) in done.into_iter().rev() {
        let mut gradients = Gradients { wants_input: part != Part::Embed, ..Gradients::all(model.part(part)) };
        let view = memory.parameters[&part].view();
        x = function.backward(team, batch, &rotations, &view, &mut NoEdges, x, &mut saved, &mut gradients);
        found.push((part, gradients));
    }
    (loss, found)
}

fn checkpointed(model: &Arc<Model>, memory: &mut Memory, batch: &Batch, ids: &[u32], team: &Team) -> f64 {
    let function = ModelFunction::new(model.clone()).unwrap();
    let (targets, weights) = targets(ids, batch);
    let mut loss = |team: &Team, rows: std::ops::Range<usize>, logits: &mut [f32]| {
        cross_entropy(team, logits, model.vocabulary, &targets[rows.clone()], &weights[rows])
    };
    let mut boundaries = vec![f32::NAN; function.boundaries(batch.tokens())];
    function.gradients(team, batch, ids, memory, &mut loss, &mut boundaries).unwrap()
}

fn ids(count: usize, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|i| (i * 37 % vocabulary) as u32).collect()
}

#[test]
fn checkpoints_change_nothing() {
    for (path, file) in families() {
        let (model, batch) = (file.model(), batch_of(&[60, 1, 130]));
        let ids = ids(191, model.vocabulary);
        let mut memory = Memory::random(model);
        let (loss, mut expected) = at_once(model, &memory, &batch, &ids, &Team::new(1));
        if model.is_tied {
            let of_head = expected[0].1.weights[0].take().unwrap();
            let last = expected.len() - 1;
            let sum = expected[last].1.weights[0].as_mut().unwrap();
            // The head's gradient is there first.
            sum.data_mut().iter_mut().zip(of_head.data()).for_each(|(e, h)| *e += h);
        }
        for threads in [1, 2, 3] {
            memory.found.clear();
            assert_eq!(checkpointed(model, &mut memory, &batch, &ids, &Team::new(threads)), loss);
            assert_eq!(memory.found.len(), expected.len());
            for ((part, got), (expected_part, want)) in memory.found.iter().zip(&expected) {
                assert_eq!(part, expected_part);
                let is_sum = model.is_tied && *part == Part::Embed;
                for (got, want) in got.slices().zip(want.slices()) {
                    let tolerance = if is_sum { 1e-6 * want.iter().fold(0.0f32, |m, v| m.max(v.abs())) } else { 0.0 };
                    let worst = got.iter().zip(want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
                    assert!(worst <= tolerance, "{} {part:?}: {worst}", path.display());
                }
            }
        }
        // A pass that ends early gives the same of what it reaches.
        let whole = std::mem::take(&mut memory.found);
        memory.first = Part::Block(model.blocks.len() - 1);
        checkpointed(model, &mut memory, &batch, &ids, &Team::new(2));
        for ((part, got), (_, want)) in memory.found[..2].iter().zip(&whole) {
            assert!(got.slices().eq(want.slices()), "{} {part:?} where the pass ends early", path.display());
        }
        assert_eq!(memory.found.len(), if model.is_tied { 3 } else { 2 });
    }
}

/// The whole model's loss in f64, along a random direction of each matrix; a tied one moves in both places.
#[test]
fn gradients_of_a_model_are_slopes_of_its_loss() {
    for (path, file) in families() {
        let (model, batch) = (file.model(), batch_of(&[5, 4]));
        let ids = ids(9, model.vocabulary);
        let mut memory = Memory::random(model);
        let loss = checkpointed(model, &mut memory, &batch, &ids, &Team::new(2));
        let (targets, weights) = targets(&ids, &batch);
        let sequences: Vec<_> = batch.rows().map(|(_, rows)| rows).collect();
        let of = |nudged: &[Part], by: &[f64]| -> f64 {
            let mut x: Vec<f64> = ids.iter().map(|i| f64::from(*i)).collect();
            for (part, graph) in model.parts() {
                let twin = Twin { graph, ropes: &model.ropes, sequences: sequences.clone() };
                let point = Point { x, ..Point::new(&[], &memory.parameters[&part]) };
                let by = if nudged.contains(&part) { by } else { &[] };
                x = twin.run(&point, Tensor::Weight(0), by).swap_remove(graph.output);
            }
            let row = |(i, row): (usize, &[f64])| {
                let sum: f64 = row.iter().map(|v| v.exp()).sum();
                f64::from(weights[i]) * (sum.ln() - row[targets[i] as usize])
            };
            x.chunks_exact(model.vocabulary).enumerate().map(row).sum()
        };
        assert!((loss - of(&[], &[])).abs() < 1e-5, "{}: {loss} {}", path.display(), of(&[], &[]));
        for (part, gradients) in &memory.found {
            let Some(gradient) = &gradients.weights[0] else {
                assert!(model.is_tied && *part == Part::Head);
                continue;
            };
            let nudged: &[Part] =
                if model.is_tied && *part == Part::Embed { &[Part::Embed, Part::Head] } else { &[*part] };
            let direction: Vec<f64> = Noise::new(9).vec(gradient.data().len()).into_iter().map(f64::from).collect();
            let by = |h: f64| -> Vec<f64> { direction.iter().map(|d| d * h).collect() };
            let slope = (of(nudged, &by(1e-5)) - of(nudged, &by(-1e-5))) / 2e-5;
            let got: f64 = gradient.data().iter().zip(&direction).map(|(g, d)| f64::from(*g) * d).sum();
            let length = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
            let scale =
                length(&mut direction.iter().copied()) * length(&mut gradient.data().iter().map(|v| f64::from(*v)));
            assert!((got - slope).abs() <= 1e-4 * scale, "{} {part:?}: {got} {slope} {scale}", path.display());
        }
    }
}
