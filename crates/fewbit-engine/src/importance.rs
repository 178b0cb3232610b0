//! How much each token of the calibration text counts.

use fewbit_graph::{Edge, Graph, Op, ValueId};
use fewbit_kernel::Team;
use fewbit_kernel::elementwise::{softcap, softmax_in_place};
use fewbit_kernel::product::{Weights, product_nt};
use fewbit_runtime::Hooks;

/// Queries whose probabilities are in memory at a time.
const QUERIES: usize = 64;

/// Scores every token by the attention that it receives, `c_k = Σ_heads Σ_queries softmax(q kᵀ)[query, k]`.
///
/// Source: Sung et al., RSQ (arXiv:2503.01820), attention concentration; the causal mask is included.
pub(crate) struct Received<'a> {
    team: &'a Team,
    /// Tokens of a sequence.
    length: usize,
    attention: Attention<'a>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    /// Of all tokens so far.
    pub(crate) scores: Vec<f32>,
}

/// An attention of a block.
struct Attention<'a> {
    /// Queries and keys.
    inputs: [ValueId; 2],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
    softcap: Option<f32>,
    window: usize,
    sinks: Option<&'a [f32]>,
}

impl<'a> Received<'a> {
    /// Of the attention of `graph`, with its vectors; `None` where there is none.
    pub(crate) fn of(team: &'a Team, graph: &Graph, vectors: &'a [Vec<f32>], length: usize) -> Option<Self> {
        let attention = graph.nodes.iter().find_map(|n| match n.op {
            Op::Attention { heads, kv_heads, head_dim, scale, softcap, window, sinks } => Some(Attention {
                inputs: [n.inputs[0], n.inputs[1]],
                heads,
                kv_heads,
                head_dim,
                scale,
                softcap,
                window: window.unwrap_or(usize::MAX),
                sinks: sinks.map(|v| &vectors[v][..]),
            }),
            _ => None,
        })?;
        Some(Self { team, length, attention, queries: Vec::new(), keys: Vec::new(), scores: Vec::new() })
    }

    /// What has to be computed for it.
    pub(crate) fn inputs(&self) -> [Edge; 2] {
        self.attention.inputs.map(|value| Edge { value, expert: None })
    }

    /// Scores the sequences whose queries and keys are there.
    fn score(&mut self) {
        let (a, length) = (&self.attention, self.length);
        let (q_dim, k_dim) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let (queries, keys, begun) = (&self.queries, &self.keys, self.scores.len());
        self.scores.resize(begun + queries.len() / q_dim, 0.0);
        let team = self.team;
        team.for_pieces(&mut self.scores[begun..], length, &|s, scores| {
            let tokens = s * length..(s + 1) * length;
            a.score(team, &queries[tokens.start * q_dim..tokens.end * q_dim], &keys[tokens.start * k_dim..], scores);
        });
        self.queries.clear();
        self.keys.clear();
    }
}

impl Attention<'_> {
    /// Adds what each token of one sequence receives; sums are made in the order of heads and queries.
    fn score(&self, team: &Team, queries: &[f32], keys: &[f32], scores: &mut [f32]) {
        let (length, d) = (scores.len(), self.head_dim);
        let mut sums = vec![0.0f64; length];
        let mut logits = vec![0.0; length.min(QUERIES) * length];
        let (mut own, mut seen) = (vec![0.0; length * d], Vec::new());
        for head in 0..self.heads {
            let kv = head / (self.heads / self.kv_heads);
            for (own, row) in own.chunks_exact_mut(d).zip(keys.chunks_exact(self.kv_heads * d)) {
                own.copy_from_slice(&row[kv * d..(kv + 1) * d]);
            }
            let ldq = self.heads * d;
            for begin in (0..length).step_by(QUERIES) {
                let end = (begin + QUERIES).min(length);
                let q = &queries[begin * ldq + head * d..];
                product_nt(team, end - begin, end, d, q, ldq, Weights::F32(&own[..end * d]), &mut logits, end, false);
                for (i, row) in (begin..end).zip(logits.chunks_exact(end)) {
                    let first = (i + 1).saturating_sub(self.window);
                    seen.clear();
                    seen.extend(row[first..=i].iter().map(|v| v * self.scale));
                    if let Some(cap) = self.softcap {
                        softcap(&mut seen, cap);
                    }
                    seen.extend(self.sinks.map(|s| s[head]));
                    softmax_in_place(&mut seen);
                    sums[first..=i].iter_mut().zip(&seen).for_each(|(sum, p)| *sum += f64::from(*p));
                }
            }
        }
        scores.iter_mut().zip(sums).for_each(|(score, sum)| *score = sum as f32);
    }
}

