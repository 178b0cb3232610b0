use std::hint::black_box;
use std::time::Duration;

use super::{Clocks, best_seconds};
#[cfg(target_arch = "x86_64")]
use crate::vnni::has_vex;
use crate::{Level, Team, cpu};

/// Rounds of one task.
const STEPS: usize = 20_000;
/// Time for one measurement.
const AT_LEAST: Duration = Duration::from_millis(100);

/// What some rounds on registers came to: operations (a multiply-add is two), and the sum of all lanes.
#[derive(Debug, PartialEq)]
struct Done<T> {
    operations: usize,
    sum: T,
}

/// f32 operations a second: fused multiply-adds on registers, two operations each, at the level of [`cpu::detect`].
pub fn f32_peak(team: &Team) -> Clocks {
    peak(team, || black_box(multiply_add(cpu::detect(), black_box(1e-9), STEPS)).operations)
}

/// 8-bit integer operations a second: products of bytes summed in 32 bits, two operations each, at the level of
/// [`cpu::detect`]: `vpdpbusd`, on AVX2 `vpmaddubsw`, `vpmaddwd` and `vpaddd`.
pub fn int8_peak(team: &Team) -> Clocks {
    peak(team, || black_box(multiply_bytes(cpu::detect(), black_box(1), STEPS)).operations)
}

/// Operations a second of tasks that return how many they did.
fn peak(team: &Team, task: impl Fn() -> usize + Sync) -> Clocks {
    let tasks = 8 * team.threads();
    let operations = (tasks * task()) as f64;
    let run = || {
        team.run(tasks, &|_| {
            task();
        });
    };
    best_seconds(team, AT_LEAST, || (), run).map(|s| operations / s)
}

/// Lanes that begin at 1 and in each round become themselves times 1, plus `step`.
fn multiply_add(level: Level, step: f32, steps: usize) -> Done<f32> {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is what the machine has, or less.
        Level::Avx512 => unsafe { x86::multiply_add_avx512(step, steps) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 | Level::AvxVnni => unsafe { x86::multiply_add_avx2(step, steps) },
        _ => {
            let (mut lanes, one) = ([1.0f32; 32], black_box(1.0));
            for _ in 0..steps {
                lanes.iter_mut().for_each(|s| *s = *s * one + step);
            }
            Done { operations: 32 * 2 * steps, sum: lanes.iter().sum() }
        }
    }
}

