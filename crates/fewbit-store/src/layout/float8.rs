use fewbit_format::{
    ActivationGrid, Dtype, Error, FloatCodes, FloatGrid, Group, Minifloat, Number, Result, ScaleType, Sharing, Storage,
    Tensor,
};
use serde_json::{Value, json};

use super::Layout;
use super::module::Module;
use super::scheme::{FloatScheme, ScaleKind, Scheme, the_one_of};

/// The tensors that belong to a quantized weight and to the rounding of its input.
pub(super) const PARTS: &[&str] = &["weight_scale_inv", "weight_scale", "input_scale"];

/// Settings of `"quant_method": "fp8"`: E4M3 weights with a scale per block, or one for the matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Float8Config {
    scheme: Scheme,
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
        let group = block.map_or(Group::Tensor, Group::Block);
        let scheme = Scheme::Float(FloatScheme { element: Minifloat::E4M3, group, scale: ScaleKind::Plain });
        Ok(Self { scheme, block, activations: v["activation_scheme"].as_str().map(str::to_owned) })
    }

    /// The scheme of the quantized modules' weights.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
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
    let group = config.block.map_or(Group::Tensor, Group::Block);
    let grid = FloatGrid { element: Minifloat::E4M3, group, scale };
    let codes = FloatCodes::new(rows, cols, grid, codes.bytes, scales, None);
    codes.map(Storage::Float).map_err(|e| e.tensor(&m.full_name("weight")))
}

/// FP8 as DeepSeek stores it: what vLLM and transformers load.
pub struct Float8;

impl Layout for Float8 {
    fn name(&self) -> &'static str {
        "fp8"
    }

    fn can_hold_rows(&self, storage: &Storage, _: usize) -> Result<(), String> {
        let codes = match storage {
            Storage::Dense(_) => return Ok(()),
            Storage::Float(codes) => codes,
            _ => return Err("it holds floats of 8 bits alone".to_owned()),
        };
        let FloatGrid { element, group, scale } = codes.grid();
        match (element, group, scale) {
            (Minifloat::E4M3, Group::Tensor | Group::Block(_), ScaleType::F32 | ScaleType::BF16 | ScaleType::F16) => {
                Ok(())
            }
            (Minifloat::E4M3, ..) => Err("one scale serves a block or the whole matrix, and is no code".to_owned()),
            _ => Err("its floats are E4M3".to_owned()),
        }
    }

    fn can_hold_input(&self, storage: &Storage, input: ActivationGrid, clip: f32) -> Result<(), String> {
        let Storage::Float(codes) = storage else { return Ok(()) };
        let sharing = match (codes.grid().group, input.sharing) {
            (Group::Block([_, width]), _) => Sharing::Columns(width),
            (_, Sharing::Tensor) => Sharing::Tensor,
            _ => Sharing::Token,
        };
        let wanted = ActivationGrid {
            number: Number::Float(Minifloat::E4M3),
            sharing,
            scale: ScaleType::F32,
            is_searched: false,
        };
        if input == wanted && clip >= 1.0 {
            return Ok(());
        }
        Err(format!("beside such weights its runtimes round inputs to {wanted}"))
    }

    fn can_hold_together(&self, modules: &[(String, Option<Scheme>)]) -> Result<(), String> {
        let one = the_one_of(modules.iter().map(|(name, s)| (name, s.clone())), "schemes")?;
        match one {
            Some(scheme) if scheme.input().is_none() => {
                Err("its runtimes always round inputs: `fp8-block` is a recipe that does".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn tensors(&self, module: &str, storage: &Storage) -> Result<Vec<(String, Tensor)>> {
        self.refuse_what_it_cannot_hold(module, storage)?;
        let named = |suffix: &str, tensor: Tensor| (format!("{module}.{suffix}"), tensor);
        let codes = match storage {
            Storage::Float(codes) => codes,
            Storage::Dense(tensor) => return Ok(vec![named("weight", tensor.clone())]),
            _ => return Err(Error::internal("what it cannot hold was refused before")),
        };
        let ([rows, cols], grid) = (codes.shape(), codes.grid());
        let (suffix, shape) = match grid.group {
            Group::Block([down, across]) => ("weight_scale_inv", vec![rows.div_ceil(down), cols.div_ceil(across)]),
            _ => ("weight_scale", vec![1]),
        };
        let weight = Tensor { dtype: Dtype::F8E4M3, shape: vec![rows, cols], bytes: codes.packed().clone() };
        let scales = Tensor { dtype: grid.scale.dtype(), shape, bytes: codes.scales().clone() };
        Ok(vec![named("weight", weight), named(suffix, scales)])
    }

    fn quantization_config(&self, modules: &[(String, Option<Scheme>)], _: Option<ActivationGrid>) -> Value {
        let scheme = modules.iter().find_map(|(_, s)| s.as_ref());
        let is_static = scheme.and_then(Scheme::input).is_some_and(|input| input.sharing == Sharing::Tensor);
        let plain: Vec<&String> = modules.iter().filter(|(_, s)| s.is_none()).map(|(name, _)| name).collect();
        let mut settings = json!({
            "activation_scheme": if is_static { "static" } else { "dynamic" },
            "fmt": "e4m3",
            "modules_to_not_convert": plain,
            "quant_method": "fp8",
        });
        if let Some(Scheme::Float(FloatScheme { group: Group::Block(size), .. })) = scheme.map(Scheme::weights) {
            settings["weight_block_size"] = json!(size);
        }
        settings
    }
}
