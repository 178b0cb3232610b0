use fewbit_graph::{Activation, Op, VectorId};
use fewbit_kernel::{Team, elementwise};

use crate::Rotations;
use crate::routing::route;

/// Computes an operation whose rows depend on the rows of its inputs alone: norms, sums, products, activations,
/// rotations, heads put together, gates, the choice of experts. Returns whether `op` is one of these.
///
/// `reused` says which input `out` holds already, if any; `vector` gives the graph's vectors.
pub fn run_rowwise<'a>(
    team: &Team,
    rotations: &Rotations,
    vector: &(dyn Fn(VectorId) -> &'a [f32] + Sync),
    op: &Op,
    inputs: &[&[f32]],
    reused: Option<usize>,
    dim: usize,
    out: &mut [f32],
) -> bool {
    let first = |at: usize, out: &mut [f32]| {
        if reused.is_none() {
            out.copy_from_slice(&inputs[0][at..at + out.len()]);
        }
    };
    let second = || inputs[usize::from(reused != Some(1))];
    match op {
        Op::RmsNorm { gain, eps, width } => team.for_rows(dim, out, &|at, out| {
            elementwise::rms_norm(&inputs[0][at..at + out.len()], *width, Some(vector(*gain)), *eps, out);
        }),
        Op::LayerNorm { gain, bias, eps, width } => team.for_rows(dim, out, &|at, out| {
            let (gain, bias) = (vector(*gain), bias.map(vector));
            elementwise::layer_norm(&inputs[0][at..at + out.len()], *width, Some(gain), bias, *eps, out);
        }),
        Op::Scale { factor } => team.for_rows(dim, out, &|at, out| {
            first(at, out);
            elementwise::scale(out, *factor);
        }),
        Op::Add => team.for_rows(dim, out, &|at, out| {
            first(at, out);
            elementwise::add(out, &second()[at..at + out.len()]);
        }),
        Op::Mul => team.for_rows(dim, out, &|at, out| {
            first(at, out);
            elementwise::mul(out, &second()[at..at + out.len()]);
        }),
        Op::Activation(f) => team.for_rows(dim, out, &|at, out| {
            first(at, out);
            activation(*f)(out);
        }),
        Op::Softcap { cap } => team.for_rows(dim, out, &|at, out| {
            first(at, out);
            elementwise::softcap(out, *cap);
        }),
        Op::Rope { rope, heads, head_dim, rotary_dims } => {
            let (cos, sin) = rotations.table(*rope);
            let pairs = rotary_dims / 2;
            team.for_rows(dim, out, &|at, out| {
                first(at, out);
                let (row, rows) = (at / dim, out.len() / dim);
                let table = row * pairs..(row + rows) * pairs;
                elementwise::rope(out, *heads, *head_dim, *rotary_dims, &cos[table.clone()], &sin[table]);
            });
        }
        Op::Gate => team.for_rows(dim, out, &|at, out| {
            first(at, out);
            let mut gates = inputs[1][at / dim..(at + out.len()) / dim].to_vec();
            elementwise::sigmoid(&mut gates);
            for (row, gate) in out.chunks_exact_mut(dim).zip(gates) {
                elementwise::scale(row, gate);
            }
        }),
        Op::ClampedGlu { alpha, limit } => team.for_rows(dim, out, &|at, out| {
            first(at, out);
            elementwise::clamped_glu(out, &inputs[1][at..at + out.len()], *alpha, *limit);
        }),
        Op::JoinHeads { heads } => {
            let rows = (out.len() / dim).max(1);
            let [shared, own] = [inputs[0].len() / rows, inputs[1].len() / rows];
            team.for_rows(dim, out, &|at, out| {
                for (row, out) in (at / dim..).zip(out.chunks_exact_mut(dim)) {
                    let [a, b] = [&inputs[0][row * shared..][..shared], &inputs[1][row * own..][..own]];
                    for (out, b) in out.chunks_exact_mut(dim / heads).zip(b.chunks_exact(own / heads)) {
                        out[..shared].copy_from_slice(a);
                        out[shared..].copy_from_slice(b);
                    }
                }
            });
        }
        Op::FitHeads { heads, head_dim } => {
            let width = inputs[0].len() / (out.len() / dim).max(1);
            team.for_rows(dim, out, &|at, out| {
                let rows = at / dim * width..(at + out.len()) / dim * width;
                fit_heads(&inputs[0][rows], width / heads, *head_dim, out);
            });
        }
        Op::Route { routing, bias } => {
            let (experts, bias) = (inputs[0].len() / (out.len() / dim).max(1), bias.map(vector));
            team.for_rows(dim, out, &|at, out| {
                let rows = at / dim..(at + out.len()) / dim;
                route(&inputs[0][rows.start * experts..rows.end * experts], experts, routing, bias, out);
            });
        }
        _ => return false,
    }
    true
}

/// Copies heads of `from` values to heads of `to` values: cut off, or with zeros behind.
pub fn fit_heads(x: &[f32], from: usize, to: usize, out: &mut [f32]) {
    let both = from.min(to);
    for (out, x) in out.chunks_exact_mut(to).zip(x.chunks_exact(from)) {
        out[..both].copy_from_slice(&x[..both]);
        out[both..].fill(0.0);
    }
}

/// An activation in place.
pub(crate) fn activation(f: Activation) -> fn(&mut [f32]) {
    match f {
        Activation::Silu => elementwise::silu,
        Activation::GeluErf => elementwise::gelu_erf,
        Activation::GeluTanh => elementwise::gelu_tanh,
        Activation::Relu => elementwise::relu,
    }
}
