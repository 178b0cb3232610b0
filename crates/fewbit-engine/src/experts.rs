//! What stands in for the tokens that experts did not get.

use std::collections::BTreeSet;

use fewbit_format::Mat;
use fewbit_graph::{Edge, Graph, Op, ValueId};

use crate::stats::InputStats;

/// Fills up the statistics of every expert that got fewer tokens than its input has columns, to as many tokens: with
/// the average token of the experts where they read one value of the block, else with white noise of the expert's own
/// power (of power 1 without any token, so that rounding is to the nearest).
///
/// An expert without tokens is so rounded for those of the others. Returns the inputs that were filled up.
pub(crate) fn fill_up(graph: &Graph, stats: &mut [(Edge, InputStats)]) -> BTreeSet<Edge> {
    let mut filled = BTreeSet::new();
    let values: BTreeSet<ValueId> = stats.iter().filter(|(e, _)| e.expert.is_some()).map(|(e, _)| e.value).collect();
    for value in values {
        let mut of: Vec<(Edge, &mut InputStats)> =
            stats.iter_mut().filter(|(e, _)| e.value == value && e.expert.is_some()).map(|(e, s)| (*e, s)).collect();
        let is_shared = graph.producer(value).is_some_and(|n| n.op == Op::Dispatch);
        let average = if is_shared { average(&of) } else { None };
        let columns = graph.values[value].dim;
        for (edge, s) in of.iter_mut().filter(|(_, s)| s.tokens < columns) {
            let missing = columns - s.tokens;
            let noise = if average.is_none() { white(s) } else { InputStats::default() };
            let token = average.as_ref().unwrap_or(&noise);
            if let (Some(h), Some(more)) = (&mut s.gram, &token.gram) {
                add(h, missing as f32, more);
            }
            let (old, new) = (s.tokens as f32 / columns as f32, missing as f32 / columns as f32);
            let squares = (&mut s.mean_square, &token.mean_square);
            for (means, others) in [(&mut s.mean_abs, &token.mean_abs), squares] {
                let all = means.iter_mut().flatten().zip(others.iter().flatten());
                all.for_each(|(m, more)| *m = old * *m + new * more);
            }
            s.widen(token);
            s.tokens = columns;
            filled.insert(*edge);
        }
    }
    filled
}

/// The average token of all experts; `None` where there is none.
fn average(of: &[(Edge, &mut InputStats)]) -> Option<InputStats> {
    let tokens: usize = of.iter().map(|(_, s)| s.tokens).sum();
    let ((_, first), rest) = of.split_first().filter(|_| tokens > 0)?;
    let mut sum = InputStats::clone(first);
    let share = |s: &InputStats| s.tokens as f32 / tokens as f32;
    if let Some(h) = &mut sum.gram {
        rest.iter().filter_map(|(_, s)| s.gram.as_ref()).for_each(|more| add(h, 1.0, more));
        h.data_mut().iter_mut().for_each(|v| *v /= tokens as f32);
    }
    let add_all = |means: &mut Option<Vec<f32>>, of: fn(&InputStats) -> &Option<Vec<f32>>| {
        means.iter_mut().flatten().for_each(|v| *v *= share(first));
        for (_, s) in rest {
            let all = means.iter_mut().flatten().zip(of(s).iter().flatten());
            all.for_each(|(m, more)| *m += share(s) * more);
        }
    };
    add_all(&mut sum.mean_abs, |s| &s.mean_abs);
    add_all(&mut sum.mean_square, |s| &s.mean_square);
    rest.iter().for_each(|(_, s)| sum.widen(s));
    Some(sum)
}

/// A token of uncorrelated columns, as large as an expert's own are on average; of power 1 where it has none.
fn white(of: &InputStats) -> InputStats {
    let positive = |v: f32| if v.is_finite() && v > 0.0 { v } else { 1.0 };
    let gram = of.gram.as_ref().map(|h| {
        let trace: f32 = (0..h.rows()).map(|i| h[(i, i)]).sum();
        let power = positive(trace / (of.tokens * h.rows()) as f32);
        Mat::from_fn(h.rows(), h.rows(), |r, c| if r == c { power } else { 0.0 })
    });
    let level = |m: &Vec<f32>| vec![positive(m.iter().sum::<f32>() / m.len() as f32); m.len()];
    let (mean_abs, mean_square) = (of.mean_abs.as_ref().map(level), of.mean_square.as_ref().map(level));
    InputStats { gram, mean_abs, mean_square, ..InputStats::default() }
}

fn add(h: &mut Mat, by: f32, more: &Mat) {
    h.data_mut().iter_mut().zip(more.data()).for_each(|(h, m)| *h += by * m);
}

