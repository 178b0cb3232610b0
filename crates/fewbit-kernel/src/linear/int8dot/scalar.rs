//! The scalar twin: the same integers, and the same order of the float sums.

use std::ops::Range;

use super::super::packed::{BLOCK, CELL, Cell, Packed, TILE, WIDE, Zeros, planes};
use super::activations::{Token, TokenMut, round_span, round_spans};
use super::{ByRow, Few, Kernels, Many};

pub(super) const KERNELS: Kernels = Kernels { round, few, unpack, write_params, many };

/// Rounds one token in spans of [`WIDE`], of 32, or of 16.
///
/// # Safety
/// None is asked for.
pub(super) unsafe fn round(x: &[f32], span: usize, group_spans: usize, to: &mut TokenMut<'_>) {
    match span {
        WIDE => round_spans::<WIDE>(x, group_spans, to, round_span),
        BLOCK => round_spans::<BLOCK>(x, group_spans, to, round_span),
        _ => round_spans::<16>(x, group_spans, to, round_span),
    }
}

/// `y[t][r] = Σ_g s_g (Σ_span a · Σ q x) + m_g Σ_span a Σ x` for the rows of some tiles and the tokens; `m = −s z` where
/// a zero is a code, and where all codes share one, `s_g (−z Σ_span a Σ x + Σ_span a · Σ q x)`.
///
/// # Safety
/// The tiles are some of `packed`, and the tokens were rounded in its spans and groups.
pub(super) unsafe fn few(call: Few<'_>, y: &mut [ByRow]) {
    for t in 0..call.tokens.len() {
        for i in 0..call.count {
            // SAFETY: promised by the caller.
            let code = |r, c| unsafe { code(call.packed, call.tile + i, r, c) };
            let y = &mut y[t * call.count + i];
            *y = ByRow::ZERO;
            let params = |g| params(call.packed, (call.tile + i) * call.packed.groups + g);
            add_groups(call.packed, 0..call.packed.groups, params, &call.tokens.get(t), code, y);
        }
    }
}

/// [`few`] for some groups, on codes that were unpacked; adds to `y`.
///
/// # Safety
/// As there; and the cells are those tiles' ([`unpack`]).
pub(super) unsafe fn many(call: Many<'_>, y: &mut [ByRow]) {
    for t in 0..call.tokens.len() {
        for (i, cells) in call.cells.chunks_exact(call.cells.len() / call.count).enumerate() {
            let begin = call.packed.blocks_of(call.groups).start * BLOCK;
            let code = |r: usize, c: usize| cells[(c - begin) / 4].0[4 * r + c % 4];
            let y = &mut y[t * call.count + i];
            let params = |g: usize| call.params[i * call.groups.len() + g - call.groups.start];
            add_groups(call.packed, call.groups.clone(), params, &call.tokens.get(t), code, y);
        }
    }
}

/// Unpacks the codes of a tile from a block on: a cell for each four columns.
///
/// # Safety
/// The tile is one of `packed`, and has the blocks that `to` has room for.
unsafe fn unpack(packed: &Packed, tile: usize, block: usize, to: &mut [Cell]) {
    for (quad, cell) in to.iter_mut().enumerate() {
        for (i, q) in cell.0.iter_mut().enumerate() {
            // SAFETY: promised by the caller.
            *q = unsafe { code(packed, tile, i / 4, BLOCK * block + 4 * quad + i % 4) };
        }
    }
}

/// Scales and offsets of the rows of `[tile][group]` number `index` and those that follow.
///
/// # Safety
/// They are there.
unsafe fn write_params(packed: &Packed, index: usize, to: &mut [[ByRow; 2]]) {
    to.iter_mut().enumerate().for_each(|(i, to)| *to = params(packed, index + i));
}

fn add_groups(
    packed: &Packed,
    groups: Range<usize>,
    params: impl Fn(usize) -> [ByRow; 2],
    token: &Token<'_>,
    code: impl Fn(usize, usize) -> u8,
    y: &mut ByRow,
) {
    for g in groups {
        // What a zero that all codes share takes away.
        let mut sums = [packed.middle().map_or(0.0, |z| -z * token.sums[g]); TILE];
        for s in g * packed.group_spans..(g + 1) * packed.group_spans {
            for (r, sum) in sums.iter_mut().enumerate() {
                let columns = s * packed.span..(s + 1) * packed.span;
                let dot: i32 = columns.map(|c| i32::from(code(r, c)) * i32::from(token.codes[c])).sum();
                *sum += dot as f32 * token.scales[s];
            }
        }
        let [scales, offsets] = params(g);
        for r in 0..TILE {
            y.0[r] += sums[r] * scales.0[r];
            if packed.middle().is_none() {
                y.0[r] += token.sums[g] * offsets.0[r];
            }
        }
    }
}

/// Scales and offsets of the rows of a tile in a group.
fn params(packed: &Packed, index: usize) -> [ByRow; 2] {
    let scales = packed.scales.sixteen(index);
    let offsets = match &packed.zeros {
        Zeros::Middle(z) => scales.map(|s| s * -f32::from(*z)),
        Zeros::Codes(z) => std::array::from_fn(|r| scales[r] * -f32::from(z[index * TILE + r])),
        Zeros::Offsets(offsets) => offsets.sixteen(index),
    };
    [ByRow(scales), ByRow(offsets)]
}

/// Takes one more step of the activations away from column `c` for all rows of a tile: a code of −128 that was −127.
pub(super) fn subtract(packed: &Packed, tile: usize, c: usize, step: f32, y: &mut ByRow) {
    let [scales, offsets] = params(packed, tile * packed.groups + c / packed.span / packed.group_spans);
    for (r, y) in y.0.iter_mut().enumerate() {
        // SAFETY: the tile and the column are those of a token that was rounded for `packed`.
        let q = f32::from(unsafe { code(packed, tile, r, c) });
        *y -= step * (scales.0[r] * q + offsets.0[r]);
    }
}

/// The code of row `r` of a tile at column `c`.
///
/// # Safety
/// They are there.
unsafe fn code(packed: &Packed, tile: usize, r: usize, c: usize) -> u8 {
    let (block, c) = (c / BLOCK, c % BLOCK);
    let bits = planes(packed.bits, c / 4).map(|p| {
        let cell = block * usize::from(packed.bits) + p.cell;
        // SAFETY: `cells` holds every block of the tile.
        let byte = unsafe { *packed.cells(tile).add(cell * CELL + 4 * r + c % 4) };
        (byte >> p.shift & p.mask as u8) << p.to
    });
    bits.sum()
}
