//! One pass of a block of queries over a section of the keys, and what becomes of several.

use std::ops::Range;

use half::f16;

use super::AttentionShape;
use super::pages::{PAGE, Read, padded};
use crate::aligned::Aligned;
use crate::elementwise::activation::softcap_lanes;
use crate::elementwise::transcendental::exp_lanes;
use crate::lanes::{Number, Simd, vectorised};
use crate::team::Disjoint;
use crate::tile::{MOST_ROWS, ROWS, add_product, add_product_ahead, add_product_transposed};

/// Positions whose sums are made apart and then added, section after section: what threads share where queries are few.
/// Part of the arithmetic, as [`PAGE`] is.
pub(super) const SECTION: usize = 8 * PAGE;

/// Rows that read numbers as they lie; for more, a page of them is converted to f32 first.
const FEW_ROWS: usize = 2 * MOST_ROWS;

/// Consecutive queries of a sequence with the heads that share one head of keys.
///
/// Row `r` is query `first + r / group` of the call, head `kv_head · group + r % group`.
#[derive(Clone, Copy)]
pub(super) struct QueryBlock {
    pub(super) kv_head: usize,
    pub(super) first: usize,
    pub(super) count: usize,
    /// Position of the query `first` in its sequence.
    pub(super) start: usize,
}

impl QueryBlock {
    /// Sections that any of the queries sees a part of.
    pub(super) fn sections(&self, shape: &AttentionShape<'_>) -> Range<usize> {
        let seen = self.seen(shape);
        seen.start / SECTION..seen.end.div_ceil(SECTION)
    }

    /// Numbers of a [`Sums`] of this block.
    pub(super) fn sums_len(&self, shape: &AttentionShape<'_>) -> usize {
        self.rows(shape) * (padded(shape.head_dim) + 2)
    }

    pub(super) fn rows(&self, shape: &AttentionShape<'_>) -> usize {
        self.count * shape.group()
    }

    /// Where row `r` begins in the queries.
    fn offset(&self, shape: &AttentionShape<'_>, r: usize) -> usize {
        let group = shape.group();
        let (query, head) = (self.first + r / group, self.kv_head * group + r % group);
        (query * shape.heads + head) * shape.head_dim
    }

    /// The positions that row `r` sees.
    fn visible(&self, shape: &AttentionShape<'_>, r: usize) -> Range<usize> {
        let end = self.start + r / shape.group() + 1;
        shape.window.map_or(0, |w| end.saturating_sub(w.max(1)))..end
    }

    /// The positions that any row sees.
    fn seen(&self, shape: &AttentionShape<'_>) -> Range<usize> {
        self.visible(shape, 0).start..self.start + self.count
    }
}

/// Softmax sums of the rows of a block over some of the keys.
struct Sums<'a> {
    /// `[rows, padded]`: weighted sums of values, relative to `tops`.
    values: &'a mut [f32],
    /// `[rows]`: greatest score.
    tops: &'a mut [f32],
    /// `[rows]`: sum of the weights, relative to `tops`.
    totals: &'a mut [f32],
}

impl<'a> Sums<'a> {
    /// What lies in `numbers`.
    fn of(numbers: &'a mut [f32], rows: usize) -> Self {
        let len = numbers.len();
        let (values, rest) = numbers.split_at_mut(len - 2 * rows);
        let (tops, totals) = rest.split_at_mut(rows);
        Self { values, tops, totals }
    }
}

vectorised! {
    /// Writes the [`Sums`] of a block's rows over a section to `sums`.
    pub(super) fn sum_section_f32(
        shape: &AttentionShape<'_>, block: &QueryBlock, q: &[f32], pages: &Read<'_, f32>, section: usize,
        scratch: &mut Aligned<f32>, sums: &mut [f32],
    ) = sum_section
}

vectorised! {
    /// [`sum_section_f32`] for numbers of f16.
    pub(super) fn sum_section_f16(
        shape: &AttentionShape<'_>, block: &QueryBlock, q: &[f32], pages: &Read<'_, f16>, section: usize,
        scratch: &mut Aligned<f32>, sums: &mut [f32],
    ) = sum_section
}

