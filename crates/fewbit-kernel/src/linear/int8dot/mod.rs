//! Integer weights of any kind times activations rounded to 8 bits: all products and their sums in integers.
//!
//! For row `r` and token `t`, with groups `g` of columns (scale `s`, offset `m`, which is `−s z` for a zero point `z`) and
//! spans of 64, 32 or 16 columns in them (activation scale `a`, codes `x`):
//! `y = Σ_g s_g Σ_span a Σ q x + m_g Σ_span a Σ x`.
//!
//! Few tokens read the codes as they lie, and several tiles at once, which are several streams from memory. For many
//! tokens the codes of three tiles are unpacked to bytes, as many columns as the L1 cache holds beside the tokens.

/// An expression for codes of `$bits` bits, which are a constant in it.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! by_bits {
    ($bits:expr, $constant:ident => $call:expr) => {
        by_bits!($bits, $constant => $call; 1 2 3 4 5 6 7 8)
    };
    ($bits:expr, $constant:ident => $call:expr; $($width:literal)*) => {
        match $bits {
            $($width => {
                const $constant: u8 = $width;
                $call
            })*
            bits => unreachable!("{bits} bits"),
        }
    };
}

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use fewbit_format::{ActivationFormat, Number, QuantizedLinear, ScaleType, Sharing, Storage};
use smallvec::SmallVec;

use self::activations::{Activations, TokenMut, Tokens};
use super::packed::{BLOCK, Cell as Codes, Packed, TILE};
use super::panels::Tiles;
use super::{Arithmetic, Kernel, MANY};
use crate::team::Disjoint;
use crate::{Level, Team, elementwise, stream};

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
        let (span, group_spans) = (packed.span, packed.group_spans);
        let input = Input { span, group_spans, order: packed.order.clone(), activation };
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
    group_spans: usize,
    order: Option<Vec<u32>>,
    /// As the checkpoint says; without it in spans.
    activation: Option<ActivationFormat>,
}

/// Up to so many tokens the codes are read as they lie in memory.
const FEW_TOKENS: usize = 16;
/// Tiles that are taken at once for few tokens.
const FEW_TILES: usize = 4;
/// Tiles of a task of many.
const MANY_TILES: usize = 3;
/// Tokens whose activations stay in the L2 cache while all tiles pass.
const NEAR_TOKENS: usize = 256;
/// Columns whose unpacked codes stay in the L1 cache while these tokens pass.
const NEAR_COLUMNS: usize = 512;
/// Tokens that are rounded in one task.
const TASK_TOKENS: usize = 8;

/// A number for each row of a tile, on a cache line of its own.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct ByRow([f32; TILE]);

impl ByRow {
    const ZERO: Self = Self([0.0; TILE]);
}

/// Some tiles of rows and some tokens.
#[derive(Clone, Copy)]
struct Few<'a> {
    packed: &'a Packed,
    /// The first tile.
    tile: usize,
    /// How many tiles.
    count: usize,
    tokens: Tokens<'a>,
}

/// The same for some groups of columns, with the codes of the tiles in bytes.
#[derive(Clone, Copy)]
struct Many<'a> {
    packed: &'a Packed,
    count: usize,
    tokens: Tokens<'a>,
    /// These begin at a block.
    groups: &'a Range<usize>,
    /// Those of the groups, tile after tile.
    cells: &'a [Codes],
    /// Scales and offsets, `[tile][group]`.
    params: &'a [[ByRow; 2]],
}

