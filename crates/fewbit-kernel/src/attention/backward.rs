//! Gradients through causal attention: probabilities are computed again, a tile at a time.

use std::cell::RefCell;
use std::ops::Range;

use super::AttentionShape;
use super::pack::pack_transposed;
use super::pages::PAGE;
use crate::Team;
use crate::elementwise::add;
use crate::elementwise::transcendental::{exp_lanes, tanh_lanes};
use crate::lanes::{Simd, vectorised};
use crate::team::Disjoint;
use crate::tile::{ROWS, add_product, add_product_transposed};

/// Queries that meet a block of keys at once: their probabilities and gradients stay in the L1 cache.
const QUERIES: usize = 8 * ROWS;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What an attention read and made: rows of tokens, `q` and `out` of `heads · head_dim`, `k` and `v` of
/// `kv_heads · head_dim`, and `log_sums` of `heads` values.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// The result.
    pub out: &'a [f32],
    /// From [`attention_with_log_sums`](super::attention_with_log_sums).
    pub log_sums: &'a [f32],
}

/// Gradients `[dq, dk, dv]` of attention over whole sequences, given that of its result; they are written, not added.
///
/// `sequences` are the rows of each sequence, which begin at position 0; sinks have [`sinks_backward`]. With `P` the
/// probabilities, `dV = Pᵀ dO`, `dS = P ⊙ (dO Vᵀ − rowsum(dO ⊙ O))`, `dQ = scale · dS K`, `dK = scale · dSᵀ Q` (Dao et
/// al. 2022, algorithm 4). Each query head of a sequence is one task, and the heads that share keys are added in order: sums depend neither on the
/// threads nor on what else is in the batch. Memory beside the gradients: twice `dq`.
///
/// # Panics
/// If the slices do not hold these shapes, or `sequences` overlap.
pub fn attention_backward(
    team: &Team,
    shape: &AttentionShape<'_>,
    sequences: &[Range<usize>],
    forward: &Forward<'_>,
    d_out: &[f32],
    [dq, dk, dv]: [&mut [f32]; 3],
) {
    let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
    assert!(head_dim > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads on {kv_heads}");
    let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
    let tokens = forward.q.len() / wide;
    let is_whole = |slices: &[&[f32]], width: usize| slices.iter().all(|s| s.len() == tokens * width);
    assert!(is_whole(&[forward.q, forward.out, d_out, dq], wide), "whole rows of queries");
    assert!(is_whole(&[forward.k, forward.v, dk, dv], narrow), "whole rows of keys and values");
    assert!(is_whole(&[forward.log_sums], heads), "a sum for each query");
    assert!(sequences.windows(2).all(|w| w[0].end <= w[1].start), "sequences in order");
    assert!(sequences.last().is_none_or(|s| s.end <= tokens), "sequences inside the batch");

    let group = heads / kv_heads;
    // Where heads share keys, each writes its part of their gradients to a place of its own.
    let mut parts = if group > 1 { vec![0.0; 2 * tokens * wide] } else { Vec::new() };
    {
        let (dk, dv) = if group > 1 { parts.split_at_mut(tokens * wide) } else { (&mut *dk, &mut *dv) };
        let out = [dq, dk, dv].map(Disjoint::new);
        team.run(sequences.len() * heads, &|task| {
            let head = Head { shape, rows: sequences[task / heads].clone(), index: task % heads };
            SCRATCH.with_borrow_mut(|scratch| head_backward(&head, forward, d_out, scratch, &out));
        });
    }
    if group > 1 {
        let (parts_k, parts_v) = parts.split_at(tokens * wide);
        for (to, parts) in [(dk, parts_k), (dv, parts_v)] {
            team.for_rows(narrow, to, &|at, to| {
                let parts = parts[at * group..].chunks_exact(group * head_dim);
                for (to, parts) in to.chunks_exact_mut(head_dim).zip(parts) {
                    to.copy_from_slice(&parts[..head_dim]);
                    parts.chunks_exact(head_dim).skip(1).for_each(|part| add(to, part));
                }
            });
        }
    }
}

/// Adds the gradients of the sinks to `d_sinks [heads]`: `−Σᵢ e^(sink − log sumᵢ) · (dOᵢ · Oᵢ)`, accumulated in f64.
///
/// # Panics
/// If there are no sinks, or the slices do not hold these shapes.
pub fn sinks_backward(
    team: &Team,
    shape: &AttentionShape<'_>,
    forward: &Forward<'_>,
    d_out: &[f32],
    d_sinks: &mut [f32],
) {
    let AttentionShape { heads, head_dim, .. } = *shape;
    let sinks = shape.sinks.expect("an attention with sinks");
    assert!(sinks.len() == heads && d_sinks.len() == heads, "a sink for each head");
    assert!(forward.out.len() == d_out.len() && d_out.len() == forward.log_sums.len() * head_dim, "one shape");
    team.for_pieces(d_sinks, 1, &|head, sum| {
        let rows = forward.log_sums.chunks_exact(heads).enumerate();
        let terms = rows.map(|(row, log_sums)| {
            let at = (row * heads + head) * head_dim;
            let along = d_out[at..at + head_dim].iter().zip(&forward.out[at..]).map(|(d, o)| f64::from(d * o));
            f64::from((sinks[head] - log_sums[head]).exp()) * along.sum::<f64>()
        });
        sum[0] -= terms.sum::<f64>() as f32;
    });
}

/// One query head of one sequence.
struct Head<'a> {
    shape: &'a AttentionShape<'a>,
    rows: Range<usize>,
    index: usize,
}

