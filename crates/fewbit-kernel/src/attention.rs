//! Causal attention over a cache of keys and values.

mod backward;
mod block;

use std::cell::RefCell;

use crate::Team;
use crate::team::Disjoint;
pub use backward::{Forward, attention_backward, sinks_backward};
use block::{Cache, QueryBlock, attend};

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

/// Rows (query position × head of a group) that share one pass over the keys.
const BLOCK_ROWS: usize = 96;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `out[i, h] = Σⱼ softmaxⱼ(scale · q[i, h] · k[j]) v[j]` over the positions `j` that position `start + i` sees, and the
/// head's sink, if there are any.
///
/// `q` and `out` are `[m, heads · head_dim]`. `keys` and `values` hold the positions `0..start + m`, each
/// `kv_heads · head_dim` values at a stride of `ld_kv`. Softmax is online (Milakov and Gimelshein 2018) over blocks of
/// keys at fixed positions, so that memory does not grow with the length, and a position's result has the same bits
/// whether it is computed alone or in a prompt, as long as the cache holds finite numbers.
///
/// # Panics
/// If the slices do not hold these shapes.
pub fn attention(
    team: &Team,
    shape: &AttentionShape<'_>,
    q: &[f32],
    start: usize,
    keys: &[f32],
    values: &[f32],
    ld_kv: usize,
    out: &mut [f32],
) {
    run(team, shape, q, start, keys, values, ld_kv, out, None);
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
    start: usize,
    keys: &[f32],
    values: &[f32],
    ld_kv: usize,
    out: &mut [f32],
    log_sums: &mut [f32],
) {
    assert_eq!(log_sums.len() * shape.head_dim, q.len(), "one sum for each position and head");
    run(team, shape, q, start, keys, values, ld_kv, out, Some(log_sums));
}

fn run(
    team: &Team,
    shape: &AttentionShape<'_>,
    q: &[f32],
    start: usize,
    keys: &[f32],
    values: &[f32],
    ld_kv: usize,
    out: &mut [f32],
    log_sums: Option<&mut [f32]>,
) {
    let AttentionShape { heads, kv_heads, head_dim, sinks, .. } = *shape;
    let width = heads * head_dim;
    if q.is_empty() {
        return;
    }
    assert!(width > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads on {kv_heads}");
    assert!(q.len().is_multiple_of(width) && q.len() == out.len(), "whole query positions in and out");
    assert!(sinks.is_none_or(|s| s.len() == heads), "a sink for each head");
    let m = q.len() / width;
    let cached = (start + m - 1) * ld_kv + kv_heads * head_dim;
    assert!(ld_kv >= kv_heads * head_dim && keys.len() >= cached && values.len() >= cached, "a cache of all positions");

    let group = heads / kv_heads;
    let positions = (BLOCK_ROWS / group).max(1);
    let blocks = m.div_ceil(positions);
    let cache = Cache { keys, values, stride: ld_kv };
    let (out, log_sums) = (Disjoint::new(out), log_sums.map(Disjoint::new));
    team.run(kv_heads * blocks, &|task| {
        let kv_head = task % kv_heads;
        // The last queries see the most keys and go first.
        let first = (blocks - 1 - task / kv_heads) * positions;
        let queries = QueryBlock { shape, kv_head, first, count: positions.min(m - first), start };
        SCRATCH.with_borrow_mut(|scratch| attend(&queries, q, &cache, scratch, &out, log_sums.as_ref()));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
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

    /// Attention of one position and head by its definition.
    fn reference(
        s: &AttentionShape<'_>,
        q: &[f32],
        head: usize,
        at: usize,
        keys: &[f32],
        values: &[f32],
        ld: usize,
    ) -> Vec<f64> {
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
            [(0, 1), (0, 5), (3, 1), (63, 2), (64, 1), (0, 64), (0, 130), (200, 7), (1, 129)].into_iter().enumerate()
        {
            for (k, head_dim) in [1, 8, 20, 32, 64, 80, 256].into_iter().enumerate() {
                let (heads, kv_heads) = heads[(i + k) % heads.len()];
                let softcap = [None, Some(2.0)][(i + k) % 2];
                let window = [None, Some(1), Some(50), Some(64), Some(100)][(i + 2 * k) % 5];
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
            let team = Team::new(1);
            for (shape, start, m) in shapes() {
                let (width, ld) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim + 3);
                let q = noise(m * width, 1);
                let (keys, values) = (noise((start + m) * ld, 2), noise((start + m) * ld, 3));
                let mut out = vec![f32::NAN; m * width];
                attention(&team, &shape, &q, start, &keys, &values, ld, &mut out);
                for i in (0..m).step_by(1 + m / 9).chain([m - 1]) {
                    for h in 0..shape.heads {
                        let at = i * width + h * shape.head_dim;
                        let want = reference(&shape, &q[at..], h, start + i, &keys, &values, ld);
                        for (d, want) in want.into_iter().enumerate() {
                            let error = (f64::from(out[at + d]) - want).abs();
                            assert!(error < 3e-6, "{level:?} {shape:?} {start}+{i} of {m}, head {h}, {d}: {error}");
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn a_position_alone_gives_the_same_bits() {
        at_every_level(|level| {
            let (one, two) = (Team::new(1), Team::new(2));
            for (shape, start, m) in shapes() {
                let (width, ld) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
                let q = noise(m * width, 4);
                let (keys, values) = (noise((start + m) * ld, 5), noise((start + m) * ld, 6));
                let mut prompt = vec![f32::NAN; m * width];
                attention(&one, &shape, &q, start, &keys, &values, ld, &mut prompt);
                for i in (0..m).step_by(1 + m / 40) {
                    let mut alone = vec![f32::NAN; width];
                    let q = &q[i * width..(i + 1) * width];
                    attention(&one, &shape, q, start + i, &keys, &values, ld, &mut alone);
                    assert_eq!(alone, prompt[i * width..(i + 1) * width], "{level:?} {shape:?} {start}+{i} of {m}");
                }
                if level == crate::cpu::machine() {
                    let mut threaded = vec![f32::NAN; m * width];
                    attention(&two, &shape, &q, start, &keys, &values, ld, &mut threaded);
                    assert_eq!(threaded, prompt);
                }
            }
        });
    }

    #[test]
    fn large_scores_do_not_overflow() {
        at_every_level(|_| {
            let (heads, scale, sinks) = (1, 1e4, Some(&SINKS[..1]));
            let shape = AttentionShape { heads, kv_heads: 1, head_dim: 4, scale, softcap: None, window: None, sinks };
            let (q, keys, values) = (noise(400, 7), noise(400, 8), noise(400, 9));
            let mut out = vec![f32::NAN; 400];
            attention(&Team::new(1), &shape, &q, 0, &keys, &values, 4, &mut out);
            assert!(out.iter().all(|v| v.abs() <= 1.0));
        });
    }
}
