//! The encoders without importances, byte-equal to ggml's.
//!
//! The divisor is the scale before it is rounded to f16, and each division is a product with its reciprocal.

use half::f16;

use super::{GgmlBlocks, GgmlType};
use crate::{Error, Result};

impl GgmlBlocks {
    /// Rounds a row-major matrix `[rows, cols]` as ggml does without importances.
    ///
    /// - Q4_0: `d = v / −8` of the weight `v` of largest magnitude, `q = min(15, ⌊w/d + 8.5⌋)`
    /// - Q4_1: `d = (max − min) / 15`, `m = min`, `q = min(15, ⌊(w − m)/d + ½⌋)`
    /// - Q8_0: `d = max|w| / 127`, `q = w/d` rounded half away from zero
    ///
    /// # Errors
    /// If blocks do not tile the rows, or the type has no encoder here.
    pub fn encode(kind: GgmlType, rows: usize, cols: usize, values: &[f32]) -> Result<Self> {
        debug_assert_eq!(rows * cols, values.len());
        let row_bytes = kind.row_bytes(cols).ok_or_else(|| kind.does_not_tile(cols))?;
        let mut bytes = vec![0; rows * row_bytes];
        match kind {
            GgmlType::Q4_0 => blockwise(values, &mut bytes, q4_0),
            GgmlType::Q4_1 => blockwise(values, &mut bytes, q4_1),
            GgmlType::Q8_0 => blockwise(values, &mut bytes, q8_0),
            _ => {
                return Err(Error::input(format!("{} cannot be written", kind.name())).hint("Q4_0, Q4_1 and Q8_0 can"));
            }
        }
        Ok(Self { kind, rows, cols, bytes: bytes.into() })
    }
}

fn blockwise<const B: usize>(values: &[f32], bytes: &mut [u8], encode: impl Fn(&[f32; 32], &mut [u8; B])) {
    for (values, block) in values.as_chunks::<32>().0.iter().zip(bytes.as_chunks_mut::<B>().0) {
        encode(values, block);
    }
}

fn reciprocal(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn put_f16(block: &mut [u8], at: usize, v: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(v).to_le_bytes());
}

fn q4_0(values: &[f32; 32], block: &mut [u8; 18]) {
    // The first of equal magnitudes wins; its sign makes the grid reach it exactly.
    let extreme = values.iter().fold(0.0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let d = extreme / -8.0;
    let id = reciprocal(d);
    put_f16(block, 0, d);
    let code = |v: f32| ((v * id + 8.5) as i8).min(15) as u8;
    for j in 0..16 {
        block[2 + j] = code(values[j]) | code(values[j + 16]) << 4;
    }
}

fn q4_1(values: &[f32; 32], block: &mut [u8; 20]) {
    let (min, max) = values.iter().fold((f32::MAX, f32::MIN), |(lo, hi), v| (v.min(lo), v.max(hi)));
    let d = (max - min) / 15.0;
    let id = reciprocal(d);
    put_f16(block, 0, d);
    put_f16(block, 2, min);
    let code = |v: f32| (((v - min) * id + 0.5) as i8).min(15) as u8;
    for j in 0..16 {
        block[4 + j] = code(values[j]) | code(values[j + 16]) << 4;
    }
}

fn q8_0(values: &[f32; 32], block: &mut [u8; 34]) {
    let d = values.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
    let id = reciprocal(d);
    put_f16(block, 0, d);
    for (q, v) in block[2..].iter_mut().zip(values) {
        *q = (v * id).round() as i8 as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(kind: GgmlType, values: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; values.len()];
        GgmlBlocks::encode(kind, 1, values.len(), values).unwrap().decode_rows(0..1, &mut out);
        out
    }

    #[test]
    fn a_block_of_zeros_has_ggmls_negative_scale() {
        let blocks = GgmlBlocks::encode(GgmlType::Q4_0, 1, 32, &[0.0; 32]).unwrap();
        assert_eq!(blocks.bytes[..3], [0x00, 0x80, 0x88]);
    }

    #[test]
    fn a_type_without_encoder_is_named() {
        let e = GgmlBlocks::encode(GgmlType::Q6K, 1, 256, &[0.0; 256]).unwrap_err().to_string();
        assert_eq!(e, "Q6_K cannot be written; Q4_0, Q4_1 and Q8_0 can");
    }

    proptest! {
        /// Half a step, plus the rounding of scale and offset to f16. Q4_0 lacks a code on one side: a whole step there.
        #[test]
        fn the_error_is_bounded_by_the_step(values in prop::collection::vec(-4.0f32..4.0, 64)) {
            for (kind, codes, steps) in [(GgmlType::Q4_0, 16.0, 1.0), (GgmlType::Q4_1, 15.0, 0.5), (GgmlType::Q8_0, 254.0, 0.5)] {
                for (v, w) in decoded(kind, &values).iter().zip(&values) {
                    prop_assert!((v - w).abs() <= steps * 8.0 / codes + 0.01, "{} {w} -> {v}", kind.name());
                }
            }
        }
    }
}
