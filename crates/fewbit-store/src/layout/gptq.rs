use fewbit_format::{ActivationGrid, Dtype, Error, Group, IntCodes, IntGrid, Result, Storage, Tensor, Zeros};
use serde_json::{Map, Value, json};

use super::Layout;
use super::integers::{self, Integers};
use super::module::Module;
use super::scheme::{IntScheme, Scheme};
use super::words::{pack_columns, pack_rows, transposed, unpack_columns, unpack_rows, words, words_for};

/// The tensors that belong to a quantized weight.
pub(super) const PARTS: &[&str] = &["qweight", "qzeros", "scales", "g_idx"];

/// GPTQ's settings, from config.json or quantize_config.json.
#[derive(Clone, Debug, PartialEq)]
pub struct GptqConfig {
    scheme: Scheme,
    bits: u8,
    group: Group,
    /// Version 1 stores `zero point − 1`, modulo `2^bits`.
    zeros_are_one_less: bool,
    /// `dynamic` gives some modules other settings; then the tensors' sizes tell.
    has_overrides: bool,
}

impl GptqConfig {
    pub(super) fn parse(v: &Value) -> Result<Self> {
        let bits = v["bits"]
            .as_u64()
            .filter(|b| [2, 3, 4, 8].contains(b))
            .ok_or_else(|| Error::input(format!("GPTQ with `bits` {}, where 2, 3, 4 and 8 are read", v["bits"])))?
            as u8;
        let group = match v["group_size"].as_i64() {
            Some(g) if g > 0 => Group::Columns(g as usize),
            Some(-1) => Group::Row,
            None if v["group_size"].is_null() => Group::Row,
            _ => {
                return Err(Error::input(format!(
                    "GPTQ with `group_size` {}, where a positive number or -1 is needed",
                    v["group_size"]
                )));
            }
        };
        let format = v["checkpoint_format"].as_str().or(v["format"].as_str()).unwrap_or("gptq");
        let zeros_are_one_less = match format {
            "gptq" => true,
            "gptq_v2" => false,
            _ => {
                return Err(Error::input(format!(
                    "GPTQ in the format `{format}`, where `gptq` and `gptq_v2` are read"
                ))
                .hint("convert it with the program that made it"));
            }
        };
        if v["pack_dtype"].as_str().is_some_and(|t| t != "int32") {
            return Err(Error::input(format!("GPTQ with `pack_dtype` {}, where int32 is read", v["pack_dtype"])));
        }
        let symmetric = v["sym"].as_bool().unwrap_or(true);
        let act_order = v["desc_act"].as_bool().unwrap_or(false);
        let has_overrides = v["dynamic"].as_object().is_some_and(|d| !d.is_empty());
        Ok(Self {
            scheme: Scheme::Int(IntScheme { bits, group, symmetric, act_order, second: None }),
            bits,
            group,
            zeros_are_one_less,
            has_overrides,
        })
    }

    /// The scheme of the quantized modules.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// Bits and group of one module, from the settings, or from the sizes where the settings have exceptions.
    fn sizes(&self, m: Module<'_>) -> Result<(u8, Group)> {
        let [rows, cols] = m.shape;
        let mut bits = self.bits;
        let mut group = self.group;
        if self.has_overrides {
            let words = m.part("qweight")?.shape.first().copied().unwrap_or(0);
            bits = [2, 3, 4, 8].into_iter().find(|b| words_for(cols, *b) == words).unwrap_or(bits);
            let groups = m.part("scales")?.shape.first().copied().unwrap_or(1).max(1);
            group = if groups == 1 { Group::Row } else { Group::Columns(cols / groups) };
        } else if let Group::Columns(g) = group
            && g > cols
        {
            group = Group::Row;
        }
        if cols * usize::from(bits) % 32 != 0 || rows * usize::from(bits) % 32 != 0 {
            return Err(Error::input(format!("{bits} bit codes of shape {:?} do not fill GPTQ's words", m.shape))
                .tensor(&m.full_name("qweight")));
        }
        group.check(cols).map_err(|e| e.tensor(&m.full_name("scales")))?;
        Ok((bits, group))
    }
}