#[inline(always)]
fn sum_section<S: Simd, T: Number>(
    s: S,
    shape: &AttentionShape<'_>,
    block: &QueryBlock,
    q: &[f32],
    pages: &Read<'_, T>,
    section: usize,
    scratch: &mut Aligned<f32>,
    sums: &mut [f32],
) {
    let (rows, dim) = (block.rows(shape), shape.head_dim);
    let padded = padded(dim);
    let converts = rows > FEW_ROWS && size_of::<T>() < size_of::<f32>();
    let work = Work::new(scratch, rows, dim, if converts { PAGE * padded } else { 0 });
    let sums = Sums::of(sums, rows);
    sums.values.fill(0.0);
    // Few rows are one strip where there are registers, so that pages are read and converted once.
    let most = if S::LANES == 16 { MOST_ROWS } else { ROWS };
    let strip_rows = if rows > FEW_ROWS { ROWS } else { rows.div_ceil(rows.div_ceil(most)) };
    for r in 0..rows {
        let at = block.offset(shape, r);
        let (strip, width) = (r - r % strip_rows, strip_rows.min(rows - (r - r % strip_rows)));
        let to = work.queries[strip * dim + r % strip_rows..].iter_mut().step_by(width);
        to.zip(&q[at..at + dim]).for_each(|(to, from)| *to = from * shape.scale);
        // A sink is in front of the first position that the row sees.
        let sink = shape.sinks.filter(|_| block.visible(shape, r).start / SECTION == section);
        let sink = sink.map(|sinks| sinks[block.kv_head * shape.group() + r % shape.group()]);
        (sums.tops[r], sums.totals[r]) = sink.map_or((f32::NEG_INFINITY, 0.0), |sink| (sink, 1.0));
    }
    let seen = block.seen(shape);
    let [first, end] = [seen.start.max(section * SECTION), seen.end.min((section + 1) * SECTION)];
    for page in first / PAGE..end.div_ceil(PAGE) {
        let at = page * PAGE..((page + 1) * PAGE).min(end);
        let (keys, values) = (pages.keys(page, block.kv_head), pages.values(page, block.kv_head));
        // While scores are computed the values are fetched, and then the next keys.
        let mut ahead = [values.as_ptr(), std::ptr::null()];
        if page + 1 < pages.len() {
            ahead[1] = pages.keys(page + 1, block.kv_head).as_ptr();
        }
        if converts {
            convert(s, keys, work.keys);
            convert(s, values, work.values);
        }
        for from in (0..rows).step_by(strip_rows) {
            let strip = from..(from + strip_rows).min(rows);
            let within = |r: usize| {
                let visible = block.visible(shape, r);
                visible.start.clamp(at.start, at.end) - at.start..visible.end.clamp(at.start, at.end) - at.start
            };
            let seen = within(strip.start).start..within(strip.end - 1).end;
            if seen.is_empty() {
                continue;
            }
            let scores = &mut work.scores[..strip.len() * PAGE];
            scores.fill(0.0);
            let (product, queries) = ([strip.len(), dim, PAGE], &work.queries[from * dim..]);
            if converts {
                add_product_transposed(s, product, queries, strip.len(), work.keys, PAGE, scores, PAGE);
            } else {
                add_product_ahead(s, product, (queries, 1, strip.len()), (keys, PAGE, ahead[0]), scores, PAGE);
            }
            let mut shrink = [0.0; 16];
            for (r, (scores, shrink)) in strip.clone().zip(scores.chunks_exact_mut(PAGE).zip(&mut shrink)) {
                let top = greatest(s, scores, within(r), shape.softcap, sums.tops[r]);
                // A row that has seen nothing yet has nothing to shrink.
                *shrink = if top == f32::NEG_INFINITY { 0.0 } else { sums.tops[r] - top };
                sums.tops[r] = top;
            }
            exp_few(s, &mut shrink);
            for (r, (scores, shrink)) in strip.clone().zip(scores.chunks_exact_mut(PAGE).zip(shrink)) {
                if shrink != 1.0 {
                    sums.totals[r] *= shrink;
                    multiply(s, &mut sums.values[r * padded..(r + 1) * padded], shrink);
                }
                sums.totals[r] += weigh(s, scores, within(r), sums.tops[r]);
            }
            let (product, weights) = ([strip.len(), seen.len(), padded], &work.scores[seen.start..]);
            let (place, to) = (seen.start * padded, &mut sums.values[from * padded..]);
            if converts {
                add_product(s, product, weights, PAGE, &work.values[place..], padded, to, padded);
            } else {
                let values = (&values[place..], padded, ahead[1]);
                add_product_ahead(s, product, (weights, PAGE, 1), values, to, padded);
            }
            // The other strips find them there.
            ahead = [std::ptr::null(); 2];
        }
    }
}

/// Adds sums over later keys to those over earlier ones.
pub(super) fn merge(shape: &AttentionShape<'_>, block: &QueryBlock, sums: &mut [f32], later: &mut [f32]) {
    let rows = block.rows(shape);
    merge_rows(padded(shape.head_dim), &mut Sums::of(sums, rows), &Sums::of(later, rows));
}

vectorised! {
    fn merge_rows(padded: usize, sums: &mut Sums<'_>, later: &Sums<'_>) = merge_lanes
}

