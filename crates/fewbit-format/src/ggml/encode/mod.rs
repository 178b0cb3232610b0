//! The encoders of ggml, in its arithmetic: each f32 product and sum rounds by itself, sums run in order.
//!
//! With the same importances they give the same bytes, but where a doc says otherwise.

mod iq;
mod iq1;
mod k_quants;
mod legacy;
mod levels;
pub(super) mod near;
mod search;
mod ternary;

use half::f16;

use super::{GgmlBlocks, GgmlType};
use crate::{Error, Result};

/// One block of a row, and what is known of the row.
struct Source<'a, const N: usize> {
    values: &'a [f32; N],
    /// How much the square of an error counts, by column.
    importance: Option<&'a [f32; N]>,
    /// Mean square of the row, where there are importances.
    row_power: f32,
}

impl GgmlBlocks {
    /// Rounds a row-major matrix `[rows, cols]` as ggml does.
    ///
    /// `importance [cols]` says how much the square of an error counts, such as the mean square of what a column is
    /// multiplied with; the types that ggml rounds without looking at importances ([`GgmlType::heeds_importance`])
    /// do so here too.
    ///
    /// # Errors
    /// If blocks do not tile the rows, the type has no encoder here, the importances are not one positive number for
    /// each column, or a weight is no number or beyond what the type's scales hold.
    pub fn encode(
        kind: GgmlType,
        rows: usize,
        cols: usize,
        values: &[f32],
        importance: Option<&[f32]>,
    ) -> Result<Self> {
        debug_assert_eq!(rows * cols, values.len());
        let row_bytes = kind.row_bytes(cols).ok_or_else(|| kind.does_not_tile(cols))?;
        let importance = importance.filter(|_| kind.heeds_importance());
        if let Some(importance) = importance {
            check_importance(importance, cols)?;
        }
        let encode_row = encoder(kind).ok_or_else(|| {
            Error::input(format!("{} cannot be written", kind.name())).hint("Q4_K, Q6_K and Q8_0 can, for example")
        })?;
        let mut bytes = vec![0; rows * row_bytes];
        for (r, blocks) in bytes.chunks_exact_mut(row_bytes.max(1)).enumerate() {
            let row = &values[r * cols..(r + 1) * cols];
            if let Some(c) = row.iter().position(|v| !v.is_finite()) {
                return Err(
                    Error::input(format!("row {r} holds {} at column {c}", row[c])).hint("only numbers can be rounded")
                );
            }
            encode_row(row, importance, blocks);
            check_scales(kind, r, blocks)?;
        }
        Ok(Self { kind, rows, cols, bytes: bytes.into() })
    }
}

impl GgmlType {
    /// Whether its encoder does otherwise if there are importances.
    pub const fn heeds_importance(self) -> bool {
        use GgmlType::{Mxfp4, Nvfp4, Q1_0, Q2_0, Q8_0, Q8_1, Q8K, Tq1_0, Tq2_0};
        !matches!(self, Q8_0 | Q8_1 | Q8K | Tq1_0 | Tq2_0 | Mxfp4 | Nvfp4 | Q1_0 | Q2_0)
    }

    /// Whether ggml refuses to round to it without importances.
    pub const fn needs_importance(self) -> bool {
        matches!(self, Self::Iq1S | Self::Iq1M | Self::Iq2Xxs | Self::Iq2Xs | Self::Iq2S | Self::Iq3Xxs)
    }

    /// Whether [`GgmlBlocks::encode`] knows it.
    pub fn has_encoder(self) -> bool {
        encoder(self).is_some()
    }
}

/// Rounds one row, with importances if there are some.
type EncodeRow = fn(&[f32], Option<&[f32]>, &mut [u8]);

