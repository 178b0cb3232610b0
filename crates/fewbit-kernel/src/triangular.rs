//! What factorisations need beside products: small triangles in f64, triangular solves, and the products that only
//! touch an upper triangle.
//!
//! A factor is upper triangular, `A = RᵀR`, so that a panel of it is whole rows of a row-major matrix.

use crate::lanes::{Simd, vectorised};
use crate::product::{Job, Left, Right, multiply};
use crate::team::Disjoint;
use crate::tile::{ROWS, add_product};
use crate::{Team, cpu};

/// Rows of a triangle that is handled at once, at most.
pub const TRIANGLE: usize = 64;

/// `C −= X₁ᵀ X` where row and column meet on or above the diagonal, for the `[rows, cols]` corner `C` of a matrix with
/// rows `ldc` apart; `X [depth, cols]` with rows `ldx` apart, and `X₁` its first `rows` columns.
///
/// Some elements below the diagonal change too, to no meaning.
///
/// # Panics
/// If a slice is shorter than its shape.
pub fn subtract_gram(team: &Team, [rows, cols, depth]: [usize; 3], x: &[f32], ldx: usize, c: &mut [f32], ldc: usize) {
    let job = Job::new(cols, Right::Columns { b: x, ld: ldx }, c, ldc).accumulating(true).upper();
    multiply(team, cpu::detect(), rows, depth, Left { scale: -1.0, ..Left::columns(x, ldx) }, &[job]);
}

/// Turns the upper triangle of the `[n, n]` corner of `a`, rows `ld` apart, into `R` with `A = RᵀR`, in f64.
///
/// A pivot that is not above `floor` of its row fails: its number and value come back.
///
/// # Panics
/// If `n` exceeds [`TRIANGLE`] or a slice is too short.
pub fn factor_triangle(a: &mut [f32], ld: usize, n: usize, floor: &[f64]) -> Result<(), (usize, f64)> {
    assert!(n <= TRIANGLE && floor.len() >= n, "a triangle of {n}");
    let mut w = widened(a, ld, n);
    factor_wide(&mut w, n, floor)?;
    narrowed(&w, a, ld, n);
    Ok(())
}

/// Turns the upper triangle of the `[n, n]` corner of `a`, rows `ld` apart, into its inverse, in f64.
///
/// # Panics
/// If `n` exceeds [`TRIANGLE`] or a slice is too short.
pub fn invert_triangle(a: &mut [f32], ld: usize, n: usize) {
    assert!(n <= TRIANGLE, "a triangle of {n}");
    let mut w = widened(a, ld, n);
    invert_wide(&mut w, n);
    narrowed(&w, a, ld, n);
}

type Wide = [[f64; TRIANGLE]];

fn widened(a: &[f32], ld: usize, n: usize) -> Vec<[f64; TRIANGLE]> {
    let mut w = vec![[0.0; TRIANGLE]; TRIANGLE];
    for i in 0..n {
        for j in i..n {
            w[i][j] = f64::from(a[i * ld + j]);
        }
    }
    w
}

fn narrowed(w: &Wide, a: &mut [f32], ld: usize, n: usize) {
    for i in 0..n {
        for j in i..n {
            a[i * ld + j] = w[i][j] as f32;
        }
    }
}

vectorised! {
    fn factor_wide(w: &mut Wide, n: usize, floor: &[f64]) -> Result<(), (usize, f64)> = factor_lanes
}

vectorised! {
    fn invert_wide(w: &mut Wide, n: usize) = invert_lanes
}

// These two are vectorised by the compiler, for the instruction set of their caller.

