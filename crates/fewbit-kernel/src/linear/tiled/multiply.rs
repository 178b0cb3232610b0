//! Few tokens times the columns of some tiles, decoded or as they lie.

use super::super::packed::TILE;
use super::lanes::{Sixteen, at_level};

at_level! {
    /// `sums[t · count + i] += Σ_k panels[i][k] x[t · ldx + k]` for `count` tiles and `tokens` tokens, one chain each.
    ///
    /// # Panics
    /// If a slice is shorter than that.
    pub(super) fn multiply_add(
        panels: &[f32],
        count: usize,
        x: &[f32],
        ldx: usize,
        tokens: usize,
        sums: &mut [[f32; TILE]],
    ) = decoded
}

#[inline(always)]
fn decoded<S: Sixteen>(
    s: S,
    panels: &[f32],
    count: usize,
    x: &[f32],
    ldx: usize,
    tokens: usize,
    sums: &mut [[f32; TILE]],
) {
    let steps = panels.len() / (count * TILE);
    // SAFETY: the panels have so many columns.
    unsafe { all(s, Panels { at: panels.as_ptr(), steps }, steps, count, x, ldx, tokens, sums) }
}

/// Where the columns of tiles are.
pub(super) trait Columns: Copy {
    /// Column `k` of tile `i`.
    ///
    /// # Safety
    /// It is there.
    unsafe fn column<S: Sixteen>(self, s: S, i: usize, k: usize) -> S::F;
}

#[derive(Clone, Copy)]
struct Panels {
    at: *const f32,
    steps: usize,
}

impl Columns for Panels {
    #[inline(always)]
    unsafe fn column<S: Sixteen>(self, s: S, i: usize, k: usize) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load(self.at.add((i * self.steps + k) * TILE)) }
    }
}

/// As [`multiply_add`], for `steps` columns of `count` tiles.
///
/// # Safety
/// They are there.
#[inline(always)]
pub(super) unsafe fn all<S: Sixteen>(
    s: S,
    columns: impl Columns,
    steps: usize,
    count: usize,
    x: &[f32],
    ldx: usize,
    tokens: usize,
    sums: &mut [[f32; TILE]],
) {
    assert!(tokens > 0 && x.len() >= (tokens - 1) * ldx + steps && sums.len() >= tokens * count, "operands that fit");
    let call = Call { columns, steps, ldx, count };
    let mut t = 0;
    while t < tokens {
        let together = if tokens - t >= 4 { 4 } else { (tokens - t).min(2) };
        let mut i = 0;
        while i < count {
            let most = (S::CHAINS / together).max(1);
            let tiles = if count - i >= most {
                most
            } else if count - i >= 2 && most >= 2 {
                2
            } else {
                1
            };
            let (x, sums) = (&x[t * ldx..], &mut sums[t * count + i..]);
            // SAFETY: the tiles exist by the caller's promise, and the tokens, as was checked.
            unsafe {
                match (together, tiles) {
                    (1, 8) => call.chains::<S, 1, 8>(s, i, x, sums),
                    (1, 4) => call.chains::<S, 1, 4>(s, i, x, sums),
                    (1, 2) => call.chains::<S, 1, 2>(s, i, x, sums),
                    (1, _) => call.chains::<S, 1, 1>(s, i, x, sums),
                    (2, 4) => call.chains::<S, 2, 4>(s, i, x, sums),
                    (2, 2) => call.chains::<S, 2, 2>(s, i, x, sums),
                    (2, _) => call.chains::<S, 2, 1>(s, i, x, sums),
                    (_, 2) => call.chains::<S, 4, 2>(s, i, x, sums),
                    (_, _) => call.chains::<S, 4, 1>(s, i, x, sums),
                }
            }
            i += tiles;
        }
        t += together;
    }
}

#[derive(Clone, Copy)]
struct Call<C> {
    columns: C,
    steps: usize,
    ldx: usize,
    /// Tiles, for the places of sums.
    count: usize,
}

impl<C: Columns> Call<C> {
    /// `T` tokens times `R` tiles from tile `first` on.
    ///
    /// # Safety
    /// All of them exist, and so do their sums.
    #[inline(always)]
    unsafe fn chains<S: Sixteen, const T: usize, const R: usize>(
        self,
        s: S,
        first: usize,
        x: &[f32],
        sums: &mut [[f32; TILE]],
    ) {
        let (x, sums) = (x.as_ptr(), sums.as_mut_ptr());
        // SAFETY: the caller's promise.
        unsafe {
            let mut chains = [[s.splat(0.0); R]; T];
            for t in 0..T {
                for r in 0..R {
                    chains[t][r] = s.load(sums.add(t * self.count + r).cast());
                }
            }
            for k in 0..self.steps {
                let mut of_token = [s.splat(0.0); T];
                for t in 0..T {
                    of_token[t] = s.splat(*x.add(t * self.ldx + k));
                }
                for r in 0..R {
                    let column = self.columns.column(s, first + r, k);
                    for t in 0..T {
                        chains[t][r] = s.fma(of_token[t], column, chains[t][r]);
                    }
                }
            }
            for t in 0..T {
                for r in 0..R {
                    s.store(sums.add(t * self.count + r).cast(), chains[t][r]);
                }
            }
        }
    }
}
