//! torchao's tensors in safetensors: what a tensor is stands as JSON under its name in the files' metadata.

use std::collections::BTreeMap;

use fewbit_format::{
    ActivationFormat, ActivationGrid, Dtype, Error, FloatCodes, FloatGrid, Group, IntCodes, IntGrid, Minifloat, Number,
    Online, Result, ScaleType, Sharing, Storage, Tensor, Zeros,
};
use serde_json::Value;

use super::module::Module;
use super::scheme::{FloatScheme, IntScheme, ScaleKind, Scheme};
use super::words::transposed;
use super::{Tensors, input};

/// The tensors that belong to a quantized weight and to its input.
pub(super) const PARTS: &[&str] = &[
    QDATA,
    SCALE,
    ZERO_POINT,
    PRE_SCALE,
    INPUT_SCALE,
    "_weight_act_quant_zero_point",
    "_weight_scale_and_zero",
    "_weight_per_tensor_scale",
    "_weight_act_per_tensor_scale",
];

const QDATA: &str = "_weight_qdata";
const SCALE: &str = "_weight_scale";
const ZERO_POINT: &str = "_weight_zero_point";
const PRE_SCALE: &str = "_weight_act_pre_scale";
const INPUT_SCALE: &str = "_weight_act_quant_scale";

/// torchao's settings: what the metadata says of each module's weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TorchAoConfig {
    /// The names of the configurations in config.json, for those who know them.
    kinds: Vec<String>,
    weights: BTreeMap<String, Weight>,
}

/// A weight that is one of torchao's tensors.
#[derive(Clone, Debug, PartialEq)]
struct Weight {
    /// Its class.
    class: String,
    /// What it holds, if that is read.
    codes: Option<Codes>,
    input: Option<Input>,
}

/// What is read.
#[derive(Clone, Debug, PartialEq)]
struct Codes {
    scheme: Scheme,
    form: Form,
}

/// How codes and zero points lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// A byte each, signed; scales and zero points `[out, groups]`: `W = (q − z) · s`.
    Bytes,
    /// Two signed codes in a byte, the first in the low half; scales and zero points `[groups, in]`: `W = q · s + z`.
    Halves,
    /// Small floats.
    Floats,
}

/// How an input is rounded: as a format, or in words where that is not done.
#[derive(Clone, Debug, PartialEq)]
enum Input {
    Known(ActivationGrid),
    Unknown(String),
}

impl TorchAoConfig {
    pub(super) fn parse(v: &Value) -> Self {
        let mut kinds = Vec::new();
        names_of_kinds(&v["quant_type"], &mut kinds);
        Self { kinds, weights: BTreeMap::new() }
    }

    /// Takes in what the metadata says of tensors that are called `MODULE.weight`.
    pub(super) fn with_metadata(mut self, metadata: &BTreeMap<String, String>, tensors: &dyn Tensors) -> Result<Self> {
        for (name, text) in metadata {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            let place = |e: Error| e.tensor(name).place("metadata of the safetensors files");
            let v: Value = serde_json::from_str(text)
                .map_err(|e| place(Error::input(format!("is described by what is no JSON: {e}"))))?;
            if v["_type"] != "Tensor" {
                self.weights.insert(module.to_owned(), Weight::parse(&v, module, tensors).map_err(place)?);
            }
        }
        Ok(self)
    }

    /// The scheme of a quantized module's weight, if it is read.
    pub fn scheme_of(&self, module: &str) -> Option<&Scheme> {
        Some(&self.weights.get(module)?.codes.as_ref()?.scheme)
    }

    /// How the input of a module is rounded.
    pub(super) fn activation_of(&self, module: &str) -> Option<ActivationGrid> {
        self.weights.get(module)?.input.as_ref()?.known()
    }

    /// What the checkpoint rounds at run time: `None` if nothing.
    pub(super) fn rounding(&self) -> Option<String> {
        self.weights.values().find_map(|w| w.input.as_ref()).map(|i| format!("activations to {}", i.words()))
    }

    /// What of that is not done: `None` if nothing.
    pub(super) fn unknown_rounding(&self) -> Option<String> {
        self.weights.values().find_map(|w| match &w.input {
            Some(Input::Unknown(what)) => Some(format!("activations to {what}")),
            _ => None,
        })
    }