#[inline(always)]
fn factor_lanes<S: Simd>(_: S, w: &mut Wide, n: usize, floor: &[f64]) -> Result<(), (usize, f64)> {
    for k in 0..n {
        let pivot = w[k][k];
        if !(pivot > floor[k].max(0.0) && pivot.is_finite()) {
            return Err((k, pivot));
        }
        let root = pivot.sqrt();
        // What lies before column k is never read.
        w[k].iter_mut().for_each(|v| *v /= root);
        let row = w[k];
        for i in k + 1..n {
            let factor = row[i];
            // From a multiple of eight on: what is touched to the left is below the diagonal.
            for (v, r) in w[i][i / 8 * 8..].iter_mut().zip(&row[i / 8 * 8..]) {
                *v -= factor * r;
            }
        }
    }
    Ok(())
}

#[inline(always)]
fn invert_lanes<S: Simd>(_: S, w: &mut Wide, n: usize) {
    for i in (0..n).rev() {
        let row = w[i];
        let mut sum = [0.0; TRIANGLE];
        for k in i + 1..n {
            for (s, t) in sum[k / 8 * 8..].iter_mut().zip(&w[k][k / 8 * 8..]) {
                *s += row[k] * t;
            }
        }
        let inverse = 1.0 / row[i];
        for (v, s) in w[i].iter_mut().zip(&sum) {
            *v = -inverse * s;
        }
        w[i][..i].fill(0.0);
        w[i][i] = inverse;
    }
}

/// `X ← R⁻ᵀ X` for an upper triangle `R [n, n]` and `X [n, cols]`, with rows `ldr` and `ldx` apart.
///
/// # Panics
/// If `n` exceeds [`TRIANGLE`] or a slice is too short.
pub fn solve_transposed(team: &Team, [n, cols]: [usize; 2], r: &[f32], ldr: usize, x: &mut [f32], ldx: usize) {
    assert!(n <= TRIANGLE && (n <= 1 || ldx >= cols), "a triangle of {n} on rows of {cols}");
    let mut left = [[0.0; TRIANGLE]; TRIANGLE];
    let mut inverse = [0.0; TRIANGLE];
    for i in 0..n {
        inverse[i] = (1.0 / f64::from(r[i * ldr + i])) as f32;
        for p in 0..i {
            left[i][p] = -r[p * ldr + i];
        }
    }
    let x = Disjoint::new(x);
    team.run(cols.div_ceil(STRIP), &|task| {
        let columns = task * STRIP..((task + 1) * STRIP).min(cols);
        let mut strip = [[0.0; STRIP]; TRIANGLE];
        // SAFETY: the columns of a strip belong to one task.
        let row = |i: usize| unsafe { x.slice(i * ldx + columns.start..i * ldx + columns.end) };
        for i in 0..n {
            strip[i][..columns.len()].copy_from_slice(row(i));
        }
        solve_strip(left.as_flattened(), &inverse[..n], strip.as_flattened_mut());
        for i in 0..n {
            row(i).copy_from_slice(&strip[i][..columns.len()]);
        }
    });
}

/// Columns that are solved together.
const STRIP: usize = 64;

vectorised! {
    fn solve_strip(left: &[f32], inverse: &[f32], strip: &mut [f32]) = solve_lanes
}

/// Forward substitution on `strip [n, STRIP]` with the negated strict lower triangle `left [n, TRIANGLE]`.
#[inline(always)]
fn solve_lanes<S: Simd>(s: S, left: &[f32], inverse: &[f32], strip: &mut [f32]) {
    let n = inverse.len();
    for from in (0..n).step_by(ROWS) {
        let rows = from..(from + ROWS).min(n);
        let (done, rest) = strip.split_at_mut(from * STRIP);
        let shape = [rows.len(), from, STRIP];
        add_product(s, shape, &left[from * TRIANGLE..], TRIANGLE, done, STRIP, rest, STRIP);
        for (k, i) in rows.enumerate() {
            let (above, row) = rest.split_at_mut(k * STRIP);
            let factor = s.splat(inverse[i]);
            for at in (0..STRIP).step_by(S::LANES) {
                let mut v = s.load(&row[at..]);
                for p in 0..k {
                    v = s.mul_add(s.splat(left[i * TRIANGLE + from + p]), s.load(&above[p * STRIP + at..]), v);
                }
                s.store(&mut row[at..], s.mul(v, factor));
            }
        }
    }
}

