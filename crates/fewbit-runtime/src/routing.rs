//! Tokens on their way to experts and back.

use std::ops::Range;

use fewbit_graph::{Groups, Routed, Routing, Score, Share};
use fewbit_kernel::elementwise;

/// Chooses experts for each row of `logits [tokens, experts]`: `out [tokens, 2 · top]` holds the indices of the chosen,
/// ascending, then their weights. Of equal scores the lower index is chosen. `bias [experts]` is added to the scores that
/// they are chosen by.
pub(crate) fn route(logits: &[f32], experts: usize, routing: &Routing, bias: Option<&[f32]>, out: &mut [f32]) {
    let Routing { top, score, share, groups, scale } = *routing;
    let mut order: Vec<usize> = Vec::with_capacity(experts);
    let (mut scores, mut choice) = (vec![0.0; experts], vec![0.0; experts]);
    for (logits, out) in logits.chunks_exact(experts).zip(out.chunks_exact_mut(2 * top)) {
        // A softmax over all is needed where it is the weight, or something is added to it.
        scores.copy_from_slice(logits);
        match score {
            Score::Sigmoid => elementwise::sigmoid(&mut scores),
            Score::Softmax if share == Share::All || bias.is_some() => elementwise::softmax_in_place(&mut scores),
            Score::Softmax => {}
        }
        let by = match (bias, score) {
            (None, Score::Softmax) => logits,
            (None, Score::Sigmoid) => &scores,
            (Some(bias), _) => {
                choice.copy_from_slice(&scores);
                elementwise::add(&mut choice, bias);
                &choice
            }
        };
        order.clear();
        match groups {
            None => order.extend(0..experts),
            Some(groups) => best_groups(by, groups, &mut order),
        }
        keep_greatest(by, top, &mut order);
        let (indices, weights) = out.split_at_mut(top);
        for (index, e) in indices.iter_mut().zip(&order) {
            *index = *e as f32;
        }
        for (weight, e) in weights.iter_mut().zip(&order) {
            *weight = if score == Score::Softmax && share == Share::Chosen { logits[*e] } else { scores[*e] };
        }
        match (share, score) {
            (Share::Chosen, Score::Softmax) => elementwise::softmax_in_place(weights),
            (Share::Chosen, Score::Sigmoid) => {
                // Sigmoids of very negative logits may all be zero.
                let sum = weights.iter().sum::<f32>() + 1e-20;
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            (Share::All, _) => {}
        }
        elementwise::scale(weights, scale);
    }
}

/// The experts of the groups whose best experts have the greatest sums, in order.
fn best_groups(by: &[f32], Groups { count, kept, best }: Groups, experts: &mut Vec<usize>) {
    let size = by.len() / count;
    let mut sorted = vec![0.0; size];
    let sum = |group: &[f32]| -> f32 {
        sorted.copy_from_slice(group);
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        sorted[..best].iter().sum()
    };
    let sums: Vec<f32> = by.chunks_exact(size).map(sum).collect();
    let mut groups: Vec<usize> = (0..count).collect();
    keep_greatest(&sums, kept, &mut groups);
    experts.extend(groups.into_iter().flat_map(|g| g * size..(g + 1) * size));
}

/// Of these indices, those of the `count` greatest values, ascending.
fn keep_greatest(values: &[f32], count: usize, indices: &mut Vec<usize>) {
    indices.select_nth_unstable_by(count - 1, |a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
    indices.truncate(count);
    indices.sort_unstable();
}

/// Where the rows of experts lie in the values within them.
#[derive(Clone, Debug)]
pub struct Dispatched<'r> {
    routing: &'r [f32],
    top: usize,
    /// Each expert's first row, then the number of rows.
    starts: Vec<usize>,
    /// The token of each row.
    tokens: Vec<usize>,
    /// `[tokens, top]`: the row of each choice.
    rows: Vec<usize>,
}

impl<'r> Dispatched<'r> {
    /// By what [`Op::Route`](fewbit_graph::Op::Route) made: `routing [tokens, 2 · top]`.
    pub fn new(routing: &'r [f32], Routed { top, experts, .. }: Routed) -> Self {
        let starts = starts(routing, top, experts);
        let mut next = starts.clone();
        let (mut tokens, mut rows) = (vec![0; starts[experts]], Vec::with_capacity(starts[experts]));
        for (token, choice) in choices(routing, top) {
            let row = next[choice];
            next[choice] += 1;
            tokens[row] = token;
            rows.push(row);
        }
        Self { routing, top, starts, tokens, rows }
    }

    /// The rows of each expert, in order.
    pub fn experts(&self) -> impl Iterator<Item = Range<usize>> {
        self.starts.windows(2).map(|w| w[0]..w[1])
    }

    /// The token of each row.
    pub fn tokens(&self) -> &[usize] {
        &self.tokens
    }

    /// The rows of a token, each with its expert's weight, in the order of the experts.
    pub fn rows_of(&self, token: usize) -> impl Iterator<Item = (usize, f32)> {
        let weights = &self.routing[(2 * token + 1) * self.top..2 * (token + 1) * self.top];
        self.rows[token * self.top..].iter().copied().zip(weights.iter().copied())
    }

    /// Writes rows within experts, copies of their tokens' rows of `x`: `out` begins at row `first`.
    pub fn dispatch(&self, x: &[f32], dim: usize, first: usize, out: &mut [f32]) {
        for (out, token) in out.chunks_exact_mut(dim).zip(&self.tokens[first..]) {
            out.copy_from_slice(&x[token * dim..(token + 1) * dim]);
        }
    }

    /// Writes the weighted sums of tokens' rows: `out` begins at token `first`.
    pub fn combine(&self, x: &[f32], dim: usize, first: usize, out: &mut [f32]) {
        for (token, out) in (first..).zip(out.chunks_exact_mut(dim)) {
            out.fill(0.0);
            for (row, weight) in self.rows_of(token) {
                for (o, v) in out.iter_mut().zip(&x[row * dim..(row + 1) * dim]) {
                    *o += weight * v;
                }
            }
        }
    }
}

/// Each expert's first row, then the number of rows.
fn starts(routing: &[f32], top: usize, experts: usize) -> Vec<usize> {
    let mut starts = vec![0; experts + 1];
    for (_, choice) in choices(routing, top) {
        starts[choice + 1] += 1;
    }
    for e in 0..experts {
        starts[e + 1] += starts[e];
    }
    starts
}

/// Token and expert of each choice, in order.
fn choices(routing: &[f32], top: usize) -> impl Iterator<Item = (usize, usize)> {
    let tokens = routing.chunks_exact(2 * top).enumerate();
    tokens.flat_map(move |(token, chosen)| chosen[..top].iter().map(move |e| (token, *e as usize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 8] = [1.0, 3.0, 2.0, 3.0, 0.0, 0.0, -1.0, f32::NEG_INFINITY];

    #[test]
    fn the_greatest_are_chosen_and_share_as_asked() {
        let mut out = [0.0; 8];
        route(&LOGITS, 4, &Routing::softmax(2, Share::Chosen), None, &mut out);
        assert_eq!(out, [1.0, 3.0, 0.5, 0.5, 0.0, 1.0, 0.5, 0.5]);
        route(&LOGITS, 4, &Routing::softmax(2, Share::All), None, &mut out);
        let sum = 1f64.exp() + 2.0 * 3f64.exp() + 2f64.exp();
        assert!((f64::from(out[2]) - 3f64.exp() / sum).abs() < 1e-6, "{out:?}");
        assert_eq!(out[2], out[3]);
    }

    #[test]
    fn groups_limit_the_choice_and_a_bias_only_moves_it() {
        let logits = [3.0, -9.0, 2.0, 1.9, 0.0, 0.1];
        let of = |routing: Routing, bias: Option<&[f32]>| {
            let mut out = vec![0.0; 2 * routing.top];
            route(&logits, 6, &routing, bias, &mut out);
            out
        };
        let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
        let base = Routing { score: Score::Sigmoid, scale: 2.0, ..Routing::softmax(2, Share::All) };
        let near = |got: &[f32], want: &[f32]| got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6);
        // The greatest belongs to a group whose two best are less than those of the second.
        let groups = Some(Groups { count: 3, kept: 1, best: 2 });
        let out = of(Routing { groups, ..base }, None);
        assert!(near(&out, &[2.0, 3.0, 2.0 * sigmoid(2.0), 2.0 * sigmoid(1.9)]), "{out:?}");
        let by_best = Some(Groups { count: 3, kept: 1, best: 1 });
        assert_eq!(of(Routing { groups: by_best, ..base }, None)[..2], [0.0, 1.0]);
        assert_eq!(of(Routing { groups: by_best, score: Score::Softmax, ..base }, None)[..2], [0.0, 1.0]);
        // A bias leads to the last group, and is no part of the weights.
        let bias = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0];
        let out = of(Routing { groups, share: Share::Chosen, ..base }, Some(&bias));
        let sum = sigmoid(0.0) + sigmoid(0.1);
        assert!(near(&out, &[4.0, 5.0, 2.0 * sigmoid(0.0) / sum, 2.0 * sigmoid(0.1) / sum]), "{out:?}");
    }

    #[test]
    fn rows_go_to_experts_and_come_back_weighted() {
        // Token 0 to experts 1 and 3, token 1 to 0 and 1; nobody to 2.
        let routing = [1.0, 3.0, 0.25, 0.75, 0.0, 1.0, 0.5, 0.5];
        let routed = Routed { by: 0, top: 2, experts: 4 };
        let dispatched = Dispatched::new(&routing, routed);
        assert_eq!(dispatched.tokens, [1, 0, 1, 0]);
        assert_eq!(dispatched.experts().collect::<Vec<_>>(), [0..1, 1..3, 3..3, 3..4]);
        let mut out = [0.0; 2];
        dispatched.combine(&[8.0, 4.0, 16.0, 40.0], 1, 0, &mut out);
        assert_eq!(out, [1.0 + 30.0, 4.0 + 8.0]);
        dispatched.combine(&[8.0, 4.0, 16.0, 40.0], 1, 1, &mut out[..1]);
        assert_eq!(out[0], 12.0);
    }
}
