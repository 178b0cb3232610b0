use fewbit_format::{ActivationGrid, Dtype, Error, Group, IntCodes, IntGrid, Result, Storage, Tensor, Zeros};
use serde_json::{Value, json};

use super::Layout;
use super::gptq::group_size;
use super::integers::{self, Integers};
use super::module::Module;
use super::scheme::{IntScheme, Scheme, the_one_of};
use super::words::{pack_rows, transposed, unpack_rows, words};

/// The tensors that belong to a quantized weight.
pub(super) const PARTS: &[&str] = &["qweight", "qzeros", "scales"];

/// The output column, among eight, of each nibble of a word, the lowest first.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// AWQ's settings: 4 bits in the layout `gemm`.
#[derive(Clone, Debug, PartialEq)]
pub struct AwqConfig {
    scheme: Scheme,
    group: Group,
}

impl AwqConfig {
    pub(super) fn parse(v: &Value) -> Result<Self> {
        let bits = ["bits", "w_bit"].into_iter().find_map(|key| v[key].as_u64()).unwrap_or(4);
        if bits != 4 {
            return Err(Error::input(format!("AWQ with {bits} bits, where 4 are read")));
        }
        let version = ["version", "checkpoint_format", "format"].into_iter().find_map(|key| v[key].as_str());
        let version = version.unwrap_or("gemm").to_lowercase();
        if version != "gemm" {
            return Err(Error::input(format!("AWQ in the layout `{version}`, where `gemm` is read"))
                .hint("convert it with the program that made it"));
        }
        let size = ["group_size", "q_group_size"].into_iter().find_map(|key| v[key].as_i64());
        let group = match size.unwrap_or(128) {
            -1 => Group::Row,
            g if g > 0 => Group::Columns(g as usize),
            g => {
                return Err(Error::input(format!(
                    "AWQ with `group_size` {g}, where a positive number or -1 is needed"
                )));
            }
        };
        let symmetric = v["zero_point"].as_bool().is_some_and(|has| !has);
        Ok(Self { scheme: Scheme::Int(IntScheme { bits: 4, group, symmetric, act_order: false, second: None }), group })
    }

    /// The scheme of the quantized modules.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }
}

/// Reads `qweight` i32 `[in, out/8]`, `qzeros` i32 `[groups, out/8]`, each word eight outputs in the order of [`ORDER`],
/// and `scales` `[groups, out]`: `W = (q − z) s`.
pub(super) fn read(config: &AwqConfig, m: Module<'_>) -> Result<Storage> {
    let [rows, cols] = m.shape;
    if !rows.is_multiple_of(8) {
        return Err(Error::input(format!("{rows} outputs do not fill AWQ's words")).tensor(&m.full_name("qweight")));
    }
    config.group.check(cols).map_err(|e| e.tensor(&m.full_name("scales")))?;
    let groups = cols / config.group.width(cols);
    let codes = ordered(&m.part_as("qweight", Dtype::I32, &[cols, rows / 8])?.bytes, cols, rows);
    let (scale, scales) = m.scales("scales", &[&[groups, rows]])?;
    let zeros = ordered(&m.part_as("qzeros", Dtype::I32, &[groups, rows / 8])?.bytes, groups, rows);
    let zeros = if zeros.iter().all(|z| *z == 8) { Zeros::Middle } else { Zeros::Codes(transposed(&zeros, rows)) };
    let grid = IntGrid { bits: 4, group: config.group, symmetric: zeros == Zeros::Middle, scale };
    IntCodes::new(rows, cols, grid, &transposed(&codes, rows), transposed(&scales, rows), zeros)
        .map(Storage::Int)
        .map_err(|e| e.tensor(&m.full_name("qweight")))
}

/// Codes `[lines, count]` of words `[lines, count/8]`.
fn ordered(words: &[u8], lines: usize, count: usize) -> Vec<u8> {
    let mut codes = unpack_rows(words, lines, count, 4);
    for eight in codes.as_chunks_mut::<8>().0 {
        let stored = *eight;
        for (code, column) in stored.into_iter().zip(ORDER) {
            eight[column] = code;
        }
    }
    codes
}

/// Words `[lines, count/8]` of codes `[lines, count]`: what [`ordered`] undoes.
fn interleaved(codes: &[u8], lines: usize, count: usize) -> Tensor {
    let mut stored = codes.to_vec();
    for (stored, eight) in stored.as_chunks_mut::<8>().0.iter_mut().zip(codes.as_chunks::<8>().0) {
        *stored = ORDER.map(|column| eight[column]);
    }
    words([lines, count / 8], pack_rows(&stored, count, 4))
}

/// AWQ's layout `gemm`: what vLLM, AutoAWQ and transformers load.
pub struct Awq;

