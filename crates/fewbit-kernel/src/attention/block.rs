use std::ops::Range;

use super::AttentionShape;
use crate::elementwise::activation::softcap_lanes;
use crate::elementwise::transcendental::exp_lanes;
use crate::lanes::{Simd, vectorised};
use crate::team::Disjoint;
use crate::tile::{ROWS, add_product};

/// Keys whose scores are computed before the running maximum moves. Part of the arithmetic: it fixes every sum's order.
const KEYS: usize = 64;

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
    pub(super) shape: &'a AttentionShape,
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

    /// The positions that row `r` sees.
    fn visible(&self, r: usize) -> Range<usize> {
        let end = self.start + self.first + r / self.group() + 1;
        self.shape.window.map_or(0, |w| end.saturating_sub(w.max(1)))..end
    }
}

vectorised! {
    /// Computes all rows of the block and writes them to their places in `out`.
    ///
    /// No other part of `out` at those places may be alive.
    pub(super) fn attend(
        queries: &QueryBlock<'_>, q: &[f32], cache: &Cache<'_>, scratch: &mut Vec<f32>, out: &Disjoint<'_, f32>,
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
) {
    let (rows, dim) = (queries.rows(), queries.shape.head_dim);
    let padded = dim.next_multiple_of(S::LANES);
    let work = Work::new(scratch, rows, dim, padded);
    for r in 0..rows {
        let at = queries.offset(r);
        for (to, from) in work.queries[r * dim..(r + 1) * dim].iter_mut().zip(&q[at..at + dim]) {
            *to = from * queries.shape.scale;
        }
    }
    let column = queries.kv_head * dim;
    let (first, end) = (queries.visible(0).start, queries.visible(rows - 1).end);
    for block in first / KEYS..end.div_ceil(KEYS) {
        let block = block * KEYS..((block + 1) * KEYS).min(end);
        pack_transposed(s, cache.keys, cache.stride, column, &block, dim, work.keys);
        // One group of rows reads the values where they lie; more are worth a copy at a stride that suits the cache.
        let in_place = rows <= ROWS && dim == padded;
        if !in_place {
            for (j, to) in block.clone().zip(work.values.chunks_exact_mut(padded)) {
                to[..dim].copy_from_slice(&cache.values[j * cache.stride + column..][..dim]);
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
            for (r, scores) in strip.clone().zip(scores.chunks_exact_mut(KEYS)) {
                let visible = queries.visible(r);
                let part = visible.start.clamp(block.start, block.end) - block.start
                    ..visible.end.clamp(block.start, block.end) - block.start;
                let sums = &mut work.sums[r * padded..(r + 1) * padded];
                weigh(s, scores, part, queries.shape.softcap, &mut work.tops[r], &mut work.totals[r], sums);
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
        // The columns between `dim` and `padded` are multiplied too, and must be numbers.
        values.fill(0.0);
        sums.fill(0.0);
        tops.fill(f32::NEG_INFINITY);
        totals.fill(0.0);
        Self { queries, keys, values, scores, sums, tops, totals }
    }
}

/// Writes the keys `block` of one head as columns of `packed [padded, KEYS]`, zeros where there are none.
#[inline(always)]
fn pack_transposed<S: Simd>(
    s: S,
    keys: &[f32],
    stride: usize,
    column: usize,
    block: &Range<usize>,
    dim: usize,
    packed: &mut [f32],
) {
    for j in (0..KEYS).step_by(S::LANES) {
        for d in (0..dim).step_by(S::LANES) {
            let to = &mut packed[d * KEYS + j..][..(S::LANES - 1) * KEYS + S::LANES];
            let whole = block.start + j + S::LANES <= block.end && d + S::LANES <= dim;
            let mut square = [0.0; 16 * 16];
            let (from, stride) = if whole {
                let at = (block.start + j) * stride + column + d;
                (&keys[at..][..(S::LANES - 1) * stride + S::LANES], stride)
            } else {
                let there = (block.start + j).min(block.end)..(block.start + j + S::LANES).min(block.end);
                for (i, to) in there.zip(square.chunks_exact_mut(S::LANES)) {
                    let width = S::LANES.min(dim - d);
                    to[..width].copy_from_slice(&keys[i * stride + column + d..][..width]);
                }
                (&square[..S::LANES * S::LANES], S::LANES)
            };
            // SAFETY: both slices hold LANES rows of LANES values at their strides.
            unsafe { s.transpose_at(from.as_ptr(), stride, to.as_mut_ptr(), KEYS) };
        }
    }
}

/// Turns one row's scores into weights `e^(score − top)`, zero outside `seen`, after moving what was summed to the new
/// top.
#[inline(always)]
fn weigh<S: Simd>(
    s: S,
    scores: &mut [f32],
    seen: Range<usize>,
    softcap: Option<f32>,
    top: &mut f32,
    total: &mut f32,
    sums: &mut [f32],
) {
    if seen.is_empty() {
        scores.fill(0.0);
        return;
    }
    if let Some(cap) = softcap {
        let cap = s.splat(cap);
        for chunk in scores.chunks_exact_mut(S::LANES) {
            s.store(chunk, softcap_lanes(s, s.load(chunk), cap));
        }
    }
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    let mut greatest = s.splat(*top);
    for chunk in scores.chunks_exact(S::LANES) {
        greatest = s.max(s.load(chunk), greatest);
    }
    let greatest = s.greatest(greatest);
    if greatest > *top {
        let mut shrink = [0.0; 16];
        s.store(&mut shrink, exp_lanes(s, s.splat(*top - greatest)));
        *total *= shrink[0];
        let shrink = s.splat(shrink[0]);
        for chunk in sums.chunks_exact_mut(S::LANES) {
            s.store(chunk, s.mul(s.load(chunk), shrink));
        }
        *top = greatest;
    }
    let greatest = s.splat(greatest);
    let mut sum = s.splat(0.0);
    for chunk in scores.chunks_exact_mut(S::LANES) {
        let weight = exp_lanes(s, s.sub(s.load(chunk), greatest));
        s.store(chunk, weight);
        sum = s.add(sum, weight);
    }
    *total += s.sum(sum);
}
