//! What a token costs: the bytes that it reads, its multiplications, and its linears alone.

use fewbit_graph::{Op, Routed};

use crate::steps::Step;
use crate::{Layer, Runtime};

impl Runtime {
    /// Bytes of weights that a step of so many tokens reads, head included: of experts as many as the tokens can go to.
    pub fn weight_bytes(&self, tokens: usize) -> usize {
        let bytes = |layer: &Layer| -> usize {
            let of = |(kernels, routed): (std::ops::Range<usize>, Option<Routed>)| {
                let all: usize = layer.kernels[kernels].iter().map(|k| k.bytes()).sum();
                routed.map_or(all, |r| all * (r.top * tokens).min(r.experts) / r.experts)
            };
            layer.linears().map(of).sum()
        };
        self.layers.iter().chain([&self.head]).map(bytes).sum()
    }

    /// Bytes of the cache that a token reads which `positions` of its sequence are in front of.
    pub fn cache_bytes(&self, positions: usize) -> usize {
        let numbers = |op: &Op| match op {
            Op::Attention { kv_heads, head_dim, window, .. } => {
                2 * kv_heads * head_dim * window.map_or(positions, |w| positions.min(w))
            }
            _ => 0,
        };
        let of_layer = |layer: &Layer| {
            let all: usize = layer.graph().nodes.iter().map(|node| numbers(&node.op)).sum();
            all * layer.cache_type().bytes()
        };
        self.layers.iter().map(of_layer).sum()
    }

    /// Multiply-adds of the linears for `tokens` tokens, of which `rows` get logits.
    pub fn multiply_adds(&self, tokens: usize, rows: usize) -> usize {
        let of_token = |layer: &Layer| -> usize {
            let of = |(kernels, routed): (std::ops::Range<usize>, Option<Routed>)| {
                let weights = layer.program.kernels[kernels].iter().flatten();
                let all: usize = weights.map(|w| layer.graph().weights[*w].shape.iter().product::<usize>()).sum();
                routed.map_or(all, |r| all * r.top / r.experts)
            };
            layer.linears().map(of).sum()
        };
        tokens * self.layers.iter().map(of_token).sum::<usize>() + rows * of_token(&self.head)
    }
}

/// The linears of a model alone, with an input and room for their outputs: the share of them in a token's time.
#[derive(Debug)]
pub struct Linears {
    x: Vec<f32>,
    out: Vec<f32>,
}

impl Linears {
    /// For the linears of `runtime`.
    pub fn of(runtime: &Runtime) -> Self {
        let layers = || runtime.layers.iter().chain([&runtime.head]);
        let shapes = layers().flat_map(|l| l.program.kernels.iter().map(|ws| l.shape(ws)));
        let [rows, cols] = shapes.fold([0, 0], |most, shape| [most[0].max(shape[0]), most[1].max(shape[1])]);
        // Numbers as activations are: of both signs, none special.
        let x = (0..cols).map(|i| (i * 37 % 101) as f32 / 50.5 - 1.0).collect();
        Self { x, out: vec![0.0; rows] }
    }

    /// Multiplies one token by every linear that it reads, in the order of the model: of experts by the first ones.
    /// Reads [`Runtime::weight_bytes`] of one token.
    ///
    /// # Panics
    /// If `runtime` has wider linears than the one that this was made for.
    pub fn run(&mut self, runtime: &Runtime) {
        for layer in runtime.layers.iter().chain([&runtime.head]) {
            for (kernels, routed) in layer.linears() {
                let read = kernels.len().min(routed.map_or(usize::MAX, |r| r.top));
                for k in kernels.take(read) {
                    let weights = &layer.program.kernels[k];
                    let [_, cols] = layer.shape(weights);
                    let (mut outs, mut rest) = (Vec::with_capacity(weights.len()), &mut *self.out);
                    for w in weights {
                        let (out, behind) = rest.split_at_mut(layer.graph().weights[*w].shape[0]);
                        outs.push(out);
                        rest = behind;
                    }
                    layer.kernels[k].run(runtime.team(), 1, &self.x[..cols], &mut outs);
                }
            }
        }
    }
}

impl Layer {
    /// The kernels of each step of linears, and how tokens get to them where they are experts'.
    fn linears(&self) -> impl Iterator<Item = (std::ops::Range<usize>, Option<Routed>)> {
        self.program.steps.iter().filter_map(|step| match step {
            Step::Linears { kernels, routed, .. } => Some((kernels.clone(), *routed)),
            Step::Node(_) => None,
        })
    }

    /// All rows of the linears of a kernel, and their columns.
    fn shape(&self, weights: &[fewbit_graph::WeightId]) -> [usize; 2] {
        let shapes = || weights.iter().map(|w| self.graph().weights[*w].shape);
        [shapes().map(|s| s[0]).sum(), shapes().next().map_or(0, |s| s[1])]
    }
}
