//! Causal attention over a cache of keys and values.

mod backward;
mod block;
mod pack;
mod pages;

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::AcqRel;

use crate::Team;
use crate::aligned::Aligned;
use crate::team::Disjoint;
pub use backward::{Forward, attention_backward, sinks_backward};
use block::{QueryBlock, finish, merge, sum_section_f16, sum_section_f32};
use pages::Typed;
pub use pages::{CacheType, PAGE, Pages};

/// Heads and rules of one attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape<'a> {
    /// Query heads: a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values; query head `h` reads head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / √head_dim`.
    pub scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Position `i` sees the last `window` positions, itself included; all without it.
    pub window: Option<usize>,
    /// `[heads]`: the logit of one more position, whose values are zero: a part of the softmax that goes nowhere.
    pub sinks: Option<&'a [f32]>,
}

impl AttentionShape<'_> {
    /// Query heads that share a head of keys.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Queries of one sequence, and what it remembers.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Position of the first query.
    pub start: usize,
    /// Queries.
    pub len: usize,
    /// Keys of the positions `0..start + len`.
    pub keys: &'a Pages,
    /// Values of the same positions.
    pub values: &'a Pages,
}

/// Rows (query position × head of a group) that share one pass over the keys.
const BLOCK_ROWS: usize = 96;

/// Rows whose keys may be shared out among threads: their sums are small beside the keys.
const SPLIT_ROWS: usize = 32;

/// Blocks for each thread that are enough to keep all busy.
const ENOUGH_BLOCKS: usize = 8;