fn encoder(kind: GgmlType) -> Option<EncodeRow> {
    Some(match kind {
        GgmlType::Q4_0 => |v, i, b| blockwise(v, i, b, legacy::q4_0),
        GgmlType::Q4_1 => |v, i, b| blockwise(v, i, b, legacy::q4_1),
        GgmlType::Q5_0 => |v, i, b| blockwise(v, i, b, legacy::q5_0),
        GgmlType::Q5_1 => |v, i, b| blockwise(v, i, b, legacy::q5_1),
        GgmlType::Q8_0 => |v, i, b| blockwise(v, i, b, legacy::q8_0),
        GgmlType::Q2K => |v, i, b| blockwise(v, i, b, k_quants::q2_k),
        GgmlType::Q3K => |v, i, b| blockwise(v, i, b, k_quants::q3_k),
        GgmlType::Q4K => |v, i, b| blockwise(v, i, b, k_quants::q4_k),
        GgmlType::Q5K => |v, i, b| blockwise(v, i, b, k_quants::q5_k),
        GgmlType::Q6K => |v, i, b| blockwise(v, i, b, k_quants::q6_k),
        GgmlType::Iq2Xxs => |v, i, b| blockwise(v, i, b, iq::iq2_xxs),
        GgmlType::Iq2Xs => |v, i, b| blockwise(v, i, b, iq::iq2_xs),
        GgmlType::Iq2S => |v, i, b| blockwise(v, i, b, iq::iq2_s),
        GgmlType::Iq3Xxs => |v, i, b| blockwise(v, i, b, iq::iq3_xxs),
        GgmlType::Iq3S => |v, i, b| blockwise(v, i, b, iq::iq3_s),
        GgmlType::Iq1S => |v, i, b| blockwise(v, i, b, iq1::iq1_s),
        GgmlType::Iq1M => |v, i, b| blockwise(v, i, b, iq1::iq1_m),
        GgmlType::Iq4Nl => |v, i, b| blockwise(v, i, b, levels::iq4_nl),
        GgmlType::Iq4Xs => |v, i, b| blockwise(v, i, b, levels::iq4_xs),
        GgmlType::Mxfp4 => |v, i, b| blockwise(v, i, b, levels::mxfp4),
        GgmlType::Nvfp4 => |v, i, b| blockwise(v, i, b, levels::nvfp4),
        GgmlType::Tq1_0 => |v, i, b| blockwise(v, i, b, ternary::tq1_0),
        GgmlType::Tq2_0 => |v, i, b| blockwise(v, i, b, ternary::tq2_0),
        GgmlType::Q1_0 => |v, i, b| blockwise(v, i, b, ternary::q1_0),
        GgmlType::Q2_0 => |v, i, b| blockwise(v, i, b, ternary::q2_0),
        _ => return None,
    })
}

fn blockwise<const B: usize, const N: usize>(
    row: &[f32],
    importance: Option<&[f32]>,
    bytes: &mut [u8],
    encode: impl Fn(&Source<'_, N>, &mut [u8; B]),
) {
    let row_power = importance.map_or(0.0, |_| power(row) / row.len() as f32);
    let importance = importance.map(|i| i.as_chunks::<N>().0);
    let blocks = row.as_chunks::<N>().0.iter().zip(bytes.as_chunks_mut::<B>().0);
    for (i, (values, block)) in blocks.enumerate() {
        encode(&Source { values, importance: importance.map(|all| &all[i]), row_power }, block);
    }
}

fn check_importance(importance: &[f32], cols: usize) -> Result<()> {
    if importance.len() != cols {
        let len = importance.len();
        return Err(Error::input(format!("{len} importances for {cols} columns"))
            .hint("take those that were made with this model"));
    }
    match importance.iter().position(|i| !(i.is_finite() && *i >= 0.0)) {
        Some(c) => {
            let found = importance[c];
            Err(Error::input(format!("the importance of column {c} is {found}"))
                .hint("importances are positive numbers: make them again"))
        }
        None => Ok(()),
    }
}

fn check_scales(kind: GgmlType, r: usize, blocks: &[u8]) -> Result<()> {
    let mut blocks = blocks.chunks_exact(kind.block_bytes());
    match blocks.position(|block| kind.non_finite_scale(block).is_some()) {
        Some(i) => {
            let (name, first) = (kind.name(), i * kind.block_len());
            let last = first + kind.block_len() - 1;
            Err(Error::input(format!(
                "row {r} has a weight in columns {first} to {last} that is beyond the scales of {name}"
            ))
            .hint("keep this tensor as F32"))
        }
        None => Ok(()),
    }
}

/// Sum of squares, in order.
fn power(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |sum, v| sum + v * v)
}

/// `w √(p + x²)`: errors of great weights count more, and those of small ones as the mean square `p` says.
fn weighted(values: &[f32], importance: &[f32], power: f32, out: &mut [f32]) {
    for ((out, v), w) in out.iter_mut().zip(values).zip(importance) {
        *out = w * (power + v * v).sqrt();
    }
}

/// `x²`.
fn squares(values: &[f32], out: &mut [f32]) {
    out.iter_mut().zip(values).for_each(|(out, v)| *out = v * v);
}

fn reciprocal(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The value of largest magnitude, with its sign; the first of equal ones.
fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |m, v| if v.abs() > m.abs() { *v } else { m })
}

