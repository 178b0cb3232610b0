//! Speed of the products and the linear kernels beside the machine's own limits, all in one run: read the shares.
//!
//! `cargo bench -p fewbit-kernel --bench product [-- [LEVEL] [PART OF A NAME]]`, with `LEVEL` one of
//! `scalar`, `avx2`, `avx512`.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use fewbit_format::{Dtype, Group, IntCodes, IntGrid, QuantizedLinear, ScaleType, Storage, Tensor, Zeros};
use fewbit_kernel::linear::{Arithmetic, choose};
use fewbit_kernel::product::{Weights, gram_add, product_nn, product_nt};
use fewbit_kernel::{Level, Team, cpu};

fn main() {
    if let Some(level) = std::env::args().find_map(|a| Level::named(&a)) {
        cpu::limit(level);
    }
    let teams = [Team::new(1), Team::new(2)];
    println!("level {}", cpu::detect().name());
    let peaks = teams.each_ref().map(fma_peak);
    let reads = teams.each_ref().map(read_bandwidth);
    for (i, team) in teams.iter().enumerate() {
        println!("{} threads: peak {:.1} GFLOP/s, reads {:.1} GB/s", team.threads(), peaks[i], reads[i]);
    }
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-') && Level::named(a).is_none());
    let report = |what: &str, unit: &str, limits: &[f64; 2], work: f64, run: &mut dyn FnMut(&Team)| {
        if only.as_ref().is_some_and(|o| !what.contains(&**o)) {
            return;
        }
        print!("{what:<44}");
        for (team, limit) in teams.iter().zip(limits) {
            let speed = work / best_seconds(team, || run(team)) / 1e9;
            print!("{speed:8.1} {unit} {:4.0} %", 100.0 * speed / limit);
        }
        println!();
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
            report(&format!("nt {name} {m}x{n}x{k}"), "GFLOP/s", &peaks, flop, &mut |team| {
                product_nt(team, m, n, k, &x, k, weights, &mut y, n, false);
            });
        }
    }
    for (m, n, k) in [(2048, 1920, 128), (1024, 1024, 1024)] {
        let (a, b, mut c) = (values(m * k), values(k * n), vec![0.0; m * n]);
        report(&format!("nn {m}x{n}x{k}"), "GFLOP/s", &peaks, 2.0 * (m * n * k) as f64, &mut |team| {
            product_nn(team, m, n, k, -1.0, &a, k, &b, n, &mut c, n);
        });
    }
    for (n, tokens) in [(2048, 512), (2048, 4096), (5632, 512), (5632, 2048)] {
        let (x, mut h) = (values(tokens * n), vec![0.0; n * n]);
        // Half of the square is computed.
        report(&format!("gram n={n} tokens={tokens}"), "GFLOP/s", &peaks, (n * (n + 1) * tokens) as f64, &mut |team| {
            gram_add(team, n, tokens, &x, n, &mut h);
        });
    }
    let (n, k) = (2048, 5632);
    let w = values(n * k);
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        // Copies in turn, so that none is found in a cache.
        let kernels: Vec<_> = (0..4)
            .filter_map(|_| Tensor::from_f32(dtype, &[n, k], &w).ok())
            .map(|t| choose(vec![Arc::new(QuantizedLinear::uniform(Storage::Dense(t), None))], Arithmetic::Exact))
            .collect();
        linear(&report, &reads, &format!("linear {}", dtype.name()), n, k, &kernels);
    }
    for (bits, group) in [(4, Group::Columns(32)), (4, Group::Columns(128)), (8, Group::Columns(128)), (8, Group::Row)]
    {
        for arithmetic in [Arithmetic::Fast, Arithmetic::Exact] {
            let kernels: Vec<_> = (0..8).map(|_| choose(vec![Arc::new(int(n, k, bits, group))], arithmetic)).collect();
            linear(&report, &reads, &format!("linear int{bits} group {group} {arithmetic:?}"), n, k, &kernels);
        }
    }
    let kernel = choose(vec![Arc::new(int(n, k, 4, Group::Columns(128)))], Arithmetic::Fast);
    for tokens in [4, 8, 32, 512] {
        let (x, mut y) = (values(tokens * k), vec![0.0; tokens * n]);
        let work = 2.0 * (tokens * n * k) as f64;
        report(&format!("linear int4 group 128 Fast, {tokens} tokens"), "Gop/s", &peaks, work, &mut |team| {
            kernel.run(team, tokens, &x, &mut [&mut y]);
        });
    }
}

type Report<'a> = dyn Fn(&str, &str, &[f64; 2], f64, &mut dyn FnMut(&Team)) + 'a;

fn linear(
    report: &Report<'_>,
    reads: &[f64; 2],
    name: &str,
    n: usize,
    k: usize,
    kernels: &[Box<dyn fewbit_kernel::linear::Kernel>],
) {
    let (x, mut y) = (values(k), vec![0.0; n]);
    let bytes: usize = kernels.iter().map(|k| k.bytes()).sum();
    let name = format!("{name} ({})", kernels[0].name());
    report(&name, "GB/s", reads, bytes as f64, &mut |team| {
        for kernel in kernels {
            kernel.run(team, 1, &x, &mut [&mut y]);
        }
    });
}

