//! How a product is cut into tasks, and which operand is rearranged when.

use std::marker::PhantomData;
use std::ops::Range;

use super::kernels::{self, Kernels, Stored};
use super::scratch::{self, Scratch};
use super::{K_BLOCK, Weights};
use crate::team::Disjoint;
use crate::{Level, Team};

/// Rows of the left operand that are rearranged at once; a multiple of every tile's rows. Bounds the scratch.
const ROWS: usize = 516;

/// Tiles in a stripe: the rearranged rows of the left operand are fetched from afar once for so many.
const STRIPE_TILES: usize = 4;

/// Panels of the left operand that are used by all tiles of a stripe before the next: about 120 KiB.
const NEAR_PANELS: usize = 10;

/// Up to so many rows the weights are multiplied as they stream by, without rearranging them.
const FEW_ROWS: usize = 8;

/// The left operand, times `scale`.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) ld: usize,
    /// `x` is `[k, m]` instead of `[m, k]`.
    pub(crate) transposed: bool,
    pub(crate) scale: f32,
}

impl<'a> Left<'a> {
    pub(crate) fn rows(x: &'a [f32], ld: usize) -> Self {
        Self { x, ld, transposed: false, scale: 1.0 }
    }

    pub(crate) fn columns(x: &'a [f32], ld: usize) -> Self {
        Self { transposed: true, ..Self::rows(x, ld) }
    }
}

/// Writes rows `range` of a matrix `[n, k]` as f32.
pub(crate) type Decode<'a> = &'a (dyn Fn(Range<usize>, &mut [f32]) + Sync);

/// Writes rows `range` of a matrix `[n, k]` in columns `ks` as a panel `out[ks][width]`; missing rows are zeros.
///
/// Arguments: `range, ks, width, out`. Ranges begin at a multiple of `width` and of [`K_BLOCK`].
pub(crate) type Panel<'a> = &'a (dyn Fn(Range<usize>, Range<usize>, usize, &mut [f32]) + Sync);

/// The right operand of a job.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// `[n, k]` as stored.
    Rows { bytes: &'a [u8], stored: Stored },
    /// `[n, k]`, decoded a few rows at a time.
    Decoded(Decode<'a>),
    /// `[n, k]`, written as panels.
    Panels(Panel<'a>),
    /// `[k, n]` with rows `ld` apart.
    Columns { b: &'a [f32], ld: usize },
}

impl<'a> Right<'a> {
    pub(crate) fn stored(weights: Weights<'a>) -> Self {
        match weights {
            Weights::F32(w) => {
                // SAFETY: any f32 is four bytes; the slice is the same memory.
                let bytes = unsafe { std::slice::from_raw_parts(w.as_ptr().cast(), size_of_val(w)) };
                Self::Rows { bytes, stored: Stored::F32 }
            }
            Weights::F32Bytes(bytes) => Self::Rows { bytes, stored: Stored::F32 },
            Weights::Bf16(bytes) => Self::Rows { bytes, stored: Stored::Bf16 },
            Weights::F16(bytes) => Self::Rows { bytes, stored: Stored::F16 },
        }
    }
}

/// One product of a call: `n` columns of a result.
pub(crate) struct Job<'a> {
    n: usize,
    right: Right<'a>,
    y: *mut f32,
    y_len: usize,
    ldy: usize,
    bias: Option<&'a [f32]>,
    accumulate: bool,
    upper: bool,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: a job stands for a `&mut` of its columns of `y`; tasks write disjoint elements of them.
unsafe impl Sync for Job<'_> {}

impl<'a> Job<'a> {
    pub(crate) fn new(n: usize, right: Right<'a>, y: &'a mut [f32], ldy: usize) -> Self {
        let (y, y_len) = (y.as_mut_ptr(), y.len());
        Self { n, right, y, y_len, ldy, bias: None, accumulate: false, upper: false, of: PhantomData }
    }

    /// Jobs for consecutive columns of one result.
    pub(crate) fn side_by_side(
        y: &'a mut [f32],
        ldy: usize,
        parts: impl Iterator<Item = (usize, Right<'a>)>,
    ) -> impl Iterator<Item = Self> {
        let (at, len) = (y.as_mut_ptr(), y.len());
        let mut from = 0;
        parts.map(move |(n, right)| {
            assert!(from + n <= ldy && from <= len, "columns {from}..{} of rows of {ldy}", from + n);
            // SAFETY: inside the slice.
            let (y, y_len) = (unsafe { at.add(from) }, len - from);
            from += n;
            Self { n, right, y, y_len, ldy, bias: None, accumulate: false, upper: false, of: PhantomData }
        })
    }

    pub(crate) fn accumulating(self, accumulate: bool) -> Self {
        Self { accumulate, ..self }
    }

    /// Adds `bias[n]` to every row, last.
    pub(crate) fn with_bias(self, bias: Option<&'a [f32]>) -> Self {
        Self { bias, ..self }
    }

    /// Leaves out the tiles that lie wholly below the diagonal.
    pub(crate) fn upper(self) -> Self {
        Self { upper: true, ..self }
    }

    fn check(&self, m: usize, k: usize) {
        let (n, ldy) = (self.n, self.ldy);
        assert!(m <= 1 || ldy >= n, "rows of {n} do not fit {ldy} apart");
        assert!(reach(m, ldy, n) <= self.y_len, "a result [{m}, {n}] in {} elements", self.y_len);
        assert!(self.bias.is_none_or(|b| b.len() == n), "a bias of another length than {n}");
        match self.right {
            Right::Rows { bytes, stored } => {
                assert!(n * k * stored.size_bytes() <= bytes.len(), "weights [{n}, {k}] in {} bytes", bytes.len());
            }
            Right::Columns { b, ld } => {
                assert!((k <= 1 || ld >= n) && reach(k, ld, n) <= b.len(), "[{k}, {n}] in {} elements", b.len());
            }
            Right::Decoded(_) | Right::Panels(_) => {}
        }
    }
}

/// Elements from the first to the last of `rows` rows that are `ld` apart.
fn reach(rows: usize, ld: usize, cols: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * ld + cols }
}

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
fn locate<'j, 'a>(jobs: &'j [Job<'a>], mut index: usize, width: usize) -> (&'j Job<'a>, Range<usize>) {
    for job in jobs {
        let stripes = job.n.div_ceil(width);
        if index < stripes {
            return (job, index * width..((index + 1) * width).min(job.n));
        }
        index -= stripes;
    }
    unreachable!("the caller counts the stripes")
}

/// Rearranges rows `rows` of the left operand: by block of k, then by panel of `mr` rows, `[k][mr]`.
fn pack_left(team: &Team, kernels: &Kernels, left: &Left<'_>, rows: Range<usize>, k: usize, packed: &mut [f32]) {
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
struct Block<'a> {
    kernels: &'a Kernels,
    k: usize,
    packed: &'a [f32],
    panels: usize,
    rows: Range<usize>,
}

impl Block<'_> {
    /// One stripe of `job`, a few tiles wide. For each block of k the stripe is rearranged once; then every tile of it
    /// meets [`NEAR_PANELS`] panels while it is in the L1 cache and these are in the L2 cache.
    fn stripe(&self, job: &Job<'_>, columns: Range<usize>, panels: Range<usize>, scratch: &mut Scratch) {
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

/// Few rows: every weight is read once from where it is stored, transposed in registers.
fn multiply_few(team: &Team, kernels: &Kernels, m: usize, k: usize, left: Left<'_>, jobs: &[Job<'_>]) {
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
