//! The scalar twin: the same integers, and the same order of the float sums.

use super::super::packed::{BLOCK, CELL, Packed, TILE, Zeros, planes};
use super::activations::Token;

/// `y[t][r] = Σ_g s_g (Σ_span a · (Σ q x − z Σ x)) + m_g Σ_span a Σ x` for the rows of a tile and the tokens.
///
/// # Safety
/// `tile` is one of `packed`, and the tokens were rounded in its spans.
pub(super) unsafe fn tile(packed: &Packed, tile: usize, tokens: &[Token<'_>], y: &mut [[f32; TILE]]) {
    for (token, y) in tokens.iter().zip(y) {
        *y = [0.0; TILE];
        for g in 0..packed.groups {
            let (mut sums, mut offset_sum) = ([0.0f32; TILE], 0.0f32);
            let at = tile * packed.groups + g;
            for s in g * packed.group_spans..(g + 1) * packed.group_spans {
                let minus_sum = i32::from(token.minus_sums[s] as i16);
                for (r, sum) in sums.iter_mut().enumerate() {
                    let zero = match &packed.zeros {
                        Zeros::Middle(z) => i32::from(*z),
                        Zeros::Codes(z) => i32::from(z[at * TILE + r]),
                        Zeros::Offsets(_) => 0,
                    };
                    let columns = s * packed.span..(s + 1) * packed.span;
                    let products = columns.map(|c| i32::from(code(packed, tile, r, c)) * i32::from(token.codes[c]));
                    let dot: i32 = products.sum::<i32>() + zero * minus_sum;
                    *sum += dot as f32 * token.scales[s];
                }
                offset_sum += token.sums[s];
            }
            let scales = packed.scales.sixteen(at);
            y.iter_mut().zip(sums.iter().zip(scales)).for_each(|(y, (sum, s))| *y += sum * s);
            if let Zeros::Offsets(offsets) = &packed.zeros {
                y.iter_mut().zip(offsets.sixteen(at)).for_each(|(y, m)| *y += offset_sum * m);
            }
        }
    }
}

/// Takes one more step of the activations away from column `c` for all rows of a tile: a code of −128 that was −127.
pub(super) fn subtract(packed: &Packed, tile: usize, c: usize, step: f32, y: &mut [f32; TILE]) {
    let at = tile * packed.groups + c / packed.span / packed.group_spans;
    let scales = packed.scales.sixteen(at);
    for (r, y) in y.iter_mut().enumerate() {
        let q = f32::from(code(packed, tile, r, c));
        *y -= step
            * match &packed.zeros {
                Zeros::Middle(z) => scales[r] * (q - f32::from(*z)),
                Zeros::Codes(z) => scales[r] * (q - f32::from(z[at * TILE + r])),
                Zeros::Offsets(m) => scales[r] * q + m.sixteen(at)[r],
            };
    }
}

/// The code of row `r` of a tile at column `c`.
fn code(packed: &Packed, tile: usize, r: usize, c: usize) -> u8 {
    let (block, c) = (c / BLOCK, c % BLOCK);
    let bits = planes(packed.bits, c / 4).map(|p| {
        let cell = block * usize::from(packed.bits) + p.cell;
        // SAFETY: `cells` holds every block of the tile.
        let byte = unsafe { *packed.cells(tile).add(cell * CELL + 4 * r + c % 4) };
        (byte >> p.shift & p.mask as u8) << p.to
    });
    bits.sum()
}
