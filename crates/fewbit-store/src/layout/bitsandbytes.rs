use fewbit_format::{
    Dtype, Error, Group, IntCodes, IntGrid, Result, ScaleType, Storage, TableCodes, TableGrid, Tensor, Zeros,
};
use serde_json::Value;

use super::module::Module;

/// The tensors that belong to a quantized weight.
pub(super) const PARTS: &[&str] = &[
    "SCB",
    "weight_format",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    STATES[0],
    STATES[1],
];

const STATES: [&str; 2] = ["weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4"];

/// bitsandbytes' settings, which say nothing that the tensors do not say.
#[derive(Clone, Debug, PartialEq)]
pub struct BitsAndBytesConfig {
    is_4bit: bool,
}

impl BitsAndBytesConfig {
    pub(super) fn parse(v: &Value) -> Self {
        let is = |key: &str| v[key].as_bool().unwrap_or(false);
        Self { is_4bit: is("load_in_4bit") || is("_load_in_4bit") }
    }

    /// In a few words.
    pub fn describe(&self) -> &'static str {
        if self.is_4bit { "bitsandbytes 4 bit" } else { "bitsandbytes 8 bit" }
    }
}

/// Whether the module's weight lies quantized.
pub(super) fn is_quantized(has: &dyn Fn(&str) -> bool) -> bool {
    has("SCB") || STATES.iter().any(|state| has(state))
}

/// Reads four bits (Dettmers et al. 2023) or eight (Dettmers et al. 2022).
pub(super) fn read(m: Module<'_>) -> Result<Storage> {
    match STATES.into_iter().find(|state| m.has(state)) {
        Some(state) => four(m, state),
        None => eight(m),
    }
}

/// `weight` I8 `[out, in]` and `SCB` F32 `[out]`, the greatest magnitude of each row: `W = q · SCB / 127`.
///
/// What LLM.int8() does with inputs (rounds those columns that hold nothing beyond a threshold) is not done.
fn eight(m: Module<'_>) -> Result<Storage> {
    let [rows, cols] = m.shape;
    let format = if m.has("weight_format") { m.part("weight_format")?.bytes.first().copied().unwrap_or(0) } else { 0 };
    if format != 0 {
        return Err(Error::input(format!("is {format}, where rows in order (0) are read"))
            .hint("save it again with a newer bitsandbytes")
            .tensor(&m.full_name("weight_format")));
    }
    let weight = m.part_as("weight", Dtype::I8, &[rows, cols])?;
    let (_, greatest) = m.scales("SCB", &[&[rows]])?;
    let codes: Vec<u8> = weight.bytes.iter().map(|q| q.wrapping_add(128)).collect();
    let scales: Vec<f32> = greatest.iter().map(|s| s / 127.0).collect();
    let grid = IntGrid { bits: 8, group: Group::Row, symmetric: true, scale: ScaleType::F32 };
    IntCodes::new(rows, cols, grid, &codes, scales, Zeros::Middle)
        .map(Storage::Int)
        .map_err(|e| e.tensor(&m.full_name("weight")))
}

/// `weight` U8 `[out · in / 2, 1]`, the first of two codes in the high nibble; blocks of consecutive weights share a scale
/// in `weight.absmax`, and `weight.quant_map` has the levels.
fn four(m: Module<'_>, state: &str) -> Result<Storage> {
    let [rows, cols] = m.shape;
    let name = m.full_name(state);
    let wrong = |what: String| Error::input(what).tensor(&name);
    let state: Value = serde_json::from_slice(&m.part(state)?.bytes).map_err(|e| wrong(format!("is no JSON: {e}")))?;
    let block = state["blocksize"].as_u64().and_then(|b| usize::try_from(b).ok()).unwrap_or(0);
    if state["shape"] != serde_json::json!([rows, cols]) {
        return Err(wrong(format!("says shape {}, where config.json implies [{rows}, {cols}]", state["shape"])));
    }
    let group = match block {
        0 => return Err(wrong("has no `blocksize`".to_owned())),
        b if cols.is_multiple_of(b) => Group::Columns(b),
        b => {
            return Err(wrong(format!("has blocks of {b} weights, which run over the ends of rows of {cols}"))
                .hint("use the original checkpoint"));
        }
    };
    let weight = m.part("weight")?;
    if weight.dtype.size_bytes() * weight.len() != rows * cols / 2 {
        return Err(Error::input(format!("has {} bytes for [{rows}, {cols}]", weight.bytes.len()))
            .tensor(&m.full_name("weight")));
    }
    let codes: Vec<u8> = weight.bytes.iter().flat_map(|b| [b >> 4, b & 15]).collect();
    let levels = floats(m, "weight.quant_map", 16)?;
    let scales = scales(m, &state, rows * cols / block)?;
    let grid = TableGrid { bits: 4, group, scale: ScaleType::F32 };
    TableCodes::new(rows, cols, grid, &codes, scales, levels)
        .map(Storage::Table)
        .map_err(|e| e.tensor(&m.full_name("weight")))
}

