//! One stripe of a result: where the operands meet.

use std::ops::Range;

use super::K_BLOCK;
use super::kernels::{Kernels, Stored};
use super::operands::{Job, Left, Right};
use super::scratch::Scratch;
use crate::Team;
use crate::team::Disjoint;

/// Panels of the left operand that are used by all tiles of a stripe before the next: about 120 KiB.
const NEAR_PANELS: usize = 10;
/// Rearranges rows `rows` of the left operand: by block of k, then by panel of `mr` rows, `[k][mr]`.
pub(super) fn pack_left(
    team: &Team,
    kernels: &Kernels,
    left: &Left<'_>,
    rows: Range<usize>,
    k: usize,
    packed: &mut [f32],
) {
    const PANELS: usize = 8;
    let mr = kernels.mr;
    let panels = rows.len().div_ceil(mr);
    let (blocks, packed) = (k.div_ceil(K_BLOCK), Disjoint::new(packed));
    let bands = panels.div_ceil(PANELS);
    team.run(blocks * bands, &|task| {
        let (block, band) = (task / bands, task % bands);
        let ks = block * K_BLOCK..((block + 1) * K_BLOCK).min(k);
        for panel in band * PANELS..((band + 1) * PANELS).min(panels) {
            let first = rows.start + panel * mr;
            let count = mr.min(rows.end - first);
            let at = ks.start * panels * mr + panel * ks.len() * mr;
            // SAFETY: every (block, panel) has a place of its own.
            let out = unsafe { packed.slice(at..at + ks.len() * mr) };
            if left.transposed {
                copy_columns(left.x, left.ld, ks.clone(), first..first + count, mr, out);
            } else {
                let src = left.x[first * left.ld + ks.start..].as_ptr().cast();
                // SAFETY: `multiply` checked the operand's size; `out` holds `mr` places for each k.
                unsafe { kernels.interleave[0](count, mr, ks.len(), src, 4 * left.ld, out.as_mut_ptr(), mr) };
            }
            if left.scale != 1.0 {
                for v in out {
                    *v *= left.scale;
                }
            }
        }
    });
}

/// `out[i, ..columns.len()] = x[rows.start + i, columns]`, rows of `out` `width` apart and filled up with zeros.
fn copy_columns(x: &[f32], ld: usize, rows: Range<usize>, columns: Range<usize>, width: usize, out: &mut [f32]) {
    fn whole<const W: usize>(x: &[f32], ld: usize, rows: Range<usize>, from: usize, out: &mut [f32]) {
        for (r, out) in rows.zip(out.as_chunks_mut::<W>().0) {
            out.copy_from_slice(&x[r * ld + from..][..W]);
        }
    }
    match (width, columns.len() == width) {
        (4, true) => whole::<4>(x, ld, rows, columns.start, out),
        (6, true) => whole::<6>(x, ld, rows, columns.start, out),
        (8, true) => whole::<8>(x, ld, rows, columns.start, out),
        (12, true) => whole::<12>(x, ld, rows, columns.start, out),
        (16, true) => whole::<16>(x, ld, rows, columns.start, out),
        (32, true) => whole::<32>(x, ld, rows, columns.start, out),
        _ => {
            for (r, out) in rows.zip(out.chunks_exact_mut(width)) {
                let (used, rest) = out.split_at_mut(columns.len());
                used.copy_from_slice(&x[r * ld..][columns.clone()]);
                rest.fill(0.0);
            }
        }
    }
}

/// A rearranged block of rows of the left operand.
pub(super) struct Block<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) k: usize,
    pub(super) packed: &'a [f32],
    pub(super) panels: usize,
    pub(super) rows: Range<usize>,
}

