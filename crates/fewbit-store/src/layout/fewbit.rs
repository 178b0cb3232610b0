use std::collections::BTreeMap;
use std::ops::Range;

use fewbit_format::{
    Band, Dtype, Error, Group, IntCodes, IntGrid, Result, Storage, Tensor, Zeros, pack_bits, packed_len, unpack_bits,
};
use serde_json::{Map, Value, json};

use super::Layout;
use super::module::{Module, scale_dtype};
use super::scheme::{IntScheme, Scheme};

/// The version of the layout that is written and read.
const VERSION: u64 = 1;

/// The tensors of one band, of which some may be absent.
const PARTS: &[&str] = &["codes", "scales", "zeros", "offsets", "group_index"];

/// Settings of `"quant_method": "fewbit"`: a scheme for all quantized modules, and those that differ.
#[derive(Clone, Debug, PartialEq)]
pub struct FewbitConfig {
    default: Option<Scheme>,
    modules: BTreeMap<String, Scheme>,
}

impl FewbitConfig {
    pub(super) fn parse(v: &Value) -> Result<Self> {
        if v["version"].as_u64() != Some(VERSION) {
            return Err(Error::input(format!(
                "the `fewbit` layout has version {}, where {VERSION} is read",
                v["version"]
            ))
            .hint("use a newer release of this program"));
        }
        let default = match &v["default"] {
            Value::Null => None,
            scheme => Some(Scheme::Int(IntScheme::from_json(scheme)?)),
        };
        let modules = match &v["modules"] {
            Value::Null => BTreeMap::new(),
            Value::Object(modules) => modules
                .iter()
                .map(|(name, s)| Ok((name.clone(), scheme(s).map_err(|e| e.place(format!("`{name}`")))?)))
                .collect::<Result<_>>()?,
            _ => return Err(Error::input("`modules` is not an object")),
        };
        Ok(Self { default, modules })
    }

    /// The scheme that the settings give to a module, if it is quantized.
    pub fn scheme_of(&self, module: &str) -> Option<&Scheme> {
        self.modules.get(module).or(self.default.as_ref())
    }

    /// The schemes in one line.
    pub(super) fn summary(&self) -> String {
        let mut each: Vec<String> = self.default.iter().chain(self.modules.values()).map(Scheme::to_string).collect();
        each.sort();
        each.dedup();
        each.join("; ")
    }
}

/// One scheme, or a list of bands with their rows.
fn scheme(v: &Value) -> Result<Scheme> {
    let Value::Array(bands) = v else { return IntScheme::from_json(v).map(Scheme::Int) };
    let band = |b: &Value| {
        let rows = b["rows"].as_u64().filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok());
        Ok((
            rows.ok_or_else(|| Error::input(format!("the band {b} has no number of `rows`")))?,
            IntScheme::from_json(b)?,
        ))
    };
    bands.iter().map(band).collect::<Result<_>>().map(Scheme::Bands)
}

/// All tensor names that a module's weight may have.
pub(super) fn names(config: &FewbitConfig, module: &str) -> Vec<String> {
    let mut names = vec![format!("{module}.weight")];
    let bands = match config.scheme_of(module) {
        Some(Scheme::Bands(bands)) => (0..bands.len()).map(|i| format!(".{i}")).collect(),
        _ => vec![String::new()],
    };
    for band in bands {
        names.extend(PARTS.iter().map(|part| format!("{module}.weight.{part}{band}")));
    }
    names
}

/// Reads a module whose codes are there.
pub(super) fn read(config: &FewbitConfig, m: Module<'_>) -> Result<Vec<Band>> {
    let [rows, cols] = m.shape;
    match config.scheme_of(m.name) {
        Some(Scheme::Int(scheme)) => {
            Ok(vec![Band { rows: 0..rows, storage: Storage::Int(read_band(*scheme, m, 0..rows, "")?) }])
        }
        Some(Scheme::Bands(schemes)) => {
            let mut bands = Vec::with_capacity(schemes.len());
            let mut first = 0usize;
            for (i, (count, scheme)) in schemes.iter().enumerate() {
                let last =
                    first.checked_add(*count).filter(|last| *last <= rows).ok_or_else(|| bands_differ(m, schemes))?;
                let codes = read_band(*scheme, Module { shape: [*count, cols], ..m }, first..last, &format!(".{i}"))?;
                bands.push(Band { rows: first..last, storage: Storage::Int(codes) });
                first = last;
            }
            if first == rows { Ok(bands) } else { Err(bands_differ(m, schemes)) }
        }
        None => Err(Error::input(format!("`{}` has codes, but the settings give it no scheme", m.name))
            .hint("mend `default` or `modules` in the `quantization_config` of config.json")),
    }
}

