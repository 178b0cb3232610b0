use fewbit_format::Mat;
use fewbit_kernel::Team;
use fewbit_kernel::hadamard::Hadamard;
use fewbit_kernel::product::{Weights, product_nt};

use crate::{random_orthogonal, random_signs};

/// Rows that are rotated by a matrix at a time: what is held beside the values is bounded.
const ROWS: usize = 1024;

/// An orthogonal matrix `Q [n, n]` as a product of factors that are cheap to apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Orthogonal {
    order: usize,
    factors: Vec<Factor>,
}

#[derive(Clone, Debug, PartialEq)]
enum Factor {
    /// `D H`, `H` in blocks.
    Hadamard { h: Hadamard, signs: Vec<f32> },
    /// `Mᵀ`, to multiply rows by.
    Transposed(Mat),
    /// `I − 2 z zᵀ`.
    Mirror(Vec<f32>),
}

impl Orthogonal {
    /// A Hadamard matrix with random signs of its rows, in blocks where no matrix of order `n` is known.
    pub fn hadamard(n: usize, seed: u64) -> Self {
        Self::blocks(n, Hadamard::of_greatest_order(n), seed)
    }

    /// Hadamard matrices of one order along the diagonal, with random signs of all rows.
    ///
    /// # Panics
    /// If `h`'s order does not divide `n`.
    pub fn blocks(n: usize, h: Hadamard, seed: u64) -> Self {
        assert!(n.is_multiple_of(h.order()), "whole blocks");
        Self { order: n, factors: vec![Factor::Hadamard { h, signs: random_signs(seed, n) }] }
    }

    /// A uniformly random one ([`random_orthogonal`]).
    pub fn random(team: &Team, n: usize, seed: u64) -> Self {
        Self::dense(random_orthogonal(team, seed, n).transposed())
    }

    /// `transposed` is `Qᵀ`.
    fn dense(transposed: Mat) -> Self {
        Self { order: transposed.rows(), factors: vec![Factor::Transposed(transposed)] }
    }

    /// The matrix followed by one reflection, after which `1ᵀ Q = 1ᵀ`: norms that subtract the mean commute with it.
    pub fn keeping_ones(mut self, team: &Team) -> Self {
        let mut ones = vec![1.0; self.order];
        self.rotate_rows(team, &mut ones);
        let mut mirror: Vec<f64> = ones.iter().map(|w| f64::from(*w) - 1.0).collect();
        let length = mirror.iter().map(|z| z * z).sum::<f64>().sqrt();
        // Where the ones stay already, there is nothing to reflect.
        if length > 1e-6 * (self.order as f64).sqrt() {
            mirror.iter_mut().for_each(|z| *z /= length);
            self.factors.push(Factor::Mirror(mirror.iter().map(|z| *z as f32).collect()));
        }
        self
    }

    /// `n`.
    pub fn order(&self) -> usize {
        self.order
    }

    /// `x ← x Q` for each row of `n` values.
    pub fn rotate_rows(&self, team: &Team, values: &mut [f32]) {
        let n = self.order;
        for factor in &self.factors {
            match factor {
                Factor::Hadamard { h, signs } => h.rotate_all(team, values, signs),
                Factor::Transposed(m) => {
                    for rows in values.chunks_mut(ROWS * n.max(1)) {
                        let (old, count) = (rows.to_vec(), rows.len() / n);
                        product_nt(team, count, n, n, &old, n, Weights::F32(m.data()), rows, n, false);
                    }
                }
                Factor::Mirror(z) => team.for_pieces(values, n, &|_, row| {
                    let along: f64 = row.iter().zip(z).map(|(v, z)| f64::from(*v) * f64::from(*z)).sum();
                    let by = (2.0 * along) as f32;
                    row.iter_mut().zip(z).for_each(|(v, z)| *v -= by * z);
                }),
            }
        }
    }

    /// `W ← W Q`: what reads the rotated rows.
    pub fn rotate_inputs(&self, team: &Team, w: &mut Mat) {
        self.rotate_rows(team, w.data_mut());
    }