impl Hooks for Received<'_> {
    fn wants(&self, value: ValueId) -> bool {
        self.attention.inputs.contains(&value)
    }

    fn edge(&mut self, edge: Edge, rows: &mut [f32], _: usize) {
        let into = if edge.value == self.attention.inputs[0] { &mut self.queries } else { &mut self.keys };
        into.extend_from_slice(rows);
        if !self.queries.is_empty() && !self.keys.is_empty() {
            self.score();
        }
    }
}

/// Weights of tokens from their scores: mapped to `least..=1` within each sequence, raised to `power`, with mean 1.
pub(crate) fn token_weights(scores: &mut [f32], length: usize, least: f32, power: f32) {
    for sequence in scores.chunks_exact_mut(length) {
        let (low, high) = sequence.iter().fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
        let span = if high > low { high - low } else { 1.0 };
        sequence.iter_mut().for_each(|v| *v = (least + (1.0 - least) * (*v - low) / span).powf(power));
        let mean = (sequence.iter().map(|v| f64::from(*v)).sum::<f64>() / length as f64) as f32;
        sequence.iter_mut().for_each(|v| *v /= mean);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attention(window: usize, sinks: Option<&[f32]>) -> Attention<'_> {
        Attention { inputs: [1, 2], heads: 4, kv_heads: 2, head_dim: 6, scale: 0.4, softcap: None, window, sinks }
    }

    /// From the definition, in f64.
    fn slow(a: &Attention<'_>, q: &[f32], k: &[f32], length: usize) -> Vec<f64> {
        let mut out = vec![0.0; length];
        for h in 0..a.heads {
            for i in 0..length {
                let first = (i + 1).saturating_sub(a.window);
                let at = |j: usize, c: usize| f64::from(k[(j * a.kv_heads + h / 2) * a.head_dim + c]);
                let logit = |j: usize| -> f64 {
                    let dot = (0..a.head_dim).map(|c| f64::from(q[(i * a.heads + h) * a.head_dim + c]) * at(j, c));
                    f64::from(a.scale) * dot.sum::<f64>()
                };
                let sink = a.sinks.map_or(0.0, |s| f64::from(s[h]).exp());
                let all: f64 = (first..=i).map(|j| logit(j).exp()).sum::<f64>() + sink;
                (first..=i).for_each(|j| out[j] += logit(j).exp() / all);
            }
        }
        out
    }

    #[test]
    fn scores_are_what_a_token_receives() {
        let length = 9;
        let value = |i: usize, by: f32| (i as f32 * by).sin() * 2.0;
        let q: Vec<f32> = (0..length * 24).map(|i| value(i, 0.37)).collect();
        let k: Vec<f32> = (0..length * 12).map(|i| value(i, 0.71)).collect();
        let sinks = [0.3, -1.0, 2.0, 0.0];
        for (window, sinks) in [(usize::MAX, None), (4, None), (usize::MAX, Some(&sinks[..]))] {
            let a = attention(window, sinks);
            let mut scores = vec![0.0; length];
            a.score(&Team::new(1), &q, &k, &mut scores);
            for (found, want) in scores.iter().zip(slow(&a, &q, &k, length)) {
                assert!((f64::from(*found) - want).abs() < 1e-4, "{window}: {found} for {want}");
            }
        }
    }

    #[test]
    fn where_attention_is_even_early_tokens_count_most() {
        let a = attention(usize::MAX, None);
        let mut scores = vec![0.0; 70];
        a.score(&Team::new(2), &[0.0; 70 * 24], &[0.0; 70 * 12], &mut scores);
        // Four heads, and one part in i + 1 of each query i from the token on.
        let want = |j: usize| (j..70).map(|i| 4.0 / (i + 1) as f32).sum::<f32>();
        assert!(scores.iter().enumerate().all(|(j, s)| (s - want(j)).abs() < 1e-4), "{scores:?}");
        token_weights(&mut scores, 70, 0.005, 1.0);
        assert!(scores.is_sorted_by(|a, b| a > b), "{scores:?}");
    }

    #[test]
    fn weights_have_mean_one_and_the_most_seen_token_counts_most() {
        let mut w = vec![9.0, 1.0, 3.0, 3.0, 2.0, 2.0, 2.0, 6.0];
        token_weights(&mut w, 4, 0.01, 1.0);
        for sequence in w.chunks(4) {
            assert!((sequence.iter().sum::<f32>() - 4.0).abs() < 1e-5);
        }
        assert!((w[1] / w[0] - 0.01).abs() < 1e-6 && w[7] > w[4] && w[4] == w[5]);
        let mut flat = vec![5.0, 2.0, 7.0, 1.0];
        token_weights(&mut flat, 4, 1.0, 1.0);
        assert_eq!(flat, [1.0; 4]);
        let mut equal = vec![2.0; 4];
        token_weights(&mut equal, 4, 0.005, 2.0);
        assert_eq!(equal, [1.0; 4]);
    }
}