/// Reads `qweight` i32 `[in·bits/32, out]` (each column a bit stream along the inputs), `qzeros` i32
/// `[groups, out·bits/32]` (each row a stream along the outputs), `scales` `[groups, out]`, and `g_idx` i32 `[in]`, which
/// decides, whatever `desc_act` says.
pub(super) fn read(config: &GptqConfig, m: Module<'_>) -> Result<Storage> {
    let [rows, cols] = m.shape;
    let (bits, group) = config.sizes(m)?;
    let groups = cols / group.width(cols);
    let qweight = m.part_as("qweight", Dtype::I32, &[words_for(cols, bits), rows])?;
    let (scale, scales) = m.scales("scales", &[&[groups, rows]])?;
    let codes = unpack_columns(&qweight.bytes, rows, cols, bits);
    let zeros = read_zeros(config, m, bits, groups)?;
    let grid = IntGrid { bits, group, symmetric: zeros == Zeros::Middle, scale };
    let codes = IntCodes::new(rows, cols, grid, &codes, transposed(&scales, rows), zeros)
        .map_err(|e| e.tensor(&m.full_name("qweight")))?;
    m.grouped_by("g_idx", codes).map(Storage::Int)
}

/// Zero points `[out, groups]`; they are `2^(bits−1)` in symmetric files, whose flag is not asked.
fn read_zeros(config: &GptqConfig, m: Module<'_>, bits: u8, groups: usize) -> Result<Zeros> {
    let rows = m.shape[0];
    let qzeros = m.part_as("qzeros", Dtype::I32, &[groups, words_for(rows, bits)])?;
    let mut zeros = unpack_rows(&qzeros.bytes, groups, rows, bits);
    if config.zeros_are_one_less {
        let most = u8::MAX >> (8 - bits);
        for z in &mut zeros {
            *z = z.wrapping_add(1) & most;
        }
    }
    if zeros.iter().all(|z| *z == 1 << (bits - 1)) {
        return Ok(Zeros::Middle);
    }
    Ok(Zeros::Codes(transposed(&zeros, rows)))
}

/// GPTQ's layout: what vLLM, GPTQModel and transformers load, act orders (`g_idx`) included.
///
/// Version 1 stores `zero point − 1`; readers do not agree on what becomes of zero point 0 there, so that it is written for
/// symmetric codes alone. Version 2 stores zero points as they are.
pub struct Gptq {
    /// Whether version 2 is written.
    pub is_v2: bool,
}

