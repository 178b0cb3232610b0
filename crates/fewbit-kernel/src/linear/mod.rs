//! Linears as the runtime calls them: one kernel for all that share an input (q/k/v; gate and up), chosen once at load.

mod composed;
mod dense;
mod held;
mod int8dot;
mod low_rank;
mod packed;
mod panels;
mod rounded;
mod rows;
mod separate;
mod tiled;
mod unpacked;

use std::sync::Arc;

use fewbit_format::QuantizedLinear;

use crate::{Level, Team, cpu};

/// What may be rounded besides the stored weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// As the checkpoint says; where it says nothing, activations are rounded to 8 bits, per token and 64 columns or
    /// fewer, if an integer kernel exists, and keys and values to f16.
    Fast,
    /// What the checkpoint says: the products are those of the decoded weights and the rounded inputs, up to the
    /// rounding of sums.
    Exact,
    /// Nothing, whatever the checkpoint says: f32 on the decoded weights.
    WeightsOnly,
}

/// Linears that share an input.
///
/// The runtime calls [`run`](Self::run) for every token or batch. A row of a result depends on its own token and the
/// instruction set alone: neither on the batch, nor on the team.
pub trait Kernel: Send + Sync {
    /// `y_i[t, ·] = W_i x[t, ·] + b_i` for every linear `i`; `x` is `[tokens, in]`, `outs[i]` `[tokens, out_i]`.
    ///
    /// # Panics
    /// If a slice is shorter than its shape, or there is not one output for each linear.
    fn run(&self, team: &Team, tokens: usize, x: &[f32], outs: &mut [&mut [f32]]);

    /// `y = f(W_g x + b_g) ∘ (W_u x + b_u)` for the two linears that these are, `g` being `gate` and `u` the other,
    /// with `f` in place: the bits of [`run`](Self::run) and two operations on its results, which lie in no memory
    /// here. `false`, and nothing is done, where a kernel knows no such way.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    fn run_gated(
        &self,
        _team: &Team,
        _tokens: usize,
        _x: &[f32],
        _gate: usize,
        _activate: fn(&mut [f32]),
        _out: &mut [f32],
    ) -> bool {
        false
    }

    /// Bytes of weights that are read for one token.
    fn bytes(&self) -> usize;

    /// The name that profiles and reports show.
    fn name(&self) -> &'static str;
}

/// Bands of linears that share an input, for lists on the stack: more are possible.
const MANY: usize = 8;

/// Makes a kernel for linears that share an input, or declines.
type Candidate = fn(&[Arc<QuantizedLinear>], Arithmetic, Level) -> Option<Box<dyn Kernel>>;

/// All kernels; the first that takes the linears is used, and the last takes any.
const CANDIDATES: &[Candidate] = &[
    composed::candidate,
    int8dot::candidate,
    rounded::candidate,
    unpacked::candidate,
    separate::candidate,
    tiled::candidate,
    dense::candidate,
];

/// The kernel for linears that share an input, on this machine ([`cpu::detect`]).
///
/// # Panics
/// If the linears differ in their input's width, or there is none.
#[expect(clippy::needless_pass_by_value, reason = "takes over: kernels that repack let go of the stored weights")]
pub fn choose(linears: Vec<Arc<QuantizedLinear>>, arithmetic: Arithmetic) -> Box<dyn Kernel> {
    choose_at(cpu::detect(), &linears, arithmetic)
}

pub(crate) fn choose_at(level: Level, linears: &[Arc<QuantizedLinear>], arithmetic: Arithmetic) -> Box<dyn Kernel> {
    assert!(!linears.is_empty(), "a kernel needs a linear");
    assert!(linears.iter().all(|l| l.shape[1] == linears[0].shape[1]), "linears of one kernel share their input");
    let mut kernels = CANDIDATES.iter().filter_map(|candidate| candidate(linears, arithmetic, level));
    kernels.next().expect("the last candidate takes any linear")
}

#[cfg(test)]
mod tests;
