//! Speed of the factorisations beside that of a large matrix product in the same run: read the shares.
//!
//! `cargo bench -p fewbit-linalg --bench factor [-- [LEVEL]]`. The share of the product in the machine's peak is what
//! `cargo bench -p fewbit-kernel --bench product` prints.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::Instant;

use fewbit_format::Mat;
use fewbit_kernel::product::{gram_add, product_nn};
use fewbit_kernel::{Level, Team, cpu};
use fewbit_linalg::{cholesky_in_place, scratch_bytes, upper_inverse_factor};

fn main() {
    if let Some(level) = std::env::args().find_map(|a| Level::named(&a)) {
        cpu::limit(level);
    }
    println!("level {}", cpu::detect().name());
    for threads in [1, 2] {
        let team = Team::new(threads);
        let product = product_speed(&team);
        println!("{threads} threads: product {product:.1} GFLOP/s");
        for n in [512, 2048, 5632] {
            let h = hessian(n);
            let cube = (n as f64).powi(3) / 1e9;
            let repeats = if n > 4096 { 3 } else { 9 };
            let seconds = best_seconds(repeats, &team, &h, |mut h| {
                cholesky_in_place(&team, h.data_mut(), n).expect("positive definite");
            });
            report("cholesky", n, seconds, cube / 3.0, product);
            let seconds = best_seconds(repeats, &team, &h, |h| {
                upper_inverse_factor(&team, h).expect("positive definite");
            });
            report("upper inverse factor", n, seconds, cube * 2.0 / 3.0, product);
            println!("    scratch {:.1} MB beside {:.1} MB", scratch_bytes(n) as f64 / 1e6, (4 * n * n) as f64 / 1e6);
        }
    }
}

fn report(what: &str, n: usize, seconds: f64, gflop: f64, product: f64) {
    let speed = gflop / seconds;
    println!("  {what:<22} {n:5}: {:8.2} ms {speed:6.1} GFLOP/s {:3.0} %", seconds * 1e3, 100.0 * speed / product);
}

/// The shortest of some runs, each on copies of `input`: so many that a clock of a few milliseconds will do.
fn best_seconds(repeats: usize, team: &Team, input: &Mat, mut run: impl FnMut(Mat)) -> f64 {
    let copies = (4096 / input.rows()).pow(2).max(1);
    let mut best = f64::INFINITY;
    for _ in 0..repeats {
        let inputs = vec![input.clone(); copies];
        let begun = Instant::now();
        let at = nanoseconds(begun, team);
        inputs.into_iter().for_each(&mut run);
        best = best.min(nanoseconds(begun, team) - at);
    }
    best / copies as f64 / 1e9
}

/// A clock that stands still while this thread waits for a core, if it works alone and Linux tells.
fn nanoseconds(begun: Instant, team: &Team) -> f64 {
    let on_core = || -> Option<f64> {
        let times = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        times.split(' ').next()?.parse().ok()
    };
    let on_core = if team.threads() == 1 { on_core() } else { None };
    on_core.unwrap_or_else(|| begun.elapsed().as_nanos() as f64)
}

/// GFLOP/s of a square product of 1024.
fn product_speed(team: &Team) -> f64 {
    const N: usize = 1024;
    let a = hessian(N);
    let seconds = best_seconds(15, team, &a, |mut c| {
        product_nn(team, N, N, N, 1.0, a.data(), N, a.data(), N, c.data_mut(), N);
    });
    2.0 * (N as f64).powi(3) / seconds / 1e9
}

/// Second moments of correlated noise, damped: dense, without the subnormal numbers of a matrix that decays.
fn hessian(n: usize) -> Mat {
    let tokens = n / 4;
    let mut state = 1u32;
    let mut x = Mat::from_fn(tokens, n, |_, _| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 - 0.5
    });
    for r in 0..tokens {
        let row = x.row_mut(r);
        for c in 1..n {
            row[c] += 0.8 * row[c - 1];
        }
    }
    let mut h = Mat::zeros(n, n);
    gram_add(&Team::new(1), n, tokens, x.data(), n, h.data_mut());
    let mean = (0..n).map(|i| h[(i, i)]).sum::<f32>() / n as f32;
    (0..n).for_each(|i| h[(i, i)] += 0.01 * mean);
    h
}
