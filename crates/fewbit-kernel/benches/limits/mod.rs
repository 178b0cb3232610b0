//! The machine's limit of arithmetic, and a clock for benchmarks.

use std::hint::black_box;
use std::time::Instant;

use fewbit_kernel::{Level, Team, cpu};

/// By processor time, and by the wall, in 10⁹ a second.
pub(crate) type Speeds = [f64; 2];

/// Best seconds of several runs: on the processors (others use the machine too), divided by the threads; and by the wall.
pub(crate) type Seconds = [f64; 2];

pub(crate) fn best_seconds(team: &Team, mut between: impl FnMut(), mut run: impl FnMut()) -> Seconds {
    let (begun, mut best) = (Instant::now(), [f64::INFINITY; 2]);
    for i in 0.. {
        between();
        let at = clocks();
        run();
        let now = clocks();
        best[0] = best[0].min((now[0] - at[0]) / team.threads() as f64);
        best[1] = best[1].min(now[1] - at[1]);
        if i >= 4 && begun.elapsed().as_millis() > 400 {
            break;
        }
    }
    best
}

/// Processor time of this process, and the wall's.
#[cfg(target_os = "linux")]
fn clocks() -> Seconds {
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    const PROCESS_CPUTIME: i32 = 2;
    const MONOTONIC: i32 = 1;
    [PROCESS_CPUTIME, MONOTONIC].map(|clock| {
        let mut time = [0; 2];
        // SAFETY: the C library's function; on 64-bit Linux its struct is two 64-bit numbers.
        unsafe { clock_gettime(clock, &raw mut time) };
        time[0] as f64 + time[1] as f64 * 1e-9
    })
}

#[cfg(not(target_os = "linux"))]
fn clocks() -> Seconds {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    [BEGUN.get_or_init(Instant::now).elapsed().as_secs_f64(); 2]
}

/// Multiply-adds on registers.
pub(crate) fn fma_peak(team: &Team) -> Speeds {
    const STEPS: usize = 20_000;
    let flop = std::sync::atomic::AtomicUsize::new(0);
    let seconds = best_seconds(
        team,
        || (),
        || {
            flop.store(0, std::sync::atomic::Ordering::Relaxed);
            team.run(8 * team.threads(), &|_| {
                flop.fetch_add(fma(STEPS), std::sync::atomic::Ordering::Relaxed);
            });
        },
    );
    let flop = flop.into_inner() as f64;
    seconds.map(|s| flop / s / 1e9)
}

#[cfg(target_arch = "x86_64")]
fn fma(steps: usize) -> usize {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps};
    #[target_feature(enable = "avx512f")]
    fn wide(steps: usize) -> usize {
        let mut sums = [_mm512_set1_ps(1.0); 16];
        let (a, b) = (_mm512_set1_ps(black_box(1.0)), _mm512_set1_ps(black_box(1e-9)));
        for _ in 0..steps {
            for s in &mut sums {
                *s = _mm512_fmadd_ps(*s, a, b);
            }
        }
        black_box(sums);
        16 * 16 * 2 * steps
    }
    #[target_feature(enable = "avx2,fma")]
    fn narrow(steps: usize) -> usize {
        let mut sums = [_mm256_set1_ps(1.0); 12];
        let (a, b) = (_mm256_set1_ps(black_box(1.0)), _mm256_set1_ps(black_box(1e-9)));
        for _ in 0..steps {
            for s in &mut sums {
                *s = _mm256_fmadd_ps(*s, a, b);
            }
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
        for s in &mut sums {
            *s = *s * a + b;
        }
    }
    black_box(sums);
    32 * 2 * steps
}