/// Lanes of 32 bits that begin at 1 and in each round grow by their four bytes times `weight`: so nothing can be
/// computed ahead of the rounds.
fn multiply_bytes(level: Level, weight: i8, steps: usize) -> Done<i32> {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is what the machine has, or less.
        Level::Avx512 => unsafe { x86::multiply_bytes_avx512(weight, steps) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::AvxVnni if has_vex() => unsafe { x86::multiply_bytes_avx_vnni::<true>(weight, steps) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::AvxVnni => unsafe { x86::multiply_bytes_avx_vnni::<false>(weight, steps) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { x86::multiply_bytes_avx2(weight, steps) },
        _ => {
            let mut lanes = [1i32; 32];
            for _ in 0..steps {
                for lane in &mut lanes {
                    let bytes = lane.to_le_bytes();
                    let products = bytes.map(|b| i32::from(b) * i32::from(weight));
                    *lane = lane.wrapping_add(products.iter().sum());
                }
            }
            Done { operations: 32 * 8 * steps, sum: lanes.iter().fold(0, |s, l| s.wrapping_add(*l)) }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics bear their own prefix"))]
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::Done;
    use crate::vnni::dot_bytes;

    /// Sums that are under way at once: latency times instructions a cycle, at least.
    const WIDE: usize = 16;
    /// The same, where there are sixteen registers in all.
    const NARROW: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub(super) fn multiply_add_avx512(step: f32, steps: usize) -> Done<f32> {
        let mut lanes = [_mm512_set1_ps(1.0); WIDE];
        let (one, step) = (_mm512_set1_ps(black_box(1.0)), _mm512_set1_ps(step));
        for _ in 0..steps {
            for s in &mut lanes {
                *s = _mm512_fmadd_ps(*s, one, step);
            }
        }
        let sum = lanes.iter().map(|s| _mm512_reduce_add_ps(*s)).sum();
        Done { operations: WIDE * 16 * 2 * steps, sum }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn multiply_add_avx2(step: f32, steps: usize) -> Done<f32> {
        let mut lanes = [_mm256_set1_ps(1.0); NARROW];
        let (one, step) = (_mm256_set1_ps(black_box(1.0)), _mm256_set1_ps(step));
        for _ in 0..steps {
            for s in &mut lanes {
                *s = _mm256_fmadd_ps(*s, one, step);
            }
        }
        let mut sums = [[0f32; 8]; NARROW];
        for (to, s) in sums.iter_mut().zip(lanes) {
            // SAFETY: eight floats.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), s) };
        }
        Done { operations: NARROW * 8 * 2 * steps, sum: sums.as_flattened().iter().sum() }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn multiply_bytes_avx512(weight: i8, steps: usize) -> Done<i32> {
        let mut lanes = [_mm512_set1_epi32(1); WIDE];
        let weight = _mm512_set1_epi8(weight);
        for _ in 0..steps {
            for s in &mut lanes {
                *s = _mm512_dpbusd_epi32(*s, *s, weight);
            }
        }
        let sum = lanes.iter().fold(0i32, |sum, s| sum.wrapping_add(_mm512_reduce_add_epi32(*s)));
        Done { operations: WIDE * 64 * 2 * steps, sum }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn multiply_bytes_avx2(weight: i8, steps: usize) -> Done<i32> {
        let (weight, ones) = (_mm256_set1_epi8(weight), _mm256_set1_epi16(1));
        // Closures take the features of this function.
        let round = |s| _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(s, weight), ones));
        rounds(steps, round)
    }

    /// # Safety
    /// As [`dot_bytes`].
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn multiply_bytes_avx_vnni<const VEX: bool>(weight: i8, steps: usize) -> Done<i32> {
        let weight = _mm256_set1_epi8(weight);
        // SAFETY: promised by the caller.
        rounds(steps, |s| unsafe { dot_bytes::<VEX>(s, s, weight) })
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn rounds(steps: usize, round: impl Fn(__m256i) -> __m256i) -> Done<i32> {
        let mut lanes = [_mm256_set1_epi32(1); NARROW];
        for _ in 0..steps {
            for s in &mut lanes {
                *s = round(*s);
            }
        }
        let mut sums = [[0i32; 8]; NARROW];
        for (to, s) in sums.iter_mut().zip(lanes) {
            // SAFETY: eight numbers of 32 bits.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), s) };
        }
        let sum = sums.as_flattened().iter().fold(0i32, |sum, s| sum.wrapping_add(*s));
        Done { operations: NARROW * 32 * 2 * steps, sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every level does the rounds that it counts: equal lanes, so that sums are to each other as operations are.
    #[test]
    fn every_level_computes_what_the_plain_loop_does() {
        for steps in [0, 1, 7, 1000] {
            let floats = multiply_add(Level::Scalar, 0.25, steps);
            let lane = floats.sum / 32.0;
            assert_eq!(lane, 1.0 + 0.25 * steps as f32);
            let bytes = multiply_bytes(Level::Scalar, 3, steps).sum;
            let one =
                (0..steps).fold(1i32, |s, _| s.wrapping_add(s.to_le_bytes().iter().map(|b| 3 * i32::from(*b)).sum()));
            assert_eq!(bytes, one.wrapping_mul(32));
            for level in Level::of_machine() {
                let done = multiply_add(level, 0.25, steps);
                let lanes = if steps == 0 { done.sum } else { (done.operations / (2 * steps)) as f32 };
                assert_eq!(done.sum, lanes * lane, "{level:?}");
                let done = multiply_bytes(level, 3, steps);
                let lanes = if steps == 0 { done.sum } else { (done.operations / (8 * steps)) as i32 };
                assert_eq!(done.sum, lanes.wrapping_mul(one), "{level:?}");
            }
        }
    }

    #[test]
    fn peaks_are_positive() {
        for threads in [1, 2] {
            let team = Team::new(threads);
            assert!(f32_peak(&team).wall > 0.0 && int8_peak(&team).wall > 0.0);
        }
    }
}