vectorised! {
    /// Writes the head's columns of `[dq, dk, dv]`, each with rows of `heads · head_dim`.
    ///
    /// No other part of them at those places may be alive.
    fn head_backward(
        head: &Head<'_>, forward: &Forward<'_>, d_out: &[f32], scratch: &mut Vec<f32>, out: &[Disjoint<'_, f32>; 3],
    ) = head_lanes
}

#[inline(always)]
fn head_lanes<S: Simd>(
    s: S,
    head: &Head<'_>,
    forward: &Forward<'_>,
    d_out: &[f32],
    scratch: &mut Vec<f32>,
    out: &[Disjoint<'_, f32>; 3],
) {
    let Head { shape, rows, index: head } = head;
    let AttentionShape { heads, kv_heads, head_dim: dim, scale, softcap, window, .. } = **shape;
    let (wide, narrow, len) = (heads * dim, kv_heads * dim, rows.len());
    let padded = dim.next_multiple_of(S::LANES);
    let work = Work::new(scratch, len, padded);
    let (column, kv_column) = (head * dim, head / (heads / kv_heads) * dim);
    copy_rows(forward.q, wide, column, rows, dim, scale, work.queries, padded);
    copy_rows(d_out, wide, column, rows, dim, 1.0, work.d_out, padded);
    for (i, row) in rows.clone().enumerate() {
        let (d, o) = (&d_out[row * wide + column..][..dim], &forward.out[row * wide + column..][..dim]);
        work.levels[i] = dot(s, d, o);
        work.log_sums[i] = forward.log_sums[row * heads + head];
    }
    let (k, v) =
        (&forward.k[rows.start * narrow..rows.end * narrow], &forward.v[rows.start * narrow..rows.end * narrow]);
    for first in (0..len).step_by(PAGE) {
        let block = first..(first + PAGE).min(len);
        pack_transposed(s, k, narrow, kv_column, &block, dim, work.keys_transposed);
        pack_transposed(s, v, narrow, kv_column, &block, dim, work.values_transposed);
        copy_rows(k, narrow, kv_column, &block, dim, 1.0, work.keys, padded);
        work.dk.fill(0.0);
        work.dv.fill(0.0);
        // The last position that sees any of these keys is `window` before the last key's successor.
        let last = window.map_or(len, |w| (block.end - 1 + w.max(1)).min(len));
        for from in (block.start..last).step_by(QUERIES) {
            let queries = from..(from + QUERIES).min(last);
            for strip in queries.clone().step_by(ROWS) {
                let strip = strip..(strip + ROWS).min(queries.end);
                let at = (strip.start - from) * PAGE..(strip.end - from) * PAGE;
                let (p, ds) = (&mut work.p[at.clone()], &mut work.ds[at]);
                p.fill(0.0);
                ds.fill(0.0);
                let (shape, at) = ([strip.len(), dim, PAGE], strip.start * padded);
                add_product(s, shape, &work.queries[at..], padded, work.keys_transposed, PAGE, p, PAGE);
                add_product(s, shape, &work.d_out[at..], padded, work.values_transposed, PAGE, ds, PAGE);
                for (i, (p, ds)) in strip.clone().zip(p.chunks_exact_mut(PAGE).zip(ds.chunks_exact_mut(PAGE))) {
                    let seen = window.map_or(0, |w| (i + 1).saturating_sub(w.max(1)))..i + 1;
                    let seen = seen.start.clamp(first, block.end) - first..seen.end.clamp(first, block.end) - first;
                    gradients(s, p, ds, seen, softcap, work.log_sums[i], work.levels[i]);
                }
                let shape = [strip.len(), block.len(), padded];
                add_product(s, shape, ds, PAGE, work.keys, padded, &mut work.dq[at..], padded);
            }
            for key in (0..block.len()).step_by(ROWS) {
                let shape = [ROWS.min(block.len() - key), queries.len(), padded];
                let (at, to) = (from * padded, key * padded);
                add_product_transposed(
                    s,
                    shape,
                    &work.p[key..],
                    PAGE,
                    &work.d_out[at..],
                    padded,
                    &mut work.dv[to..],
                    padded,
                );
                add_product_transposed(
                    s,
                    shape,
                    &work.ds[key..],
                    PAGE,
                    &work.queries[at..],
                    padded,
                    &mut work.dk[to..],
                    padded,
                );
            }
        }
        let rows = rows.start + block.start..rows.start + block.end;
        // The queries bear the scale already.
        write_rows(&out[1], wide, column, &rows, dim, 1.0, work.dk, padded);
        write_rows(&out[2], wide, column, &rows, dim, 1.0, work.dv, padded);
    }
    write_rows(&out[0], wide, column, rows, dim, scale, work.dq, padded);
}

/// Buffers of one head, cut from one allocation.
struct Work<'a> {
    /// `[len, padded]`: queries times the scale.
    queries: &'a mut [f32],
    /// `[len, padded]`: the result's gradient.
    d_out: &'a mut [f32],
    /// `[len, padded]`.
    dq: &'a mut [f32],
    /// `[padded, PAGE]`: a block of keys, and one of values, transposed.
    keys_transposed: &'a mut [f32],
    values_transposed: &'a mut [f32],
    /// `[PAGE, padded]`.
    keys: &'a mut [f32],
    /// `[PAGE, padded]`: gradients of the block's keys and values.
    dk: &'a mut [f32],
    dv: &'a mut [f32],
    /// `[QUERIES, PAGE]`: probabilities, and gradients of the scores.
    p: &'a mut [f32],
    ds: &'a mut [f32],
    /// `[len]`: `Σ dO ⊙ O` of each query.
    levels: &'a mut [f32],
    /// `[len]`.
    log_sums: &'a mut [f32],
}

impl<'a> Work<'a> {
    fn new(scratch: &'a mut Vec<f32>, len: usize, padded: usize) -> Self {
        let (all, block, tile) = (len * padded, PAGE * padded, QUERIES * PAGE);
        let sizes = [all, all, all, block, block, block, block, block, tile, tile, len, len];
        scratch.resize(scratch.len().max(sizes.iter().sum()), 0.0);
        let mut rest = &mut scratch[..];
        let [queries, d_out, dq, keys_transposed, values_transposed, keys, dk, dv, p, ds, levels, log_sums] = sizes
            .map(|n| {
                let (part, others) = std::mem::take(&mut rest).split_at_mut(n);
                rest = others;
                part
            });
        dq.fill(0.0);
        Self { queries, d_out, dq, keys_transposed, values_transposed, keys, dk, dv, p, ds, levels, log_sums }
    }
}

/// `to[i] = factor · from[rows.start + i, column..column + dim]`, filled up with zeros to `padded`.
#[inline(always)]
fn copy_rows(
    from: &[f32],
    stride: usize,
    column: usize,
    rows: &Range<usize>,
    dim: usize,
    factor: f32,
    to: &mut [f32],
    padded: usize,
) {
    for (row, to) in rows.clone().zip(to.chunks_exact_mut(padded)) {
        let (used, rest) = to.split_at_mut(dim);
        used.iter_mut().zip(&from[row * stride + column..]).for_each(|(to, from)| *to = factor * from);
        rest.fill(0.0);
    }
}

/// `to[rows.start + i, column..column + dim] = factor · from[i]`; nothing else at those places may be alive.
#[inline(always)]
fn write_rows(
    to: &Disjoint<'_, f32>,
    stride: usize,
    column: usize,
    rows: &Range<usize>,
    dim: usize,
    factor: f32,
    from: &[f32],
    padded: usize,
) {
    for (row, from) in rows.clone().zip(from.chunks_exact(padded)) {
        // SAFETY: the promise of `head_backward`: a head has columns of its own.
        let to = unsafe { to.slice(row * stride + column..row * stride + column + dim) };
        to.iter_mut().zip(from).for_each(|(to, from)| *to = factor * from);
    }
}

#[inline(always)]
fn dot<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    for (a, b) in a.chunks(S::LANES).zip(b.chunks(S::LANES)) {
        sum = s.mul_add(s.load_partial(a), s.load_partial(b), sum);
    }
    s.sum(sum)
}