impl Block<'_> {
    /// One stripe of `job`, a few tiles wide. For each block of k the stripe is rearranged once; then every tile of it
    /// meets [`NEAR_PANELS`] panels while it is in the L1 cache and these are in the L2 cache.
    pub(super) fn stripe(&self, job: &Job<'_>, columns: Range<usize>, panels: Range<usize>, scratch: &mut Scratch) {
        let Kernels { mr, nr, .. } = *self.kernels;
        let panels = panels.start..panels.end.min(self.panels_met(job, columns.end));
        if panels.is_empty() || columns.is_empty() {
            return;
        }
        let rows = panels.start * mr..(panels.end * mr).min(self.rows.len());
        let tiles = columns.len().div_ceil(nr);
        let right = scratch.right.take(K_BLOCK * tiles * nr);
        let (bytes, row_bytes, stored) = match job.right {
            Right::Rows { bytes, stored } => {
                let row_bytes = self.k * stored.size_bytes();
                (bytes[columns.start * row_bytes..].as_ptr(), row_bytes, stored)
            }
            Right::Decoded(decode) => {
                let w = scratch.rows.take(columns.len() * self.k);
                decode(columns.clone(), w);
                (w.as_ptr().cast(), 4 * self.k, Stored::F32)
            }
            Right::Panels(_) | Right::Columns { .. } => (std::ptr::null(), 0, Stored::F32),
        };
        // SAFETY: rows `rows` and columns `columns` of y are this task's alone, and inside (`Job::check`).
        let y = unsafe { job.y.add((self.rows.start + rows.start) * job.ldy + columns.start) };
        // The sums of several blocks of k gather in a compact copy; so do those of a stripe that ends inside a tile.
        let direct = columns.len() == tiles * nr && self.k <= K_BLOCK;
        let (c, ldc) =
            if direct { (y, job.ldy) } else { (scratch.result.take(rows.len() * tiles * nr).as_mut_ptr(), tiles * nr) };
        if !direct && job.accumulate {
            for r in 0..rows.len() {
                // SAFETY: as above; `c` holds `ldc` places for each row.
                unsafe { y.add(r * job.ldy).copy_to_nonoverlapping(c.add(r * ldc), columns.len()) };
            }
        }
        for from in (0..self.k.max(1)).step_by(K_BLOCK) {
            let ks = from..(from + K_BLOCK).min(self.k);
            let tile_len = ks.len() * nr;
            for (t, right) in (0..tiles).zip(right.chunks_mut(tile_len.max(1))) {
                let here = columns.start + t * nr..(columns.start + (t + 1) * nr).min(columns.end);
                match job.right {
                    Right::Columns { b, ld } => copy_columns(b, ld, ks.clone(), here, nr, right),
                    Right::Panels(panel) => panel(here, ks.clone(), nr, &mut right[..tile_len]),
                    // SAFETY: `Job::check` or `decode` vouches for the rows; `right` holds `nr` places for each k.
                    Right::Rows { .. } | Right::Decoded(_) => unsafe {
                        let bytes = bytes.add(t * nr * row_bytes);
                        self.pack_rows(bytes, row_bytes, stored, ks.clone(), here.len(), right);
                    },
                }
            }
            let add = from > 0 || job.accumulate;
            for near in panels.clone().step_by(NEAR_PANELS) {
                let near = near..(near + NEAR_PANELS).min(panels.end);
                for t in 0..tiles {
                    let met = self.panels_met(job, columns.start + (t + 1) * nr);
                    for panel in near.start..near.end.min(met) {
                        let count = mr.min(self.rows.len() - panel * mr);
                        let a = &self.packed[ks.start * self.panels * mr + panel * ks.len() * mr..];
                        debug_assert!(a.len() >= ks.len() * mr);
                        // SAFETY: both operands hold `ks.len()` steps; `count` rows of `nr` places begin at `c`.
                        unsafe {
                            let b = right.as_ptr().add(t * tile_len);
                            let c = c.add((panel * mr - rows.start) * ldc + t * nr);
                            self.kernels.tile[count - 1](ks.len(), a.as_ptr(), b, c, ldc, add);
                        }
                    }
                }
            }
        }
        for r in 0..rows.len() {
            // SAFETY: as above.
            let out = unsafe { std::slice::from_raw_parts_mut(y.add(r * job.ldy), columns.len()) };
            if !direct {
                // SAFETY: `c` holds `ldc` places for each row, written by the tiles.
                out.copy_from_slice(unsafe { std::slice::from_raw_parts(c.add(r * ldc), columns.len()) });
            }
            if let Some(bias) = job.bias {
                out.iter_mut().zip(&bias[columns.clone()]).for_each(|(y, b)| *y += b);
            }
        }
    }

    /// How many panels lie at least partly above the diagonal, left of column `end`; all, if everything is wanted.
    fn panels_met(&self, job: &Job<'_>, end: usize) -> usize {
        if job.upper {
            end.saturating_sub(self.rows.start).div_ceil(self.kernels.mr).min(self.panels)
        } else {
            self.panels
        }
    }

    /// Rearranges `count` stored rows to `[k][nr]`, those that are missing as zeros.
    ///
    /// # Safety
    /// The rows can be read, and `out` holds `nr` places for each k.
    unsafe fn pack_rows(
        &self,
        bytes: *const u8,
        row_bytes: usize,
        stored: Stored,
        ks: Range<usize>,
        count: usize,
        out: &mut [f32],
    ) {
        let Kernels { nr, lanes, .. } = *self.kernels;
        debug_assert!(out.len() >= ks.len() * nr);
        for first in (0..nr).step_by(lanes) {
            let rows = count.saturating_sub(first).min(lanes);
            if rows == 0 {
                out.chunks_exact_mut(nr).take(ks.len()).for_each(|o| o[first..].fill(0.0));
                break;
            }
            // SAFETY: by the caller's promise.
            unsafe {
                let src = bytes.add(first * row_bytes + ks.start * stored.size_bytes());
                let out = out.as_mut_ptr().add(first);
                self.kernels.interleave[stored as usize](rows, lanes, ks.len(), src, row_bytes, out, nr);
            }
        }
    }
}