/// Scales as they are, or codes of 8 bits into a table of their own, times a scale for some of them, plus an offset.
fn scales(m: Module<'_>, state: &Value, count: usize) -> Result<Vec<f32>> {
    const ABSMAX: &str = "weight.absmax";
    if !m.has("weight.nested_absmax") {
        return floats(m, ABSMAX, count);
    }
    let together = state["nested_blocksize"].as_u64().and_then(|b| usize::try_from(b).ok()).unwrap_or(256).max(1);
    let offset = state["nested_offset"].as_f64().unwrap_or(0.0) as f32;
    let codes = m.part_as(ABSMAX, Dtype::U8, &[count])?;
    let levels = floats(m, "weight.nested_quant_map", 256)?;
    let greatest = floats(m, "weight.nested_absmax", count.div_ceil(together))?;
    let scale = |(i, q): (usize, &u8)| levels[usize::from(*q)] * greatest[i / together] + offset;
    Ok(codes.bytes.iter().enumerate().map(scale).collect())
}

fn floats(m: Module<'_>, part: &str, count: usize) -> Result<Vec<f32>> {
    let tensor: Tensor = m.part_as(part, Dtype::F32, &[count])?;
    let values = tensor.to_f32().map_err(|e| e.tensor(&m.full_name(part)))?;
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(Error::input(format!("holds {} at position {at}", values[at])).tensor(&m.full_name(part))),
        None => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::layout::{Quantization, read_linear, tensor_names};

    fn quantization() -> Quantization {
        let settings = json!({ "quant_method": "bitsandbytes", "load_in_4bit": true });
        Quantization::parse(&json!({ "quantization_config": settings }), None).unwrap()
    }

    fn f32s(values: &[f32]) -> Tensor {
        Tensor::from_f32(Dtype::F32, &[values.len()], values).unwrap()
    }

    fn bytes(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Tensor {
        Tensor { dtype, shape: shape.to_vec(), bytes: bytes.into() }
    }

    /// Two rows of four in blocks of two, with scales of scales.
    fn nested(shape: &Value) -> BTreeMap<String, Tensor> {
        let levels: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let of_scales: Vec<f32> = (0..256).map(|i| i as f32 / 255.0).collect();
        let state = json!({ "quant_type": "nf4", "blocksize": 2, "shape": shape, "nested_blocksize": 3,
            "nested_offset": 0.5 })
        .to_string();
        let named = [
            ("weight", bytes(Dtype::U8, &[4, 1], vec![0x01, 0x23, 0x45, 0x67])),
            ("weight.absmax", bytes(Dtype::U8, &[4], vec![0, 255, 255, 255])),
            ("weight.quant_map", f32s(&levels)),
            ("weight.nested_quant_map", f32s(&of_scales)),
            ("weight.nested_absmax", f32s(&[1.0, 3.0])),
            (STATES[0], bytes(Dtype::U8, &[state.len()], state.into_bytes())),
        ];
        named.into_iter().map(|(part, t)| (format!("m.{part}"), t)).collect()
    }

    #[test]
    fn scales_of_scales_are_multiplied_out() {
        let tensors = nested(&json!([2, 4]));
        let mut values = [0.0; 8];
        read_linear(&quantization(), &tensors, "m", [2, 4]).unwrap().decode_rows(0..2, &mut values);
        assert_eq!(values, [0.0, 0.5, 3.0, 4.5, 6.0, 7.5, 21.0, 24.5]);
        let names = tensor_names(&quantization(), "m");
        assert!(tensors.keys().all(|n| names.contains(n)));
    }

    #[test]
    fn contradictions_name_the_tensor() {
        let fails =
            |t: &BTreeMap<String, Tensor>, shape| read_linear(&quantization(), t, "m", shape).unwrap_err().to_string();
        let e = fails(&nested(&json!([4, 2])), [2, 4]);
        assert!(e.starts_with("tensor `m.weight.quant_state.bitsandbytes__nf4`: says shape [4,2]"), "{e}");
        let mut short = nested(&json!([2, 4]));
        short.insert("m.weight".into(), bytes(Dtype::U8, &[3, 1], vec![0; 3]));
        assert!(fails(&short, [2, 4]).contains("has 3 bytes for [2, 4]"));
        assert!(fails(&nested(&json!([8, 1])), [8, 1]).contains("run over the ends of rows of 1"));
    }

    #[test]
    fn rows_of_bytes_are_read() {
        let tensors = BTreeMap::from([
            ("m.weight".to_owned(), bytes(Dtype::I8, &[2, 2], vec![127, 129, 0, 64])),
            ("m.SCB".to_owned(), f32s(&[127.0, 254.0])),
        ]);
        let mut values = [0.0; 4];
        read_linear(&quantization(), &tensors, "m", [2, 2]).unwrap().decode_rows(0..2, &mut values);
        assert_eq!(values, [127.0, -127.0, 0.0, 128.0]);
    }
}
