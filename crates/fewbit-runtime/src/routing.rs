//! Tokens on their way to experts and back.

use std::ops::Range;

use fewbit_graph::{Routed, Share};
use fewbit_kernel::elementwise;

/// Chooses experts for each row of `logits [tokens, experts]`: `out [tokens, 2 · top]` holds the indices of the chosen,
/// ascending, then their weights. Of equal logits the lower index is chosen.
pub(crate) fn route(logits: &[f32], experts: usize, top: usize, share: Share, out: &mut [f32]) {
    let mut order: Vec<usize> = Vec::with_capacity(experts);
    let mut all = vec![0.0; experts];
    for (logits, out) in logits.chunks_exact(experts).zip(out.chunks_exact_mut(2 * top)) {
        order.clear();
        order.extend(0..experts);
        order.select_nth_unstable_by(top - 1, |a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        order.truncate(top);
        order.sort_unstable();
        let (indices, weights) = out.split_at_mut(top);
        for (index, e) in indices.iter_mut().zip(&order) {
            *index = *e as f32;
        }
        let of: &[f32] = match share {
            Share::All => {
                all.copy_from_slice(logits);
                elementwise::softmax_in_place(&mut all);
                &all
            }
            Share::Chosen => logits,
        };
        for (weight, e) in weights.iter_mut().zip(&order) {
            *weight = of[*e];
        }
        if share == Share::Chosen {
            elementwise::softmax_in_place(weights);
        }
    }
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
        route(&LOGITS, 4, 2, Share::Chosen, &mut out);
        assert_eq!(out, [1.0, 3.0, 0.5, 0.5, 0.0, 1.0, 0.5, 0.5]);
        route(&LOGITS, 4, 2, Share::All, &mut out);
        let sum = 1f64.exp() + 2.0 * 3f64.exp() + 2f64.exp();
        assert!((f64::from(out[2]) - 3f64.exp() / sum).abs() < 1e-6, "{out:?}");
        assert_eq!(out[2], out[3]);
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