/// One sentence about the experts of block `i` that were filled up; `counts` are the tokens of each.
pub(crate) fn warning(i: usize, counts: &[usize], short: usize) -> Option<String> {
    let (least, all) = (counts.iter().min()?, counts.len());
    let without = counts.iter().filter(|n| **n == 0).count();
    let none = if without > 0 { format!(", and {without} none at all") } else { String::new() };
    (short > 0).then(|| {
        format!(
            "block {i}: {short} of {all} experts got fewer calibration tokens than their matrices have columns (the \
             fewest {least}{none}); the experts' average token stands in for the missing ones, noise behind the gate"
        )
    })
}

#[cfg(test)]
mod tests {
    use fewbit_graph::{Builder, Routing, Share};

    use super::*;

    /// Three experts of width 2 and 3 behind a router.
    fn graph() -> Graph {
        let mut g = Builder::new("x", 2);
        let logits = g.gate(Graph::INPUT, "router", 3, false);
        let routing = g.route(logits, Routing::softmax(1, Share::Chosen), None);
        let rows = g.dispatch("expert_in", Graph::INPUT, routing);
        let h = g.expert_linear(rows, "experts", "up", 3, false);
        let y = g.expert_linear(h, "experts", "down", 2, false);
        let y = g.combine("y", y, routing);
        g.finish(y)
    }

    fn stats(tokens: &[&[f32]], columns: usize) -> InputStats {
        let mut h = Mat::zeros(columns, columns);
        let mut m = vec![0.0; columns];
        for x in tokens {
            add(&mut h, 1.0, &Mat::from_fn(columns, columns, |r, c| x[r] * x[c]));
            m.iter_mut().zip(*x).for_each(|(m, x)| *m += x.abs() / tokens.len() as f32);
        }
        InputStats { gram: Some(h), mean_abs: Some(m), tokens: tokens.len(), ..InputStats::default() }
    }

    #[test]
    fn what_all_experts_read_is_filled_with_their_average_token() {
        let g = graph();
        let value = g.linears_by_input()[1].0.value;
        let edge = |e| Edge { value, expert: Some(e) };
        let rich: [&[f32]; 3] = [&[1.0, 0.0], &[0.0, 2.0], &[1.0, 1.0]];
        let mut all = [(edge(0), stats(&rich, 2)), (edge(1), stats(&[], 2)), (edge(2), stats(&[&[4.0, 0.0]], 2))];
        let before = all[0].1.clone();
        let filled = fill_up(&g, &mut all);
        assert_eq!(filled, BTreeSet::from([edge(1), edge(2)]));
        assert_eq!(all[0].1.gram, before.gram);
        // (2 + 16, 1; 1, 5) over four tokens, twice for the expert without any, once for the one with one.
        let h = all[1].1.gram.as_ref().unwrap();
        assert_eq!(h.data(), [9.0, 0.5, 0.5, 2.5]);
        assert_eq!(all[1].1.mean_abs.as_ref().unwrap()[..], [1.5, 0.75]);
        assert_eq!(all[1].1.tokens, 2);
        let h = all[2].1.gram.as_ref().unwrap();
        assert_eq!(h.data(), [16.0 + 4.5, 0.25, 0.25, 1.25]);
        assert_eq!(all[2].1.mean_abs.as_ref().unwrap()[..], [2.0 + 0.75, 0.375]);
    }

    #[test]
    fn what_is_an_experts_own_is_filled_with_noise() {
        let g = graph();
        let value = g.linears_by_input()[4].0.value;
        let edge = |e| Edge { value, expert: Some(e) };
        let mut all = [(edge(0), stats(&[], 3)), (edge(1), stats(&[&[3.0, 0.0, 0.0]], 3))];
        assert_eq!(fill_up(&g, &mut all).len(), 2);
        let h = all[0].1.gram.as_ref().unwrap();
        assert_eq!(h.data(), [3.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 3.0]);
        let h = all[1].1.gram.as_ref().unwrap();
        assert_eq!(h.data(), [15.0, 0.0, 0.0, 0.0, 6.0, 0.0, 0.0, 0.0, 6.0]);
        assert!(all.iter().all(|(_, s)| s.mean_abs.iter().flatten().all(|m| m.is_finite() && *m > 0.0)));
    }

    #[test]
    fn the_sentence_counts() {
        assert_eq!(warning(4, &[5, 9], 0), None);
        let said = warning(4, &[0, 9, 0, 2], 3).unwrap();
        assert!(said.starts_with("block 4: 3 of 4 experts") && said.contains("0, and 2 none at all"), "{said}");
    }
}