/// Mirrors the upper triangle of `a [n, n]` about its other diagonal: `a[i, j] ↔ a[n−1−j, n−1−i]` for `i ≤ j`.
///
/// With J the reversal, this is the upper triangle of `(J A J)ᵀ`: of `J A J` for symmetric A.
///
/// # Panics
/// If `a` is shorter than `n · n`.
pub fn mirror_upper(team: &Team, n: usize, a: &mut [f32]) {
    assert!(a.len() >= n * n, "{} elements for [{n}, {n}]", a.len());
    let all = Disjoint::new(a);
    team.run(n.div_ceil(2).div_ceil(MIRROR), &|band| {
        let rows = band * MIRROR..((band + 1) * MIRROR).min(n.div_ceil(2));
        // Nearer to the corner than their partners, so that each pair is exchanged once.
        for left in (rows.start..n - rows.start).step_by(MIRROR) {
            let columns = left..left + MIRROR;
            // SAFETY: all partners lie in `a`, and a pair is exchanged by the task of its nearer row alone.
            unsafe {
                if rows.len() == MIRROR && rows.end <= left && rows.end + columns.end <= n {
                    exchange_squares(all.as_ptr(), n, rows.start, left);
                } else {
                    for i in rows.clone() {
                        for j in left.max(i)..columns.end.min(n - 1 - i) {
                            let (here, there) = (i * n + j, (n - 1 - j) * n + (n - 1 - i));
                            std::ptr::swap(all.as_ptr().add(here), all.as_ptr().add(there));
                        }
                    }
                }
            }
        }
    });
}

/// Side of the squares that are exchanged at once.
const MIRROR: usize = 32;