/// What an instruction set gives; results are `[token][tile]`, and those of `many` are added to what is there.
struct Kernels {
    round: unsafe fn(&[f32], usize, usize, &mut TokenMut<'_>),
    few: unsafe fn(Few<'_>, &mut [ByRow]),
    /// Codes of a tile from a block on, as many as there is room for.
    unpack: unsafe fn(&Packed, usize, usize, &mut [Codes]),
    /// Scales and offsets from an index of `[tile][group]` on, as many as there is room for.
    write_params: unsafe fn(&Packed, usize, &mut [[ByRow; 2]]),
    many: unsafe fn(Many<'_>, &mut [ByRow]),
}

thread_local! {
    /// The rounded inputs of the last call from this thread.
    static KEPT: Cell<Vec<Activations>> = const { Cell::new(Vec::new()) };
    static ORDERED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static SCRATCH: Cell<Scratch> = const { Cell::new(Scratch::new()) };
}

/// What a task needs.
struct Scratch {
    unpacked: Unpacked,
    /// Results `[token][tile]`; the second are those of a gated unit's other linear.
    results: [Vec<ByRow>; 2],
}

/// Some tiles whose codes are in bytes.
struct Unpacked {
    cells: Vec<Codes>,
    params: Vec<[ByRow; 2]>,
}

impl Scratch {
    const fn new() -> Self {
        let unpacked = Unpacked { cells: Vec::new(), params: Vec::new() };
        Self { unpacked, results: [const { Vec::new() }; 2] }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Kernel for Int8Dot {
    fn run(&self, team: &Team, tokens: usize, x: &[f32], outs: &mut [&mut [f32]]) {
        assert_eq!(outs.len(), self.outs.len(), "one output for each linear");
        for (out, rows) in outs.iter().zip(&self.outs) {
            assert!(out.len() >= tokens * rows, "an output [{tokens}, {rows}] in {} elements", out.len());
        }
        let outs: SmallVec<[Disjoint<'_, f32>; MANY]> = outs.iter_mut().map(|o| Disjoint::new(o)).collect();
        self.run_tasks(team, tokens, x, &self.parts, &|part, tiles, tokens, rounded, scratch| {
            let Scratch { unpacked, results: [y, _] } = scratch;
            let product = self.product(part, tiles, rounded);
            product.fill(tokens.clone(), unpacked, y);
            product.store(tokens, y, &outs[part.linear], self.outs[part.linear]);
        });
    }

    fn run_gated(
        &self,
        team: &Team,
        tokens: usize,
        x: &[f32],
        gate: usize,
        activate: fn(&mut [f32]),
        out: &mut [f32],
    ) -> bool {
        let [a, b] = &*self.parts else { return false };
        let [rows, others] = &*self.outs else { return false };
        if rows != others {
            return false;
        }
        let [gate, up] = if gate == 0 { [a, b] } else { [b, a] };
        assert!(out.len() >= tokens * rows, "an output [{tokens}, {rows}] in {} elements", out.len());
        let out = Disjoint::new(out);
        self.run_tasks(team, tokens, x, std::slice::from_ref(gate), &|_, tiles, tokens, rounded, scratch| {
            let Scratch { unpacked, results: [y, other] } = scratch;
            self.product(gate, tiles.clone(), rounded).fill(tokens.clone(), unpacked, y);
            let product = self.product(up, tiles, rounded);
            product.fill(tokens.clone(), unpacked, other);
            activate(numbers_mut(y));
            elementwise::mul(numbers_mut(y), numbers(other));
            product.store(tokens, y, &out, *rows);
        });
        true
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(|p| p.packed.bytes()).sum()
    }

    fn name(&self) -> &'static str {
        "int8dot"
    }
}

/// What is done with some tiles of a band and some tokens: the inputs are all those that were rounded.
type Task<'a> = dyn Fn(&Part, Range<usize>, Range<usize>, &[Activations], &mut Scratch) + Sync + 'a;

impl Int8Dot {
    /// Rounds the inputs, and runs the tasks of some bands.
    fn run_tasks(&self, team: &Team, tokens: usize, x: &[f32], parts: &[Part], task: &Task<'_>) {
        assert!(x.len() >= tokens * self.cols, "an input [{tokens}, {}] in {} elements", self.cols, x.len());
        let mut kept = KEPT.take();
        kept.resize_with(self.inputs.len().max(kept.len()), Activations::default);
        for (input, rounded) in self.inputs.iter().zip(&mut kept) {
            self.round(team, tokens, x, input, rounded);
        }
        let run = |part: &Part, tiles: Range<usize>, tokens: Range<usize>| {
            let mut scratch = SCRATCH.take();
            task(part, tiles, tokens, &kept, &mut scratch);
            SCRATCH.set(scratch);
        };
        if tokens <= FEW_TOKENS {
            let tiles = parts.iter().map(|p| p.packed.tiles()).sum();
            team.run_ranges(tiles, FEW_TILES, &|range| {
                overlaps(parts, range).for_each(|(part, tiles)| run(part, tiles, 0..tokens));
            });
        } else {
            let tasks: usize = parts.iter().map(|p| p.packed.tiles().div_ceil(MANY_TILES)).sum();
            team.run(tokens.div_ceil(NEAR_TOKENS) * tasks, &|i| {
                let (part, tiles) = locate(parts, i % tasks);
                let from = i / tasks * NEAR_TOKENS;
                run(part, tiles, from..(from + NEAR_TOKENS).min(tokens));
            });
        }
        KEPT.set(kept);
    }

    fn product<'a>(&self, part: &'a Part, tiles: Range<usize>, rounded: &'a [Activations]) -> Product<'a> {
        Product { kernels: kernels(self.level), part, tiles, rounded: &rounded[part.input] }
    }

    fn round(&self, team: &Team, tokens: usize, x: &[f32], input: &Input, rounded: &mut Activations) {
        rounded.resize(tokens, self.cols, input.span, input.group_spans);
        let token = |t: usize, to: &mut TokenMut<'_>| {
            let x = &x[t * self.cols..][..self.cols];
            let Some(order) = &input.order else {
                return round(self.level, x, input, to);
            };
            let mut ordered = ORDERED.take();
            ordered.clear();
            ordered.extend(order.iter().map(|c| x[*c as usize]));
            round(self.level, &ordered, input, to);
            ORDERED.set(ordered);
        };
        if tokens <= TASK_TOKENS {
            return rounded.tokens_mut(tokens).enumerate().for_each(|(t, mut to)| token(t, &mut to));
        }
        let mut all: Vec<TokenMut<'_>> = rounded.tokens_mut(tokens).collect();
        team.for_pieces(&mut all, TASK_TOKENS, &|piece, some| {
            some.iter_mut().enumerate().for_each(|(i, to)| token(piece * TASK_TOKENS + i, to));
        });
    }
}

/// The bands that some of all tiles are of, with those tiles of each.
fn overlaps(parts: &[Part], tiles: Range<usize>) -> impl Iterator<Item = (&Part, Range<usize>)> {
    let mut first = 0;
    parts.iter().filter_map(move |part| {
        let (begin, count) = (first, part.packed.tiles());
        first += count;
        let of_part = tiles.start.max(begin)..tiles.end.min(begin + count);
        (!of_part.is_empty()).then(|| (part, of_part.start - begin..of_part.end - begin))
    })
}

/// The band and tiles of a task of many tokens.
fn locate(parts: &[Part], mut task: usize) -> (&Part, Range<usize>) {
    for part in parts {
        let tiles = part.packed.tiles();
        if task < tiles.div_ceil(MANY_TILES) {
            return (part, task * MANY_TILES..((task + 1) * MANY_TILES).min(tiles));
        }
        task -= tiles.div_ceil(MANY_TILES);
    }
    unreachable!("the caller counts the tasks")
}

/// The product of some tiles of a band with the rounded tokens.
struct Product<'a> {
    kernels: &'static Kernels,
    part: &'a Part,
    tiles: Range<usize>,
    rounded: &'a Activations,
}

impl Product<'_> {
    /// Results `[token][tile]` of some tokens.
    fn fill(&self, tokens: Range<usize>, unpacked: &mut Unpacked, y: &mut Vec<ByRow>) {
        y.clear();
        y.resize(tokens.len() * self.tiles.len(), ByRow::ZERO);
        if tokens.end <= FEW_TOKENS {
            let (packed, tile) = (&self.part.packed, self.tiles.start);
            let call = Few { packed, tile, count: self.tiles.len(), tokens: self.rounded.tokens(tokens.clone()) };
            // SAFETY: the tiles exist, and the tokens were rounded for this part's input.
            unsafe { (self.kernels.few)(call, y) };
        } else {
            self.many(tokens.clone(), unpacked, y);
        }
        self.finish(tokens, y);
    }

    /// Adds the products on codes that are unpacked once for all of these tokens.
    fn many(&self, tokens: Range<usize>, unpacked: &mut Unpacked, y: &mut [ByRow]) {
        let (packed, count) = (&self.part.packed, self.tiles.len());
        let Unpacked { cells, params } = unpacked;
        let together = packed.groups_within(NEAR_COLUMNS);
        for first in (0..packed.groups).step_by(together) {
            let groups = first..(first + together).min(packed.groups);
            let blocks = packed.blocks_of(&groups);
            let each = blocks.len() * BLOCK / 4;
            cells.resize(cells.len().max(count * each), Codes::ZERO);
            params.resize(params.len().max(count * groups.len()), [ByRow::ZERO; 2]);
            let (cells, params) = (&mut cells[..count * each], &mut params[..count * groups.len()]);
            let of_tiles = cells.chunks_exact_mut(each).zip(params.chunks_exact_mut(groups.len()));
            for (tile, (cells, params)) in self.tiles.clone().zip(of_tiles) {
                // SAFETY: the tile exists, and so do its blocks and groups.
                unsafe {
                    (self.kernels.unpack)(packed, tile, blocks.start, cells);
                    (self.kernels.write_params)(packed, tile * packed.groups + groups.start, params);
                }
            }
            let tokens = self.rounded.tokens(tokens.clone());
            let call = Many { packed, count, tokens, groups: &groups, cells, params };
            // SAFETY: as above; the cells are those of the tiles in these groups.
            unsafe { (self.kernels.many)(call, y) };
        }
    }

    /// Puts right what codes of −128 lack, and adds the bias.
    fn finish(&self, tokens: Range<usize>, y: &mut [ByRow]) {
        let part = self.part;
        for (t, y) in tokens.zip(y.chunks_exact_mut(self.tiles.len())) {
            let lows = self.rounded.lows(t);
            if lows.is_empty() && part.bias.is_none() {
                continue;
            }
            for (tile, y) in self.tiles.clone().zip(y) {
                for c in lows {
                    scalar::subtract(&part.packed, tile, *c as usize, self.rounded.token(t).scales[0], y);
                }
                let bias = part.bias.iter().flat_map(|bias| &bias[tile * TILE..]);
                y.0.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
    }

    /// Puts the results of some tokens in their places in `out[·, stride]`.
    fn store(&self, tokens: Range<usize>, y: &[ByRow], out: &Disjoint<'_, f32>, stride: usize) {
        let first = self.tiles.start * TILE;
        let rows = (self.part.packed.rows - first).min(self.tiles.len() * TILE);
        let is_large = out.len() * size_of::<f32>() > stream::LARGE;
        for (t, y) in tokens.zip(y.chunks_exact(self.tiles.len())) {
            let at = t * stride + self.part.first + first;
            // SAFETY: these rows are this task's alone.
            let to = unsafe { out.slice(at..at + rows) };
            if is_large { stream::copy(&numbers(y)[..rows], to) } else { to.copy_from_slice(&numbers(y)[..rows]) }
        }
        if is_large {
            stream::fence();
        }
    }
}

fn numbers(y: &[ByRow]) -> &[f32] {
    // SAFETY: sixteen numbers each, and nothing else.
    unsafe { std::slice::from_raw_parts(y.as_ptr().cast(), y.len() * TILE) }
}

fn numbers_mut(y: &mut [ByRow]) -> &mut [f32] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(y.as_mut_ptr().cast(), y.len() * TILE) }
}

fn kernels(level: Level) -> &'static Kernels {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => &avx512::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Level::AvxVnni => avx2::vnni(),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => &avx2::KERNELS,
        #[cfg(target_arch = "aarch64")]
        Level::NeonI8mm => &neon::I8MM,
        #[cfg(target_arch = "aarch64")]
        Level::Neon => &neon::KERNELS,
        _ => &scalar::KERNELS,
    }
}

fn round(level: Level, x: &[f32], input: &Input, to: &mut TokenMut<'_>) {
    match &input.activation {
        Some(format) => activations::round_as(format, x, input.span * input.group_spans, to),
        // SAFETY: `choose` gives a level that the machine has.
        None => unsafe { (kernels(level).round)(x, input.span, input.group_spans, to) },
    }
}

#[cfg(test)]
mod tests;
