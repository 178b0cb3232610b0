//! The graph by its definitions, in f64: what gradients are checked against.

use std::ops::Range;

use fewbit_grad::Parameters;
use fewbit_graph::{Activation, Graph, Node, Op, Rope, Routing, Score, Share, ValueId};

/// A tensor of the graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tensor {
    Value(ValueId),
    Weight(usize),
    Bias(usize),
    Vector(usize),
}

/// Input and parameters in f64.
#[derive(Clone)]
pub(crate) struct Point {
    pub(crate) x: Vec<f64>,
    pub(crate) weights: Vec<Vec<f64>>,
    pub(crate) biases: Vec<Vec<f64>>,
    pub(crate) vectors: Vec<Vec<f64>>,
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|v| f64::from(*v)).collect()
}

impl Point {
    pub(crate) fn new(x: &[f32], parameters: &Parameters) -> Self {
        Self {
            x: wide(x),
            weights: parameters.weights.iter().map(|w| wide(w.data())).collect(),
            biases: parameters.biases.iter().map(|b| b.as_deref().map(wide).unwrap_or_default()).collect(),
            vectors: parameters.vectors.iter().map(|v| wide(v)).collect(),
        }
    }

    pub(crate) fn len(&self, tensor: Tensor) -> usize {
        match tensor {
            Tensor::Value(_) => 0,
            Tensor::Weight(i) => self.weights[i].len(),
            Tensor::Bias(i) => self.biases[i].len(),
            Tensor::Vector(i) => self.vectors[i].len(),
        }
    }
}

/// A graph with the sequences that it runs on.
pub(crate) struct Twin<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) ropes: &'a [Rope],
    pub(crate) sequences: Vec<Range<usize>>,
}

