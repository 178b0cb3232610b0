//! Speed of the products and the linear kernels beside the machine's own limits, all in one run: read the shares.
//!
//! `cargo bench -p fewbit-kernel --bench product [-- [LEVEL] [PART OF A NAME]]`, with `LEVEL` one of
//! the names that `fewbit --cpu` takes.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use fewbit_format::{Dtype, Group, IntCodes, IntGrid, QuantizedLinear, ScaleType, Storage, Tensor, Zeros};
use fewbit_kernel::limits::{Clocks, Memory, Pages, best_seconds, f32_peak};
use fewbit_kernel::linear::{Arithmetic, choose};
use fewbit_kernel::product::{Weights, gram_add, product_nn, product_nt};
use fewbit_kernel::{Level, Team, cpu};

/// Time for one measurement.
const AT_LEAST: Duration = Duration::from_millis(400);
/// Regions in one timing of an empty region.
const REGIONS: usize = 1000;

fn main() {
    if let Some(level) = std::env::args().find_map(|a| Level::named(&a)) {
        cpu::limit(level);
    }
    let teams = [Team::new(1), Team::new(2)];
    println!("level {}", cpu::detect().name());
    let memory = Memory::new(Pages::Small).expect("a quarter of the machine's memory");
    let peaks = teams.each_ref().map(f32_peak);
    let reads = teams.each_ref().map(|team| read_bandwidth(team, &memory));
    for (team, (peak, read)) in teams.iter().zip(peaks.iter().zip(&reads)) {
        println!(
            "{} threads: peak {:.1} GFLOP/s, by the wall {:.1}; reads {:.1} GB/s, by the wall {:.1}",
            team.threads(),
            peak.processor / 1e9,
            peak.wall / 1e9,
            read.processor / 1e9,
            read.wall / 1e9
        );
    }
    let regions = || (0..REGIONS).for_each(|_| teams[1].run(2, &|i| _ = black_box(i)));
    let region = best_seconds(&teams[1], AT_LEAST, || (), regions).wall / REGIONS as f64;
    println!("a region of two threads without work: {:.2} µs by the wall", region * 1e6);
    println!("each: one thread | two threads, by processor time | two threads, by the wall; share of the limit\n");
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-') && Level::named(a).is_none());
    let report =
        |what: &str, unit: &str, limits: &[Clocks; 2], work: f64, between: &dyn Fn(), run: &mut dyn FnMut(&Team)| {
            if only.as_ref().is_some_and(|o| !what.contains(&**o)) {
                return;
            }
            print!("{what:<42}");
            let [one, two] =
                [0, 1].map(|i| best_seconds(&teams[i], AT_LEAST, between, || run(&teams[i])).map(|s| work / s));
            // The processors' limit is what one thread reaches, twice.
            let alone = limits[0].processor;
            for (speed, limit) in [(one.processor, alone), (two.processor, 2.0 * alone), (two.wall, limits[1].wall)] {
                print!(" {:7.1} {unit} {:4.0} %", speed / 1e9, 100.0 * speed / limit);
            }
            println!();
        };
    let evict_by = memory.best_scheme(&teams[0]);
    let nothing: &dyn Fn() = &|| ();
    let evict: &dyn Fn() = &|| {
        // As much as the largest caches hold and more.
        memory.read(&teams[0], evict_by);
    };

    for (m, n, k) in [
        (512, 2048, 2048),
        (512, 5632, 2048),
        (512, 2048, 5632),
        (128, 2048, 2048),
        (64, 2048, 2048),
        (32, 2048, 2048),
        (16, 2048, 2048),
    ] {
        let (x, w) = (values(m * k), values(n * k));
        let bf16 = Dtype::BF16.narrow(&w).unwrap_or_default();
        let mut y = vec![0.0; m * n];
        let flop = 2.0 * (m * n * k) as f64;
        for (name, weights) in [("f32", Weights::F32(&w)), ("bf16", Weights::Bf16(&bf16))] {
            report(&format!("nt {name} {m}x{n}x{k}"), "GFLOP/s", &peaks, flop, nothing, &mut |team| {
                product_nt(team, m, n, k, &x, k, weights, &mut y, n, false);
            });
        }
    }
    for (m, n, k) in [(2048, 1920, 128), (1024, 1024, 1024)] {
        let (a, b, mut c) = (values(m * k), values(k * n), vec![0.0; m * n]);
        report(&format!("nn {m}x{n}x{k}"), "GFLOP/s", &peaks, 2.0 * (m * n * k) as f64, nothing, &mut |team| {
            product_nn(team, m, n, k, -1.0, &a, k, &b, n, &mut c, n);
        });
    }
    for (n, tokens) in [(2048, 512), (2048, 4096), (5632, 512), (5632, 2048)] {
        let (x, mut h) = (values(tokens * n), vec![0.0; n * n]);
        // Half of the square is computed.
        report(
            &format!("gram n={n} tokens={tokens}"),
            "GFLOP/s",
            &peaks,
            (n * (n + 1) * tokens) as f64,
            nothing,
            &mut |team| {
                gram_add(team, n, tokens, &x, n, &mut h);
            },
        );
    }
    let (n, k) = (2048, 5632);
    let w = values(n * k);
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        // Several in turn, and the caches emptied in between.
        let kernels: Vec<_> = (0..4)
            .filter_map(|_| Tensor::from_f32(dtype, &[n, k], &w).ok())
            .map(|t| choose(vec![Arc::new(QuantizedLinear::uniform(Storage::Dense(t), None))], Arithmetic::Exact))
            .collect();
        linear(&report, &reads, evict, &format!("linear {}", dtype.name()), n, k, &kernels);
    }
    for (bits, group) in [(4, Group::Columns(32)), (4, Group::Columns(128)), (8, Group::Columns(128)), (8, Group::Row)]
    {
        for arithmetic in [Arithmetic::Fast, Arithmetic::Exact] {
            let kernels: Vec<_> = (0..8).map(|_| choose(vec![Arc::new(int(n, k, bits, group))], arithmetic)).collect();
            linear(&report, &reads, evict, &format!("linear int{bits} group {group} {arithmetic:?}"), n, k, &kernels);
        }
    }
    let kernel = choose(vec![Arc::new(int(n, k, 4, Group::Columns(128)))], Arithmetic::Fast);
    for tokens in [4, 8, 12, 16, 24, 32, 512] {
        let (x, mut y) = (values(tokens * k), vec![0.0; tokens * n]);
        let work = 2.0 * (tokens * n * k) as f64;
        report(&format!("linear int4 group 128 Fast, {tokens} tokens"), "Gop/s", &peaks, work, nothing, &mut |team| {
            kernel.run(team, tokens, &x, &mut [&mut y]);
        });
    }
}