impl Layout for Gptq {
    fn name(&self) -> &'static str {
        if self.is_v2 { "gptq_v2" } else { "gptq" }
    }

    fn can_hold_rows(&self, storage: &Storage, rows: usize) -> Result<(), String> {
        let codes = match storage {
            Storage::Dense(_) => return Ok(()),
            _ => integers::codes_of(storage)?,
        };
        let (grid, [_, cols]) = (codes.grid(), codes.shape());
        if ![2, 3, 4, 8].contains(&grid.bits) {
            return Err(format!("codes have 2, 3, 4 or 8 bits, not {}", grid.bits));
        }
        if !self.is_v2 && !grid.symmetric {
            return Err("version 1 has no zero points that all readers agree on; `--format gptq_v2` has".to_owned());
        }
        let fills = |n: usize| (n * usize::from(grid.bits)).is_multiple_of(32);
        if fills(cols) && fills(rows) {
            return Ok(());
        }
        Err(format!("codes of {} bits of shape [{rows}, {cols}] do not fill words of 32 bits", grid.bits))
    }

    fn tensors(&self, module: &str, storage: &Storage) -> Result<Vec<(String, Tensor)>> {
        self.refuse_what_it_cannot_hold(module, storage)?;
        let named = |suffix: &str, tensor: Tensor| (format!("{module}.{suffix}"), tensor);
        let codes = match storage {
            Storage::Int(codes) => codes,
            Storage::Dense(tensor) => return Ok(vec![named("weight", tensor.clone())]),
            _ => return Err(Error::internal("what it cannot hold was refused before")),
        };
        let Integers { shape: [rows, cols], bits, groups, codes, mut zeros, scale, scales, index } =
            Integers::of(codes);
        if !self.is_v2 {
            zeros.iter_mut().for_each(|z| *z -= 1);
        }
        Ok(vec![
            named("qweight", words([words_for(cols, bits), rows], pack_columns(&codes, cols, bits))),
            named("qzeros", words([groups, words_for(rows, bits)], pack_rows(&transposed(&zeros, groups), rows, bits))),
            named("scales", Tensor::from_f32(scale.dtype(), &[groups, rows], &transposed(&scales, groups))?),
            named("g_idx", Tensor::from_i32(&[cols], &index)),
        ])
    }

    /// Settings of the most common scheme; modules with another one, or with none, are exceptions (`dynamic`).
    fn quantization_config(&self, modules: &[(String, Option<Scheme>)], _: Option<ActivationGrid>) -> Value {
        // Whose columns lie apart is each module's `g_idx`; the setting says that readers have to look there.
        let of = |scheme: &Option<Scheme>| match scheme {
            Some(Scheme::Int(scheme)) => Some(IntScheme { act_order: false, ..*scheme }),
            _ => None,
        };
        let is_ordered = |(_, s): &(String, Option<Scheme>)| matches!(s, Some(Scheme::Int(s)) if s.act_order);
        let schemes: Vec<IntScheme> = modules.iter().filter_map(|(_, s)| of(s)).collect();
        let count = |s: &IntScheme| schemes.iter().filter(|other| *other == s).count();
        // The first of the most common ones.
        let Some(common) = schemes.iter().rev().max_by_key(|s| count(s)).copied() else { return json!(null) };
        let mut dynamic = Map::new();
        for (name, scheme) in modules.iter().filter(|(name, _)| name != "lm_head" || schemes.len() == modules.len()) {
            let pattern = format!("^{}$", name.replace('.', "\\."));
            match of(scheme) {
                None => drop(dynamic.insert(format!("-:{pattern}"), json!({}))),
                Some(s) if s != common => {
                    let settings = json!({ "bits": s.bits, "group_size": group_size(s.group), "sym": s.symmetric });
                    dynamic.insert(format!("+:{pattern}"), settings);
                }
                Some(_) => {}
            }
        }
        json!({
            "bits": common.bits,
            "checkpoint_format": self.name(),
            "desc_act": modules.iter().any(is_ordered),
            "dynamic": dynamic,
            "group_size": group_size(common.group),
            "lm_head": modules.iter().any(|(name, s)| name == "lm_head" && s.is_some()),
            "pack_dtype": "int32",
            "quant_method": "gptq",
            "sym": common.symmetric,
        })
    }
}