impl Twin<'_> {
    /// All values, with `by` added to the numbers of one tensor.
    pub(crate) fn run(&self, point: &Point, nudged: Tensor, by: &[f64]) -> Vec<Vec<f64>> {
        let mut point = point.clone();
        let nudge = |to: &mut Vec<f64>| to.iter_mut().zip(by).for_each(|(v, d)| *v += d);
        match nudged {
            Tensor::Value(_) => {}
            Tensor::Weight(i) => nudge(&mut point.weights[i]),
            Tensor::Bias(i) => nudge(&mut point.biases[i]),
            Tensor::Vector(i) => nudge(&mut point.vectors[i]),
        }
        let mut values = vec![Vec::new(); self.graph.values.len()];
        values[Graph::INPUT].clone_from(&point.x);
        for v in [Graph::INPUT].into_iter().chain(self.graph.nodes.iter().map(|n| n.output)) {
            if let Some(node) = self.graph.producer(v) {
                values[v] = self.node(&point, node, &values);
            }
            if nudged == Tensor::Value(v) {
                nudge(&mut values[v]);
            }
        }
        values
    }

    /// Expert, token and weight of each row of a value within experts.
    fn routed(&self, value: ValueId, values: &[Vec<f64>]) -> Vec<(usize, usize, f64)> {
        let routed = self.graph.values[value].routed.unwrap();
        let mut rows = Vec::new();
        for (token, row) in values[routed.by].chunks_exact(2 * routed.top).enumerate() {
            let (chosen, weights) = row.split_at(routed.top);
            // An index that is nudged is the same index.
            rows.extend(chosen.iter().zip(weights).map(|(e, w)| (e.round() as usize, token, *w)));
        }
        rows.sort_by_key(|(expert, token, _)| (*expert, *token));
        rows
    }

    fn node(&self, point: &Point, node: &Node, values: &[Vec<f64>]) -> Vec<f64> {
        let x = &values[node.inputs[0]];
        let dim = self.graph.values[node.output].dim;
        let width = self.graph.values[node.inputs[0]].dim;
        let normed = |width: usize, eps: f32, is_centered: bool, gain: &[f64], bias: Option<&[f64]>| -> Vec<f64> {
            let row = |row: &[f64]| -> Vec<f64> {
                let n = width as f64;
                let mean = if is_centered { row.iter().sum::<f64>() / n } else { 0.0 };
                let r = (row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n + f64::from(eps)).sqrt();
                (0..width).map(|i| (row[i] - mean) / r).collect()
            };
            let scaled = |(i, x): (usize, f64)| x * gain[i % gain.len()] + bias.map_or(0.0, |b| b[i % b.len()]);
            x.chunks_exact(width).flat_map(row).enumerate().map(scaled).collect()
        };
        let paired = |f: fn(f64, f64) -> f64| -> Vec<f64> {
            x.iter().zip(&values[node.inputs[1]]).map(|(a, b)| f(*a, *b)).collect()
        };
        match &node.op {
            Op::Embedding { weight } => {
                let row = |id: &f64| point.weights[*weight][*id as usize * dim..][..dim].to_vec();
                x.iter().flat_map(row).collect()
            }
            Op::Linear { weight } => {
                let (w, b) = (&point.weights[*weight], &point.biases[*weight]);
                let at = |x: &[f64], r: usize| -> f64 {
                    w[r * width..(r + 1) * width].iter().zip(x).map(|(w, x)| w * x).sum::<f64>()
                        + b.get(r).copied().unwrap_or(0.0)
                };
                x.chunks_exact(width).flat_map(|x| (0..dim).map(|r| at(x, r)).collect::<Vec<_>>()).collect()
            }
            Op::RmsNorm { gain, eps, width } => normed(*width, *eps, false, &point.vectors[*gain], None),
            Op::LayerNorm { gain, bias, eps, width } => {
                normed(*width, *eps, true, &point.vectors[*gain], bias.map(|b| &*point.vectors[b]))
            }
            Op::Scale { factor } => x.iter().map(|v| v * f64::from(*factor)).collect(),
            Op::Add => paired(|a, b| a + b),
            Op::Mul => paired(|a, b| a * b),
            Op::Activation(f) => x.iter().map(|v| activation(*f, *v)).collect(),
            Op::Softcap { cap } => x.iter().map(|v| f64::from(*cap) * (v / f64::from(*cap)).tanh()).collect(),
            Op::Cache { .. } => x.clone(),
            Op::Positions { table, first } => {
                let positions = self.sequences.iter().flat_map(|s| 0..s.len());
                let added = positions.flat_map(|p| &point.vectors[*table][(p + first) * dim..][..dim]);
                x.iter().zip(added).map(|(x, p)| x + p).collect()
            }
            Op::Rope { rope, heads, head_dim, rotary_dims } => {
                let mut y = x.clone();
                let half = rotary_dims / 2;
                let positions = self.sequences.iter().flat_map(|s| 0..s.len());
                for (position, row) in positions.zip(y.chunks_exact_mut(heads * head_dim)) {
                    let (mut cos, mut sin) = (vec![0.0; half], vec![0.0; half]);
                    self.ropes[*rope].fill(position, &mut cos, &mut sin);
                    for head in row.chunks_exact_mut(*head_dim) {
                        for i in 0..half {
                            let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
                            let (a, b) = (head[i], head[i + half]);
                            (head[i], head[i + half]) = (a * c - b * s, b * c + a * s);
                        }
                    }
                }
                y
            }
            Op::Attention { heads, kv_heads, head_dim, scale, softcap, window, sinks } => {
                let (k, v) = (&values[node.inputs[1]], &values[node.inputs[2]]);
                let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
                let mut out = vec![0.0; x.len()];
                for (rows, head) in self.sequences.iter().flat_map(|s| (0..*heads).map(move |h| (s.clone(), h))) {
                    let (at, kv) = (head * head_dim, head / (heads / kv_heads) * head_dim);
                    for i in rows.clone() {
                        let first = window.map_or(rows.start, |w| (i + 1).saturating_sub(w).max(rows.start));
                        let score = |j: usize| {
                            let dot: f64 = (0..*head_dim).map(|d| x[i * wide + at + d] * k[j * narrow + kv + d]).sum();
                            let score = dot * f64::from(*scale);
                            softcap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh())
                        };
                        let weights: Vec<f64> = (first..=i).map(|j| score(j).exp()).collect();
                        let sink = sinks.map_or(0.0, |v| point.vectors[v][head].exp());
                        let sum: f64 = weights.iter().sum::<f64>() + sink;
                        for d in 0..*head_dim {
                            let mix: f64 =
                                (weights.iter().enumerate()).map(|(n, w)| w * v[(first + n) * narrow + kv + d]).sum();
                            out[i * wide + at + d] = mix / sum;
                        }
                    }
                }
                out
            }
            Op::Gate => {
                let gates = &values[node.inputs[1]];
                x.iter().enumerate().map(|(i, v)| v / (1.0 + (-gates[i / dim]).exp())).collect()
            }
            Op::ClampedGlu { alpha, limit } => {
                let (alpha, limit) = (f64::from(*alpha), f64::from(*limit));
                let glu = |(gate, up): (&f64, &f64)| {
                    let g = gate.min(limit);
                    (up.clamp(-limit, limit) + 1.0) * g / (1.0 + (-alpha * g).exp())
                };
                x.iter().zip(&values[node.inputs[1]]).map(glu).collect()
            }
            Op::JoinHeads { heads } => {
                let (b, own) = (&values[node.inputs[1]], self.graph.values[node.inputs[1]].dim);
                let head = |(a, b): (&[f64], &[f64])| [a, b].concat();
                let row = |(a, b): (&[f64], &[f64])| -> Vec<f64> {
                    b.chunks_exact(own / heads).flat_map(|b| head((a, b))).collect()
                };
                x.chunks_exact(width).zip(b.chunks_exact(own)).flat_map(row).collect()
            }
            Op::FitHeads { heads, head_dim } => {
                let head = |x: &[f64]| (0..*head_dim).map(|i| x.get(i).copied().unwrap_or(0.0)).collect::<Vec<_>>();
                x.chunks_exact(width / heads).flat_map(head).collect()
            }
            Op::Route { routing, bias } => {
                let bias = bias.map(|b| &*point.vectors[b]);
                x.chunks_exact(width).flat_map(|row| choose(row, routing, bias)).collect()
            }
            Op::Dispatch => {
                let rows = self.routed(node.output, values);
                rows.into_iter().flat_map(|(_, token, _)| x[token * dim..(token + 1) * dim].to_vec()).collect()
            }
            Op::ExpertLinear { first } => {
                let rows = self.routed(node.output, values).into_iter().zip(x.chunks_exact(width));
                let row = |((expert, ..), x): ((usize, usize, f64), &[f64])| -> Vec<f64> {
                    let (w, b) = (&point.weights[first + expert], &point.biases[first + expert]);
                    let dot = |r: usize| w[r * width..(r + 1) * width].iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
                    (0..dim).map(|r| dot(r) + b.get(r).copied().unwrap_or(0.0)).collect()
                };
                rows.flat_map(row).collect()
            }
            Op::Combine => {
                let tokens = self.sequences.last().map_or(0, |s| s.end);
                let mut out = vec![0.0; tokens * dim];
                for ((_, token, weight), x) in self.routed(node.inputs[0], values).into_iter().zip(x.chunks_exact(dim))
                {
                    out[token * dim..(token + 1) * dim].iter_mut().zip(x).for_each(|(o, x)| *o += weight * x);
                }
                out
            }
        }
    }
}