impl Layout for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn can_hold_rows(&self, storage: &Storage, rows: usize) -> Result<(), String> {
        let codes = match storage {
            Storage::Dense(_) => return Ok(()),
            _ => integers::codes_of(storage)?,
        };
        let grid = codes.grid();
        if grid.bits != 4 {
            return Err(format!("codes have 4 bits, not {}", grid.bits));
        }
        if codes.group_index().is_some() {
            return Err("it has no groups whose columns lie apart (g_idx of an act order)".to_owned());
        }
        if rows.is_multiple_of(8) { Ok(()) } else { Err(format!("{rows} outputs do not fill its words of 8")) }
    }

    fn can_hold_together(&self, modules: &[(String, Option<Scheme>)]) -> Result<(), String> {
        // Zero points are always stored: whether they are all in the middle makes no difference.
        let groups = modules.iter().map(|(name, s)| match s {
            Some(Scheme::Int(s)) => (name, Some(s.group)),
            _ => (name, None),
        });
        the_one_of(groups, "groups").map(|_| ())
    }

    fn tensors(&self, module: &str, storage: &Storage) -> Result<Vec<(String, Tensor)>> {
        self.refuse_what_it_cannot_hold(module, storage)?;
        let named = |suffix: &str, tensor: Tensor| (format!("{module}.{suffix}"), tensor);
        let codes = match storage {
            Storage::Int(codes) => codes,
            Storage::Dense(tensor) => return Ok(vec![named("weight", tensor.clone())]),
            _ => return Err(Error::internal("what it cannot hold was refused before")),
        };
        let Integers { shape: [rows, cols], groups, codes, zeros, scale, scales, .. } = Integers::of(codes);
        Ok(vec![
            named("qweight", interleaved(&transposed(&codes, cols), cols, rows)),
            named("qzeros", interleaved(&transposed(&zeros, groups), groups, rows)),
            named("scales", Tensor::from_f32(scale.dtype(), &[groups, rows], &transposed(&scales, groups))?),
        ])
    }

    fn quantization_config(&self, modules: &[(String, Option<Scheme>)], _: Option<ActivationGrid>) -> Value {
        let group = modules.iter().find_map(|(_, s)| if let Some(Scheme::Int(s)) = s { Some(s.group) } else { None });
        let plain: Vec<&String> = modules.iter().filter(|(_, s)| s.is_none()).map(|(name, _)| name).collect();
        json!({
            "bits": 4,
            "group_size": group.map(group_size),
            "modules_to_not_convert": plain,
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": true,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::layout::{Quantization, read_linear};

    fn settings(v: &Value) -> Result<Quantization> {
        Quantization::parse(&json!({ "quantization_config": v }), None)
    }

    fn tensors() -> BTreeMap<String, Tensor> {
        // Eight outputs, two inputs: the second input's codes are the outputs' numbers.
        let words = |values: &[u32], shape: [usize; 2]| Tensor {
            dtype: Dtype::I32,
            shape: shape.to_vec(),
            bytes: values.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>().into(),
        };
        let scales = Tensor::from_f32(Dtype::F16, &[1, 8], &[0.5; 8]).unwrap();
        BTreeMap::from([
            ("m.qweight".to_owned(), words(&[0x3333_3333, 0x7531_6420], [2, 1])),
            ("m.qzeros".to_owned(), words(&[0x1111_1111], [1, 1])),
            ("m.scales".to_owned(), scales),
        ])
    }

    #[test]
    fn words_are_interleaved() {
        let q = settings(&json!({ "quant_method": "awq", "bits": 4, "group_size": -1, "version": "GEMM" })).unwrap();
        let mut values = [0.0; 16];
        read_linear(&q, &tensors(), "m", [8, 2]).unwrap().decode_rows(0..8, &mut values);
        for (r, pair) in values.chunks_exact(2).enumerate() {
            assert_eq!(pair, [1.0, 0.5 * (r as f32 - 1.0)]);
        }
    }

    #[test]
    fn other_layouts_are_refused() {
        let fails = |v: Value| settings(&v).unwrap_err().to_string();
        assert!(fails(json!({ "quant_method": "awq", "bits": 3 })).contains("with 3 bits, where 4 are read"));
        assert!(fails(json!({ "quant_method": "awq", "bits": 4, "version": "gemv" })).contains("layout `gemv`"));
        let q = settings(&json!({ "quant_method": "awq", "bits": 4, "group_size": -1 })).unwrap();
        let e = read_linear(&q, &tensors(), "m", [12, 2]).unwrap_err().to_string();
        assert!(e.starts_with("tensor `m.qweight`: 12 outputs do not fill"), "{e}");
    }
}
