use fewbit_format::{Dtype, Error, Result, Storage, Tensor};
use serde_json::Value;

use super::module::Module;

/// The tensors that belong to a quantized weight and to the rounding of its input.
pub(super) const PARTS: &[&str] = &["weight_scale_inv", "weight_scale", "input_scale"];

/// Settings of `"quant_method": "fp8"`: E4M3 weights with a scale per block, or one for the matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Float8Config {
    block: Option<[usize; 2]>,
    activations: Option<String>,
}

impl Float8Config {
    pub(super) fn parse(v: &Value) -> Result<Self> {
        let size =
            |i: usize| v["weight_block_size"][i].as_u64().filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok());
        let block = match (&v["weight_block_size"], size(0), size(1)) {
            (Value::Null, ..) => None,
            (Value::Array(a), Some(rows), Some(cols)) if a.len() == 2 => Some([rows, cols]),
            (other, ..) => {
                return Err(Error::input(format!("fp8 with `weight_block_size` {other}, where two sizes are needed")));
            }
        };
        Ok(Self { block, activations: v["activation_scheme"].as_str().map(str::to_owned) })
    }

    /// What the checkpoint rounds at run time.
    pub(super) fn rounding(&self) -> Option<String> {
        self.activations.as_ref().map(|a| format!("activations to fp8 ({a})"))
    }
}

/// Reads `weight` F8_E4M3 `[out, in]` as f32: code × scale of its block (`weight_scale_inv`, which multiplies despite
/// its name) or of the matrix (`weight_scale`).
pub(super) fn read(config: &Float8Config, m: Module<'_>) -> Result<Storage> {
    let [rows, cols] = m.shape;
    let codes = m.part_as("weight", Dtype::F8E4M3, &[rows, cols])?;
    let suffix = if m.has("weight_scale_inv") { "weight_scale_inv" } else { "weight_scale" };
    let [block_rows, block_cols] = config.block.unwrap_or([rows, cols]);
    let [down, across] = [rows.div_ceil(block_rows), cols.div_ceil(block_cols)];
    let single: &[&[usize]] = &[&[down, across], &[1], &[]];
    let (_, scales) = m.scales(suffix, if config.block.is_some() { &single[..1] } else { single })?;
    let table: [f32; 256] = std::array::from_fn(|code| e4m3(code as u8));
    let mut values = Vec::with_capacity(rows * cols);
    for (r, row) in codes.bytes.chunks_exact(cols).enumerate() {
        let scales = &scales[r / block_rows * across..][..across];
        for (block, scale) in row.chunks(block_cols).zip(scales) {
            values.extend(block.iter().map(|code| table[usize::from(*code)] * scale));
        }
    }
    Ok(Storage::Dense(Tensor::from_f32(Dtype::F32, &[rows, cols], &values)?))
}

/// E4M3 in the variant without infinities: sign, exponent (bias 7), three bits of mantissa; all ones is not a number.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if code < 128 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_the_values_of_the_specification() {
        assert_eq!(e4m3(0x00), 0.0);
        assert_eq!(e4m3(0x01), 2f32.powi(-9));
        assert_eq!(e4m3(0x07), 0.875 * 2f32.powi(-6));
        assert_eq!(e4m3(0x08), 2f32.powi(-6));
        assert_eq!(e4m3(0x38), 1.0);
        assert_eq!(e4m3(0x7e), 448.0);
        assert_eq!(e4m3(0xfe), -448.0);
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }
}
