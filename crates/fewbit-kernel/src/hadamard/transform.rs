//! The factors of the fast product.

use crate::lanes::{Simd, vectorised};

/// Lanes of the widest instruction set: tiles of as many vectors fit a scratch of a fixed size.
const MOST_LANES: usize = 16;

vectorised! {
    /// `x ← x S` without its factor, for each `order` values; `order` a power of two.
    pub(super) fn sylvester(values: &mut [f32], order: usize) = sylvester_all
}

vectorised! {
    /// `x ← x (K ⊗ I)` for each `small · power` values, `I` of order `power`; `scratch` for 16 vectors of `small` values.
    pub(super) fn mix(values: &mut [f32], power: usize, small: usize, k: &[f32], scratch: &mut [f32]) = mix_all
}

vectorised! {
    /// `x ← factor · x`.
    pub(super) fn scale(values: &mut [f32], factor: f32) = scale_all
}

/// Multiplies by `factors`, repeated; by one where there are none.
pub(super) fn multiply(values: &mut [f32], factors: &[f32]) {
    if !factors.is_empty() {
        for row in values.chunks_exact_mut(factors.len()) {
            row.iter_mut().zip(factors).for_each(|(v, f)| *v *= f);
        }
    }
}

#[inline(always)]
fn scale_all<S: Simd>(s: S, values: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    for chunk in values.chunks_mut(S::LANES) {
        let v = s.mul(s.load_partial(chunk), factor);
        s.store_partial(chunk, v);
    }
}

#[inline(always)]
fn sylvester_all<S: Simd>(s: S, values: &mut [f32], order: usize) {
    if order < S::LANES {
        let mut apart = 1;
        while apart < order {
            for pair in values.chunks_exact_mut(2 * apart) {
                let (low, high) = pair.split_at_mut(apart);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            apart *= 2;
        }
        return;
    }
    within_vectors(s, values);
    let mut apart = S::LANES;
    while apart < order {
        for pair in values.chunks_exact_mut(2 * apart) {
            butterflies(s, pair, apart);
        }
        apart *= 2;
    }
}

/// `(a, b) ← (a + b, a − b)` for the two halves of `pair [2 · apart]`, vector by vector.
#[inline(always)]
fn butterflies<S: Simd>(s: S, pair: &mut [f32], apart: usize) {
    let (low, high) = pair.split_at_mut(apart);
    for (low, high) in low.chunks_exact_mut(S::LANES).zip(high.chunks_exact_mut(S::LANES)) {
        let (a, b) = (s.load(low), s.load(high));
        s.store(low, s.add(a, b));
        s.store(high, s.sub(a, b));
    }
}

/// The stages whose pairs lie in one vector: as many vectors as there are lanes are transposed, so that pairs lie in two.
#[inline(always)]
fn within_vectors<S: Simd>(s: S, values: &mut [f32]) {
    let (mut tile, mut turned) = ([0.0; MOST_LANES * MOST_LANES], [0.0; MOST_LANES * MOST_LANES]);
    let size = S::LANES * S::LANES;
    for chunk in values.chunks_mut(size) {
        // The last may be short: what is beyond it is computed and not read.
        tile[..chunk.len()].copy_from_slice(chunk);
        // SAFETY: both hold `LANES` rows of `LANES` values, which is at most their size.
        unsafe { s.transpose_at(tile.as_ptr(), S::LANES, turned.as_mut_ptr(), S::LANES) };
        let mut apart = 1;
        while apart < S::LANES {
            for pair in turned[..size].chunks_exact_mut(2 * apart * S::LANES) {
                butterflies(s, pair, apart * S::LANES);
            }
            apart *= 2;
        }
        // SAFETY: as above.
        unsafe { s.transpose_at(turned.as_ptr(), S::LANES, tile.as_mut_ptr(), S::LANES) };
        chunk.copy_from_slice(&tile[..chunk.len()]);
    }
}

#[inline(always)]
fn mix_all<S: Simd>(s: S, values: &mut [f32], power: usize, small: usize, k: &[f32], scratch: &mut [f32]) {
    for row in values.chunks_exact_mut(power * small) {
        let mut at = 0;
        while at < power {
            let end = (at + S::LANES).min(power);
            for (a, kept) in scratch.chunks_exact_mut(S::LANES).take(small).enumerate() {
                s.store(kept, s.load_partial(&row[a * power + at..a * power + end]));
            }
            let kept = &scratch[..small * S::LANES];
            for to in (0..small).step_by(4) {
                // Four sums at a time hide the latency of an addition; an order above two is a multiple of four.
                let mut sums = [s.splat(0.0); 4];
                for (kept, k) in kept.chunks_exact(S::LANES).zip(k[to..].chunks(small)) {
                    let v = s.load(kept);
                    for (sum, &k) in sums.iter_mut().zip(k) {
                        *sum = s.mul_add(v, s.splat(k), *sum);
                    }
                }
                for (i, sum) in sums.into_iter().enumerate() {
                    let first = (to + i) * power;
                    s.store_partial(&mut row[first + at..first + end], sum);
                }
            }
            at = end;
        }
    }
}