type Report<'a> = dyn Fn(&str, &str, &[Clocks; 2], f64, &dyn Fn(), &mut dyn FnMut(&Team)) + 'a;

fn linear(
    report: &Report<'_>,
    reads: &[Clocks; 2],
    evict: &dyn Fn(),
    name: &str,
    n: usize,
    k: usize,
    kernels: &[Box<dyn fewbit_kernel::linear::Kernel>],
) {
    let (x, mut y) = (values(k), vec![0.0; n]);
    let bytes: usize = kernels.iter().map(|k| k.bytes()).sum();
    let name = format!("{name} ({})", kernels[0].name());
    report(&name, "GB/s", reads, bytes as f64, evict, &mut |team| {
        for kernel in kernels {
            kernel.run(team, 1, &x, &mut [&mut y]);
        }
    });
}

fn int(rows: usize, cols: usize, bits: u8, group: Group) -> QuantizedLinear {
    let grid = IntGrid { bits, group, symmetric: false, scale: ScaleType::F16 };
    let codes: Vec<u8> = (0..rows * cols).map(|i| ((i * 7 % 251) & ((1 << bits) - 1)) as u8).collect();
    let groups = rows * (cols / group.width(cols));
    let made = IntCodes::new(rows, cols, grid, &codes, vec![0.5; groups], Zeros::Codes(vec![7; groups]));
    QuantizedLinear::uniform(Storage::Int(made.expect("sizes fit")), None)
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 37 % 101) as f32 / 64.0 - 0.75).collect()
}

/// Bytes a second of whole passes over the memory, in the fastest way.
fn read_bandwidth(team: &Team, memory: &Memory) -> Clocks {
    let scheme = memory.best_scheme(team);
    let seconds = best_seconds(team, AT_LEAST, || (), || _ = memory.read(team, scheme));
    seconds.map(|s| memory.bytes() as f64 / s)
}
