//! Orthonormal Hadamard matrices and the fast product with them.
//!
//! `H = (K ⊗ S) / √n` with Sylvester's `S` of order `2^k` and a small `K` where `n` is not a power of two. Rows are
//! multiplied from the left: `x ← x H`. Activations and rows of weights take the same product, so that
//! `(x H)(w H)ᵀ = x wᵀ`. Sums run in an order that the order of the matrix fixes: a row gives the same bits alone, in a
//! batch, with any number of threads, and at every instruction set.

mod construction;
mod transform;

use crate::Team;
use construction::{LARGEST, reaches, signs_of_order};

/// Values that one task rotates: enough for a task to be worth its start.
const TASK_VALUES: usize = 1 << 14;

/// An orthonormal Hadamard matrix `H [n, n]` in factored form.
///
/// Orders: every power of two, and every `m · 2^j` that has a factor of the orders in which Paley (1933) over primes,
/// their squares and cubes, or Williamson (1944) give a matrix, at most 1024: all multiples of four below 188, and of
/// what models have, 11008 = 172 · 64, 13824 = 108 · 128, 14336 = 28 · 512, 18944 = 148 · 128, 8960 = 140 · 64.
/// The matrix of an order never changes: checkpoints depend on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Hadamard {
    /// Order of `S`.
    power: usize,
    /// Order of `K`.
    small: usize,
    /// `K [small, small]`.
    k: Vec<f32>,
    /// `Kᵀ`.
    k_transposed: Vec<f32>,
}

impl Hadamard {
    /// The matrix of order `n`, if one is known.
    pub fn of_order(n: usize) -> Option<Self> {
        let small = small_order(n)?;
        let k = signs_of_order(small)?;
        let k_transposed = (0..small * small).map(|at| k[at % small * small + at / small]).collect();
        Some(Self { power: n / small, small, k, k_transposed })
    }

    /// The matrix of the greatest order that divides `width` and is known, for a rotation of rows of that width in blocks.
    pub fn of_greatest_order(width: usize) -> Self {
        let known = (1..=width).filter(|c| width.is_multiple_of(*c)).find_map(|c| Self::of_order(width / c));
        known.unwrap_or(Self { power: 1, small: 1, k: vec![1.0], k_transposed: vec![1.0] })
    }

    /// `n`.
    pub fn order(&self) -> usize {
        self.power * self.small
    }

    /// `x ← x D H` for each block of `n` values, `D` the diagonal of `signs` (±1), or one where there are none.
    ///
    /// `values` holds rows of whole blocks; `signs` those of a row, or of a block that all share, and is repeated.
    pub fn rotate(&self, values: &mut [f32], signs: &[f32]) {
        self.check(values, signs);
        transform::multiply(values, signs);
        self.multiply(values, &self.k);
    }

    /// `x ← x Hᵀ D`: undoes [`rotate`](Self::rotate).
    pub fn rotate_back(&self, values: &mut [f32], signs: &[f32]) {
        self.check(values, signs);
        self.multiply(values, &self.k_transposed);
        transform::multiply(values, signs);
    }

    /// [`rotate`](Self::rotate) of many rows, shared out over the team.
    pub fn rotate_all(&self, team: &Team, values: &mut [f32], signs: &[f32]) {
        self.check(values, signs);
        team.for_pieces(values, self.piece(signs), &|_, piece| self.rotate(piece, signs));
    }

    /// [`rotate_back`](Self::rotate_back) of many rows, shared out over the team.
    pub fn rotate_back_all(&self, team: &Team, values: &mut [f32], signs: &[f32]) {
        self.check(values, signs);
        team.for_pieces(values, self.piece(signs), &|_, piece| self.rotate_back(piece, signs));
    }

    fn piece(&self, signs: &[f32]) -> usize {
        let row = self.order().max(signs.len());
        (TASK_VALUES / row).max(1) * row
    }

    fn check(&self, values: &[f32], signs: &[f32]) {
        let n = self.order();
        assert!(signs.len().is_multiple_of(n), "{} signs for blocks of {n}", signs.len());
        assert!(values.len().is_multiple_of(n.max(signs.len())), "rows of whole blocks of {n} in {}", values.len());
    }

    fn multiply(&self, values: &mut [f32], k: &[f32]) {
        transform::sylvester(values, self.power);
        if self.small > 1 {
            transform::mix(values, self.power, self.small, k, &mut vec![0.0; self.small * 16]);
        }
        transform::scale(values, (1.0 / (self.order() as f64).sqrt()) as f32);
    }
}

