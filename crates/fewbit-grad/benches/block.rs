//! Speed of a block's step (forward, then backward with all gradients) beside the machine's limit of arithmetic.
//!
//! `cargo bench -p fewbit-grad --bench block [-- [LEVEL] [SEQUENCES] [LENGTH]]` on the bundled model's block: 8 sequences
//! of 512 tokens unless said otherwise. Products count three times (forward, input, weights); attention counts what the
//! mask leaves, two products forward and five backward.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fewbit_format::Mat;
use fewbit_grad::{Function, Gradients, NoEdges, Parameters, Saved};
use fewbit_graph::{Graph, Op, Part};
use fewbit_kernel::limits::{best_seconds, f32_peak};
use fewbit_kernel::product::{Weights, product_nn, product_nt, product_tn};
use fewbit_kernel::{Level, Team, cpu};
use fewbit_runtime::{Batch, Rotations};
use fewbit_store::ModelFile;

/// Time for one measurement.
const AT_LEAST: Duration = Duration::from_millis(400);

fn main() {
    if let Some(level) = std::env::args().find_map(|a| Level::named(&a)) {
        cpu::limit(level);
    }
    let mut numbers = std::env::args().filter_map(|a| a.parse::<usize>().ok());
    let (count, len) = (numbers.next().unwrap_or(8), numbers.next().unwrap_or(512));
    let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo-model"));
    let file = ModelFile::open(demo).expect("the bundled model");
    let model = file.model();
    let graph = Arc::new(model.blocks[0].clone());
    let tensors = file.part(Part::Block(0)).expect("the bundled model's first block");
    let parameters = Parameters::of(&graph, &tensors).expect("plain matrices");
    let batch = Batch::sequences(count, len);
    let rotations = Rotations::new(&model.ropes, &batch);
    let [forward, backward] = flop(&graph, count, len);
    println!(
        "level {}; {count} sequences of {len} tokens: {:.1} Gflop",
        cpu::detect().name(),
        (forward + backward) / 1e9
    );
    for team in [Team::new(1), Team::new(2)] {
        let peak = f32_peak(&team);
        let [of_processor, by_wall] = [peak.processor, peak.wall].map(|p| p / 1e9);
        println!("{} threads: peak {of_processor:.1} GFLOP/s, by the wall {by_wall:.1}", team.threads());
        let report = |what: &str, flop: f64, run: &mut dyn FnMut()| {
            let seconds = best_seconds(&team, AT_LEAST, || (), run);
            let speed = seconds.map(|s| flop / s);
            println!(
                "  {what:<24} {:7.2} ms {:7.1} GFLOP/s, {:3.0} %, by the wall {:3.0} %",
                seconds.wall * 1e3,
                speed.wall / 1e9,
                100.0 * speed.processor / peak.processor,
                100.0 * speed.wall / peak.wall
            );
        };
        let function = Function::new(graph.clone()).expect("a graph with gradients");
        let (mut saved, view) = (Saved::default(), parameters.view());
        let x: Vec<f32> = (0..batch.tokens() * model.hidden).map(|i| (i * 37 % 101) as f32 / 64.0 - 0.75).collect();
        report("forward", forward, &mut || {
            function.forward(&team, &batch, &rotations, &view, &mut NoEdges, x.clone(), &mut saved);
        });
        for (what, mut gradients, share) in
            [("step, input alone", Gradients::none(&graph), 0.5), ("step, all gradients", Gradients::all(&graph), 1.0)]
        {
            // Without gradients of weights one of the two backward products of each linear is left out.
            let back = backward - (1.0 - share) * linear_flop(&graph, batch.tokens()) * 2.0;
            report(what, forward + back, &mut || {
                let y = function.forward(&team, &batch, &rotations, &view, &mut NoEdges, x.clone(), &mut saved);
                function.backward(&team, &batch, &rotations, &view, &mut NoEdges, y, &mut saved, &mut gradients);
            });
        }
        let [tokens, hidden, mlp] = [batch.tokens(), model.hidden, 3 * model.hidden];
        let (x, w, d) = (vec![0.5; tokens * hidden], Mat::zeros(mlp, hidden), vec![0.5; tokens * mlp]);
        let (mut y, mut dx, mut dw) = (d.clone(), x.clone(), w.clone());
        let flop = 2.0 * (tokens * hidden * mlp) as f64;
        report("  product x Wᵀ", flop, &mut || {
            product_nt(&team, tokens, mlp, hidden, &x, hidden, Weights::F32(w.data()), &mut y, mlp, false);
        });
        report("  product d W", flop, &mut || {
            product_nn(&team, tokens, hidden, mlp, 1.0, &d, mlp, w.data(), hidden, &mut dx, hidden);
        });
        report("  product dᵀ x", flop, &mut || {
            product_tn(&team, mlp, hidden, tokens, &d, mlp, &x, hidden, dw.data_mut(), hidden);
        });
    }
}

fn linear_flop(graph: &Graph, tokens: usize) -> f64 {
    graph.weights.iter().map(|w| 2.0 * (tokens * w.shape[0] * w.shape[1]) as f64).sum()
}

/// Forward and backward.
fn flop(graph: &Graph, count: usize, len: usize) -> [f64; 2] {
    let linears = linear_flop(graph, count * len);
    let pairs = count * len * (len + 1) / 2;
    let product = |op: &Op| match op {
        Op::Attention { heads, head_dim, .. } => 2.0 * (heads * head_dim * pairs) as f64,
        _ => 0.0,
    };
    let product: f64 = graph.nodes.iter().map(|n| product(&n.op)).sum();
    [linears + 2.0 * product, 2.0 * linears + 5.0 * product]
}
