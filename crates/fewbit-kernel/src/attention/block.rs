//! One pass of a block of queries over the keys.

use std::ops::Range;

use super::AttentionShape;
use crate::elementwise::activation::softcap_lanes;
use crate::elementwise::transcendental::exp_lanes;
use crate::lanes::{Simd, vectorised};
use crate::team::Disjoint;
use crate::tile::{ROWS, add_product};

/// Keys whose scores are computed before the running maximum moves. Part of the arithmetic: it fixes every sum's order.
pub(super) const KEYS: usize = 64;

/// Keys and values of all positions, at one stride.
pub(super) struct Cache<'a> {
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
}

/// Consecutive query positions with the heads that share one head of keys.
///
/// Row `r` is position `first + r / group` of the call, head `kv_head · group + r % group`.
pub(super) struct QueryBlock<'a> {
    pub(super) shape: &'a AttentionShape<'a>,
    pub(super) kv_head: usize,
    pub(super) first: usize,
    pub(super) count: usize,
    /// Absolute position of the call's first query.
    pub(super) start: usize,
}

impl QueryBlock<'_> {
    fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    fn rows(&self) -> usize {
        self.count * self.group()
    }

    /// Where row `r` begins in the queries.
    fn offset(&self, r: usize) -> usize {
        let (position, head) = (self.first + r / self.group(), self.kv_head * self.group() + r % self.group());
        (position * self.shape.heads + head) * self.shape.head_dim
    }

    /// The sink of row `r`.
    fn sink(&self, r: usize) -> Option<f32> {
        self.shape.sinks.map(|sinks| sinks[self.kv_head * self.group() + r % self.group()])
    }

    /// The positions that row `r` sees.
    fn visible(&self, r: usize) -> Range<usize> {
        let end = self.start + self.first + r / self.group() + 1;
        self.shape.window.map_or(0, |w| end.saturating_sub(w.max(1)))..end
    }
}

vectorised! {
    /// Computes all rows of the block and writes them to their places in `out`.
    ///
    /// No other part of `out` or `log_sums` at those places may be alive.
    pub(super) fn attend(
        queries: &QueryBlock<'_>, q: &[f32], cache: &Cache<'_>, scratch: &mut Vec<f32>, out: &Disjoint<'_, f32>,
        log_sums: Option<&Disjoint<'_, f32>>,
    ) = attend_lanes
}

#[inline(always)]
fn attend_lanes<S: Simd>(
    s: S,
    queries: &QueryBlock<'_>,
    q: &[f32],
    cache: &Cache<'_>,
    scratch: &mut Vec<f32>,
    out: &Disjoint<'_, f32>,
    log_sums: Option<&Disjoint<'_, f32>>,
) {
    let (rows, dim) = (queries.rows(), queries.shape.head_dim);
    let padded = dim.next_multiple_of(S::LANES);
    let work = Work::new(scratch, rows, dim, padded);
    for r in 0..rows {
        let at = queries.offset(r);
        for (to, from) in work.queries[r * dim..(r + 1) * dim].iter_mut().zip(&q[at..at + dim]) {
            *to = from * queries.shape.scale;
        }
        if let Some(sink) = queries.sink(r) {
            (work.tops[r], work.totals[r]) = (sink, 1.0);
        }
    }
    let column = queries.kv_head * dim;
    let (first, end) = (queries.visible(0).start, queries.visible(rows - 1).end);
    for block in first / KEYS..end.div_ceil(KEYS) {
        let block = block * KEYS..((block + 1) * KEYS).min(end);
        pack_transposed(s, cache.keys, cache.stride, column, &block, dim, work.keys);
        // A few rows read the values where they lie; more are worth a copy at a stride that suits the cache.
        let in_place = rows <= 2 * ROWS && dim == padded;
        if !in_place {
            for (j, to) in block.clone().zip(work.values.chunks_exact_mut(padded)) {
                let from = &cache.values[j * cache.stride + column..][..dim];
                for d in (0..dim).step_by(S::LANES) {
                    s.store(&mut to[d..], s.load_partial(&from[d..(d + S::LANES).min(dim)]));
                }
            }
        }
        for from in (0..rows).step_by(ROWS) {
            let strip = from..(from + ROWS).min(rows);
            let seen =
                queries.visible(strip.start).start.max(block.start)..queries.visible(strip.end - 1).end.min(block.end);
            if seen.is_empty() {
                continue;
            }
            let scores = &mut work.scores[..strip.len() * KEYS];
            scores.fill(0.0);
            let shape = [strip.len(), dim, KEYS];
            add_product(s, shape, &work.queries[from * dim..], dim, work.keys, KEYS, scores, KEYS);
            let within = |r: usize| {
                let visible = queries.visible(r);
                visible.start.clamp(block.start, block.end) - block.start
                    ..visible.end.clamp(block.start, block.end) - block.start
            };
            let mut shrink = [0.0; 16];
            for (r, (scores, shrink)) in strip.clone().zip(scores.chunks_exact_mut(KEYS).zip(&mut shrink)) {
                let top = greatest(s, scores, within(r), queries.shape.softcap, work.tops[r]);
                // A row that has seen nothing yet has nothing to shrink.
                *shrink = if top == f32::NEG_INFINITY { 0.0 } else { work.tops[r] - top };
                work.tops[r] = top;
            }
            exp_few(s, &mut shrink);
            for (r, (scores, shrink)) in strip.clone().zip(scores.chunks_exact_mut(KEYS).zip(shrink)) {
                if shrink != 1.0 {
                    work.totals[r] *= shrink;
                    multiply(s, &mut work.sums[r * padded..(r + 1) * padded], shrink);
                }
                work.totals[r] += weigh(s, scores, within(r), work.tops[r]);
            }
            let (values, stride) = if in_place {
                (&cache.values[seen.start * cache.stride + column..], cache.stride)
            } else {
                (&work.values[(seen.start - block.start) * padded..], padded)
            };
            let shape = [strip.len(), seen.len(), padded];
            let weights = &work.scores[seen.start - block.start..];
            add_product(s, shape, weights, KEYS, values, stride, &mut work.sums[from * padded..], padded);
        }
    }
    for r in 0..rows {
        let at = queries.offset(r);
        // SAFETY: the caller's promise.
        let to = unsafe { out.slice(at..at + dim) };
        let factor = 1.0 / work.totals[r];
        for (to, sum) in to.iter_mut().zip(&work.sums[r * padded..]) {
            // Adding zero makes −0 positive: its sign depends on how many invisible keys were added.
            *to = sum * factor + 0.0;
        }
        if let Some(log_sums) = log_sums {
            // SAFETY: the caller's promise.
            let to = unsafe { log_sums.slice(at / dim..at / dim + 1) };
            to[0] = work.tops[r] + work.totals[r].ln();
        }
    }
}

