//! Few rows of the left operand.

use std::ops::Range;

use super::K_BLOCK;
use super::drive::locate;
use super::kernels::{Kernels, Stored};
use super::operands::{Job, Left, Right};
use super::scratch;
use crate::Team;

/// Few rows: every weight is read once from where it is stored, transposed in registers.
pub(super) fn multiply_few(team: &Team, kernels: &Kernels, m: usize, k: usize, left: Left<'_>, jobs: &[Job<'_>]) {
    const STRIPE: usize = 32;
    let stripes: usize = jobs.iter().map(|j| j.n.div_ceil(STRIPE)).sum();
    team.run(stripes, &|task| {
        let (job, columns) = locate(jobs, task, STRIPE);
        scratch::with(|scratch| match job.right {
            Right::Rows { bytes, stored } => {
                let row_bytes = k * stored.size_bytes();
                let w = bytes[columns.start * row_bytes..].as_ptr();
                // SAFETY: `Job::check` vouches for the rows.
                unsafe { few_stripe(kernels, m, k, left, job, columns, w, row_bytes, stored) };
            }
            Right::Decoded(decode) => {
                let w = scratch.rows.take(columns.len() * k);
                decode(columns.clone(), w);
                // SAFETY: the rows were decoded just now.
                unsafe { few_stripe(kernels, m, k, left, job, columns, w.as_ptr().cast(), 4 * k, Stored::F32) };
            }
            Right::Panels(_) | Right::Columns { .. } => unreachable!("`multiply` sends rows here"),
        });
    });
}

/// # Safety
/// `columns.len()` rows of weights begin at `w`, and these columns of the result are the caller's alone.
unsafe fn few_stripe(
    kernels: &Kernels,
    m: usize,
    k: usize,
    left: Left<'_>,
    job: &Job<'_>,
    columns: Range<usize>,
    w: *const u8,
    row_bytes: usize,
    stored: Stored,
) {
    let dots = kernels.dot[stored as usize];
    for first in columns.clone().step_by(kernels.dot_rows) {
        let rows = kernels.dot_rows.min(columns.end - first);
        for from in (0..k.max(1)).step_by(K_BLOCK) {
            let kc = K_BLOCK.min(k - from);
            for i in (0..m).step_by(dots.len()) {
                let dot = dots[dots.len().min(m - i) - 1];
                // SAFETY: `multiply` checked the left operand and the result; the caller vouches for the rows.
                unsafe {
                    let x = left.x.as_ptr().add(i * left.ld + from);
                    let w = w.add((first - columns.start) * row_bytes + from * stored.size_bytes());
                    let c = job.y.add(i * job.ldy + first);
                    dot(rows, kc, x, left.ld, w, row_bytes, c, job.ldy, from > 0 || job.accumulate);
                }
            }
        }
    }
    if let Some(bias) = job.bias {
        for i in 0..m {
            // SAFETY: as above.
            let out = unsafe { std::slice::from_raw_parts_mut(job.y.add(i * job.ldy + columns.start), columns.len()) };
            out.iter_mut().zip(&bias[columns.clone()]).for_each(|(y, b)| *y += b);
        }
    }
}
