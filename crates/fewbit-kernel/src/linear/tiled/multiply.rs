//! Few tokens times decoded columns.

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
    ) = all
}

#[inline(always)]
fn all<S: Sixteen>(s: S, panels: &[f32], count: usize, x: &[f32], ldx: usize, tokens: usize, sums: &mut [[f32; TILE]]) {
    let steps = panels.len() / (count * TILE);
    assert!(tokens > 0 && x.len() >= (tokens - 1) * ldx + steps && sums.len() >= tokens * count, "operands that fit");
    let call = Call { panels: panels.as_ptr(), steps, ldx, count };
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
            // SAFETY: the tiles and tokens exist, as was checked.
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
struct Call {
    panels: *const f32,
    /// Columns of each panel.
    steps: usize,
    ldx: usize,
    /// Tiles, for the places of sums.
    count: usize,
}

impl Call {
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
            let panel = self.panels.add(first * self.steps * TILE);
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
                    let column = s.load(panel.add((r * self.steps + k) * TILE));
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
