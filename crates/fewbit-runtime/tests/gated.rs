//! A gated unit in one pass is what its steps are, one by one.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

use std::path::Path;
use std::sync::Arc;

use fewbit_format::{Group, IntCodes, IntGrid, QuantizedLinear, ScaleType, Storage, Zeros};
use fewbit_graph::{Edge, Graph, Part, ValueId};
use fewbit_kernel::Team;
use fewbit_runtime::{Arithmetic, Batch, Hooks, Layer, NoHooks, Rotations, Workspace};
use fewbit_store::ModelFile;

/// Looks at everything, so that every value is made.
struct All(usize);

impl Hooks for All {
    fn wants(&self, _: ValueId) -> bool {
        true
    }

    fn edge(&mut self, _: Edge, _: &mut [f32], _: usize) {
        self.0 += 1;
    }
}

/// Integers in the place of a linear's weights.
fn integers(linear: &QuantizedLinear) -> Arc<QuantizedLinear> {
    let [rows, cols] = linear.shape;
    let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 7919 % 61 % 16) as u8).collect();
    let grid = IntGrid { bits: 4, group: Group::Row, symmetric: true, scale: ScaleType::F16 };
    let scales = vec![1.0 / 64.0; rows];
    let storage = Storage::Int(IntCodes::new(rows, cols, grid, &codes, scales, Zeros::Middle).unwrap());
    Arc::new(QuantizedLinear::uniform(storage, linear.bias.clone()))
}

#[test]
fn what_nobody_looks_at_makes_no_difference() {
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/families");
    for family in ["llama", "gemma3", "qwen2"] {
        let file = ModelFile::open(&families.join(family)).unwrap();
        let graph = Arc::new(file.model().blocks[0].clone());
        let mut weights = file.part(Part::Block(0)).unwrap();
        weights.linears.iter_mut().for_each(|l| *l = integers(l));
        let layer = Layer::new(graph.clone(), weights, Arithmetic::Fast).unwrap();
        for tokens in [1, 5, 40] {
            let batch = Batch::one(0, tokens);
            let rotations = Rotations::new(&file.model().ropes, &batch);
            let dim = graph.values[Graph::INPUT].dim;
            let x: Vec<f32> = (0..tokens * dim).map(|i| (i as f32 * 0.37).sin()).collect();
            let run = |hooks: &mut dyn Hooks| {
                let mut y = x.clone();
                layer.run(&Team::new(2), &batch, &rotations, None, hooks, &mut Workspace::default(), &mut y);
                y
            };
            let mut all = All(0);
            assert_eq!(run(&mut all), run(&mut NoHooks), "{family}, {tokens} tokens");
            assert!(all.0 > 8);
        }
    }
}
