//! Small Hadamard matrices, built rather than stored.

/// The orders that [`signs_of_order`] is asked for: a table of `order²` signs and `order` sums per value bound them.
pub(super) const LARGEST: usize = 1024;

/// A Hadamard matrix `[order, order]` of entries ±1 row by row, or `None` where no construction here reaches the order.
///
/// Orders: 1; `q + 1` for a prime power `q ≡ 3 (mod 4)` (Paley I); `2 (q + 1)` for one `≡ 1 (mod 4)` (Paley II), `q` at
/// most a cube; 92, 116, 156 and 172 (Williamson 1944; sequences of Baumert, Golomb and Hall). With the powers of two
/// that Sylvester's doubling adds, every multiple of four up to 184 is reached, and 188 is the first that is not.
pub(super) fn signs_of_order(order: usize) -> Option<Vec<f32>> {
    match kind(order)? {
        Kind::One => Some(vec![1.0]),
        Kind::PaleyOne(field) => Some(paley_one(&field)),
        Kind::PaleyTwo(field) => Some(paley_two(&field)),
        Kind::Williamson(n, sequences) => Some(williamson(n, sequences)),
    }
}

/// Whether [`signs_of_order`] has a matrix.
pub(super) fn reaches(order: usize) -> bool {
    kind(order).is_some()
}

enum Kind {
    One,
    PaleyOne(Field),
    PaleyTwo(Field),
    Williamson(usize, [u64; 4]),
}

fn kind(order: usize) -> Option<Kind> {
    if order == 1 {
        return Some(Kind::One);
    }
    if order > LARGEST || !order.is_multiple_of(4) {
        return None;
    }
    if let Some(field) = Field::of_order(order - 1) {
        return Some(Kind::PaleyOne(field));
    }
    if let Some(field) = Field::of_order(order / 2 - 1).filter(|f| f.order() % 4 == 1) {
        return Some(Kind::PaleyTwo(field));
    }
    SEQUENCES.into_iter().find(|(n, _)| 4 * n == order).map(|(n, sequences)| Kind::Williamson(n, sequences))
}

/// Four symmetric sequences of ±1 whose power spectra add up to `4 n` everywhere; bit `i` set for `+1` at `i`.
const SEQUENCES: [(usize, [u64; 4]); 4] = [
    (23, [0x6e_8177, 0x63_5ac7, 0x36_7e6d, 0x44_5a23]),
    (29, [0x125d_ee93, 0x1da3_f16f, 0x08cb_f4c5, 0x18ca_14c7]),
    (39, [0x65_04c3_20a7, 0x71_30a5_0c8f, 0x66_8a42_5167, 0x0d_41db_82b1]),
    (43, [0x0cf_5d9b_af31, 0x5f8_536c_a1fb, 0x6b2_bd0b_d4d7, 0x47a_4c03_25e3]),
];

/// The field of `p^k` elements: number `i` is the polynomial whose coefficients are the digits of `i` to the base `p`.
struct Field {
    p: usize,
    k: u32,
    /// `x^k` as a polynomial of lower degree.
    power: [usize; 3],
}

impl Field {
    /// The field with `q` elements, `q` odd and at most the cube of a prime.
    fn of_order(q: usize) -> Option<Self> {
        let p = (3..=q).step_by(2).find(|p| q.is_multiple_of(*p))?;
        let k = (1..=3).find(|&k| p.pow(k) == q)?;
        // A polynomial of degree two or three is irreducible where it has no root.
        let power = (0..q)
            .map(|i| digits(i, p))
            .find(|power| k == 1 || (0..p).all(|x| x.pow(k) % p != (power[0] + power[1] * x + power[2] * x * x) % p))?;
        Some(Self { p, k, power: if k == 1 { [0; 3] } else { power } })
    }

    fn order(&self) -> usize {
        self.p.pow(self.k)
    }

    fn minus(&self, a: usize, b: usize) -> usize {
        let (a, b) = (digits(a, self.p), digits(b, self.p));
        self.number(std::array::from_fn(|i| (a[i] + self.p - b[i]) % self.p))
    }

    fn square(&self, a: usize) -> usize {
        let (k, p, a) = (self.k as usize, self.p, digits(a, self.p));
        let mut product = [0; 5];
        for i in 0..k {
            for j in 0..k {
                product[i + j] += a[i] * a[j];
            }
        }
        for high in (k..2 * k - 1).rev() {
            let factor = product[high] % p;
            for (i, power) in self.power[..k].iter().enumerate() {
                product[high - k + i] += factor * power;
            }
        }
        self.number(std::array::from_fn(|i| if i < k { product[i] % p } else { 0 }))
    }