    /// The configurations, and the schemes where there is none.
    pub fn describe(&self) -> String {
        let mut each: Vec<String> =
            self.weights.values().filter_map(|w| Some(w.codes.as_ref()?.scheme.to_string())).collect();
        if each.is_empty() {
            each.clone_from(&self.kinds);
        }
        each.sort_unstable();
        each.dedup();
        format!("torchao {}", each.join("; ")).trim_end().to_owned()
    }
}

/// The `_type` of each configuration; configurations by module are one level deeper.
fn names_of_kinds(v: &Value, kinds: &mut Vec<String>) {
    for v in v.as_object().into_iter().flat_map(|o| o.values()) {
        match v["_type"].as_str() {
            Some("FqnToConfig" | "ModuleFqnToConfig") => {
                v["_data"].as_object().into_iter().flat_map(|o| o.values()).for_each(|v| names_of_kinds(v, kinds));
            }
            Some(name) => kinds.push(name.to_owned()),
            None => {}
        }
    }
}

impl Weight {
    fn parse(v: &Value, module: &str, tensors: &dyn Tensors) -> Result<Self> {
        let class = v["_type"].as_str().ok_or_else(|| Error::input("is described without a `_type`"))?.to_owned();
        let data = &v["_data"];
        let mut shape = tensors.tensor(&format!("{module}.{QDATA}")).map(|t| t.shape).unwrap_or_default();
        if let ("Int4Tensor", [_, cols]) = (&*class, &mut shape[..]) {
            *cols = cols.saturating_mul(2);
        }
        let block = |i: usize| data["block_size"][i].as_u64().filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok());
        let group = match (block(0), block(1), &shape[..]) {
            (Some(1), Some(width), [_, cols]) if width == *cols => Some(Group::Row),
            (Some(1), Some(width), _) => Some(Group::Columns(width)),
            (Some(height), Some(width), [rows, cols]) if [height, width] == [*rows, *cols] => Some(Group::Tensor),
            (Some(height), Some(width), _) => Some(Group::Block([height, width])),
            _ => None,
        };
        let is_symmetric = !tensors.contains(&format!("{module}.{ZERO_POINT}"));
        let int = |bits: u8, form| {
            let group = group.filter(|g| !matches!(g, Group::Block(_)))?;
            let scheme =
                Scheme::Int(IntScheme { bits, group, symmetric: is_symmetric, act_order: false, second: None });
            Some(Codes { scheme, form })
        };
        let (codes, input) = match class.as_str() {
            "Int8Tensor" => (int(8, Form::Bytes), Input::of(&data["act_quant_kwargs"], tensors, module)),
            "IntxUnpackedToInt8Tensor" => {
                let bits = (1..=8).find(|b| data["target_dtype"]["_data"] == format!("int{b}"));
                let input = &data["activation_quantization"];
                (bits.and_then(|b| int(b, Form::Bytes)), Input::named(input["_data"].as_str().or(input.as_str())))
            }
            "Int4Tensor" => (int(4, Form::Halves), Input::named(data["activation_dtype"]["_data"].as_str())),
            "Float8Tensor" => {
                let codes = group.map(|group| {
                    let scheme = FloatScheme { element: Minifloat::E4M3, group, scale: ScaleKind::Plain };
                    Codes { scheme: Scheme::Float(scheme), form: Form::Floats }
                });
                (codes, Input::of(&data["act_quant_kwargs"], tensors, module))
            }
            _ => (None, None),
        };
        let known = input.as_ref().and_then(Input::known);
        Ok(Self { class, codes: codes.map(|c| Codes { scheme: c.scheme.rounded(known), ..c }), input })
    }
}

impl Input {
    fn known(&self) -> Option<ActivationGrid> {
        if let Self::Known(grid) = self { Some(*grid) } else { None }
    }

    fn words(&self) -> String {
        match self {
            Self::Known(grid) => grid.to_string(),
            Self::Unknown(what) => what.clone(),
        }
    }

    fn known_as(number: Number, sharing: Sharing) -> Self {
        Self::Known(ActivationGrid { number, sharing, scale: ScaleType::F32, is_searched: false })
    }

