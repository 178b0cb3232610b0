//! Random rotations, the same for the same seed.

use std::f64::consts::TAU;

use fewbit_format::Mat;
use fewbit_kernel::Team;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `n` random signs ±1, those of a randomized Hadamard rotation.
pub fn random_signs(seed: u64, n: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| if random.random::<bool>() { 1.0 } else { -1.0 }).collect()
}

/// A random orthogonal matrix `[n, n]`, uniformly distributed, to the precision of f32.
///
/// A product of reflections at random normal vectors, the `k`-th of which leaves the first `k` coordinates alone, and
/// random signs (Stewart 1980, The efficient generation of random orthogonal matrices). Takes `2 n³` operations in f64.
pub fn random_orthogonal(team: &Team, seed: u64, n: usize) -> Mat {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut normal = || normal(&mut || random.random::<f64>());
    let mut mirrors = Vec::new();
    for k in 0..n.saturating_sub(1) {
        let mut mirror: Vec<f64> = (k..n).map(|_| normal()).collect();
        let length = dot(&mirror, &mirror).sqrt();
        // The reflection that takes the first axis to the vector; this sign does not cancel.
        mirror[0] += length.copysign(mirror[0]);
        let factor = (2.0 / dot(&mirror, &mirror)).sqrt();
        mirror.iter_mut().for_each(|v| *v *= factor);
        mirrors.push(mirror);
    }
    let signs: Vec<f64> = (0..n).map(|_| normal().signum()).collect();
    let mut out = Mat::zeros(n, n);
    team.for_pieces(out.data_mut(), n.max(1), &|r, out| {
        let mut row = vec![0.0; n];
        row[r] = signs[r];
        for (k, mirror) in mirrors.iter().enumerate() {
            let along = dot(&row[k..], mirror);
            row[k..].iter_mut().zip(mirror).for_each(|(v, m)| *v -= along * m);
        }
        out.iter_mut().zip(row).for_each(|(out, v)| *out = v as f32);
    });
    out
}

/// A normal number from two uniform ones below 1 (Box and Muller).
pub(crate) fn normal(uniform: &mut dyn FnMut() -> f64) -> f64 {
    // One minus a value below one is not zero.
    let (u, v) = (1.0 - uniform(), uniform());
    (-2.0 * u.ln()).sqrt() * (TAU * v).cos()
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Eight sums in a fixed order, which the compiler keeps in vectors.
    let mut sums = [0.0; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_matrices_are_orthogonal_and_follow_the_seed_alone() {
        for n in [1, 2, 3, 17, 96] {
            let q = random_orthogonal(&Team::new(2), 7, n);
            assert_eq!(q, random_orthogonal(&Team::new(1), 7, n));
            for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let dot: f64 = q.row(i).iter().zip(q.row(j)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-6, "{n}: {i} {j}: {dot}");
            }
        }
        assert_ne!(random_orthogonal(&Team::new(1), 7, 17), random_orthogonal(&Team::new(1), 8, 17));
    }

    #[test]
    fn entries_look_uniform_on_the_sphere() {
        let n = 200;
        let q = random_orthogonal(&Team::new(2), 3, n);
        let mean = q.data().iter().map(|&v| f64::from(v)).sum::<f64>() / (n * n) as f64;
        let fourth = q.data().iter().map(|&v| f64::from(v).powi(4)).sum::<f64>() / (n * n) as f64;
        // A coordinate of a uniform unit vector has the fourth moment 3 / (n (n + 2)).
        assert!(mean.abs() < 3.0 / (n as f64).powf(1.5), "{mean}");
        assert!((fourth * (n * (n + 2)) as f64 - 3.0).abs() < 0.1, "{fourth}");
        let trace: f64 = (0..n).map(|i| f64::from(q[(i, i)])).sum();
        assert!(trace.abs() < 5.0, "{trace}");
    }

    #[test]
    fn signs_are_signs() {
        let signs = random_signs(5, 4096);
        assert_eq!(signs, random_signs(5, 4096));
        assert!(signs.iter().all(|s| s.abs() == 1.0));
        assert!(signs.iter().sum::<f32>().abs() < 256.0);
    }
}