fn int(rows: usize, cols: usize, bits: u8, group: Group) -> QuantizedLinear {
    let grid = IntGrid { bits, group, symmetric: false, scale: ScaleType::F16 };
    let codes: Vec<u8> = (0..rows * cols).map(|i| (i * 7 % 251 & ((1 << bits) - 1)) as u8).collect();
    let groups = rows * (cols / group.width(cols));
    let made = IntCodes::new(rows, cols, grid, &codes, vec![0.5; groups], Zeros::Codes(vec![7; groups]));
    QuantizedLinear::uniform(Storage::Int(made.expect("sizes fit")), None)
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 37 % 101) as f32 / 64.0 - 0.75).collect()
}

/// The best of several runs: others use the machine too. One thread is timed by the time that it was on the processor.
fn best_seconds(team: &Team, mut run: impl FnMut()) -> f64 {
    let (begun, mut best) = (Instant::now(), f64::INFINITY);
    for i in 0.. {
        let at = seconds(team.threads() == 1);
        run();
        best = best.min(seconds(team.threads() == 1) - at);
        if i >= 4 && begun.elapsed().as_millis() > 400 {
            break;
        }
    }
    best
}

#[cfg(target_os = "linux")]
fn seconds(of_this_thread: bool) -> f64 {
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    const MONOTONIC: i32 = 1;
    const THREAD_CPUTIME: i32 = 3;
    let mut time = [0; 2];
    // SAFETY: the C library's function; on 64-bit Linux its struct is two 64-bit numbers.
    unsafe { clock_gettime(if of_this_thread { THREAD_CPUTIME } else { MONOTONIC }, &mut time) };
    time[0] as f64 + time[1] as f64 * 1e-9
}

#[cfg(not(target_os = "linux"))]
fn seconds(_: bool) -> f64 {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BEGUN.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// Multiply-adds on registers.
fn fma_peak(team: &Team) -> f64 {
    const STEPS: usize = 20_000;
    let flop = std::sync::atomic::AtomicUsize::new(0);
    let seconds = best_seconds(team, || {
        flop.store(0, std::sync::atomic::Ordering::Relaxed);
        team.run(8 * team.threads(), &|_| {
            flop.fetch_add(fma(STEPS), std::sync::atomic::Ordering::Relaxed);
        });
    });
    flop.into_inner() as f64 / seconds / 1e9
}

#[cfg(target_arch = "x86_64")]
fn fma(steps: usize) -> usize {
    use std::arch::x86_64::*;
    #[target_feature(enable = "avx512f")]
    fn wide(steps: usize) -> usize {
        let mut sums = [_mm512_set1_ps(1.0); 16];
        let (a, b) = (_mm512_set1_ps(black_box(1.0)), _mm512_set1_ps(black_box(1e-9)));
        for _ in 0..steps {
            sums.iter_mut().for_each(|s| *s = _mm512_fmadd_ps(*s, a, b));
        }
        black_box(sums);
        16 * 16 * 2 * steps
    }
    #[target_feature(enable = "avx2,fma")]
    fn narrow(steps: usize) -> usize {
        let mut sums = [_mm256_set1_ps(1.0); 12];
        let (a, b) = (_mm256_set1_ps(black_box(1.0)), _mm256_set1_ps(black_box(1e-9)));
        for _ in 0..steps {
            sums.iter_mut().for_each(|s| *s = _mm256_fmadd_ps(*s, a, b));
        }
        black_box(sums);
        12 * 8 * 2 * steps
    }
    match cpu::detect() {
        // SAFETY: the machine has it.
        Level::Avx512 => unsafe { wide(steps) },
        // SAFETY: as above.
        Level::Avx2 => unsafe { narrow(steps) },
        Level::Scalar => plain(steps),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn fma(steps: usize) -> usize {
    plain(steps)
}

fn plain(steps: usize) -> usize {
    let (mut sums, a, b) = ([1.0f32; 32], black_box(1.0f32), black_box(1e-9f32));
    for _ in 0..steps {
        sums.iter_mut().for_each(|s| *s = *s * a + b);
    }
    black_box(sums);
    32 * 2 * steps
}

/// Sums over 512 MiB, 64 MiB in turn, so that none is found in a cache.
fn read_bandwidth(team: &Team) -> f64 {
    const PIECE: usize = 1 << 13;
    const PART: usize = 8 << 20;
    let data = vec![1u64; 64 << 20];
    let mut part = 0;
    let seconds = best_seconds(team, || {
        part = (part + PART) % data.len();
        team.run(PART / PIECE, &|i| {
            let piece = &data[part + i * PIECE..part + (i + 1) * PIECE];
            let mut sums = [0u64; 32];
            for line in piece.as_chunks::<32>().0 {
                sums.iter_mut().zip(line).for_each(|(s, v)| *s += v);
            }
            black_box(sums);
        });
    });
    (PART * 8) as f64 / seconds / 1e9
}
