use fewbit_format::{
    ActivationGrid, Dtype, Error, FloatCodes, FloatGrid, Group, Minifloat, Number, Result, ScaleType, Sharing, Storage,
};
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

    /// Which weights share a scale.
    fn group(&self) -> Group {
        self.block.map_or(Group::Tensor, Group::Block)
    }

    /// How inputs are rounded: in blocks as wide as those of the weights, or with one scale from calibration.
    pub(super) fn activation(&self) -> Option<ActivationGrid> {
        let sharing = match (self.activations.as_deref()?, self.block) {
            ("static", _) => Sharing::Tensor,
            (_, Some([_, width])) => Sharing::Columns(width),
            (_, None) => Sharing::Token,
        };
        Some(ActivationGrid {
            number: Number::Float(Minifloat::E4M3),
            sharing,
            scale: ScaleType::F32,
            is_searched: false,
        })
    }
}

/// Reads `weight` F8_E4M3 `[out, in]`: code × scale of its block (`weight_scale_inv`, which multiplies despite its name)
/// or of the matrix (`weight_scale`).
pub(super) fn read(config: &Float8Config, m: Module<'_>) -> Result<Storage> {
    let [rows, cols] = m.shape;
    let codes = m.part_as("weight", Dtype::F8E4M3, &[rows, cols])?;
    let suffix = if m.has("weight_scale_inv") { "weight_scale_inv" } else { "weight_scale" };
    let (scale, scales) = match config.block {
        Some([down, across]) => m.stored_scales(suffix, &[&[rows.div_ceil(down), cols.div_ceil(across)]])?,
        None => m.stored_scales(suffix, &[&[1][..], &[], &[1, 1]])?,
    };
    let grid = FloatGrid { element: Minifloat::E4M3, group: config.group(), scale };
    let codes = FloatCodes::new(rows, cols, grid, codes.bytes, scales, None);
    codes.map(Storage::Float).map_err(|e| e.tensor(&m.full_name("weight")))
}
