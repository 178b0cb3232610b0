use fewbit_format::{Dtype, Error, Group, IntCodes, IntGrid, Result, Storage, Zeros};
use serde_json::Value;

use super::module::Module;
use super::scheme::{IntScheme, Scheme};
use super::words::{transposed, unpack_columns, unpack_rows, words_for};

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
        let has_overrides = v["dynamic"].as_object().is_some_and(|d| !d.is_empty());
        Ok(Self {
            scheme: Scheme::Int(IntScheme { bits, group, symmetric }),
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
        let mut group = if self.group == Group::Columns(cols) { Group::Row } else { self.group };
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
    if !m.has("g_idx") {
        return Ok(Storage::Int(codes));
    }
    let index = m.part_as("g_idx", Dtype::I32, &[cols])?.to_i32()?;
    let index = index.iter().map(|k| *k as u32).collect();
    codes.with_group_index(index).map(Storage::Int).map_err(|e| e.tensor(&m.full_name("g_idx")))
}

/// Zero points `[out, groups]`; they are `2^(bits−1)` in symmetric files, whose flag is not asked.
fn read_zeros(config: &GptqConfig, m: Module<'_>, bits: u8, groups: usize) -> Result<Zeros> {
    let rows = m.shape[0];
    let qzeros = m.part_as("qzeros", Dtype::I32, &[groups, words_for(rows, bits)])?;
    let mut zeros = unpack_rows(&qzeros.bytes, groups, rows, bits);
    if config.zeros_are_one_less {
        let most = u8::MAX >> (8 - bits);
        zeros.iter_mut().for_each(|z| *z = z.wrapping_add(1) & most);
    }
    if zeros.iter().all(|z| *z == 1 << (bits - 1)) {
        return Ok(Zeros::Middle);
    }
    Ok(Zeros::Codes(transposed(&zeros, rows)))
}