/// Writes a scale and says what it became.
fn put_f16(block: &mut [u8], at: usize, v: f32) -> f32 {
    let half = f16::from_f32(v);
    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

/// Byte `j` of `qs` takes code `j` (low half) and the one that is half a group further on (high half).
pub(super) fn put_halves(codes: &[u8], qs: &mut [u8]) {
    let (low, high) = codes.split_at(qs.len());
    for ((q, low), high) in qs.iter_mut().zip(low).zip(high) {
        *q = low & 15 | high << 4;
    }
}

/// Of each 128 codes, byte `l` takes the lowest two bits of codes `l, l + 32, l + 64, l + 96`.
pub(super) fn put_bit_pairs(codes: &[u8], qs: &mut [u8]) {
    qs.fill(0);
    for (i, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
        for (q, code) in qs[i / 4 * 32..].iter_mut().zip(codes) {
            *q |= (code & 3) << (i % 4 * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(kind: GgmlType, values: &[f32], importance: Option<&[f32]>) -> Result<Vec<f32>> {
        let mut out = vec![0.0; values.len()];
        GgmlBlocks::encode(kind, 1, values.len(), values, importance)?.decode_rows(0..1, &mut out);
        Ok(out)
    }

    fn encoders() -> impl Iterator<Item = GgmlType> {
        GgmlType::ALL.into_iter().filter(|kind| kind.has_encoder())
    }

    #[test]
    fn a_block_of_zeros_has_ggmls_negative_scale() {
        let blocks = GgmlBlocks::encode(GgmlType::Q4_0, 1, 32, &[0.0; 32], None).unwrap();
        assert_eq!(blocks.bytes[..3], [0x00, 0x80, 0x88]);
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let refused = |kind, values: &[f32], importance| encoded(kind, values, importance).unwrap_err().to_string();
        let e = refused(GgmlType::Q8K, &[0.0; 256], None);
        assert_eq!(e, "Q8_K cannot be written; Q4_K, Q6_K and Q8_0 can, for example");
        let e = refused(GgmlType::Q8_0, &[f32::NAN; 32], None);
        assert_eq!(e, "row 0 holds NaN at column 0; only numbers can be rounded");
        let e = refused(GgmlType::Q4_0, &[1e30; 64], None);
        let way_out = "keep this tensor as F32";
        assert_eq!(e, format!("row 0 has a weight in columns 0 to 31 that is beyond the scales of Q4_0; {way_out}"));
        let e = refused(GgmlType::Q4_0, &[1.0; 32], Some(&[1.0; 31]));
        assert_eq!(e, "31 importances for 32 columns; take those that were made with this model");
        let e = refused(GgmlType::Q4_0, &[1.0; 32], Some(&[-1.0; 32]));
        assert_eq!(e, "the importance of column 0 is -1; importances are positive numbers: make them again");
    }

    #[test]
    fn zeros_stay_zeros() {
        for kind in encoders().filter(|k| *k != GgmlType::Q1_0) {
            for importance in [None, Some(&[1.0; 256][..]), Some(&[0.0; 256][..])] {
                let decoded = encoded(kind, &[0.0; 256], importance).unwrap();
                assert!(decoded.iter().all(|v| *v == 0.0), "{}", kind.name());
            }
        }
    }

    proptest! {
        /// Half a step, plus the rounding of scale and offset to f16. Types without a code on one side: a whole step there.
        #[test]
        fn the_error_is_bounded_by_the_step(values in prop::collection::vec(-4.0f32..4.0, 64)) {
            let steps = [
                (GgmlType::Q4_0, 16.0, 1.0), (GgmlType::Q4_1, 15.0, 0.5), (GgmlType::Q5_0, 32.0, 1.0),
                (GgmlType::Q5_1, 31.0, 0.5), (GgmlType::Q8_0, 254.0, 0.5),
            ];
            for (kind, codes, steps) in steps {
                for (v, w) in encoded(kind, &values, None).unwrap().iter().zip(&values) {
                    prop_assert!((v - w).abs() <= steps * 8.0 / codes + 0.01, "{} {w} -> {v}", kind.name());
                }
            }
        }

        /// Whatever is rounded, numbers come out, or a reason; no error is beyond the greatest weight by much.
        #[test]
        fn numbers_come_out(
            mut values in prop::collection::vec(-1.0f32..1.0, 256), power in -45i32..38, constant: bool, zeros in 0usize..256,
            ignored in 0usize..256, with_importance: bool,
        ) {
            let scale = 10f32.powi(power);
            let first = values[0];
            values.iter_mut().for_each(|v| *v = scale * if constant { first } else { *v });
            values[..zeros].fill(0.0);
            let mut importance: Vec<f32> = values.iter().map(|v| (v / scale).abs() + 0.1).map(|i| if i.is_finite() { i } else { 1.0 }).collect();
            importance[..ignored].fill(0.0);
            for kind in encoders() {
                match encoded(kind, &values, with_importance.then_some(&importance)) {
                    Ok(decoded) => prop_assert!(decoded.iter().all(|v| v.is_finite()), "{}", kind.name()),
                    Err(e) => prop_assert!(power > 3, "{} at 1e{power}: {e}", kind.name()),
                }
            }
        }
    }
}