/// Buffers of one block, cut from one allocation.
struct Work<'a> {
    /// `[rows, dim]`, times the scale.
    queries: &'a mut [f32],
    /// `[padded, KEYS]`: a block of keys, transposed.
    keys: &'a mut [f32],
    /// `[KEYS, padded]`.
    values: &'a mut [f32],
    /// `[ROWS, KEYS]`: scores, then weights.
    scores: &'a mut [f32],
    /// `[rows, padded]`: weighted sums of values, relative to `tops`.
    sums: &'a mut [f32],
    /// `[rows]`: greatest score so far.
    tops: &'a mut [f32],
    /// `[rows]`: sum of the weights, relative to `tops`.
    totals: &'a mut [f32],
}

impl<'a> Work<'a> {
    fn new(scratch: &'a mut Vec<f32>, rows: usize, dim: usize, padded: usize) -> Self {
        let sizes = [rows * dim, padded * KEYS, KEYS * padded, ROWS * KEYS, rows * padded, rows, rows];
        scratch.resize(scratch.len().max(sizes.iter().sum()), 0.0);
        let mut rest = &mut scratch[..];
        let [queries, keys, values, scores, sums, tops, totals] = sizes.map(|n| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(n);
            rest = others;
            part
        });
        sums.fill(0.0);
        tops.fill(f32::NEG_INFINITY);
        totals.fill(0.0);
        Self { queries, keys, values, scores, sums, tops, totals }
    }
}

/// Writes the keys `block` of one head as columns of `packed [padded, KEYS]`, zeros where there are none.
#[inline(always)]
pub(super) fn pack_transposed<S: Simd>(
    s: S,
    keys: &[f32],
    stride: usize,
    column: usize,
    block: &Range<usize>,
    dim: usize,
    packed: &mut [f32],
) {
    let mut square = [0.0; 16 * 16];
    for j in (0..KEYS).step_by(S::LANES) {
        for d in (0..dim).step_by(S::LANES) {
            let to = &mut packed[d * KEYS + j..][..(S::LANES - 1) * KEYS + S::LANES];
            let whole = block.start + j + S::LANES <= block.end && d + S::LANES <= dim;
            let (from, stride) = if whole {
                let at = (block.start + j) * stride + column + d;
                (&keys[at..][..(S::LANES - 1) * stride + S::LANES], stride)
            } else {
                for (i, to) in square.chunks_exact_mut(S::LANES).take(S::LANES).enumerate() {
                    let key = block.start + j + i;
                    let width = if key < block.end { S::LANES.min(dim - d) } else { 0 };
                    // A key that is not there has no place either.
                    let at = if width > 0 { key * stride + column + d } else { 0 };
                    s.store(to, s.load_partial(&keys[at..at + width]));
                }
                (&square[..S::LANES * S::LANES], S::LANES)
            };
            // SAFETY: both slices hold LANES rows of LANES values at their strides.
            unsafe { s.transpose_at(from.as_ptr(), stride, to.as_mut_ptr(), KEYS) };
        }
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
