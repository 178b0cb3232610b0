//! Integer weights of any kind times activations rounded to 8 bits: all products and their sums in integers.
//!
//! For row `r` and token `t`, with groups `g` of columns (scale `s`, zero `z` or offset `m`) and spans of 32 (or 16)
//! columns in them (activation scale `a`, codes `x`):
//! `y = Σ_g s_g Σ_span a (Σ q x − z_g Σ x) + m_g Σ_span a Σ x`.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use fewbit_format::{ActivationFormat, Number, QuantizedLinear, ScaleType, Sharing, Storage};

use self::activations::{Activations, Token, TokenMut};
use super::packed::{Packed, TILE};
use super::{Arithmetic, Kernel};
use crate::team::Disjoint;
use crate::{Level, Team};

/// Takes linears whose bands are all integers in groups of a multiple of 16 columns, or of a row.
pub(super) fn candidate(
    linears: &[Arc<QuantizedLinear>],
    arithmetic: Arithmetic,
    level: Level,
) -> Option<Box<dyn Kernel>> {
    let rounds = |l: &Arc<QuantizedLinear>| l.activation.filter(|_| arithmetic != Arithmetic::WeightsOnly);
    let is_ours = |l: &Arc<QuantizedLinear>| match rounds(l) {
        None => arithmetic == Arithmetic::Fast,
        Some(a) => is_int8(&a),
    };
    if !linears.iter().all(is_ours) {
        return None;
    }
    let (mut parts, mut inputs) = (Vec::new(), Vec::new());
    for (linear, l) in linears.iter().enumerate().flat_map(|(i, l)| l.bands.iter().map(move |b| (i, (l, b)))) {
        let packed = Packed::new(&l.1.storage)?;
        let activation = rounds(l.0);
        let input = Input { span: packed.span, order: packed.order.clone(), activation };
        let input = inputs.iter().position(|i| *i == input).unwrap_or_else(|| {
            inputs.push(input);
            inputs.len() - 1
        });
        let bias = l.0.bias.as_ref().map(|b| b[l.1.rows.clone()].to_vec());
        let bias = activation.filter(|a| a.zero != 0).map_or(bias.clone(), |a| Some(with_zero(&l.1.storage, &a, bias)));
        parts.push(Part { linear, first: l.1.rows.start, packed, input, bias });
    }
    let outs = linears.iter().map(|l| l.shape[0]).collect();
    (!parts.is_empty()).then(|| Box::new(Int8Dot { cols: linears[0].shape[1], outs, parts, inputs, level }) as _)
}

/// Whether rounded inputs are integers under one scale for each token.
fn is_int8(a: &ActivationFormat) -> bool {
    match (a.grid.number, a.grid.sharing, a.grid.scale) {
        (Number::Int { .. }, Sharing::Tensor, ScaleType::F32) => true,
        (Number::Int { symmetric, .. }, Sharing::Token, ScaleType::F32) => symmetric,
        _ => false,
    }
}

/// The bias of a band less what the zero point of its input adds to every row: `s z Σ_j W[r, j]`.
fn with_zero(storage: &Storage, a: &ActivationFormat, bias: Option<Vec<f32>>) -> Vec<f32> {
    let [rows, cols] = storage.shape();
    let (mut bias, mut row) = (bias.unwrap_or_else(|| vec![0.0; rows]), vec![0.0; cols]);
    for (r, b) in bias.iter_mut().enumerate() {
        storage.decode_rows(r..r + 1, &mut row);
        let sum: f64 = row.iter().map(|w| f64::from(*w)).sum();
        *b -= (f64::from(a.scale) * f64::from(a.zero) * sum) as f32;
    }
    bias
}

struct Int8Dot {
    cols: usize,
    /// Rows of each linear.
    outs: Vec<usize>,
    parts: Vec<Part>,
    inputs: Vec<Input>,
    level: Level,
}

/// One band of one linear.
struct Part {
    linear: usize,
    /// Its first row in the linear.
    first: usize,
    packed: Packed,
    /// The rounding of the input that it takes.
    input: usize,
    bias: Option<Vec<f32>>,
}

/// A way to round the input.
#[derive(PartialEq)]
struct Input {
    span: usize,
    order: Option<Vec<u32>>,
    /// As the checkpoint says; without it in spans.
    activation: Option<ActivationFormat>,
}

/// Tiles of one task: some ten microseconds of work.
const TASK_TILES: usize = 2;
/// Tokens whose activations stay in the L2 cache while all tiles pass.
const NEAR_TOKENS: usize = 64;
/// Tokens that are rounded in one task.
const TASK_TOKENS: usize = 8;
/// Most tokens that a tile kernel takes at once; also bounds the results on the stack.
const TOKENS: usize = 8;

