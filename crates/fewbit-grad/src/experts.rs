//! Gradients through gates, routing, and experts.

use fewbit_graph::{Routing, Score, Share, WeightId};
use fewbit_kernel::elementwise;

use crate::backward::{Flow, PIECE, Step, multiply_back};
use crate::function::dispatched;
use crate::{Gradients, Saved};

impl Step<'_> {
    /// Of `σ(g) · x` per row: `dx = σ(g) · d`, `dg = σ(g) (1 − σ(g)) (d · x)`.
    pub(crate) fn gate(&self, mut d: Vec<f32>, flow: &mut Flow, saved: &mut Saved) {
        let Self { team, node, dim, .. } = *self;
        let rows = (PIECE / dim).max(1);
        // The gates' values become their gradients.
        let mut gates = saved.pool.take(d.len() / dim);
        gates.copy_from_slice(&saved.values[node.inputs[1]]);
        let x = &saved.values[node.inputs[0]];
        team.for_paired_pieces(&mut d, rows * dim, &mut gates, rows, |i, d, gates| {
            elementwise::sigmoid(gates);
            let x = x[i * rows * dim..].chunks_exact(dim);
            for ((d, x), gate) in d.chunks_exact_mut(dim).zip(x).zip(gates) {
                let along: f64 = d.iter().zip(x).map(|(d, x)| f64::from(d * x)).sum();
                elementwise::scale(d, *gate);
                *gate *= (1.0 - *gate) * along as f32;
            }
        });
        flow.add(team, node.inputs[0], dim, d, &mut saved.pool);
        flow.add(team, node.inputs[1], 1, gates, &mut saved.pool);
    }

    /// From the weights of the chosen experts to the logits; which are chosen has no gradient.
    pub(crate) fn route(&self, routing: &Routing, d: Vec<f32>, flow: &mut Flow, saved: &mut Saved) {
        let Routing { score, share, scale, .. } = *routing;
        let Self { team, node, dim, .. } = *self;
        let (top, experts) = (dim / 2, self.graph.values[node.inputs[0]].dim);
        let mut d_logits = saved.pool.take_zeroed(self.batch.tokens() * experts);
        let (routed, logits) = (&saved.values[node.output], &saved.values[node.inputs[0]]);
        team.for_rows(experts, &mut d_logits, &|at, out| {
            for (token, out) in (at / experts..).zip(out.chunks_exact_mut(experts)) {
                let (chosen, weights) = routed[token * dim..(token + 1) * dim].split_at(top);
                let d = &d[token * dim + top..(token + 1) * dim];
                let logits = &logits[token * experts..(token + 1) * experts];
                let sum: f32 = weights.iter().zip(d).map(|(w, d)| w * d).sum();
                if share == Share::All && score == Score::Softmax {
                    // Every expert had its share, and the chosen ones did not get it.
                    out.copy_from_slice(logits);
                    elementwise::softmax_in_place(out);
                    elementwise::scale(out, -sum);
                }
                // Weights that sum to `scale` only share it out.
                let mean = if share == Share::Chosen { sum / scale } else { 0.0 };
                for ((e, w), d) in chosen.iter().zip(weights).zip(d) {
                    let e = *e as usize;
                    // `d ln w / d logit`, but for the sum: 1 of an exponential, `1 − σ` of a sigmoid.
                    let slope = if score == Score::Sigmoid { 1.0 / (1.0 + logits[e].exp()) } else { 1.0 };
                    out[e] += w * (d - mean) * slope;
                }
            }
        });
        flow.add(team, node.inputs[0], experts, d_logits, &mut saved.pool);
        saved.pool.give_back(d);
    }

    /// The sum of a token's rows, in the order of the experts.
    pub(crate) fn dispatch(&self, d: Vec<f32>, flow: &mut Flow, saved: &mut Saved) {
        let Self { team, node, dim, .. } = *self;
        let mut dx = self.open(node.inputs[0], flow, saved);
        let dispatched = dispatched(self.graph, node.output, &saved.values);
        team.for_rows(dim, &mut dx, &|at, dx| {
            for (token, dx) in (at / dim..).zip(dx.chunks_exact_mut(dim)) {
                for (row, _) in dispatched.rows_of(token) {
                    elementwise::add(dx, &d[row * dim..(row + 1) * dim]);
                }
            }
        });
        flow.of[node.inputs[0]] = dx;
        saved.pool.give_back(d);
    }

    /// Each expert by itself, on its rows.
    pub(crate) fn expert_linear(
        &self,
        first: WeightId,
        d: Vec<f32>,
        flow: &mut Flow,
        saved: &mut Saved,
        gradients: &mut Gradients,
    ) {
        let Self { team, node, dim, .. } = *self;
        let (input, width) = (node.inputs[0], self.graph.values[node.inputs[0]].dim);
        let mut dx = self.open(input, flow, saved);
        let x = &saved.values[input];
        for (e, rows) in dispatched(self.graph, node.output, &saved.values).experts().enumerate() {
            let wide = rows.start * width..rows.end * width;
            let dx = if dx.is_empty() { &mut [] } else { &mut dx[wide.clone()] };
            let d = &d[rows.start * dim..rows.end * dim];
            multiply_back(team, self.parameters, first + e, &x[wide], d, dx, gradients);
        }
        flow.of[input] = dx;
        saved.pool.give_back(d);
    }

    /// Of `Σ wₑ xₑ` per token: `dxₑ = wₑ d`, `dwₑ = d · xₑ`.
    pub(crate) fn combine(&self, d: Vec<f32>, flow: &mut Flow, saved: &mut Saved) {
        let Self { team, node, dim, .. } = *self;
        let [input, routing] = [node.inputs[0], node.inputs[1]];
        let both = self.graph.values[routing].dim;
        let (tokens, mut dx) = (d.len() / dim, saved.pool.take(saved.values[input].len()));
        let mut d_routing = saved.pool.take_zeroed(tokens * both);
        let x = &saved.values[input];
        let dispatched = dispatched(self.graph, input, &saved.values);
        let mut weights = vec![0.0; dispatched.tokens().len()];
        for token in 0..tokens {
            for (row, weight) in dispatched.rows_of(token) {
                weights[row] = weight;
            }
        }
        team.for_rows(dim, &mut dx, &|at, dx| {
            for (row, dx) in (at / dim..).zip(dx.chunks_exact_mut(dim)) {
                let token = dispatched.tokens()[row];
                dx.copy_from_slice(&d[token * dim..(token + 1) * dim]);
                elementwise::scale(dx, weights[row]);
            }
        });
        team.for_rows(both, &mut d_routing, &|at, out| {
            for (token, out) in (at / both..).zip(out.chunks_exact_mut(both)) {
                let d = &d[token * dim..(token + 1) * dim];
                for (out, (row, _)) in out[both / 2..].iter_mut().zip(dispatched.rows_of(token)) {
                    let along: f64 = d.iter().zip(&x[row * dim..]).map(|(d, x)| f64::from(d * x)).sum();
                    *out = along as f32;
                }
            }
        });
        flow.add(team, input, dim, dx, &mut saved.pool);
        flow.add(team, routing, both, d_routing, &mut saved.pool);
        saved.pool.give_back(d);
    }
}