    /// What `act_quant_kwargs` say.
    fn of(v: &Value, tensors: &dyn Tensors, module: &str) -> Option<Self> {
        let (class, data) = (v["_type"].as_str()?, &v["_data"]);
        let granularity = data["granularity"]["_type"].as_str().unwrap_or("nothing known");
        let is_static = tensors.contains(&format!("{module}.{INPUT_SCALE}"));
        let mapping = data["mapping_type"]["_data"].as_str();
        let is_plain = data["hp_value_lb"].is_null() && data["hp_value_ub"].is_null() && data["reduce_range"] != true;
        Some(match (class, granularity) {
            ("QuantizeTensorToInt8Kwargs", "PerRow" | "PerToken") if is_plain && !is_static => {
                let symmetric = mapping != Some("ASYMMETRIC");
                Self::known_as(Number::Int { bits: 8, symmetric }, Sharing::Token)
            }
            ("QuantizeTensorToInt8Kwargs", "PerTensor") if is_plain && is_static && mapping != Some("ASYMMETRIC") => {
                Self::known_as(Number::Int { bits: 8, symmetric: true }, Sharing::Tensor)
            }
            ("QuantizeTensorToFloat8Kwargs", "PerRow")
                if is_plain && !is_static && data["float8_dtype"]["_data"] == "float8_e4m3fn" =>
            {
                Self::known_as(Number::Float(Minifloat::E4M3), Sharing::Token)
            }
            _ => Self::Unknown(format!("what `{class}` says of {granularity}")),
        })
    }

    /// What one word says.
    fn named(word: Option<&str>) -> Option<Self> {
        match word? {
            "bfloat16" => None,
            "float8_e4m3fn" => Some(Self::known_as(Number::Float(Minifloat::E4M3), Sharing::Token)),
            word if word.eq_ignore_ascii_case("int8_asym_per_token") => {
                Some(Self::known_as(Number::Int { bits: 8, symmetric: false }, Sharing::Token))
            }
            word => Some(Self::Unknown(format!("`{word}`"))),
        }
    }
}

/// Reads a weight whose `_weight_qdata` is there.
pub(super) fn read(config: &TorchAoConfig, m: Module<'_>) -> Result<Storage> {
    let name = m.full_name(QDATA);
    let weight = config.weights.get(m.name).ok_or_else(|| {
        Error::input("is one of torchao's tensors, but the metadata of the file does not say which")
            .hint("save the model again with torchao 0.14 or newer")
            .tensor(&name)
    })?;
    let Some(Codes { scheme, form }) = &weight.codes else {
        return Err(Error::input(format!("is a `{}` of torchao in a form that is not read", weight.class))
            .hint("use the original checkpoint, or one with Int8Tensor, IntxUnpackedToInt8Tensor, Int4Tensor or Float8Tensor")
            .tensor(&name));
    };
    match (scheme.weights(), form) {
        (Scheme::Int(scheme), Form::Bytes) => bytes(*scheme, m),
        (Scheme::Int(scheme), _) => halves(*scheme, m),
        (Scheme::Float(scheme), _) => floats(*scheme, m),
        _ => Err(Error::internal("a scheme that torchao has not")),
    }
}

/// `qdata` I8 `[out, in]`: `W = (q − z) · s`.
fn bytes(IntScheme { bits, group, .. }: IntScheme, m: Module<'_>) -> Result<Storage> {
    let [rows, cols] = m.shape;
    let place = |e: Error| e.tensor(&m.full_name(QDATA));
    group.check(cols).map_err(place)?;
    let shape = if group == Group::Tensor { [1, 1] } else { [rows, group.per_row(cols)] };
    let middle = 1u8 << (bits - 1);
    let unsigned = |t: Tensor| t.bytes.iter().map(|q| q.wrapping_add(middle)).collect::<Vec<u8>>();
    let codes = unsigned(m.part_as(QDATA, Dtype::I8, &[rows, cols])?);
    let (scale, scales) = m.scales(SCALE, &[shape])?;
    let (zeros, scale) = if !m.has(ZERO_POINT) {
        (Zeros::Middle, scale)
    } else if m.part(ZERO_POINT)?.dtype == Dtype::I8 {
        let zeros = unsigned(m.part_as(ZERO_POINT, Dtype::I8, &shape)?);
        (if zeros.iter().all(|z| *z == middle) { Zeros::Middle } else { Zeros::Codes(zeros) }, scale)
    } else {
        // The sum may need more digits than a scale has.
        let points: Vec<f32> = m.scales(ZERO_POINT, &[shape])?.1.iter().map(|z| z + f32::from(middle)).collect();
        (Zeros::Points(points.into()), ScaleType::F32)
    };
    let grid = IntGrid { bits, group, symmetric: zeros == Zeros::Middle, scale };
    IntCodes::new(rows, cols, grid, &codes, scales, zeros).map(Storage::Int).map_err(place)
}