thread_local! {
    /// The rounded inputs of the last call from this thread.
    static KEPT: Cell<Vec<Activations>> = const { Cell::new(Vec::new()) };
    static ORDERED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl Kernel for Int8Dot {
    fn run(&self, team: &Team, tokens: usize, x: &[f32], outs: &mut [&mut [f32]]) {
        assert_eq!(outs.len(), self.outs.len(), "one output for each linear");
        assert!(x.len() >= tokens * self.cols, "an input [{tokens}, {}] in {} elements", self.cols, x.len());
        for (out, rows) in outs.iter().zip(&self.outs) {
            assert!(out.len() >= tokens * rows, "an output [{tokens}, {rows}] in {} elements", out.len());
        }
        let mut kept = KEPT.take();
        kept.resize_with(self.inputs.len().max(kept.len()), Activations::default);
        for (input, rounded) in self.inputs.iter().zip(&mut kept) {
            self.round(team, tokens, x, input, rounded);
        }
        let outs: Vec<Disjoint<'_, f32>> = outs.iter_mut().map(|o| Disjoint::new(o)).collect();
        let tasks: usize = self.parts.iter().map(|p| p.packed.tiles().div_ceil(TASK_TILES)).sum();
        team.run(tokens.div_ceil(NEAR_TOKENS) * tasks, &|i| {
            let (part, tiles) = self.locate(i % tasks);
            let from = i / tasks * NEAR_TOKENS;
            for tile in tiles {
                let near = from..(from + NEAR_TOKENS).min(tokens);
                self.tile(part, tile, near, &kept[part.input], &outs[part.linear]);
            }
        });
        KEPT.set(kept);
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(|p| p.packed.bytes()).sum()
    }

    fn name(&self) -> &'static str {
        "int8dot"
    }
}

impl Int8Dot {
    fn round(&self, team: &Team, tokens: usize, x: &[f32], input: &Input, rounded: &mut Activations) {
        rounded.resize(tokens, self.cols, input.span);
        let mut all: Vec<TokenMut<'_>> = rounded.tokens_mut(tokens).collect();
        team.for_pieces(&mut all, TASK_TOKENS, &|piece, some| {
            for (i, to) in some.iter_mut().enumerate() {
                let x = &x[(piece * TASK_TOKENS + i) * self.cols..][..self.cols];
                let Some(order) = &input.order else {
                    round(self.level, x, input, to);
                    continue;
                };
                let mut ordered = ORDERED.take();
                ordered.clear();
                ordered.extend(order.iter().map(|c| x[*c as usize]));
                round(self.level, &ordered, input, to);
                ORDERED.set(ordered);
            }
        });
    }

    /// The band and tiles of a task.
    fn locate(&self, mut task: usize) -> (&Part, Range<usize>) {
        for part in &self.parts {
            let tiles = part.packed.tiles();
            if task < tiles.div_ceil(TASK_TILES) {
                return (part, task * TASK_TILES..((task + 1) * TASK_TILES).min(tiles));
            }
            task -= tiles.div_ceil(TASK_TILES);
        }
        unreachable!("the caller counts the tasks")
    }

    fn tile(&self, part: &Part, tile: usize, tokens: Range<usize>, rounded: &Activations, out: &Disjoint<'_, f32>) {
        let rows = TILE.min(part.packed.rows - tile * TILE);
        let stride = self.outs[part.linear];
        for from in tokens.clone().step_by(TOKENS) {
            let count = TOKENS.min(tokens.end - from);
            let mut some = [rounded.token(from); TOKENS];
            some[..count].iter_mut().enumerate().for_each(|(i, t)| *t = rounded.token(from + i));
            let mut y = [[0.0; TILE]; TOKENS];
            // SAFETY: the tile exists, and the tokens were rounded for this part's input.
            unsafe { kernel(self.level)(&part.packed, tile, &some[..count], &mut y) };
            for (token, y) in some[..count].iter().zip(&mut y) {
                token.lows.iter().for_each(|c| scalar::subtract(&part.packed, tile, *c as usize, token.scales[0], y));
            }
            for (i, y) in y[..count].iter().enumerate() {
                let at = (from + i) * stride + part.first + tile * TILE;
                // SAFETY: these rows are this task's alone.
                let out = unsafe { out.slice(at..at + rows) };
                match &part.bias {
                    Some(bias) => {
                        let bias = &bias[tile * TILE..];
                        out.iter_mut().zip(y.iter().zip(bias)).for_each(|(o, (y, b))| *o = y + b);
                    }
                    None => out.copy_from_slice(&y[..rows]),
                }
            }
        }
    }
}

type TileKernel = unsafe fn(&Packed, usize, &[Token<'_>], &mut [[f32; TILE]]);

fn kernel(level: Level) -> TileKernel {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => avx512::tile,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::tile,
        _ => scalar::tile,
    }
}

fn round(level: Level, x: &[f32], input: &Input, to: &mut TokenMut<'_>) {
    match level {
        // SAFETY: `choose` gives a level that the machine has.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { round_avx512(x, input, to) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { round_avx2(x, input, to) },
        _ => round_any(x, input, to),
    }
}

#[inline(always)]
fn round_any(x: &[f32], input: &Input, to: &mut TokenMut<'_>) {
    match &input.activation {
        Some(format) => activations::round_as(format, x, input.span, to),
        None => activations::round(x, input.span, to),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn round_avx512(x: &[f32], input: &Input, to: &mut TokenMut<'_>) {
    round_any(x, input, to);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn round_avx2(x: &[f32], input: &Input, to: &mut TokenMut<'_>) {
    round_any(x, input, to);
}

#[cfg(test)]
mod tests;
