use std::collections::BTreeMap;

use fewbit_format::{
    Dtype, Error, FloatCodes, FloatGrid, Group, IntCodes, IntGrid, Minifloat, Result, ScaleType, Storage, Zeros,
};
use serde_json::Value;

use super::module::Module;
use super::scheme::{FloatScheme, IntScheme, ScaleKind, Scheme};
use super::words::{unpack_rows, words_for};

/// The tensors that belong to a quantized weight.
pub(super) const PARTS: &[&str] = &["scales", "biases"];

/// MLX's settings, from `quantization` in config.json: those of most modules, and of those with other ones.
#[derive(Clone, Debug, PartialEq)]
pub struct MlxConfig {
    scheme: Scheme,
    of_modules: BTreeMap<String, Scheme>,
}

impl MlxConfig {
    pub(super) fn parse(v: &Value) -> Result<Self> {
        let mut of_modules = BTreeMap::new();
        for (name, settings) in v.as_object().into_iter().flatten().filter(|(_, v)| v.is_object()) {
            of_modules.insert(name.clone(), scheme(settings).map_err(|e| e.place(format!("`{name}`")))?);
        }
        Ok(Self { scheme: scheme(v)?, of_modules })
    }

    /// The scheme of a quantized module.
    pub fn scheme_of(&self, module: &str) -> &Scheme {
        self.of_modules.get(module).unwrap_or(&self.scheme)
    }
}

/// What one set of settings means.
fn scheme(v: &Value) -> Result<Scheme> {
    let bits = v["bits"].as_u64().unwrap_or_default();
    let size = v["group_size"].as_u64().filter(|g| *g > 0).and_then(|g| usize::try_from(g).ok());
    let group = size.map(Group::Columns).ok_or_else(|| Error::input("has no `group_size`"))?;
    let float = |element, scale| Ok(Scheme::Float(FloatScheme { element, group, scale }));
    match (v["mode"].as_str().unwrap_or("affine"), bits) {
        ("affine", 2..=6 | 8) => {
            Ok(Scheme::Int(IntScheme { bits: bits as u8, group, symmetric: false, act_order: false, second: None }))
        }
        ("mxfp4", _) => float(Minifloat::E2M1, ScaleKind::PowerOfTwo),
        ("mxfp8", _) => float(Minifloat::E4M3, ScaleKind::PowerOfTwo),
        (mode, bits) => Err(Error::input(format!(
            "has {bits} bits in the mode `{mode}`, where affine codes of 2 to 6 and 8 bits, mxfp4 and mxfp8 are read"
        ))),
    }
}

/// Reads `weight` U32 `[out, in·bits/32]`, each row a little-endian stream of codes, with `scales` `[out, groups]` and, for
/// integers, `biases` `[out, groups]`: `W = scale · q + bias`. Small floats have a power of two of one byte as scale.
pub(super) fn read(config: &MlxConfig, m: Module<'_>) -> Result<Storage> {
    let [rows, cols] = m.shape;
    let (bits, group) = match config.scheme_of(m.name) {
        Scheme::Float(s) => (s.element.bits(), s.group),
        Scheme::Int(s) => (s.bits, s.group),
        _ => return Err(Error::internal("a scheme that MLX has not")),
    };
    group.check(cols).map_err(|e| e.tensor(&m.full_name("scales")))?;
    let words = words_for(cols, bits);
    if 32 * words != cols * usize::from(bits) {
        let e = Error::input(format!("{bits} bit codes of rows of {cols} do not fill MLX's words"));
        return Err(e.tensor(&m.full_name("weight")));
    }
    let bytes = m.part_as("weight", Dtype::U32, &[rows, words])?.bytes;
    let shape = [rows, group.per_row(cols)];
    let storage = if let Scheme::Float(scheme) = config.scheme_of(m.name) {
        let (scale, scales) = m.stored_scales("scales", &[&shape])?;
        let grid = FloatGrid { element: scheme.element, group, scale };
        FloatCodes::new(rows, cols, grid, bytes, scales, None).map(Storage::Float)
    } else {
        let (scale, scales) = m.scales("scales", &[&shape])?;
        let (offset, offsets) = m.scales("biases", &[&shape])?;
        // One type holds both.
        let scale = if offset == scale { scale } else { ScaleType::F32 };
        let grid = IntGrid { bits, group, symmetric: false, scale };
        let codes = unpack_rows(&bytes, rows, cols, bits);
        IntCodes::new(rows, cols, grid, &codes, scales, Zeros::Offsets(offsets.into())).map(Storage::Int)
    };
    storage.map_err(|e| e.tensor(&m.full_name("weight")))
}