fn bands_differ(m: Module<'_>, schemes: &[(usize, IntScheme)]) -> Error {
    let rows: Vec<usize> = schemes.iter().map(|(rows, _)| *rows).collect();
    Error::input(format!("bands of {rows:?} rows in the settings, where the config asks for {} rows", m.shape[0]))
        .tensor(&m.full_name("weight"))
}

fn read_band(scheme: IntScheme, m: Module<'_>, rows: Range<usize>, band: &str) -> Result<IntCodes> {
    let IntScheme { bits, group, .. } = scheme;
    let (rows, cols) = (rows.len(), m.shape[1]);
    let part = |name: &str| format!("weight.{name}{band}");
    group.check(cols).map_err(|e| e.tensor(&m.full_name(&part("codes"))))?;
    let row_bytes = packed_len(cols, bits);
    let packed = m.part_as(&part("codes"), Dtype::U8, &[rows, row_bytes])?;
    let mut codes = vec![0; rows * cols];
    for (row, out) in packed.bytes.chunks_exact(row_bytes).zip(codes.chunks_exact_mut(cols)) {
        unpack_bits(row, bits, out);
    }
    let shape = scale_shape(group, rows, cols);
    let (scale, scales) = m.scales(&part("scales"), &[&shape])?;
    let zeros = if m.has(&part("zeros")) {
        let packed = m.part_as(&part("zeros"), Dtype::U8, &[packed_len(scales.len(), bits)])?;
        let mut zeros = vec![0; scales.len()];
        unpack_bits(&packed.bytes, bits, &mut zeros);
        Zeros::Codes(zeros)
    } else if m.has(&part("offsets")) {
        Zeros::Offsets(m.scales(&part("offsets"), &[&shape])?.1)
    } else if scheme.symmetric {
        Zeros::Middle
    } else {
        return Err(Error::input("is missing, and so are offsets, but the scheme is asymmetric")
            .tensor(&m.full_name(&part("zeros"))));
    };
    let grid = IntGrid { bits, group, symmetric: zeros == Zeros::Middle, scale };
    let codes =
        IntCodes::new(rows, cols, grid, &codes, scales, zeros).map_err(|e| e.tensor(&m.full_name(&part("codes"))))?;
    if !m.has(&part("group_index")) {
        return Ok(codes);
    }
    let index = m.part_as(&part("group_index"), Dtype::I32, &[cols])?.to_i32()?;
    let index = index.iter().map(|k| *k as u32).collect();
    codes.with_group_index(index).map_err(|e| e.tensor(&m.full_name(&part("group_index"))))
}

fn scale_shape(group: Group, rows: usize, cols: usize) -> Vec<usize> {
    match group {
        Group::Tensor => vec![1],
        _ => vec![rows, cols / group.width(cols)],
    }
}

/// Our own layout, for what no established one holds: any width, F32 scales, real offsets, reordered groups, bands.
///
/// `docs/format.md` has every byte.
pub struct Fewbit;