#[inline(always)]
fn merge_lanes<S: Simd>(s: S, padded: usize, sums: &mut Sums<'_>, later: &Sums<'_>) {
    for (r, values) in sums.values.chunks_exact_mut(padded).enumerate() {
        if later.totals[r] == 0.0 {
            continue;
        }
        let top = sums.tops[r].max(later.tops[r]);
        let mut shrink = [0.0; 16];
        (shrink[0], shrink[1]) = (sums.tops[r] - top, later.tops[r] - top);
        exp_few(s, &mut shrink);
        (sums.tops[r], sums.totals[r]) = (top, sums.totals[r] * shrink[0] + later.totals[r] * shrink[1]);
        let [before, behind] = [s.splat(shrink[0]), s.splat(shrink[1])];
        let later = later.values[r * padded..(r + 1) * padded].chunks_exact(S::LANES);
        for (value, later) in values.chunks_exact_mut(S::LANES).zip(later) {
            s.store(value, s.mul_add(s.load(later), behind, s.mul(s.load(value), before)));
        }
    }
}

/// Writes the rows of a block to their places in `out`, and the logarithms of their sums.
///
/// # Safety
/// No other part of `out` or `log_sums` at those places is alive.
pub(super) unsafe fn finish(
    shape: &AttentionShape<'_>,
    block: &QueryBlock,
    sums: &mut [f32],
    out: &Disjoint<'_, f32>,
    log_sums: Option<&Disjoint<'_, f32>>,
) {
    let (rows, dim) = (block.rows(shape), shape.head_dim);
    let sums = Sums::of(sums, rows);
    for r in 0..rows {
        let at = block.offset(shape, r);
        // SAFETY: the caller's promise.
        let to = unsafe { out.slice(at..at + dim) };
        let factor = 1.0 / sums.totals[r];
        for (to, sum) in to.iter_mut().zip(&sums.values[r * padded(dim)..]) {
            // Adding zero makes −0 positive: its sign depends on how many invisible keys were added.
            *to = sum * factor + 0.0;
        }
        if let Some(log_sums) = log_sums {
            // SAFETY: the caller's promise.
            let to = unsafe { log_sums.slice(at / dim..at / dim + 1) };
            to[0] = sums.tops[r] + sums.totals[r].ln();
        }
    }
}

/// Buffers of one block, cut from one allocation.
struct Work<'a> {
    /// `[dim, PAGE]`: keys of a page as f32.
    keys: &'a mut [f32],
    /// `[PAGE, padded]`: values of a page as f32.
    values: &'a mut [f32],
    /// `[MOST_ROWS, PAGE]`: scores, then weights.
    scores: &'a mut [f32],
    /// Strip after strip `[dim, rows]`, times the scale.
    queries: &'a mut [f32],
}

impl<'a> Work<'a> {
    fn new(scratch: &'a mut Aligned<f32>, rows: usize, dim: usize, page: usize) -> Self {
        let sizes = [page, page, MOST_ROWS * PAGE, rows * dim];
        let mut rest = scratch.take(sizes.iter().sum());
        let [keys, values, scores, queries] = sizes.map(|n| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(n);
            rest = others;
            part
        });
        Self { keys, values, scores, queries }
    }
}

/// Whole vectors of numbers as f32.
#[inline(always)]
fn convert<S: Simd, T: Number>(s: S, from: &[T], to: &mut [f32]) {
    for (from, to) in from.chunks_exact(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
        // SAFETY: `from` is LANES numbers.
        s.store(to, unsafe { T::load_at(s, from.as_ptr()) });
    }
}

/// The new top of a row: the greatest of `top` and its scores within `seen`; the others become −∞.
#[inline(always)]
fn greatest<S: Simd>(s: S, scores: &mut [f32], seen: Range<usize>, softcap: Option<f32>, top: f32) -> f32 {
    if let Some(cap) = softcap {
        let cap = s.splat(cap);
        for chunk in scores.chunks_exact_mut(S::LANES) {
            s.store(chunk, softcap_lanes(s, s.load(chunk), cap));
        }
    }
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    let mut greatest = s.splat(top);
    for chunk in scores.chunks_exact(S::LANES) {
        greatest = s.max(s.load(chunk), greatest);
    }
    s.greatest(greatest)
}

/// Turns the scores of a row into weights `e^(score − top)`, and returns their sum.
#[inline(always)]
fn weigh<S: Simd>(s: S, scores: &mut [f32], seen: Range<usize>, top: f32) -> f32 {
    if seen.is_empty() {
        scores.fill(0.0);
        return 0.0;
    }
    let top = s.splat(top);
    let mut sum = s.splat(0.0);
    for chunk in scores.chunks_exact_mut(S::LANES) {
        let weight = exp_lanes(s, s.sub(s.load(chunk), top));
        s.store(chunk, weight);
        sum = s.add(sum, weight);
    }
    s.sum(sum)
}

#[inline(always)]
fn exp_few<S: Simd>(s: S, x: &mut [f32; 16]) {
    for chunk in x.chunks_exact_mut(S::LANES) {
        s.store(chunk, exp_lanes(s, s.load(chunk)));
    }
}

#[inline(always)]
fn multiply<S: Simd>(s: S, x: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    for chunk in x.chunks_exact_mut(S::LANES) {
        s.store(chunk, s.mul(s.load(chunk), factor));
    }
}
