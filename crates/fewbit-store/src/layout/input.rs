//! How inputs of linears are rounded: settings of the `fewbit` layout, and the numbers that stand beside a weight.

use fewbit_format::{
    ActivationFormat, ActivationGrid, Dtype, Error, Minifloat, Number, Result, ScaleType, Sharing, Tensor,
};
use serde_json::{Value, json};

use super::module::Module;

const SCALE: &str = "input_scale";
const ZERO_POINT: &str = "input_zero_point";
const GLOBAL_SCALE: &str = "input_global_scale";
const CLIP: &str = "input_clip";

/// The tensors that a rounded input may have.
pub(super) const PARTS: &[&str] = &[SCALE, ZERO_POINT, GLOBAL_SCALE, CLIP];

/// As it stands in settings.
pub(super) fn to_json(grid: ActivationGrid) -> Value {
    let (number, symmetric) = match grid.number {
        Number::Int { bits, symmetric } => (format!("int{bits}"), symmetric),
        Number::Float(element) => (element.to_string(), true),
    };
    let sharing = match grid.sharing {
        Sharing::Tensor => json!("tensor"),
        Sharing::Token => json!("token"),
        Sharing::Columns(g) => json!(g),
    };
    let scale = match grid.scale {
        ScaleType::E8M0 => json!("e8m0"),
        ScaleType::E4M3 => json!("e4m3"),
        _ => Value::Null,
    };
    let mut v = json!({ "number": number, "symmetric": symmetric, "group": sharing, "scale": scale });
    if grid.is_searched {
        v["search"] = json!(true);
    }
    v
}

/// Reads what [`to_json`] wrote.
pub(super) fn from_json(v: &Value) -> Result<ActivationGrid> {
    let name = v["number"].as_str().unwrap_or_default();
    let symmetric = v["symmetric"].as_bool().unwrap_or(true);
    let number = match name.strip_prefix("int").map(str::parse) {
        Some(Ok(bits @ 2..=8)) => Some(Number::Int { bits, symmetric }),
        Some(_) => None,
        None => Minifloat::parse(name).ok().map(Number::Float),
    };
    let sharing = match &v["group"] {
        Value::String(s) if s == "tensor" => Some(Sharing::Tensor),
        Value::String(s) if s == "token" => Some(Sharing::Token),
        n => n.as_u64().filter(|g| *g > 0).and_then(|g| usize::try_from(g).ok()).map(Sharing::Columns),
    };
    let scale = match v["scale"].as_str() {
        None => Some(ScaleType::F32),
        Some("e8m0") => Some(ScaleType::E8M0),
        Some("e4m3") => Some(ScaleType::E4M3),
        Some(_) => None,
    };
    match (number, sharing, scale) {
        (Some(number), Some(sharing), Some(scale)) => {
            let is_searched = v["search"].as_bool().unwrap_or(false);
            Ok(ActivationGrid { number, sharing, scale, is_searched })
        }
        _ => Err(Error::input(format!(
            "the input {v} does not have `number` (such as `int8`, `e4m3`), `group` (`token`, `tensor` or a number) and `scale`"
        ))),
    }
}

/// A format with the numbers that are stored beside a weight.
pub(super) fn read(grid: ActivationGrid, m: Module<'_>) -> Result<ActivationFormat> {
    let mut format = grid.dynamic();
    if grid.scale == ScaleType::E4M3 {
        format.scale = positive(m, GLOBAL_SCALE)?;
    } else if grid.sharing == Sharing::Tensor {
        format.scale = positive(m, SCALE)?;
        if m.has(ZERO_POINT) {
            let tensor = m.part(ZERO_POINT)?;
            if tensor.dtype != Dtype::I8 || tensor.len() != 1 {
                return Err(Error::input("is not one signed byte").tensor(&m.full_name(ZERO_POINT)));
            }
            format.zero = i32::from(tensor.bytes[0].cast_signed());
        }
    }
    if m.has(CLIP) {
        format.clip = positive(m, CLIP)?;
    }
    Ok(format)
}

/// One positive number.
pub(super) fn positive(m: Module<'_>, part: &str) -> Result<f32> {
    let value = m.scales(part, &[&[1][..], &[], &[1, 1]])?.1[0];
    if value > 0.0 {
        return Ok(value);
    }
    Err(Error::input(format!("is {value}, where a positive number is needed")).tensor(&m.full_name(part)))
}

/// The tensors of a format.
pub(super) fn tensors(module: &str, format: &ActivationFormat) -> Result<Vec<(String, Tensor)>> {
    let named = |part: &str, tensor| (format!("{module}.{part}"), tensor);
    let one = |v: f32| Tensor::from_f32(Dtype::F32, &[1], &[v]);
    let mut tensors = Vec::new();
    if format.grid.scale == ScaleType::E4M3 {
        tensors.push(named(GLOBAL_SCALE, one(format.scale)?));
    } else if format.grid.sharing == Sharing::Tensor {
        tensors.push(named(SCALE, one(format.scale)?));
        if let Number::Int { symmetric: false, .. } = format.grid.number {
            let bytes = vec![(format.zero as i8).cast_unsigned()].into();
            tensors.push(named(ZERO_POINT, Tensor { dtype: Dtype::I8, shape: vec![1], bytes }));
        }
    }
    if format.clip < 1.0 {
        tensors.push(named(CLIP, one(format.clip)?));
    }
    Ok(tensors)
}