/// `qdata` U8 or I8 `[out, in / 2]`: `W = q · s + z`, `q` signed.
fn halves(IntScheme { bits, group, .. }: IntScheme, m: Module<'_>) -> Result<Storage> {
    let [rows, cols] = m.shape;
    let place = |e: Error| e.tensor(&m.full_name(QDATA));
    group.check(cols).map_err(place)?;
    let packed = m.part(QDATA)?;
    if !matches!(packed.dtype, Dtype::U8 | Dtype::I8) || packed.shape != [rows, cols / 2] || !cols.is_multiple_of(2) {
        let (dtype, shape) = (packed.dtype.name(), &packed.shape);
        return Err(place(Error::input(format!(
            "is {dtype} {shape:?}, where bytes {:?} are needed",
            [rows, cols / 2]
        ))));
    }
    let codes: Vec<u8> = packed.bytes.iter().flat_map(|b| [(b & 15) ^ 8, (b >> 4) ^ 8]).collect();
    let groups = group.per_row(cols);
    let numbers = |part: &str| m.scales(part, &[[groups, rows]]).map(|(_, values)| transposed(&values, rows));
    let (scales, zeros) = (numbers(SCALE)?, numbers(ZERO_POINT)?);
    let offsets: Vec<f32> = scales.iter().zip(&zeros).map(|(s, z)| z - 8.0 * s).collect();
    let grid = IntGrid { bits, group, symmetric: false, scale: ScaleType::F32 };
    IntCodes::new(rows, cols, grid, &codes, scales, Zeros::Offsets(offsets.into())).map(Storage::Int).map_err(place)
}

/// `qdata` F8_E4M3 `[out, in]` and scales in F32.
fn floats(FloatScheme { element, group, .. }: FloatScheme, m: Module<'_>) -> Result<Storage> {
    let [rows, cols] = m.shape;
    let codes = m.part_as(QDATA, Dtype::F8E4M3, &[rows, cols])?;
    let shapes = match group {
        Group::Tensor => vec![vec![1, 1], vec![1], vec![]],
        Group::Block([height, _]) => vec![vec![rows.div_ceil(height), group.per_row(cols)]],
        _ => vec![vec![rows, group.per_row(cols)]],
    };
    let (scale, scales) = m.stored_scales(SCALE, &shapes)?;
    let codes = FloatCodes::new(rows, cols, FloatGrid { element, group, scale }, codes.bytes, scales, None);
    codes.map(Storage::Float).map_err(|e| e.tensor(&m.full_name(QDATA)))
}

/// What an input is multiplied with before it is rounded.
pub(super) fn read_input(m: Module<'_>) -> Result<Vec<Online>> {
    let cols = m.shape[1];
    if !m.has(PRE_SCALE) {
        return Ok(Vec::new());
    }
    Ok(vec![Online::Diagonal(m.scales(PRE_SCALE, &[&[cols][..], &[1, cols]])?.1)])
}

