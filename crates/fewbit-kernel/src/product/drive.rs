//! How a product is cut into tasks, and which operand is rearranged when.

use std::ops::Range;

use super::few::multiply_few;
use super::kernels;
use super::operands::{Job, Left, Right, reach};
use super::scratch;
use super::stripe::{Block, pack_left};
use crate::{Level, Team};

/// Rows of the left operand that are rearranged at once; a multiple of every tile's rows. Bounds the scratch.
const ROWS: usize = 516;

/// Tiles in a stripe: the rearranged rows of the left operand are fetched from afar once for so many.
const STRIPE_TILES: usize = 4;
/// Up to so many rows the weights are multiplied as they stream by, without rearranging them.
const FEW_ROWS: usize = 8;
/// `Y_j[m, n_j] (+)= left[m, k] · right_jᵀ` for every job, in one or two parallel regions.
pub(crate) fn multiply(team: &Team, level: Level, m: usize, k: usize, left: Left<'_>, jobs: &[Job<'_>]) {
    let (rows, cols) = if left.transposed { (k, m) } else { (m, k) };
    assert!(rows <= 1 || left.ld >= cols, "rows of {cols} do not fit {} apart", left.ld);
    assert!(reach(rows, left.ld, cols) <= left.x.len(), "[{rows}, {cols}] in {} elements", left.x.len());
    for job in jobs {
        job.check(m, k);
    }
    if m == 0 {
        return;
    }
    let kernels = kernels::of(level);
    let by_rows = jobs.iter().all(|j| matches!(j.right, Right::Rows { .. } | Right::Decoded(_)));
    if m <= FEW_ROWS && by_rows && !left.transposed && left.scale == 1.0 {
        return multiply_few(team, kernels, m, k, left, jobs);
    }
    scratch::with(|scratch| {
        for from in (0..m).step_by(ROWS) {
            let rows = from..(from + ROWS).min(m);
            let panels = rows.len().div_ceil(kernels.mr);
            let packed = scratch.left.take(k * panels * kernels.mr);
            pack_left(team, kernels, &left, rows.clone(), k, packed);
            let packed = &*packed;
            let width = STRIPE_TILES * kernels.nr;
            let stripes: usize = jobs.iter().map(|j| j.n.div_ceil(width)).sum();
            // Few stripes: the rows are shared out too. No element's sum depends on it.
            let parts = (4 * team.threads()).div_ceil(stripes.max(1)).clamp(1, panels);
            let part_panels = panels.div_ceil(parts);
            team.run(stripes * parts, &|task| {
                let (job, stripe) = locate(jobs, task / parts, width);
                let first = task % parts * part_panels;
                let panels_here = first..(first + part_panels).min(panels);
                let block = Block { kernels, k, packed, panels, rows: rows.clone() };
                scratch::with(|s| block.stripe(job, stripe, panels_here, s));
            });
        }
    });
}

/// The job and the columns of it that stripe `index` of all jobs stands for.
pub(super) fn locate<'j, 'a>(jobs: &'j [Job<'a>], mut index: usize, width: usize) -> (&'j Job<'a>, Range<usize>) {
    for job in jobs {
        let stripes = job.n.div_ceil(width);
        if index < stripes {
            return (job, index * width..((index + 1) * width).min(job.n));
        }
        index -= stripes;
    }
    unreachable!("the caller counts the stripes")
}
