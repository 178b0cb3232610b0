//! Speed of the kernels at one token for each width: from memory, beside their own limit, from the L2 cache.
//!
//! `cargo bench -p fewbit-kernel --bench generation [-- [LEVEL] [blocks] [BITS | ternary | bf16 …]]`: integers of 1 to 8
//! bits in groups of 128, three values with a scale for each row, and a head that stays in 16 bits. One large linear of
//! 600 MB, or with `blocks` those of TinyLlama-1.1B (2048 columns, an MLP of 5632), as many as fill it, in order as a
//! token runs them. Medians.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use fewbit_format::{
    Dtype, Group, IntCodes, IntGrid, QuantizedLinear, ScaleType, SignCodes, SignGrid, Signs, Storage, Tensor, Zeros,
};
use fewbit_kernel::linear::{Arithmetic, Kernel, choose};
use fewbit_kernel::{Level, Team, cpu};

/// Rows of the linears that share an input, and its columns.
const BLOCK: [(&[usize], usize); 4] =
    [(&[2048, 256, 256], 2048), (&[2048], 2048), (&[5632, 5632], 2048), (&[2048], 5632)];

const BYTES: usize = 600 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(level) = arguments.iter().find_map(|a| Level::named(a)) {
        cpu::limit(level);
    }
    let mut kinds: Vec<Kind> = arguments.iter().filter_map(|a| Kind::named(a)).collect();
    if kinds.is_empty() {
        kinds = (1..=8).map(Kind::Int).chain([Kind::Ternary, Kind::Bf16]).collect();
    }
    let teams = [Team::new(1), Team::new(2)];
    println!("level {}; each: one thread, two threads", cpu::detect().name());
    for kind in kinds {
        let mut near = Shaped::new(&[384], 2048, kind);
        let mut all = Vec::new();
        if arguments.iter().any(|a| a == "blocks") {
            while all.iter().map(Shaped::bytes).sum::<usize>() < BYTES {
                all.extend(BLOCK.iter().map(|(rows, cols)| Shaped::new(rows, *cols, kind)));
            }
        } else {
            all.push(Shaped::new(&[BYTES / near.bytes() * 384], 2048, kind));
        }
        let bytes: usize = all.iter().map(Shaped::bytes).sum();
        print!("{:8} {:8}", format!("{kind:?}"), near.kernel.name());
        for team in &teams {
            let far = median(30, || all.iter_mut().for_each(|k| k.run(team)));
            print!(" {:6.1} GB/s from memory,", bytes as f64 / far / 1e9);
        }
        let l2 = median(2000, || near.run(&teams[0]));
        println!(" {:6.1} from L2 by one thread", near.bytes() as f64 / l2 / 1e9);
    }
}

/// What the weights are.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Int(u8),
    Ternary,
    Bf16,
}

impl Kind {
    fn named(name: &str) -> Option<Self> {
        match name {
            "ternary" => Some(Self::Ternary),
            "bf16" => Some(Self::Bf16),
            bits => bits.parse().ok().map(Self::Int),
        }
    }

    fn storage(self, rows: usize, cols: usize) -> Storage {
        let codes = |levels: usize| (0..rows * cols).map(|i| (i * 7 % 251 % levels) as u8).collect::<Vec<u8>>();
        let made = match self {
            Self::Int(bits) => {
                let grid = IntGrid { bits, group: Group::Columns(128), symmetric: false, scale: ScaleType::F16 };
                let groups = rows * (cols / 128);
                let zeros = Zeros::Codes(vec![1; groups]);
                IntCodes::new(rows, cols, grid, &codes(1 << bits), vec![0.5; groups], zeros).map(Storage::Int)
            }
            Self::Ternary => {
                let grid = SignGrid { signs: Signs::Ternary, group: Group::Row, scale: ScaleType::F16 };
                SignCodes::new(rows, cols, grid, &codes(3), &vec![0.5; rows]).map(Storage::Signs)
            }
            Self::Bf16 => {
                let values: Vec<f32> = codes(16).iter().map(|q| f32::from(*q) - 8.0).collect();
                Tensor::from_f32(Dtype::BF16, &[rows, cols], &values).map(Storage::Dense)
            }
        };
        made.expect("sizes fit")
    }
}

/// A kernel with its input and outputs.
struct Shaped {
    kernel: Box<dyn Kernel>,
    x: Vec<f32>,
    y: Vec<Vec<f32>>,
}

impl Shaped {
    fn new(rows: &[usize], cols: usize, kind: Kind) -> Self {
        let linear = |rows: &usize| Arc::new(QuantizedLinear::uniform(kind.storage(*rows, cols), None));
        let kernel = choose(rows.iter().map(linear).collect(), Arithmetic::Fast);
        let x = (0..cols).map(|i| (i * 37 % 101) as f32 / 64.0 - 0.75).collect();
        Self { kernel, x, y: rows.iter().map(|r| vec![0.0; *r]).collect() }
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

fn median(times: usize, mut run: impl FnMut()) -> f64 {
    let mut seconds: Vec<f64> = (0..times)
        .map(|_| {
            let at = Instant::now();
            run();
            at.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[times / 2]
}
