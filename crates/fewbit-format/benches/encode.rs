//! Speed of the encoders of ggml's blocks, on one thread: `cargo bench -p fewbit-format --bench encode [-- TYPE …]`.
//!
//! ggml's own on the same machine: `benches/peers/ggml_encode.py`.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::Instant;

use fewbit_format::{GgmlBlocks, GgmlType};

const ROWS: usize = 4;
const COLS: usize = 4096;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    // From −1 to 1, without order.
    let scattered = |i: usize| ((i as f32 * 12.9898).sin() * 43758.547).fract();
    let values: Vec<f32> = (0..ROWS * COLS).map(|i| (0..3).map(|k| scattered(3 * i + k)).sum()).collect();
    let importance: Vec<f32> = (0..COLS).map(|i| scattered(i).abs() + 0.1).collect();
    println!("{:<8} {:>12} {:>12}   Mweights/s", "type", "plain", "importances");
    for kind in GgmlType::ALL.into_iter().filter(|kind| kind.has_encoder()) {
        if wanted.is_empty() || wanted.iter().any(|name| name == kind.name()) {
            let [plain, weighted] = [None, Some(&importance[..])].map(|importance| speed(kind, &values, importance));
            println!("{:<8} {plain:>12.2} {weighted:>12.2}", kind.name());
        }
    }
}

/// Of the fastest of twenty runs, in millions of weights a second.
fn speed(kind: GgmlType, values: &[f32], importance: Option<&[f32]>) -> f64 {
    let seconds = (0..20).map(|_| {
        let begun = Instant::now();
        GgmlBlocks::encode(kind, ROWS, COLS, values, importance).expect("numbers");
        begun.elapsed().as_secs_f64()
    });
    values.len() as f64 / seconds.fold(f64::INFINITY, f64::min) / 1e6
}