/// A format with the scale that is stored, if it is.
pub(super) fn read_activation(grid: ActivationGrid, m: Module<'_>) -> Result<ActivationFormat> {
    let mut format = grid.dynamic();
    if grid.has_stored_scale() {
        format.scale = input::positive(m, INPUT_SCALE)?;
    }
    Ok(format)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::layout::{Quantization, read_activation, read_linear, read_online, tensor_names};

    fn quantization(class: &str, data: &Value, tensors: &BTreeMap<String, Tensor>) -> Quantization {
        let settings = json!({ "quant_method": "torchao", "quant_type": { "default": { "_type": "SomeConfig" } } });
        let metadata = json!({ "_type": class, "_data": data }).to_string();
        Quantization::parse(&json!({ "quantization_config": settings }), None)
            .unwrap()
            .with_files(tensors, std::iter::empty(), &BTreeMap::from([("m.weight".to_owned(), metadata)]))
            .unwrap()
    }

    fn tensors(named: &[(&str, Tensor)]) -> BTreeMap<String, Tensor> {
        named.iter().map(|(part, t)| (format!("m._weight_{part}"), t.clone())).collect()
    }

    fn bytes(shape: &[usize], bytes: &[i8]) -> Tensor {
        Tensor { dtype: Dtype::I8, shape: shape.to_vec(), bytes: bytes.iter().map(|b| b.cast_unsigned()).collect() }
    }

    fn floats(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_f32(Dtype::F32, shape, values).unwrap()
    }

    #[test]
    fn zero_points_are_taken_off_or_added() {
        let decoded = |q: &Quantization, tensors: &BTreeMap<String, Tensor>| {
            let mut values = [0.0; 4];
            read_linear(q, tensors, "m", [1, 4]).unwrap().decode_rows(0..1, &mut values);
            values
        };
        let codes = bytes(&[1, 4], &[-2, 1, 0, -1]);
        let pairs =
            [("qdata", codes), ("scale", floats(&[1, 2], &[2.0, 0.5])), ("zero_point", bytes(&[1, 2], &[1, 0]))];
        let of = tensors(&pairs);
        let data = json!({ "block_size": [1, 2], "target_dtype": { "_type": "torch.dtype", "_data": "int2" } });
        let q = quantization("IntxUnpackedToInt8Tensor", &data, &of);
        assert_eq!(decoded(&q, &of), [-6.0, 0.0, 0.0, -0.5]);
        assert_eq!(q.describe().unwrap(), "torchao 2 bit group 2 asymmetric");
        assert!(of.keys().all(|n| tensor_names(&q, "m").contains(n)));

        let columns = |values: &[f32]| floats(&[2, 1], values);
        // 1 and -8, 7 and -1, the first in the low half.
        let of = tensors(&[
            ("qdata", bytes(&[1, 2], &[0x81_u8.cast_signed(), 0xf7_u8.cast_signed()])),
            ("scale", columns(&[2.0, 1.0])),
            ("zero_point", columns(&[0.5, -1.0])),
        ]);
        let q = quantization("Int4Tensor", &json!({ "block_size": [1, 2] }), &of);
        assert_eq!(decoded(&q, &of), [2.5, -15.5, 6.0, -2.0]);
    }

    #[test]
    fn inputs_are_what_the_attributes_say() {
        let of = tensors(&[
            ("qdata", bytes(&[1, 4], &[0; 4])),
            ("scale", floats(&[1, 1], &[1.0])),
            ("act_pre_scale", floats(&[4], &[2.0; 4])),
        ]);
        let kwargs = |granularity: &str| {
            json!({ "_type": "QuantizeTensorToInt8Kwargs", "_data": { "granularity": { "_type": granularity },
            "mapping_type": { "_type": "MappingType", "_data": "SYMMETRIC" } } })
        };
        let q = quantization("Int8Tensor", &json!({ "block_size": [1, 4], "act_quant_kwargs": kwargs("PerRow") }), &of);
        assert_eq!(q.runtime_rounding().unwrap(), "activations to int8 per token");
        let format = read_activation(&q, &of, "m", [1, 4]).unwrap().unwrap();
        assert_eq!(format.grid.number, Number::Int { bits: 8, symmetric: true });
        assert_eq!(read_online(&q, &of, "m", [1, 4]).unwrap()[0], [Online::Diagonal(vec![2.0; 4])]);
        let q =
            quantization("Int8Tensor", &json!({ "block_size": [1, 4], "act_quant_kwargs": kwargs("PerTensor") }), &of);
        assert!(q.check(true).is_ok() && q.check(false).unwrap_err().to_string().contains("PerTensor"));
        let mut fixed = of.clone();
        fixed.insert("m._weight_act_quant_scale".into(), floats(&[1, 1], &[0.25]));
        let q = quantization(
            "Int8Tensor",
            &json!({ "block_size": [1, 4], "act_quant_kwargs": kwargs("PerTensor") }),
            &fixed,
        );
        assert_eq!(read_activation(&q, &fixed, "m", [1, 4]).unwrap().unwrap().scale, 0.25);
    }

    #[test]
    fn what_is_not_read_is_refused_by_name() {
        let of = tensors(&[("qdata", bytes(&[1, 4], &[0; 4])), ("scale", floats(&[1, 1], &[1.0]))]);
        let fails = |q: &Quantization| read_linear(q, &of, "m", [1, 4]).unwrap_err().to_string();
        let q = quantization("Int4TilePackedTo4dTensor", &json!({}), &of);
        assert!(
            fails(&q).starts_with("tensor `m._weight_qdata`: is a `Int4TilePackedTo4dTensor` of torchao in a form")
        );
        let q = Quantization::TorchAo(TorchAoConfig::default());
        assert!(fails(&q).contains("does not say which"));
    }
}
