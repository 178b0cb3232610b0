//! Speed of the integer kernels at one token for each width: from memory, beside its own limit, and from the L2 cache.
//!
//! `cargo bench -p fewbit-kernel --bench generation [-- [LEVEL] [BITS …]]`. The linears are those of blocks of
//! TinyLlama-1.1B (2048 columns, an MLP of 5632), as many as fill 600 MB, run in order as a token runs them.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use fewbit_format::{Group, IntCodes, IntGrid, QuantizedLinear, ScaleType, Storage, Zeros};
use fewbit_kernel::linear::{Arithmetic, Kernel, choose};
use fewbit_kernel::{Level, Team, cpu};

/// Rows of the linears that share an input, and its columns.
const BLOCK: [(&[usize], usize); 1] = [(&[280000], 2048)];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(level) = arguments.iter().find_map(|a| Level::named(a)) {
        cpu::limit(level);
    }
    let mut widths: Vec<u8> = arguments.iter().filter_map(|a| a.parse().ok()).collect();
    if widths.is_empty() {
        widths = (1..=8).collect();
    }
    let teams = [Team::new(1), Team::new(2)];
    println!("level {}; each: one thread, two threads", cpu::detect().name());
    for bits in widths {
        let mut near = Shaped::new(&[384], 2048, bits);
        let block = || BLOCK.iter().map(|(rows, cols)| Shaped::new(rows, *cols, bits));
        let mut all: Vec<Shaped> = block().collect();
        let of_block: usize = all.iter().map(Shaped::bytes).sum();
        (1..(600 << 20) / of_block).for_each(|_| all.extend(block()));
        let bytes: usize = all.iter().map(Shaped::bytes).sum();
        print!("int{bits}:");
        for team in &teams {
            let far = best(40, || all.iter_mut().for_each(|k| k.run(team)));
            print!(" {:6.1} GB/s from memory", bytes as f64 / far / 1e9);
        }
        let l2 = best(2000, || near.run(&teams[0]));
        print!(", {:6.1} from L2 by one thread", near.bytes() as f64 / l2 / 1e9);
        println!();
    }
}

/// A kernel with its input and outputs.
struct Shaped {
    kernel: Box<dyn Kernel>,
    x: Vec<f32>,
    y: Vec<Vec<f32>>,
}

impl Shaped {
    fn new(rows: &[usize], cols: usize, bits: u8) -> Self {
        let linears = rows.iter().map(|r| Arc::new(int(*r, cols, bits))).collect();
        let x = (0..cols).map(|i| (i * 37 % 101) as f32 / 64.0 - 0.75).collect();
        Self { kernel: choose(linears, Arithmetic::Fast), x, y: rows.iter().map(|r| vec![0.0; *r]).collect() }
    }

    fn run(&mut self, team: &Team) {
        let mut outs: Vec<&mut [f32]> = self.y.iter_mut().map(|y| &mut **y).collect();
        self.kernel.run(team, 1, &self.x, &mut outs);
        black_box(&outs);
    }

    fn bytes(&self) -> usize {
        self.kernel.bytes()
    }
}

fn best(times: usize, mut run: impl FnMut()) -> f64 {
    (0..times)
        .map(|_| {
            let at = Instant::now();
            run();
            at.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn int(rows: usize, cols: usize, bits: u8) -> QuantizedLinear {
    let grid = IntGrid { bits, group: Group::Columns(128), symmetric: false, scale: ScaleType::F16 };
    let codes: Vec<u8> = (0..rows * cols).map(|i| ((i * 7 % 251) & ((1 << bits) - 1)) as u8).collect();
    let groups = rows * (cols / 128);
    let zeros = Zeros::Codes(vec![1; groups]);
    let made = IntCodes::new(rows, cols, grid, &codes, vec![0.5; groups], zeros);
    QuantizedLinear::uniform(Storage::Int(made.expect("sizes fit")), None)
}