/// Exchanges the square at row `i` and column `j` with its partner, each row read and written once: the rows of a large
/// matrix compete for the same places of a cache.
///
/// # Safety
/// `a` holds `n · n` values, and both squares lie inside and apart.
unsafe fn exchange_squares(a: *mut f32, n: usize, i: usize, j: usize) {
    type Square = [[f32; MIRROR]; MIRROR];
    let (mut here, mut there): (Square, Square) = ([[0.0; MIRROR]; MIRROR], [[0.0; MIRROR]; MIRROR]);
    let partner = (n - j - MIRROR) * n + (n - i - MIRROR);
    for r in 0..MIRROR {
        // SAFETY: the caller's promise.
        unsafe {
            here[r] = a.add((i + r) * n + j).cast::<[f32; MIRROR]>().read();
            there[r] = a.add(partner + r * n).cast::<[f32; MIRROR]>().read();
        }
    }
    let turned =
        |from: &Square, r: usize| -> [f32; MIRROR] { std::array::from_fn(|c| from[MIRROR - 1 - c][MIRROR - 1 - r]) };
    for r in 0..MIRROR {
        // SAFETY: as above.
        unsafe {
            a.add((i + r) * n + j).cast::<[f32; MIRROR]>().write(turned(&there, r));
            a.add(partner + r * n).cast::<[f32; MIRROR]>().write(turned(&here, r));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::tests::at_every_level;

    /// A positive definite `[n, n]` with rows `ld` apart, NaN below the diagonal.
    fn positive(n: usize, ld: usize) -> Vec<f32> {
        let mut a = vec![f32::NAN; n * ld];
        for i in 0..n {
            for j in i..n {
                a[i * ld + j] = ((i * 7 + j * 3) as f32).sin() + if i == j { n as f32 } else { 0.0 };
            }
        }
        a
    }

    #[test]
    fn triangles_reconstruct_and_invert() {
        at_every_level(|level| {
            for n in 0..=TRIANGLE {
                let ld = n + 3;
                let a = positive(n, ld);
                let mut r = a.clone();
                factor_triangle(&mut r, ld, n, &[0.0; TRIANGLE]).expect("positive definite");
                let at = |m: &[f32], i: usize, j: usize| if i <= j { f64::from(m[i * ld + j]) } else { 0.0 };
                let mut t = r.clone();
                invert_triangle(&mut t, ld, n);
                for i in 0..n {
                    for j in i..n {
                        let a_again: f64 = (0..=i).map(|k| at(&r, k, i) * at(&r, k, j)).sum();
                        assert!((a_again - at(&a, i, j)).abs() < 1e-6 * n as f64, "{level:?} {n} {i} {j}");
                        let one: f64 = (i..=j).map(|k| at(&r, i, k) * at(&t, k, j)).sum();
                        assert!((one - f64::from(u8::from(i == j))).abs() < 1e-6, "{level:?} {n} {i} {j}");
                    }
                }
            }
        });
    }

    #[test]
    fn a_bad_pivot_is_named() {
        let mut a = positive(20, 20);
        a[13 * 20 + 13] = -2.0;
        let (pivot, value) = factor_triangle(&mut a, 20, 20, &[0.0; 20]).unwrap_err();
        assert!(pivot == 13 && value < 0.0);
        let mut a = vec![f32::NAN];
        assert!(matches!(factor_triangle(&mut a, 1, 1, &[0.0]), Err((0, v)) if v.is_nan()));
    }

    #[test]
    fn solving_undoes_the_product() {
        let team = Team::new(2);
        at_every_level(|level| {
            for (n, cols) in [(0, 5), (1, 1), (5, 3), (6, 64), (7, 65), (64, 200), (63, 129)] {
                let (ld, ldx) = (n + 1, cols + 2);
                let mut r = positive(n, ld);
                factor_triangle(&mut r, ld, n, &[0.0; TRIANGLE]).expect("positive definite");
                let b: Vec<f32> = (0..n * ldx).map(|i| (i as f32 * 0.37).cos()).collect();
                let mut x = b.clone();
                solve_transposed(&team, [n, cols], &r, ld, &mut x, ldx);
                for i in 0..n {
                    for j in 0..cols {
                        let again: f64 = (0..=i).map(|k| f64::from(r[k * ld + i]) * f64::from(x[k * ldx + j])).sum();
                        assert!((again - f64::from(b[i * ldx + j])).abs() < 2e-6, "{level:?} {n} {cols} {i} {j}");
                    }
                    assert_eq!(x[i * ldx + cols..(i + 1) * ldx], b[i * ldx + cols..(i + 1) * ldx]);
                }
            }
        });
    }

    #[test]
    fn mirroring_twice_is_nothing() {
        let team = Team::new(2);
        for n in [0, 1, 2, 3, 31, 32, 33, 64, 65, 100, 131] {
            let a: Vec<f32> = (0..n * n).map(|i| i as f32).collect();
            let mut b = a.clone();
            mirror_upper(&team, n, &mut b);
            for i in 0..n {
                for j in 0..n {
                    let want = if i <= j { a[(n - 1 - j) * n + n - 1 - i] } else { a[i * n + j] };
                    assert_eq!(b[i * n + j], want, "{n} {i} {j}");
                }
            }
            mirror_upper(&team, n, &mut b);
            assert_eq!(a, b);
        }
    }

    #[test]
    fn the_gram_is_taken_away_above_the_diagonal() {
        let (rows, cols, depth) = (70, 133, 40);
        let x: Vec<f32> = (0..depth * 140).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut c = vec![1.0; rows * 150];
        subtract_gram(&Team::new(2), [rows, cols, depth], &x, 140, &mut c, 150);
        for i in 0..rows {
            for j in i..cols {
                let gram: f64 = (0..depth).map(|k| f64::from(x[k * 140 + i]) * f64::from(x[k * 140 + j])).sum();
                assert!((f64::from(c[i * 150 + j]) - (1.0 - gram)).abs() < 1e-5, "{i} {j}");
            }
        }
    }
}