    fn number(&self, digits: [usize; 3]) -> usize {
        (digits[2] * self.p + digits[1]) * self.p + digits[0]
    }

    /// `χ(i − j)` for all elements, row by row: 0 on the diagonal, 1 where the difference is a square, else −1.
    fn jacobsthal(&self) -> Vec<f32> {
        let q = self.order();
        let mut character = vec![-1.0; q];
        (1..q).for_each(|a| character[self.square(a)] = 1.0);
        character[0] = 0.0;
        (0..q * q).map(|at| character[self.minus(at / q, at % q)]).collect()
    }
}

fn digits(number: usize, base: usize) -> [usize; 3] {
    [number % base, number / base % base, number / base / base]
}

/// `[[0, 1ᵀ], [±1, J]]`.
fn bordered(field: &Field, left: f32) -> Vec<f32> {
    let (q, inner) = (field.order(), field.jacobsthal());
    let mut out = vec![0.0];
    out.extend(std::iter::repeat_n(1.0, q));
    for row in inner.chunks_exact(q) {
        out.push(left);
        out.extend(row);
    }
    out
}

/// `I + [[0, 1ᵀ], [−1, J]]`.
fn paley_one(field: &Field) -> Vec<f32> {
    let mut out = bordered(field, -1.0);
    out.iter_mut().step_by(field.order() + 2).for_each(|v| *v = 1.0);
    out
}

/// `C ⊗ [[1, 1], [1, −1]] + I ⊗ [[1, −1], [−1, −1]]` with `C = [[0, 1ᵀ], [1, J]]`.
fn paley_two(field: &Field) -> Vec<f32> {
    let (half, c) = (field.order() + 1, bordered(field, 1.0));
    let entry = |r: usize, s: usize| {
        let both_odd = r % 2 == 1 && s % 2 == 1;
        if r / 2 == s / 2 {
            if r.is_multiple_of(2) && s.is_multiple_of(2) { 1.0 } else { -1.0 }
        } else {
            c[r / 2 * half + s / 2] * if both_odd { -1.0 } else { 1.0 }
        }
    };
    (0..4 * half * half).map(|at| entry(at / (2 * half), at % (2 * half))).collect()
}

/// `[[A, B, C, D], [−B, A, −D, C], [−C, D, A, −B], [−D, −C, B, A]]` of the circulants of four sequences.
fn williamson(n: usize, sequences: [u64; 4]) -> Vec<f32> {
    const WHICH: [[(usize, f32); 4]; 4] = [
        [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0)],
        [(1, -1.0), (0, 1.0), (3, -1.0), (2, 1.0)],
        [(2, -1.0), (3, 1.0), (0, 1.0), (1, -1.0)],
        [(3, -1.0), (2, -1.0), (1, 1.0), (0, 1.0)],
    ];
    let entry = |r: usize, c: usize| {
        let (which, sign) = WHICH[r / n][c / n];
        if sequences[which] >> ((c % n + n - r % n) % n) & 1 == 1 { sign } else { -sign }
    };
    (0..16 * n * n).map(|at| entry(at / (4 * n), at % (4 * n))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_orthogonal() {
        let reached: Vec<usize> = (1..=260).chain([344, 368, 728, 752]).filter(|&n| reaches(n)).collect();
        for order in [1, 4, 8, 12, 20, 28, 36, 52, 76, 92, 100, 108, 116, 140, 148, 156, 172, 344, 728, 752] {
            assert!(reached.contains(&order), "{order}");
        }
        for order in reached {
            let k = signs_of_order(order).unwrap();
            assert!(k.iter().all(|v| v.abs() == 1.0), "{order}");
            for (i, a) in k.chunks_exact(order).enumerate() {
                // All pairs of a large matrix take long; each row against its next sixteen finds what is wrong.
                for b in k.chunks_exact(order).skip(i + 1).take(16) {
                    let dot: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                    assert_eq!(dot, 0.0, "order {order}, row {i}");
                }
            }
        }
    }

    #[test]
    fn every_multiple_of_four_below_188_is_reached_with_doubling() {
        let with_doubling = |n: usize| (0..8).any(|k| n.is_multiple_of(1 << k) && reaches(n >> k));
        assert!((4..188).step_by(4).all(with_doubling));
        assert!(!with_doubling(188) && !with_doubling(6));
    }
}