/// Columns of a group as GPTQ and AWQ say it: a row is −1.
pub(super) fn group_size(group: Group) -> i64 {
    if let Group::Columns(g) = group { g as i64 } else { -1 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use half::f16;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::layout::words::{pack_columns, pack_rows};
    use crate::layout::{Quantization, read_linear};

    /// Codes `[out, in]`, zero points `[out, groups]`, scales `[out, groups]` as GPTQ's tensors of module `m`.
    struct Case {
        shape: [usize; 2],
        bits: u8,
        codes: Vec<u8>,
        zeros: Vec<u8>,
        scales: Vec<f32>,
        index: Vec<i32>,
    }

    impl Case {
        fn new(bits: u8, shape: [usize; 2], groups: usize, seed: u64) -> Self {
            let [rows, cols] = shape;
            let noise = |i: usize| (seed ^ i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
            let code = |i: usize| (noise(i) & ((1 << bits) - 1)) as u8;
            Self {
                shape,
                bits,
                codes: (0..rows * cols).map(code).collect(),
                zeros: (0..rows * groups).map(|i| code(i + 7_000)).collect(),
                scales: (0..rows * groups).map(|i| f16::from_f32(noise(i) as f32 * 1e-9 + 1e-3).to_f32()).collect(),
                index: (0..cols).map(|c| (noise(c + 9_000) as usize % groups) as i32).collect(),
            }
        }

        fn tensors(&self, one_less: bool) -> BTreeMap<String, Tensor> {
            let [rows, cols] = self.shape;
            let groups = self.zeros.len() / rows;
            let words = |shape: [usize; 2], bytes: Vec<u8>| Tensor {
                dtype: Dtype::I32,
                shape: shape.to_vec(),
                bytes: bytes.into(),
            };
            let most = u8::MAX >> (8 - self.bits);
            let stored: Vec<u8> = self.zeros.iter().map(|z| z.wrapping_sub(u8::from(one_less)) & most).collect();
            let scales = Tensor::from_f32(Dtype::F16, &[groups, rows], &transposed(&self.scales, groups)).unwrap();
            BTreeMap::from([
                (
                    "m.qweight".to_owned(),
                    words([words_for(cols, self.bits), rows], pack_columns(&self.codes, cols, self.bits)),
                ),
                (
                    "m.qzeros".to_owned(),
                    words(
                        [groups, words_for(rows, self.bits)],
                        pack_rows(&transposed(&stored, groups), rows, self.bits),
                    ),
                ),
                ("m.scales".to_owned(), scales),
                ("m.g_idx".to_owned(), Tensor::from_i32(&[cols], &self.index)),
            ])
        }

        fn value(&self, r: usize, c: usize) -> f32 {
            let groups = self.zeros.len() / self.shape[0];
            let at = r * groups + self.index[c] as usize;
            self.scales[at] * (f32::from(self.codes[r * self.shape[1] + c]) - f32::from(self.zeros[at]))
        }
    }

    fn settings(bits: u8, group: i64, v2: bool) -> Quantization {
        let format = if v2 { "gptq_v2" } else { "gptq" };
        let gptq = json!({ "bits": bits, "group_size": group, "desc_act": false, "checkpoint_format": format });
        Quantization::parse(&json!({}), Some(&gptq)).unwrap()
    }

    fn check(case: &Case, q: &Quantization, tensors: &BTreeMap<String, Tensor>) {
        let [rows, cols] = case.shape;
        let mut values = vec![0.0; rows * cols];
        read_linear(q, tensors, "m", case.shape).unwrap().decode_rows(0..rows, &mut values);
        for (i, v) in values.iter().enumerate() {
            assert_eq!(*v, case.value(i / cols, i % cols), "element {i}");
        }
    }

    proptest! {
        #[test]
        fn the_file_decides(bits in prop::sample::select(vec![2u8, 3, 4, 8]), groups in 1usize..4, v2: bool, seed: u64) {
            let case = Case::new(bits, [64, 32 * groups], groups, seed);
            let group = if groups == 1 { -1 } else { 32 };
            check(&case, &settings(bits, group, v2), &case.tensors(!v2));
        }
    }

    #[test]
    fn exceptions_in_the_settings_are_found_in_the_sizes() {
        let case = Case::new(8, [32, 64], 2, 5);
        let gptq =
            json!({ "quant_method": "gptq", "bits": 4, "group_size": 16, "dynamic": { "+:.*m": { "bits": 8 } } });
        let q = Quantization::parse(&json!({ "quantization_config": gptq }), None).unwrap();
        check(&case, &q, &case.tensors(true));
    }

    #[test]
    fn contradictions_name_the_tensor() {
        let case = Case::new(4, [32, 64], 2, 5);
        let tensors = case.tensors(true);
        let fails =
            |q: &Quantization, t: &BTreeMap<String, Tensor>| read_linear(q, t, "m", [32, 64]).unwrap_err().to_string();
        assert_eq!(
            fails(&settings(8, 32, false), &tensors),
            "tensor `m.qweight`: is I32 [8, 32], where I32 [16, 32] is needed"
        );
        assert_eq!(
            fails(&settings(4, 16, false), &tensors),
            "tensor `m.scales`: has shape [2, 32], where [4, 32] is needed"
        );
        assert!(
            fails(&settings(4, 48, false), &tensors)
                .starts_with("tensor `m.scales`: group size 48 does not divide rows of 64")
        );
        let mut without = tensors.clone();
        without.remove("m.qzeros");
        assert_eq!(fails(&settings(4, 32, false), &without), "tensor `m.qzeros`: is not in the checkpoint");
        for index in [-1, 2] {
            let mut odd = tensors.clone();
            odd.insert("m.g_idx".to_owned(), Tensor::from_i32(&[64], &[index; 64]));
            assert!(fails(&settings(4, 32, false), &odd).starts_with("tensor `m.g_idx`: "));
        }
        let mut infinite = tensors;
        infinite.insert("m.scales".to_owned(), Tensor::from_f32(Dtype::F16, &[2, 32], &[f32::INFINITY; 64]).unwrap());
        assert_eq!(
            fails(&settings(4, 32, false), &infinite),
            "tensor `m.scales`: holds inf at position 0, where a scale is needed"
        );
    }
}
