use std::path::{Path, PathBuf};
use std::sync::Arc;

use fewbit_grad::{Function, Gradients, NoEdges, Parameters, Saved};
use fewbit_graph::{FAMILIES, Graph, Part, architecture_of};
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Layer, NoHooks, Rotations, Workspace};
use fewbit_store::ModelFile;

use crate::check::{Noise, batch_of, check, random_parameters};

pub(crate) fn families() -> Vec<(PathBuf, ModelFile)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/families");
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    all.sort();
    let files: Vec<_> = all.into_iter().map(|p| (p.clone(), ModelFile::open(&p).unwrap())).collect();
    for family in FAMILIES {
        let is_of =
            |f: &ModelFile| architecture_of(f.checkpoint().config()).unwrap().answers_to() == family.answers_to();
        assert!(files.iter().any(|(_, f)| is_of(f)), "{family:?} has a folder");
    }
    files
}

/// With parameters that leave no part of the graph out: those of the folders are near their initial values.
#[test]
fn gradients_of_every_family_are_slopes() {
    for (path, file) in families() {
        let model = file.model();
        for (part, graph) in model.parts() {
            let mut noise = Noise::new(5);
            let parameters = random_parameters(graph, &mut noise);
            let lengths = [9, 1, 5];
            let x = match part {
                Part::Embed => (0..15).map(|i| (i * 7 % model.vocabulary) as f32).collect(),
                _ => noise.vec(15 * graph.values[Graph::INPUT].dim),
            };
            let name = format!("{} {part:?}", path.file_name().unwrap().display());
            check(&name, graph, &model.ropes, &lengths, &parameters, &x);
        }
    }
}

#[test]
fn values_are_those_of_the_runtime() {
    for (path, file) in families() {
        let model = file.model();
        for i in 0..model.blocks.len() {
            let (graph, tensors) = (Arc::new(model.blocks[i].clone()), file.part(Part::Block(i)).unwrap());
            let parameters = Parameters::of(&graph, &tensors).unwrap();
            let batch = batch_of(&[9, 70, 1]);
            let (team, rotations) = (Team::new(2), Rotations::new(&model.ropes, &batch));
            let x = Noise::new(i as u64).vec(80 * model.hidden);
            let layer = Layer::new(graph.clone(), tensors, Arithmetic::Exact).unwrap();
            let mut expected = x.clone();
            layer.run(&team, &batch, &rotations, None, &mut NoHooks, &mut Workspace::default(), &mut expected);
            let function = Function::new(graph).unwrap();
            let mut saved = Saved::default();
            let y = function.forward(&team, &batch, &rotations, &parameters.view(), &mut NoEdges, x, &mut saved);
            // The same kernels on the same numbers.
            assert_eq!(y, expected, "{} block {i}", path.display());
        }
    }
}

#[test]
fn threads_do_not_matter() {
    for (path, file) in families() {
        let model = file.model();
        let graph = &model.blocks[0];
        let parameters = Parameters::of(graph, &file.part(Part::Block(0)).unwrap()).unwrap();
        let function = Function::new(Arc::new(graph.clone())).unwrap();
        let batch = batch_of(&[120, 300, 7]);
        let rotations = Rotations::new(&model.ropes, &batch);
        let x = Noise::new(1).vec(427 * model.hidden);
        let run = |threads: usize| {
            let (team, view) = (Team::new(threads), parameters.view());
            let (mut saved, mut gradients) = (Saved::default(), Gradients::all(graph));
            let mut last = None;
            // The second pass works in used buffers.
            for _ in 0..2 {
                gradients.clear();
                let y = function.forward(&team, &batch, &rotations, &view, &mut NoEdges, x.clone(), &mut saved);
                let dy = y.iter().map(|v| v * 0.1).collect();
                let dx =
                    function.backward(&team, &batch, &rotations, &view, &mut NoEdges, dy, &mut saved, &mut gradients);
                let this = (y, dx, gradients.clone());
                assert!(last.is_none_or(|l| l == this), "{}: a second pass differs", path.display());
                last = Some(this);
            }
            last
        };
        let one = run(1);
        assert!(run(2) == one && run(3) == one, "{}", path.display());
    }
}

/// What is not asked for does not change what is.
#[test]
fn a_part_of_the_gradients_is_the_same_part() {
    let (_, file) = families().swap_remove(0);
    let model = file.model();
    let graph = &model.blocks[0];
    let parameters = random_parameters(graph, &mut Noise::new(8));
    let function = Function::new(Arc::new(graph.clone())).unwrap();
    let batch = batch_of(&[20]);
    let (team, rotations) = (Team::new(2), Rotations::new(&model.ropes, &batch));
    let x = Noise::new(1).vec(20 * model.hidden);
    let run = |mut gradients: Gradients| {
        let (mut saved, view) = (Saved::default(), parameters.view());
        let y = function.forward(&team, &batch, &rotations, &view, &mut NoEdges, x.clone(), &mut saved);
        let dx = function.backward(&team, &batch, &rotations, &view, &mut NoEdges, y, &mut saved, &mut gradients);
        (dx, gradients)
    };
    let (dx, all) = run(Gradients::all(graph));
    for w in 0..graph.weights.len() {
        let mut asked = Gradients::of_weights(graph, [w]);
        asked.wants_input = false;
        let (nothing, some) = run(asked);
        assert!(nothing.is_empty());
        assert!(some.weights[w] == all.weights[w] && some.slices().count() == 1, "{}", graph.weights[w].name);
    }
    assert_eq!(run(Gradients::none(graph)).0, dx);
}