/// The indices of the chosen, ascending, then their weights.
fn choose(logits: &[f64], routing: &Routing, bias: Option<&[f64]>) -> Vec<f64> {
    let (count, sum) = (logits.len(), logits.iter().map(|l| l.exp()).sum::<f64>());
    let score = |e: usize| match routing.score {
        Score::Softmax => logits[e].exp() / sum,
        Score::Sigmoid => 1.0 / (1.0 + (-logits[e]).exp()),
    };
    let by: Vec<f64> = (0..count).map(|e| score(e) + bias.map_or(0.0, |b| b[e])).collect();
    let mut chosen: Vec<usize> = (0..count).collect();
    chosen.sort_by(|a, b| by[*b].total_cmp(&by[*a]));
    if let Some(groups) = routing.groups {
        let size = count / groups.count;
        let sum = |g: usize| chosen.iter().filter(|e| **e / size == g).take(groups.best).map(|e| by[*e]).sum::<f64>();
        let mut best: Vec<usize> = (0..groups.count).collect();
        best.sort_by(|a, b| sum(*b).total_cmp(&sum(*a)));
        chosen.retain(|e| best[..groups.kept].contains(&(e / size)));
    }
    chosen.truncate(routing.top);
    chosen.sort_unstable();
    let sum: f64 = chosen.iter().map(|e| score(*e)).sum();
    let part = if routing.share == Share::Chosen { sum } else { 1.0 };
    let weights = chosen.iter().map(|e| score(*e) / part * f64::from(routing.scale));
    chosen.iter().map(|e| *e as f64).chain(weights).collect()
}

fn activation(f: Activation, x: f64) -> f64 {
    match f {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        }
        Activation::Relu => x.max(0.0),
    }
}

/// The Taylor series: good to 1e-12 for the few units that these tests reach.
fn erf(x: f64) -> f64 {
    assert!(x.abs() < 4.0, "{x}");
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}