    /// `W ← Qᵀ W`: what makes them.
    pub fn rotate_outputs(&self, team: &Team, w: &mut Mat) {
        let mut turned = w.transposed();
        self.rotate_rows(team, turned.data_mut());
        *w = turned.transposed();
    }

    /// `Q` itself.
    pub fn matrix(&self, team: &Team) -> Mat {
        let mut q = Mat::from_fn(self.order, self.order, |r, c| f32::from(u8::from(r == c)));
        self.rotate_rows(team, q.data_mut());
        q
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_are_orthogonal_and_keep_ones_where_asked() {
        let team = Team::new(2);
        for n in [1, 2, 12, 64, 172, 188] {
            let plain = [Orthogonal::hadamard(n, 3), Orthogonal::random(&team, n, 3)];
            for keeps in [false, true] {
                for q in plain.clone() {
                    let q = if keeps { q.keeping_ones(&team) } else { q };
                    let m = q.matrix(&team);
                    for i in 0..n {
                        let j = (i * 7 + 3) % n;
                        let dot: f64 = m.row(i).iter().zip(m.row(j)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        assert!((dot - f64::from(u8::from(i == j))).abs() < 2e-6, "{n}: {i} {j}: {dot}");
                        let column: f64 = (0..n).map(|r| f64::from(m[(r, i)])).sum();
                        assert!(!keeps || (column - 1.0).abs() < 1e-5, "{n}: {column} is no one");
                    }
                }
            }
        }
    }

    #[test]
    fn what_makes_and_what_reads_cancel() {
        let team = Team::new(1);
        let value = |i: usize| (i as f32 * 0.61).sin();
        let (make, read) = (Mat::from_fn(24, 5, |r, c| value(5 * r + c)), Mat::from_fn(3, 24, |r, c| value(r + 7 * c)));
        let both =
            |make: &Mat, read: &Mat, r: usize, c: usize| -> f32 { (0..24).map(|k| read[(r, k)] * make[(k, c)]).sum() };
        for q in [Orthogonal::hadamard(24, 1), Orthogonal::random(&team, 24, 1).keeping_ones(&team)] {
            let (mut made, mut reads) = (make.clone(), read.clone());
            q.rotate_outputs(&team, &mut made);
            q.rotate_inputs(&team, &mut reads);
            for (r, c) in (0..3).flat_map(|r| (0..5).map(move |c| (r, c))) {
                assert!((both(&made, &reads, r, c) - both(&make, &read, r, c)).abs() < 1e-5);
            }
            assert!(made != make && reads != read);
        }
    }

    /// QuaRot's reason: 4 bits per token lose what stands beside an outlier, and little of a rotated token.
    #[test]
    fn four_bits_hold_a_rotated_token_with_an_outlier() {
        let (team, n) = (Team::new(1), 2304);
        // Rows of a random rotation are Gaussian for all that matters here.
        let mut x = random_orthogonal(&team, 11, 256).into_vec();
        x.truncate(16 * n);
        x.iter_mut().for_each(|v| *v *= 16.0);
        x.chunks_mut(n).for_each(|token| token[700] = 80.0);
        let relative_error = |x: &[f32]| {
            let (mut lost, mut all, mut peak_to_rms) = (0.0, 0.0, 0.0f32);
            for token in x.chunks_exact(n) {
                let scale = token.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 7.0;
                let energy: f32 = token.iter().map(|v| v * v).sum();
                lost += token.iter().map(|v| (v - scale * (v / scale).round()).powi(2)).sum::<f32>();
                all += energy;
                peak_to_rms = peak_to_rms.max(7.0 * scale / (energy / n as f32).sqrt());
            }
            (lost / all, peak_to_rms)
        };
        let (before, _) = relative_error(&x);
        Orthogonal::hadamard(n, 1).rotate_rows(&team, &mut x);
        let (after, peak_to_rms) = relative_error(&x);
        assert!(before > 0.25 && after < 0.016 && peak_to_rms < 4.0, "{before} became {after}, peak {peak_to_rms}");
    }
}
