//! Maps and rounding of what linears read.

use std::sync::Arc;

use fewbit_format::{ActivationGrid, Minifloat, Number, Online, ScaleType, Sharing};
use fewbit_grad::{Function, Gradients, Input, NoEdges, Parameters, Saved};
use fewbit_graph::{Builder, Graph};
use fewbit_kernel::Team;
use fewbit_kernel::online::Map;
use fewbit_runtime::Rotations;

use crate::check::{Noise, batch_of, random_parameters};

const TOKENS: usize = 5;

/// Two linears that read one value, and one that reads their product.
fn graph() -> Graph {
    let mut g = Builder::new("x", 16);
    let (a, b) = (g.linear(Graph::INPUT, "a", 8, true), g.linear(Graph::INPUT, "b", 8, false));
    let m = g.apply("m", fewbit_graph::Op::Mul, &[a, b]);
    let y = g.linear(m, "y", 3, false);
    g.finish(y)
}

/// Output, and the gradients of its sum with random weights.
fn run(parameters: &Parameters, x: &[f32]) -> (Vec<f32>, Vec<f32>, Gradients) {
    let (graph, team, batch) = (Arc::new(graph()), Team::new(2), batch_of(&[TOKENS]));
    let (rotations, mut saved, mut gradients) = (Rotations::new(&[], &batch), Saved::default(), Gradients::all(&graph));
    let (function, view) = (Function::new(graph).unwrap(), parameters.view());
    let y = function.forward(&team, &batch, &rotations, &view, &mut NoEdges, x.to_vec(), &mut saved);
    let c = Noise::new(77).vec(y.len());
    let dx = function.backward(&team, &batch, &rotations, &view, &mut NoEdges, c, &mut saved, &mut gradients);
    (y, dx, gradients)
}

fn near(a: &[f32], b: &[f32]) {
    let size = b.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * size), "{a:?} is not {b:?}");
}

/// `y = W (x M)` is `y = (W Mᵀ) x`: values, gradients of the input, and those of `W` after the map.
#[test]
fn a_map_is_as_good_as_a_weight_that_has_taken_it_in() {
    let mut noise = Noise::new(5);
    let (mut folded, x) = (random_parameters(&graph(), &mut noise), Noise::new(9).vec(TOKENS * 16));
    let factors: Vec<f32> = (0..16).map(|i| 0.5 + i as f32 / 8.0).collect();
    let hadamard = Online::Hadamard { block: 8, flips: (0..16).map(|i| i % 3 == 0).collect(), is_inverse: false };
    let maps = vec![Online::Diagonal(factors), hadamard];
    let mapped =
        Parameters { inputs: vec![Some(Input { maps: maps.clone(), format: None }), None, None], ..folded.clone() };
    // Each row of `W` takes the transposes, last to first.
    let team = Team::new(1);
    for map in maps.iter().rev() {
        let transposed = if matches!(map, Online::Diagonal(_)) { map.clone() } else { map.inverse() };
        Map::new(&transposed, 16).apply(&team, folded.weights[0].data_mut());
    }
    let [(y, dx, mut gradients), (y_mapped, dx_mapped, gradients_mapped)] = [&folded, &mapped].map(|p| run(p, &x));
    near(&y_mapped, &y);
    near(&dx_mapped, &dx);
    let own = gradients.weights[0].as_mut().unwrap();
    maps.iter().for_each(|m| Map::new(m, 16).apply(&team, own.data_mut()));
    for (found, expected) in gradients_mapped.weights.iter().zip(&gradients.weights) {
        near(found.as_ref().unwrap().data(), expected.as_ref().unwrap().data());
    }
}

/// Products and gradients of weights are those of the rounded rows; the gradient of the rows passes straight through.
#[test]
fn rounded_rows_are_what_the_product_sees() {
    let grid = ActivationGrid {
        number: Number::Float(Minifloat::E2M1),
        sharing: Sharing::Columns(8),
        scale: ScaleType::E8M0,
        is_searched: true,
    };
    let format = grid.dynamic();
    let (plain, x) = (random_parameters(&graph(), &mut Noise::new(5)), Noise::new(9).vec(TOKENS * 16));
    let input = Some(Input { maps: Vec::new(), format: Some(format) });
    let rounded = Parameters { inputs: vec![input.clone(), input, None], ..plain.clone() };
    let mut seen = x.clone();
    seen.chunks_exact_mut(16).for_each(|row| format.round(row));
    assert_ne!(seen, x);
    let [(y, dx, gradients), (y_rounded, dx_rounded, gradients_rounded)] =
        [(&plain, &seen), (&rounded, &x)].map(|(p, x)| run(p, x));
    near(&y_rounded, &y);
    near(&dx_rounded, &dx);
    for (found, expected) in gradients_rounded.weights.iter().zip(&gradients.weights) {
        near(found.as_ref().unwrap().data(), expected.as_ref().unwrap().data());
    }
}