impl Fewbit {
    fn band(module: &str, codes: &IntCodes, suffix: &str) -> Result<Vec<(String, Tensor)>> {
        let [rows, cols] = codes.shape();
        let IntGrid { bits, group, scale, .. } = codes.grid();
        let named = |part: &str, tensor: Tensor| (format!("{module}.weight.{part}{suffix}"), tensor);
        let bytes = |shape: Vec<usize>, bytes: Vec<u8>| Tensor { dtype: Dtype::U8, shape, bytes: bytes.into() };
        let row_bytes = packed_len(cols, bits);
        let mut packed = vec![0; rows * row_bytes];
        let mut row = vec![0; cols];
        for (r, out) in packed.chunks_exact_mut(row_bytes).enumerate() {
            codes.row_codes(r, &mut row);
            pack_bits(&row, bits, out);
        }
        let shape = scale_shape(group, rows, cols);
        let mut tensors = vec![
            named("codes", bytes(vec![rows, row_bytes], packed)),
            named("scales", Tensor::from_f32(scale_dtype(scale), &shape, codes.scales())?),
        ];
        match codes.zeros() {
            Zeros::Middle => {}
            Zeros::Codes(zeros) => {
                let mut packed = vec![0; packed_len(zeros.len(), bits)];
                pack_bits(zeros, bits, &mut packed);
                tensors.push(named("zeros", bytes(vec![packed.len()], packed)));
            }
            Zeros::Offsets(offsets) => {
                tensors.push(named("offsets", Tensor::from_f32(scale_dtype(scale), &shape, offsets)?));
            }
        }
        if let Some(index) = codes.group_index() {
            let index: Vec<i32> = index.iter().map(|k| *k as i32).collect();
            tensors.push(named("group_index", Tensor::from_i32(&[cols], &index)));
        }
        Ok(tensors)
    }
}

impl Layout for Fewbit {
    fn name(&self) -> &'static str {
        "fewbit"
    }

    fn can_hold(&self, storage: &Storage) -> Result<(), String> {
        match storage {
            Storage::Dense(_) | Storage::Int(_) => Ok(()),
            Storage::Ggml(_) => Err("the `fewbit` layout does not hold blocks of ggml".to_owned()),
        }
    }

    fn tensors(&self, module: &str, storage: &Storage) -> Result<Vec<(String, Tensor)>> {
        match storage {
            Storage::Dense(tensor) => Ok(vec![(format!("{module}.weight"), tensor.clone())]),
            Storage::Int(codes) => Self::band(module, codes, ""),
            Storage::Ggml(_) => {
                Err(Error::input(format!("`{module}`: the `fewbit` layout does not hold blocks of ggml"))
                    .hint("write it with `--format gguf`"))
            }
        }
    }

    fn band_tensors(&self, module: &str, bands: &[Band]) -> Result<Vec<(String, Tensor)>> {
        if let [band] = bands {
            return self.tensors(module, &band.storage);
        }
        let mut tensors = Vec::new();
        for (i, band) in bands.iter().enumerate() {
            let Storage::Int(codes) = &band.storage else {
                return Err(Error::input(format!(
                    "band {i} of `{module}` is not integer codes, which the `fewbit` layout needs"
                )));
            };
            tensors.extend(Self::band(module, codes, &format!(".{i}"))?);
        }
        Ok(tensors)
    }

    /// The commonest scheme is the default; modules with another are named.
    fn quantization_config(&self, modules: &[(String, Option<Scheme>)]) -> Value {
        let mut counts: Vec<(IntScheme, usize)> = Vec::new();
        for (_, scheme) in modules {
            if let Some(Scheme::Int(s)) = scheme {
                match counts.iter_mut().find(|(known, _)| known == s) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((*s, 1)),
                }
            }
        }
        let most = counts.iter().map(|(_, n)| *n).max();
        let default = counts.iter().find(|(_, n)| Some(*n) == most).map(|(s, _)| *s);
        let mut others = Map::new();
        for (name, scheme) in modules {
            match scheme {
                Some(Scheme::Int(s)) if Some(*s) != default => {
                    others.insert(name.clone(), s.to_json());
                }
                Some(Scheme::Bands(bands)) => {
                    let with_rows = |(rows, s): &(usize, IntScheme)| {
                        let mut band = s.to_json();
                        band["rows"] = json!(rows);
                        band
                    };
                    others.insert(name.clone(), bands.iter().map(with_rows).collect());
                }
                _ => {}
            }
        }
        json!({
            "quant_method": "fewbit",
            "version": VERSION,
            "default": default.map(IntScheme::to_json),
            "modules": others,
        })
    }
}
