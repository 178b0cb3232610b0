//! f32 matrix products.
//!
//! Each element of a result is one chain of multiply-adds over `k` in ascending order, cut in blocks of [`K_BLOCK`]
//! whose sums are added in order. So a row of `X` gives the same bits alone as in a batch, for any number of threads,
//! and AVX2 gives the bits of AVX-512 (the scalar twin rounds the product before it adds).

mod drive;
mod few;
mod kernels;
mod operands;
mod scalar;
pub(crate) mod scratch;
mod stripe;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub(crate) use drive::multiply;
pub(crate) use operands::{Job, Left, Right};

use crate::{Level, Team, cpu};

/// Terms that are summed before the sum is added to the result: a constant, so that results do not depend on caches.
pub const K_BLOCK: usize = 256;

/// Weights `[n, k]`, row-major, as they are stored: little-endian, unaligned where the bytes are mapped.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// f32 in memory.
    F32(&'a [f32]),
    /// f32 bytes.
    F32Bytes(&'a [u8]),
    /// bf16 bytes.
    Bf16(&'a [u8]),
    /// f16 bytes.
    F16(&'a [u8]),
}

/// `Y[m, n] = X[m, k] · W[n, k]ᵀ`, or `Y += X · Wᵀ` if `accumulate`; rows of `x` and `y` are `ldx` and `ldy` apart.
///
/// # Panics
/// If a slice is shorter than its shape, or a row longer than its stride.
pub fn product_nt(
    team: &Team,
    m: usize,
    n: usize,
    k: usize,
    x: &[f32],
    ldx: usize,
    weights: Weights<'_>,
    y: &mut [f32],
    ldy: usize,
    accumulate: bool,
) {
    product_nt_at(cpu::detect(), team, m, n, k, x, ldx, weights, y, ldy, accumulate);
}

pub(crate) fn product_nt_at(
    level: Level,
    team: &Team,
    m: usize,
    n: usize,
    k: usize,
    x: &[f32],
    ldx: usize,
    weights: Weights<'_>,
    y: &mut [f32],
    ldy: usize,
    accumulate: bool,
) {
    let job = Job::new(n, Right::stored(weights), y, ldy).accumulating(accumulate);
    multiply(team, level, m, k, Left::rows(x, ldx), &[job]);
}

/// `C[m, n] += alpha · A[m, k] · B[k, n]`.
///
/// # Panics
/// If a slice is shorter than its shape, or a row longer than its stride.
pub fn product_nn(
    team: &Team,
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: &[f32],
    lda: usize,
    b: &[f32],
    ldb: usize,
    c: &mut [f32],
    ldc: usize,
) {
    product_nn_at(cpu::detect(), team, m, n, k, alpha, a, lda, b, ldb, c, ldc);
}

pub(crate) fn product_nn_at(
    level: Level,
    team: &Team,
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: &[f32],
    lda: usize,
    b: &[f32],
    ldb: usize,
    c: &mut [f32],
    ldc: usize,
) {
    let job = Job::new(n, Right::Columns { b, ld: ldb }, c, ldc).accumulating(true);
    multiply(team, level, m, k, Left { scale: alpha, ..Left::rows(a, lda) }, &[job]);
}

/// `C[m, n] += A[k, m]ᵀ · B[k, n]`: the gradient of weights, with the rows of a batch as `k`.
///
/// # Panics
/// If a slice is shorter than its shape, or a row longer than its stride.
pub fn product_tn(
    team: &Team,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    lda: usize,
    b: &[f32],
    ldb: usize,
    c: &mut [f32],
    ldc: usize,
) {
    product_tn_at(cpu::detect(), team, m, n, k, a, lda, b, ldb, c, ldc);
}

pub(crate) fn product_tn_at(
    level: Level,
    team: &Team,
    m: usize,
    n: usize,
    k: usize,
    a: &[f32],
    lda: usize,
    b: &[f32],
    ldb: usize,
    c: &mut [f32],
    ldc: usize,
) {
    for from in (0..k).step_by(REARRANGED) {
        let (a, b, count) = (&a[from * lda..], &b[from * ldb..], REARRANGED.min(k - from));
        let job = Job::new(n, Right::Columns { b, ld: ldb }, c, ldc).accumulating(true);
        multiply(team, level, m, count, Left::columns(a, lda), &[job]);
    }
}

/// Adds `XᵀX` of `tokens` rows of `x` to the upper triangle of `h [n, n]`, tokens in fixed chunks of [`K_BLOCK`] in order.
///
/// What lies below the diagonal is undefined until [`gram_mirror`].
///
/// # Panics
/// If a slice is shorter than its shape.
pub fn gram_add(team: &Team, n: usize, tokens: usize, x: &[f32], ldx: usize, h: &mut [f32]) {
    gram_add_at(cpu::detect(), team, n, tokens, x, ldx, h);
}

/// Rows of a transposed left operand that are rearranged at once: bounds the scratch, and is a multiple of [`K_BLOCK`].
const REARRANGED: usize = 4 * K_BLOCK;

pub(crate) fn gram_add_at(level: Level, team: &Team, n: usize, tokens: usize, x: &[f32], ldx: usize, h: &mut [f32]) {
    for from in (0..tokens).step_by(REARRANGED) {
        let (x, count) = (&x[from * ldx..], REARRANGED.min(tokens - from));
        let job = Job::new(n, Right::Columns { b: x, ld: ldx }, h, n).accumulating(true).upper();
        multiply(team, level, n, count, Left::columns(x, ldx), &[job]);
    }
}

/// Copies the upper triangle of `h [n, n]` below the diagonal.
///
/// # Panics
/// If `h` is shorter than `n · n`.
pub fn gram_mirror(team: &Team, n: usize, h: &mut [f32]) {
    const TILE: usize = 32;
    assert!(h.len() >= n * n, "{} elements for [{n}, {n}]", h.len());
    let all = crate::team::Disjoint::new(h);
    let at = all.as_ptr() as usize;
    team.run(n.div_ceil(TILE), &|band| {
        let rows = band * TILE..((band + 1) * TILE).min(n);
        for left in (0..rows.end).step_by(TILE) {
            for r in rows.clone() {
                for c in left..(left + TILE).min(r) {
                    // SAFETY: both lie in `h`; elements below the diagonal are written by the task of their rows
                    // alone, those above are only read.
                    unsafe { *(at as *mut f32).add(r * n + c) = *(at as *const f32).add(c * n + r) };
                }
            }
        }
    });
}

#[cfg(test)]
mod tests;
