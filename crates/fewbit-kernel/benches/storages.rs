//! Speed of the kernels of each kind of storage: one token from memory and from the L2 cache, and 512 tokens.
//!
//! `cargo bench -p fewbit-kernel --bench storages [-- [LEVEL] [PARTS OF NAMES …]]`. From memory the matrices fill more than
//! a processor's last cache. By processor time, since others use the machine too.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "storages/make.rs"]
mod make;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use fewbit_format::{QuantizedLinear, Storage};
use fewbit_kernel::limits::best_seconds;
use fewbit_kernel::linear::{Arithmetic, Kernel, choose};
use fewbit_kernel::{Level, Team, cpu};

/// Columns of all matrices.
const COLS: usize = 2048;
/// Bytes that no cache holds.
const FAR: usize = 400 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if let Some(level) = arguments.iter().find_map(|a| Level::named(a)) {
        cpu::limit(level);
    }
    let names: Vec<&String> = arguments.iter().filter(|a| Level::named(a).is_none()).collect();
    let teams = [Team::new(1), Team::new(2)];
    println!("level {}; from memory with one thread and two, from L2 with one", cpu::detect().name());
    for (name, make) in make::ALL {
        if names.is_empty() || names.iter().any(|n| name.contains(&**n)) {
            measure(name, *make, &teams);
        }
    }
}

fn measure(name: &str, make: fn(usize, usize) -> Storage, teams: &[Team; 2]) {
    let kernel = |linear: &QuantizedLinear| choose(vec![Arc::new(linear.clone())], Arithmetic::Exact);
    let (near, far) = ([256, COLS], [16384, COLS]);
    let linear = QuantizedLinear::uniform(make(far[0], far[1]), None);
    let first = kernel(&linear);
    let count = FAR.div_ceil(first.bytes());
    let mut all = vec![first];
    all.extend((1..count).map(|_| kernel(&linear)));
    let (bytes, weights) = (all.iter().map(|k| k.bytes()).sum::<usize>() as f64, (count * far[0] * far[1]) as f64);
    print!("{name:24} {:9} {:5.2} bits:", all[0].name(), 8.0 * bytes / weights);
    let (x, mut y) = (values(512 * COLS), vec![0.0; 512 * far[0]]);
    for team in teams {
        let seconds = best(team, || all.iter().for_each(|k| run(&**k, team, 1, &x, &mut y)));
        print!(" {:5.1} GB/s {:5.1} Gw/s,", bytes / seconds / 1e9, weights / seconds / 1e9);
    }
    let small = kernel(&QuantizedLinear::uniform(make(near[0], near[1]), None));
    let seconds = best(&teams[0], || run(&*small, &teams[0], 1, &x, &mut y)) * 1e9;
    print!(" {:5.1} GB/s {:5.1} Gw/s,", small.bytes() as f64 / seconds, (near[0] * near[1]) as f64 / seconds);
    let medium = kernel(&QuantizedLinear::uniform(make(2048, COLS), None));
    for tokens in [4, 512] {
        let seconds = best(&teams[0], || run(&*medium, &teams[0], tokens, &x, &mut y)) * 1e9;
        print!(" {:6.1} Gop/s at {tokens}", (2 * tokens * 2048 * COLS) as f64 / seconds);
    }
    println!();
}

fn run(kernel: &dyn Kernel, team: &Team, tokens: usize, x: &[f32], y: &mut [f32]) {
    kernel.run(team, tokens, x, &mut [&mut *y]);
    black_box(&y);
}

fn best(team: &Team, run: impl FnMut()) -> f64 {
    best_seconds(team, Duration::from_millis(100), || (), run).processor
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 37 % 101) as f32 / 64.0 - 0.75).collect()
}