/// `out[i, h] = Σⱼ softmaxⱼ(scale · q[i, h] · k[j]) v[j]` over the positions `j` that query `i` of its sequence sees, and
/// the head's sink, if there are any.
///
/// `q` and `out` are `[m, heads · head_dim]`, the queries of one sequence after those of the other. Softmax is online
/// (Milakov and Gimelshein 2018) over pages of keys, section by section at fixed positions, so that memory does not grow
/// with the length, and a position's result has the same bits whether it is computed alone, in a prompt or in a batch,
/// whatever the threads, as long as the pages hold finite numbers. Where there are fewer blocks of queries than keep the
/// threads busy, they share the sections.
///
/// # Panics
/// If slices or pages do not hold these shapes.
pub fn attention_cached(
    team: &Team,
    shape: &AttentionShape<'_>,
    sequences: &[Sequence<'_>],
    q: &[f32],
    out: &mut [f32],
) {
    run(team, shape, sequences, q, out, None);
}

/// [`attention_cached`] of a whole sequence with keys and values as they were computed, `[m, kv_heads · head_dim]`.
///
/// # Panics
/// If the slices do not hold these shapes.
pub fn attention(team: &Team, shape: &AttentionShape<'_>, q: &[f32], keys: &[f32], values: &[f32], out: &mut [f32]) {
    run_whole(team, shape, q, keys, values, out, None);
}

/// [`attention`], which also writes `ln Σⱼ e^score` of each query position and head to `log_sums [m, heads]`: what
/// [`attention_backward`] needs.
///
/// # Panics
/// If the slices do not hold these shapes.
pub fn attention_with_log_sums(
    team: &Team,
    shape: &AttentionShape<'_>,
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    out: &mut [f32],
    log_sums: &mut [f32],
) {
    assert_eq!(log_sums.len() * shape.head_dim, q.len(), "one sum for each position and head");
    run_whole(team, shape, q, keys, values, out, Some(log_sums));
}

fn run_whole(
    team: &Team,
    shape: &AttentionShape<'_>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    log_sums: Option<&mut [f32]>,
) {
    let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
    let len = q.len() / (heads * head_dim).max(1);
    let mut keys = Pages::keys(CacheType::F32, kv_heads, head_dim, len);
    let mut values = Pages::values(CacheType::F32, kv_heads, head_dim, len);
    keys.write(team, 0, k);
    values.write(team, 0, v);
    run(team, shape, &[Sequence { start: 0, len, keys: &keys, values: &values }], q, out, log_sums);
}

/// A block of queries and the sections that a thread goes over at once.
struct Task {
    sequence: usize,
    block: QueryBlock,
    sections: Range<usize>,
    /// Where the block's sections are shared out.
    shared: Option<Shared>,
}

/// The sums of a block, one after the other for each of its sections.
#[derive(Clone, Copy)]
struct Shared {
    first_section: usize,
    sections: usize,
    /// Where they begin.
    at: usize,
    /// Counts the sections that are not done.
    counter: usize,
}

/// What a call needs, kept for the next from the same thread.
#[derive(Default)]
struct Kept {
    tasks: Vec<Task>,
    /// Of each block whose sections are shared out, how many are not done.
    left: Vec<AtomicUsize>,
    /// The sums of these.
    sums: Aligned<f32>,
}

thread_local! {
    static KEPT: Cell<Kept> = Cell::default();
    /// Buffers of a task, and the sums of a block over earlier sections and of one.
    static SCRATCH: Cell<[Aligned<f32>; 3]> = Cell::default();
}

fn run(
    team: &Team,
    shape: &AttentionShape<'_>,
    sequences: &[Sequence<'_>],
    q: &[f32],
    out: &mut [f32],
    log_sums: Option<&mut [f32]>,
) {
    let AttentionShape { heads, kv_heads, head_dim, sinks, .. } = *shape;
    assert!(head_dim > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads on {kv_heads}");
    let queries: usize = sequences.iter().map(|sequence| sequence.len).sum();
    assert!(q.len() == queries * heads * head_dim && q.len() == out.len(), "whole query positions in and out");
    assert!(sinks.is_none_or(|s| s.len() == heads), "a sink for each head");

    let mut kept = KEPT.take();
    let shared_len = kept.plan(shape, sequences, team.threads());
    let Kept { tasks, left, sums } = &mut kept;
    let (out, log_sums) = (Disjoint::new(out), log_sums.map(Disjoint::new));
    let shared = Disjoint::new(sums.take(shared_len));
    team.run(tasks.len(), &|i| {
        let Task { sequence, block, sections, shared: of } = &tasks[i];
        let Sequence { keys, values, .. } = sequences[*sequence];
        let pages = Typed::of(keys, values, [kv_heads, head_dim, block.start + block.count]);
        let [mut buffers, mut before, mut one] = SCRATCH.take();
        let len = block.sums_len(shape);
        let mut sum = |section: usize, sums: &mut [f32]| match &pages {
            Typed::F32(pages) => sum_section_f32(shape, block, q, pages, section, &mut buffers, sums),
            Typed::F16(pages) => sum_section_f16(shape, block, q, pages, section, &mut buffers, sums),
        };
        if let Some(of) = of {
            let at = of.at + (sections.start - of.first_section) * len;
            // SAFETY: the sums of a section are those of one task until its block's counter says that all are done.
            sum(sections.start, unsafe { shared.slice(at..at + len) });
            if left[of.counter].fetch_sub(1, AcqRel) == 1 {
                // SAFETY: all tasks of the block have counted down, and this one alone was the last.
                let (sums, later) = unsafe { shared.slice(of.at..of.at + of.sections * len) }.split_at_mut(len);
                later.chunks_exact_mut(len).for_each(|later| merge(shape, block, sums, later));
                // SAFETY: a block's rows are its own, and no other task of the block comes here.
                unsafe { finish(shape, block, sums, &out, log_sums.as_ref()) };
            }
        } else {
            let (before, one) = (before.take(len), one.take(len));
            sum(sections.start, before);
            for section in sections.start + 1..sections.end {
                sum(section, one);
                merge(shape, block, before, one);
            }
            // SAFETY: a block's rows are its own, and it has this task alone.
            unsafe { finish(shape, block, before, &out, log_sums.as_ref()) };
        }
        SCRATCH.set([buffers, before, one]);
    });
    KEPT.set(kept);
}

impl Kept {
    /// Cuts the work in tasks for so many threads; returns how many numbers the sums of shared blocks are.
    fn plan(&mut self, shape: &AttentionShape<'_>, sequences: &[Sequence<'_>], threads: usize) -> usize {
        self.tasks.clear();
        let positions = (BLOCK_ROWS / shape.group()).max(1);
        let blocks: usize = sequences.iter().map(|sequence| sequence.len.div_ceil(positions)).sum();
        let is_enough = threads == 1 || blocks * shape.kv_heads >= ENOUGH_BLOCKS * threads;
        let (mut begin, mut counters, mut at) = (0, 0, 0);
        for (sequence, Sequence { start, len, .. }) in sequences.iter().enumerate() {
            // The last queries see the most keys and go first.
            for first in (0..*len).step_by(positions).rev() {
                for kv_head in 0..shape.kv_heads {
                    let count = positions.min(len - first);
                    let block = QueryBlock { kv_head, first: begin + first, count, start: start + first };
                    let sections = block.sections(shape);
                    let is_small = count == 1 || block.rows(shape) <= SPLIT_ROWS;
                    if is_enough || !is_small || sections.len() == 1 {
                        self.tasks.push(Task { sequence, block, sections, shared: None });
                        continue;
                    }
                    let (first_section, count) = (sections.start, sections.len());
                    let shared = Some(Shared { first_section, sections: count, at, counter: counters });
                    let tasks = sections.map(|i| Task { sequence, block, sections: i..i + 1, shared });
                    self.tasks.extend(tasks);
                    self.left.resize_with(self.left.len().max(counters + 1), AtomicUsize::default);
                    *self.left[counters].get_mut() = count;
                    counters += 1;
                    at += count * block.sums_len(shape);
                }
            }
            begin += len;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elementwise::round_to_f16;
    use crate::lanes::tests::at_every_level;

    /// Numbers in -1..1 that look random.
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

    /// The same as f16 holds them.
    fn halves(mut x: Vec<f32>) -> Vec<f32> {
        round_to_f16(&mut x);
        x
    }

    /// Keys and values `[positions, kv_heads · head_dim]` in pages.
    fn paged(cache_type: CacheType, shape: &AttentionShape<'_>, keys: &[f32], values: &[f32]) -> [Pages; 2] {
        let (team, AttentionShape { kv_heads, head_dim, .. }) = (Team::new(1), *shape);
        let mut pages =
            [Pages::keys(cache_type, kv_heads, head_dim, 0), Pages::values(cache_type, kv_heads, head_dim, 0)];
        pages[0].write(&team, 0, keys);
        pages[1].write(&team, 0, values);
        pages
    }

    /// Attention of the queries behind `start` on one sequence.
    fn run_one(team: &Team, shape: &AttentionShape<'_>, q: &[f32], start: usize, pages: &[Pages; 2]) -> Vec<f32> {
        let mut out = vec![f32::NAN; q.len()];
        let [keys, values] = pages;
        let len = q.len() / (shape.heads * shape.head_dim);
        attention_cached(team, shape, &[Sequence { start, len, keys, values }], q, &mut out);
        out
    }

    /// Attention of one position and head by its definition.
    fn reference(s: &AttentionShape<'_>, q: &[f32], head: usize, at: usize, keys: &[f32], values: &[f32]) -> Vec<f64> {
        let ld = s.kv_heads * s.head_dim;
        let base = head / (s.heads / s.kv_heads) * s.head_dim;
        let first = s.window.map_or(0, |w| (at + 1).saturating_sub(w));
        let score = |j: usize| {
            let dot: f64 = (0..s.head_dim).map(|d| f64::from(q[d]) * f64::from(keys[j * ld + base + d])).sum();
            let score = dot * f64::from(s.scale);
            s.softcap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh())
        };
        let scores: Vec<f64> = (first..=at).map(score).collect();
        let sink = s.sinks.map_or(f64::NEG_INFINITY, |s| f64::from(s[head]));
        let top = scores.iter().copied().fold(sink, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let sum: f64 = weights.iter().sum::<f64>() + (sink - top).exp();
        let mix = |d: usize| {
            let terms = weights.iter().enumerate().map(|(j, w)| w * f64::from(values[(first + j) * ld + base + d]));
            terms.sum::<f64>() / sum
        };
        (0..s.head_dim).map(mix).collect()
    }

    const SINKS: [f32; 9] = [0.3, -1.0, 4.0, 2.0, -30.0, 0.0, 1.0, 9.0, -3.0];

    fn shapes() -> Vec<(AttentionShape<'static>, usize, usize)> {
        let mut shapes = Vec::new();
        let heads = [(1, 1), (4, 4), (6, 2), (7, 1), (9, 3)];
        for (i, (start, m)) in
            [(0, 1), (0, 5), (3, 1), (63, 2), (64, 1), (0, 64), (0, 130), (200, 7), (1, 129), (511, 2), (1100, 1)]
                .into_iter()
                .enumerate()
        {
            for (k, head_dim) in [1, 8, 20, 32, 64, 80, 256].into_iter().enumerate() {
                let (heads, kv_heads) = heads[(i + k) % heads.len()];
                let softcap = [None, Some(2.0)][(i + k) % 2];
                let window = [None, Some(1), Some(50), Some(64), Some(600)][(i + 2 * k) % 5];
                let scale = 3.0 / (head_dim as f32).sqrt();
                let sinks = [None, Some(&SINKS[..heads])][(i + k / 2) % 2];
                shapes.push((AttentionShape { heads, kv_heads, head_dim, scale, softcap, window, sinks }, start, m));
            }
        }
        shapes
    }

    #[test]
    fn it_agrees_with_the_definition() {
        at_every_level(|level| {
            // A level is forced for this thread alone.
            let teams = [1, if level == crate::cpu::machine() { 2 } else { 1 }].map(Team::new);
            for (i, (shape, start, m)) in shapes().into_iter().enumerate() {
                let (width, ld) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
                let q = noise(m * width, 1);
                let (keys, values) = (halves(noise((start + m) * ld, 2)), halves(noise((start + m) * ld, 3)));
                for cache_type in [CacheType::F32, CacheType::F16] {
                    let out = run_one(&teams[i % 2], &shape, &q, start, &paged(cache_type, &shape, &keys, &values));
                    for i in (0..m).step_by(1 + m / 9).chain([m - 1]) {
                        for h in 0..shape.heads {
                            let at = i * width + h * shape.head_dim;
                            let want = reference(&shape, &q[at..], h, start + i, &keys, &values);
                            for (d, want) in want.into_iter().enumerate() {
                                let error = (f64::from(out[at + d]) - want).abs();
                                assert!(error < 3e-6, "{level:?} {shape:?} {start}+{i} of {m}, head {h}, {d}: {error}");
                            }
                        }
                    }
                }
            }
        });
    }

    /// Alone, in a prompt and in a batch, on one thread and on several, from f16 and from the f32 that they stand for.
    #[test]
    fn a_position_alone_gives_the_same_bits() {
        at_every_level(|level| {
            // A level is forced for this thread alone.
            let (one, three) = (Team::new(1), Team::new(if level == crate::cpu::machine() { 3 } else { 1 }));
            for (shape, start, m) in shapes() {
                let (width, ld) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
                let q = noise(m * width, 4);
                let (keys, values) = (halves(noise((start + m) * ld, 5)), halves(noise((start + m) * ld, 6)));
                let [f32, f16] = [CacheType::F32, CacheType::F16].map(|t| paged(t, &shape, &keys, &values));
                let prompt = run_one(&one, &shape, &q, start, &f32);
                assert!(prompt == run_one(&three, &shape, &q, start, &f16), "{level:?} {shape:?} {start}+{m}");
                let query = |i: usize| &q[i * width..(i + 1) * width];
                for i in (0..m).step_by(1 + m / 40) {
                    for (team, pages) in [(&one, &f16), (&three, &f32)] {
                        let alone = run_one(team, &shape, query(i), start + i, pages);
                        assert!(alone == prompt[i * width..(i + 1) * width], "{level:?} {shape:?} {start}+{i} of {m}");
                    }
                }
                // The first query, all of them, and the last, as three sequences.
                let sequence =
                    |i: usize, len: usize| Sequence { start: start + i, len, keys: &f16[0], values: &f16[1] };
                let (q, mut out) = ([query(0), &q, query(m - 1)].concat(), vec![f32::NAN; (m + 2) * width]);
                let sequences = [sequence(0, 1), sequence(0, m), sequence(m - 1, 1)];
                attention_cached(&three, &shape, &sequences, &q, &mut out);
                let [first, last] = [&prompt[..width], &prompt[(m - 1) * width..]];
                assert!(out == [first, &prompt, last].concat(), "{level:?} {shape:?} {start}+{m} in a batch");
                if start == 0 {
                    let mut whole = vec![f32::NAN; prompt.len()];
                    attention(&three, &shape, &q[width..][..m * width], &keys, &values, &mut whole);
                    assert!(whole == prompt, "{level:?} {shape:?} {m}, a whole sequence");
                }
            }
        });
    }

    #[test]
    fn large_scores_do_not_overflow() {
        at_every_level(|_| {
            let (heads, scale, sinks) = (1, 1e4, Some(&SINKS[..1]));
            let shape = AttentionShape { heads, kv_heads: 1, head_dim: 4, scale, softcap: None, window: None, sinks };
            let (q, keys, values) = (noise(4000, 7), noise(4000, 8), noise(4000, 9));
            let mut out = vec![f32::NAN; 4000];
            attention(&Team::new(1), &shape, &q, &keys, &values, &mut out);
            assert!(out.iter().all(|v| v.abs() <= 1.0));
        });
    }

    /// What lies behind the last position, from texts that were forgotten, is not seen.
    #[test]
    fn forgotten_positions_are_not_seen() {
        let heads = (4, 2);
        let shape = AttentionShape {
            heads: heads.0,
            kv_heads: heads.1,
            head_dim: 8,
            scale: 1.0,
            softcap: None,
            window: None,
            sinks: None,
        };
        let (q, keys, values) = (noise(32, 1), noise(70 * 16, 2), noise(70 * 16, 3));
        let team = Team::new(2);
        let fresh = paged(CacheType::F16, &shape, &keys, &values);
        let mut used = paged(CacheType::F16, &shape, &noise(200 * 16, 4), &noise(200 * 16, 5));
        used[0].write(&team, 0, &keys);
        used[1].write(&team, 0, &values);
        assert_eq!(run_one(&team, &shape, &q, 69, &used), run_one(&team, &shape, &q, 69, &fresh));
    }
}