/// Order of the least `K` with `n = K · 2^k`, if there is one.
fn small_order(n: usize) -> Option<usize> {
    if n == 0 {
        return None;
    }
    let (odd, twos) = (n >> n.trailing_zeros(), n.trailing_zeros());
    (0..=twos).map(|j| odd << j).take_while(|&small| small <= LARGEST).find(|&small| reaches(small))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37).sin() * 3.0 + 0.2).collect()
    }

    /// `H`, row by row, from its definition.
    fn dense(h: &Hadamard) -> Vec<f64> {
        let n = h.order();
        let entry = |r: usize, c: usize| {
            let common = (r % h.power) & (c % h.power);
            let sylvester = if common.count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            f64::from(h.k[r / h.power * h.small + c / h.power]) * sylvester / (n as f64).sqrt()
        };
        (0..n * n).map(|at| entry(at / n, at % n)).collect()
    }

    const ORDERS: [usize; 22] =
        [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 64, 96, 128, 144, 172, 192, 256, 448, 512, 576, 1536];

    #[test]
    fn the_fast_product_is_the_product_at_every_level() {
        for n in ORDERS {
            let h = Hadamard::of_order(n).unwrap();
            let signs: Vec<f32> = (0..n).map(|i| if i * i % 7 < 3 { 1.0 } else { -1.0 }).collect();
            let (x, matrix) = (wave(3 * n), dense(&h));
            let bits = std::cell::OnceCell::new();
            at_every_level(|level| {
                let mut y = x.clone();
                h.rotate(&mut y, &signs);
                for (i, y) in y.iter().enumerate() {
                    let row = &x[i / n * n..];
                    let want: f64 = (0..n).map(|r| f64::from(row[r] * signs[r]) * matrix[r * n + i % n]).sum();
                    assert!((f64::from(*y) - want).abs() < 2e-5, "{level:?} order {n} at {i}: {y} for {want}");
                }
                assert_eq!(bits.get_or_init(|| y.clone()), &y, "{level:?} order {n}: other bits");
                h.rotate_back(&mut y, &signs);
                assert!(y.iter().zip(&x).all(|(y, x)| (y - x).abs() < 1e-5), "{level:?} order {n} does not come back");
            });
        }
    }

    #[test]
    fn a_row_alone_and_a_team_give_the_same_bits() {
        for n in [8, 12, 172, 512, 576] {
            let h = Hadamard::of_order(n).unwrap();
            let signs: Vec<f32> = (0..2 * n).map(|i| if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
            let x = wave(2 * n * 61);
            let mut all = x.clone();
            h.rotate_all(&Team::new(3), &mut all, &signs);
            let mut one = x;
            one.chunks_exact_mut(2 * n).for_each(|row| h.rotate(row, &signs));
            assert_eq!(all, one, "order {n}");
            h.rotate_back_all(&Team::new(2), &mut all, &signs);
            one.chunks_exact_mut(2 * n).for_each(|row| h.rotate_back(row, &signs));
            assert_eq!(all, one, "order {n}");
        }
    }

    #[test]
    fn an_outlier_is_spread_over_all_channels() {
        let n = 4096;
        let mut x: Vec<f32> = wave(n).iter().map(|v| v / 3.0).collect();
        x[17] = 80.0;
        Hadamard::of_order(n).unwrap().rotate(&mut x, &[]);
        let rms = (x.iter().map(|v| v * v).sum::<f32>() / n as f32).sqrt();
        let peak = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(peak / rms < 40.0 && rms > 0.5, "{peak} at {rms}");
    }

    #[test]
    fn orders_of_models_are_known_and_others_fall_apart_in_blocks() {
        for n in [576, 1536, 896, 4864, 3072, 8192, 5632, 11008, 13824, 14336, 28672, 18944, 8960, 27648, 5120] {
            assert!(Hadamard::of_order(n).is_some(), "{n}");
            assert_eq!(Hadamard::of_greatest_order(n).order(), n);
        }
        assert!(
            Hadamard::of_order(0).is_none() && Hadamard::of_order(6).is_none() && Hadamard::of_order(188).is_none()
        );
        assert_eq!(Hadamard::of_greatest_order(188).order(), 4);
        assert_eq!(Hadamard::of_greatest_order(3 * 6).order(), 2);
        assert_eq!(Hadamard::of_greatest_order(0).order(), 1);
    }
}