/// Scores `p` become probabilities, and their gradients `dp` those of the scores, within `seen`; zero elsewhere.
#[inline(always)]
fn gradients<S: Simd>(
    s: S,
    p: &mut [f32],
    dp: &mut [f32],
    seen: Range<usize>,
    softcap: Option<f32>,
    log_sum: f32,
    level: f32,
) {
    let (one, log_sum, level) = (s.splat(1.0), s.splat(log_sum), s.splat(level));
    // Whole vectors, then what lies outside is cleared.
    for (p, dp) in p.chunks_exact_mut(S::LANES).zip(dp.chunks_exact_mut(S::LANES)) {
        let (mut score, mut slope) = (s.load(p), one);
        if let Some(cap) = softcap {
            let cap = s.splat(cap);
            let t = tanh_lanes(s, s.div(score, cap));
            score = s.mul(cap, t);
            slope = s.sub(one, s.mul(t, t));
        }
        let probability = exp_lanes(s, s.sub(score, log_sum));
        let rise = s.mul(probability, s.sub(s.load(dp), level));
        s.store(p, probability);
        s.store(dp, if softcap.is_some() { s.mul(rise, slope) } else { rise });
    }
    for row in [p, dp] {
        row[..seen.start].fill(0.0);
        row[seen.end..].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{attention, attention_with_log_sums};
    use super::*;
    use crate::lanes::tests::at_every_level;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Gradients of one sequence by the formulas in f64, with every probability in memory.
    fn reference(s: &AttentionShape<'_>, q: &[f32], k: &[f32], v: &[f32], d_out: &[f32]) -> [Vec<f64>; 3] {
        let (wide, narrow, dim) = (s.heads * s.head_dim, s.kv_heads * s.head_dim, s.head_dim);
        let len = q.len() / wide;
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        for h in 0..s.heads {
            let (at, kv) = (h * dim, h / (s.heads / s.kv_heads) * dim);
            for i in 0..len {
                let seen = s.window.map_or(0, |w| (i + 1).saturating_sub(w))..i + 1;
                let dot = |a: &[f32], b: &[f32]| -> f64 { (0..dim).map(|d| f64::from(a[d]) * f64::from(b[d])).sum() };
                let raw: Vec<f64> = seen
                    .clone()
                    .map(|j| dot(&q[i * wide + at..], &k[j * narrow + kv..]) * f64::from(s.scale))
                    .collect();
                let capped: Vec<f64> = match s.softcap.map(f64::from) {
                    Some(cap) => raw.iter().map(|r| cap * (r / cap).tanh()).collect(),
                    None => raw.clone(),
                };
                let sum: f64 = capped.iter().map(|c| c.exp()).sum();
                let p: Vec<f64> = capped.iter().map(|c| c.exp() / sum).collect();
                let dp: Vec<f64> = seen.clone().map(|j| dot(&d_out[i * wide + at..], &v[j * narrow + kv..])).collect();
                let level: f64 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
                for (n, j) in seen.enumerate() {
                    let slope = s.softcap.map_or(1.0, |c| 1.0 - (raw[n] / f64::from(c)).tanh().powi(2));
                    let ds = p[n] * (dp[n] - level) * slope * f64::from(s.scale);
                    for d in 0..dim {
                        dq[i * wide + at + d] += ds * f64::from(k[j * narrow + kv + d]);
                        dk[j * narrow + kv + d] += ds * f64::from(q[i * wide + at + d]);
                        dv[j * narrow + kv + d] += p[n] * f64::from(d_out[i * wide + at + d]);
                    }
                }
            }
        }
        [dq, dk, dv]
    }

    fn run(team: &Team, shape: &AttentionShape<'_>, sequences: &[Range<usize>], seed: u32) -> [Vec<f32>; 7] {
        let tokens = sequences.last().map_or(0, |s| s.end);
        let (wide, narrow) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let [q, d_out] = [0, 1].map(|i| noise(tokens * wide, seed + i));
        let [k, v] = [2, 3].map(|i| noise(tokens * narrow, seed + i));
        let (mut out, mut log_sums) = (vec![0.0; tokens * wide], vec![0.0; tokens * shape.heads]);
        for rows in sequences {
            let (w, n) = (rows.start * wide..rows.end * wide, rows.start * narrow..rows.end * narrow);
            let sums = &mut log_sums[rows.start * shape.heads..rows.end * shape.heads];
            attention_with_log_sums(team, shape, &q[w.clone()], &k[n.clone()], &v[n], &mut out[w], sums);
        }
        let (mut dq, mut dk, mut dv) = (vec![9.0; q.len()], vec![9.0; k.len()], vec![9.0; v.len()]);
        let forward = Forward { q: &q, k: &k, v: &v, out: &out, log_sums: &log_sums };
        attention_backward(team, shape, sequences, &forward, &d_out, [&mut dq, &mut dk, &mut dv]);
        [q, k, v, d_out, dq, dk, dv]
    }

    fn shapes() -> Vec<AttentionShape<'static>> {
        let heads = [(1, 1), (4, 4), (6, 2), (3, 1)];
        let mut shapes = Vec::new();
        for (i, head_dim) in [1, 8, 20, 32, 64].into_iter().enumerate() {
            for (k, window) in [None, Some(1), Some(50), Some(64), Some(100)].into_iter().enumerate() {
                let (heads, kv_heads) = heads[(i + k) % 4];
                let softcap = [None, Some(2.0)][(i + k) % 2];
                let scale = 3.0 / (head_dim as f32).sqrt();
                shapes.push(AttentionShape { heads, kv_heads, head_dim, scale, softcap, window, sinks: None });
            }
        }
        shapes
    }

    #[test]
    fn gradients_follow_their_formulas() {
        at_every_level(|level| {
            let team = Team::new(1);
            for (i, shape) in shapes().into_iter().enumerate() {
                let len = [1, 63, 64, 65, 130][i % 5];
                let [q, k, v, d_out, dq, dk, dv] = run(&team, &shape, std::slice::from_ref(&(0..len)), 7 * i as u32);
                let want = reference(&shape, &q, &k, &v, &d_out);
                for (name, got, want) in [("dq", &dq, &want[0]), ("dk", &dk, &want[1]), ("dv", &dv, &want[2])] {
                    let size = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                    for (at, (got, want)) in got.iter().zip(want).enumerate() {
                        let error = (f64::from(*got) - want).abs();
                        assert!(
                            error < 3e-6 * (1.0 + size),
                            "{level:?} {shape:?} {len} {name} {at}: {error} of {size}"
                        );
                    }
                }
            }
        });
    }

    #[test]
    fn neither_threads_nor_neighbours_matter() {
        for (i, shape) in shapes().into_iter().enumerate() {
            let sequences = [0..70, 70..75, 75..140];
            let one = run(&Team::new(1), &shape, &sequences, i as u32);
            assert_eq!(one, run(&Team::new(3), &shape, &sequences, i as u32));
            // The middle sequence alone.
            let [q, k, v, d_out, dq, dk, dv] = one;
            let (wide, narrow) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
            let (w, n) = (70 * wide..75 * wide, 70 * narrow..75 * narrow);
            let (mut out, mut sums) = (vec![0.0; w.len()], vec![0.0; 5 * shape.heads]);
            let team = Team::new(2);
            let [q, d_out] = [&q[w.clone()], &d_out[w.clone()]];
            let [k, v] = [&k[n.clone()], &v[n.clone()]];
            attention_with_log_sums(&team, &shape, q, k, v, &mut out, &mut sums);
            let mut plain = vec![0.0; out.len()];
            attention(&team, &shape, q, k, v, &mut plain);
            assert_eq!(out, plain);
            let forward = Forward { q, k, v, out: &out, log_sums: &sums };
            let (mut q1, mut k1, mut v1) = (vec![0.0; w.len()], vec![0.0; n.len()], vec![0.0; n.len()]);
            attention_backward(
                &team,
                &shape,
                std::slice::from_ref(&(0..5)),
                &forward,
                d_out,
                [&mut q1, &mut k1, &mut v1],
            );
            assert_eq!((q1, k1, v1), (dq[w].to_vec(), dk[n.clone()].to_vec(), dv[n].to_vec()));
        }
    }
}
