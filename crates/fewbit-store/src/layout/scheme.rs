use std::fmt;

use fewbit_format::{
    ActivationGrid, Band, Blocks, Error, FloatCodes, GgmlType, Group, IntCodes, Levels, Minifloat, Nested, Numbers,
    Result, ScaleType, SecondStage, Signs, Storage, TrellisCode, VectorGrid, Zeros,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::input;

/// How a weight is stored, as far as settings say it (the type of the scales is the tensors' matter).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "Value", try_from = "Value")]
pub enum Scheme {
    /// Integer codes of one kind.
    Int(IntScheme),
    /// Codes into tables of numbers.
    Table(TableScheme),
    /// Codes of sums of few numbers.
    Signs(SignScheme),
    /// Codes into the lattice E8.
    Lattice(LatticeScheme),
    /// Codes into codebooks of vectors.
    Vector(VectorGrid),
    /// Paths through a trellis.
    Trellis(TrellisScheme),
    /// Small floats.
    Float(FloatScheme),
    /// Blocks of a type of ggml.
    Ggml(GgmlType),
    /// Two weights in every four columns: how these are stored, `None` for plain floats.
    TwoOfFour(Option<Box<Self>>),
    /// Bands of rows: the number of rows of each, and its codes.
    Bands(Vec<(usize, IntScheme)>),
    /// One of these, with an input that is rounded while the model runs.
    Rounded(Box<Self>, ActivationGrid),
}

/// Integer codes with scales per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IntScheme {
    /// Bits of a code.
    pub bits: u8,
    /// Which weights share a scale.
    pub group: Group,
    /// Whether the zero point is `2^(bits−1)` and not stored.
    pub symmetric: bool,
    /// Whether the columns of a group lie apart, and each says which group it is in (GPTQ's `g_idx`).
    pub act_order: bool,
    /// How scales, and offsets or real zero points, are stored as codes of a second level, if they are.
    pub second: Option<SecondLevel>,
}

/// Codes of a second level in the place of scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SecondLevel {
    /// Bits of a code.
    pub bits: u8,
    /// What a code stands for.
    pub levels: Levels,
    /// Which of them share parameters.
    pub blocks: Blocks,
}

impl SecondLevel {
    fn of(numbers: &Numbers) -> Option<Self> {
        numbers.nested().map(Nested::grid).map(|g| Self { bits: g.bits, levels: g.levels, blocks: g.blocks })
    }

    fn to_json(self) -> Value {
        let (key, size) = match self.blocks {
            Blocks::Rows(height) => ("rows", height),
            Blocks::Flat(len) => ("flat", len),
        };
        match self.levels {
            Levels::Codes => json!({ "bits": self.bits, key: size }),
            Levels::Dynamic => json!({ "bits": self.bits, key: size, "map": "dynamic" }),
        }
    }

    /// The second level of a scheme `v`, if it has one.
    fn from_json(v: &Value) -> Result<Option<Self>> {
        let v = &v["second"];
        if v.is_null() {
            return Ok(None);
        }
        let size = |key: &str| v[key].as_u64().filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok());
        let blocks = size("rows").map(Blocks::Rows).or(size("flat").map(Blocks::Flat));
        let levels = match &v["map"] {
            Value::Null => Some(Levels::Codes),
            map => (map == "dynamic" && v["bits"] == 8).then_some(Levels::Dynamic),
        };
        match (bits_of(v), blocks, levels) {
            (Some(bits), Some(blocks), Some(levels)) => Ok(Some(Self { bits, levels, blocks })),
            _ => Err(Error::input(format!(
                "the second level {v} does not have `bits` from 1 to 8, `rows` or `flat`, and no `map` but `dynamic` of 8"
            ))),
        }
    }
}

/// Codes into tables, with scales per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableScheme {
    /// Bits of a code.
    pub bits: u8,
    /// Which weights share a scale.
    pub group: Group,
    /// How scales are stored as codes of a second level, if they are.
    pub second: Option<SecondLevel>,
}

/// Codes of sums of few numbers of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SignScheme {
    /// Which sums.
    pub signs: Signs,
    /// Which weights share numbers.
    pub group: Group,
}

impl SignScheme {
    fn to_json(self) -> Value {
        let group = group_json(self.group);
        match self.signs {
            Signs::Planes { count, has_offset } => json!({ "signs": count, "offset": has_offset, "group": group }),
            Signs::Ternary => json!({ "signs": "ternary", "group": group }),
            Signs::Range => json!({ "signs": "range", "group": group }),
        }
    }

    fn from_json(v: &Value) -> Result<Self> {
        let signs = match &v["signs"] {
            Value::String(s) if s == "ternary" => Some(Signs::Ternary),
            Value::String(s) if s == "range" => Some(Signs::Range),
            n => (n.as_u64().and_then(|n| u8::try_from(n).ok()).filter(|n| (1..=8).contains(n)))
                .zip(v["offset"].as_bool())
                .map(|(count, has_offset)| Signs::Planes { count, has_offset }),
        };
        match (signs, group_from(&v["group"])) {
            (Some(signs), Some(group)) => Ok(Self { signs, group }),
            _ => Err(Error::input(format!(
                "the scheme {v} does not have `signs` (1 to 8 with `offset`, `ternary`, `range`) and `group`"
            ))),
        }
    }
}

impl fmt::Display for SignScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.signs {
            Signs::Planes { count, .. } => write!(f, "{count} signs {}", words(self.group)),
            Signs::Ternary | Signs::Range => write!(f, "ternary {}", words(self.group)),
        }
    }
}

/// Small floats with scales per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FloatScheme {
    /// The type of an element.
    pub element: Minifloat,
    /// Which weights share a scale.
    pub group: Group,
    /// What kind of number a scale is.
    pub scale: ScaleKind,
}

/// What kind of number the scales of small floats are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleKind {
    /// F16, BF16 or F32.
    Plain,
    /// A power of two of one byte (the MX formats).
    PowerOfTwo,
    /// A float of 8 bits (NVFP4).
    Float8,
}

/// Codes into the lattice E8, with scales per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LatticeScheme {
    /// What is added to the first point.
    pub second: SecondStage,
    /// Which weights share a scale.
    pub group: Group,
}

/// Paths through a trellis, with scales per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrellisScheme {
    /// Bits of a state.
    pub state_bits: u8,
    /// Bits of a tile of 256 weights.
    pub tile_bits: u16,
    /// What a state stands for.
    pub code: TrellisCode,
    /// Which weights share a scale.
    pub group: Group,
}

const SECOND_STAGES: [(&str, SecondStage); 3] =
    [("none", SecondStage::None), ("e8", SecondStage::E8Short), ("e8p", SecondStage::E8P)];
const TRELLIS_CODES: [(&str, TrellisCode); 2] = [("1mad", TrellisCode::OneMad), ("3inst", TrellisCode::ThreeInst)];

/// The one value that modules which have any share, `None` without such modules; else the first two that differ, where
/// `what` are the values in words.
pub(super) fn the_one_of<'a, T: PartialEq>(
    modules: impl Iterator<Item = (&'a String, Option<T>)>,
    what: &str,
) -> Result<Option<T>, String> {
    let mut of_modules = modules.filter_map(|(name, value)| Some((name, value?)));
    let Some((first, one)) = of_modules.next() else { return Ok(None) };
    match of_modules.find(|(_, value)| *value != one) {
        Some((other, _)) => Err(format!("`{first}` and `{other}` have different {what}, and it has one for all")),
        None => Ok(Some(one)),
    }
}

/// The name of a value in a table of names.
fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> &'static str {
    names.iter().find(|(_, v)| v == value).map_or("", |(name, _)| name)
}

/// The value that a JSON string names.
fn named<T: Copy>(names: &[(&str, T)], v: &Value) -> Option<T> {
    names.iter().find(|(name, _)| v == name).map(|(_, value)| *value)
}

impl Scheme {
    /// The scheme of one storage; `None` for plain floats.
    pub fn of(storage: &Storage) -> Option<Self> {
        match storage {
            Storage::Int(codes) => Some(Self::Int(IntScheme::of(codes))),
            Storage::Table(codes) => {
                let second = SecondLevel::of(codes.scales());
                Some(Self::Table(TableScheme { bits: codes.grid().bits, group: codes.grid().group, second }))
            }
            Storage::Signs(codes) => {
                Some(Self::Signs(SignScheme { signs: codes.grid().signs, group: codes.grid().group }))
            }
            Storage::Lattice(codes) => {
                let grid = codes.grid();
                Some(Self::Lattice(LatticeScheme { second: grid.second, group: grid.group }))
            }
            Storage::Vector(codes) => Some(Self::Vector(codes.grid())),
            Storage::Trellis(codes) => {
                let g = codes.grid();
                let (state_bits, tile_bits) = (g.state_bits, g.tile_bits);
                Some(Self::Trellis(TrellisScheme { state_bits, tile_bits, code: g.code, group: g.group }))
            }
            Storage::Float(codes) => Some(Self::Float(FloatScheme::of(codes))),
            Storage::TwoOfFour(codes) => Some(Self::TwoOfFour(Self::of(codes.kept()).map(Box::new))),
            Storage::Ggml(blocks) => Some(Self::Ggml(blocks.kind)),
            Storage::Dense(_) => None,
        }
    }

    /// The same with its input rounded, if it is.
    pub fn rounded(self, input: Option<ActivationGrid>) -> Self {
        match input {
            Some(grid) => Self::Rounded(Box::new(self), grid),
            None => self,
        }
    }

    /// How the weight alone is stored.
    pub fn weights(&self) -> &Self {
        if let Self::Rounded(weights, _) = self { weights } else { self }
    }

    /// How the input is rounded.
    pub fn input(&self) -> Option<ActivationGrid> {
        if let Self::Rounded(_, grid) = self { Some(*grid) } else { None }
    }

    /// As it stands in the settings of the `fewbit` layout.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Rounded(weights, grid) => json!({ "weights": weights.to_json(), "input": input::to_json(*grid) }),
            Self::Int(scheme) => scheme.to_json(),
            Self::Table(scheme) => {
                let json = json!({ "bits": scheme.bits, "group": group_json(scheme.group), "table": true });
                with_second(json, scheme.second)
            }
            Self::Signs(scheme) => scheme.to_json(),
            Self::Lattice(scheme) => json!({
                "lattice": "e8p",
                "second": name_of(&SECOND_STAGES, &scheme.second),
                "group": group_json(scheme.group)
            }),
            Self::Vector(grid) => json!({
                "vector": grid.len,
                "bits": grid.bits,
                "residual_bits": grid.residual_bits,
                "columns": grid.has_columns
            }),
            Self::Trellis(scheme) => json!({
                "trellis": name_of(&TRELLIS_CODES, &scheme.code),
                "state_bits": scheme.state_bits,
                "tile_bits": scheme.tile_bits,
                "group": group_json(scheme.group)
            }),
            Self::Float(scheme) => scheme.to_json(),
            Self::Ggml(kind) => json!({ "ggml": kind.name() }),
            Self::TwoOfFour(kept) => {
                json!({ "two_of_four": kept.as_ref().map_or_else(|| json!("float"), |kept| kept.to_json()) })
            }
            Self::Bands(bands) => {
                let with_rows = |(rows, s): &(usize, IntScheme)| {
                    let mut band = s.to_json();
                    band["rows"] = json!(rows);
                    band
                };
                bands.iter().map(with_rows).collect()
            }
        }
    }

    /// Reads what [`Scheme::to_json`] wrote.
    pub(super) fn from_json(v: &Value) -> Result<Self> {
        match v {
            _ if !v["input"].is_null() => {
                Ok(Self::from_json(&v["weights"])?.weights().clone().rounded(Some(input::from_json(&v["input"])?)))
            }
            Value::Array(bands) => {
                let band = |b: &Value| {
                    let rows = b["rows"].as_u64().filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok());
                    Ok((
                        rows.ok_or_else(|| Error::input(format!("the band {b} has no number of `rows`")))?,
                        IntScheme::from_json(b)?,
                    ))
                };
                bands.iter().map(band).collect::<Result<_>>().map(Self::Bands)
            }
            _ if v["two_of_four"] == "float" => Ok(Self::TwoOfFour(None)),
            _ if !v["two_of_four"].is_null() => match Self::from_json(&v["two_of_four"])? {
                Self::Bands(_) | Self::Rounded(..) | Self::TwoOfFour(_) => Err(Error::input(format!(
                    "the scheme {v} has what is no scheme of single weights in `two_of_four`"
                ))),
                kept => Ok(Self::TwoOfFour(Some(Box::new(kept)))),
            },
            _ if !v["element"].is_null() => FloatScheme::from_json(v).map(Self::Float),
            _ if !v["ggml"].is_null() => {
                let kind = v["ggml"].as_str().and_then(GgmlType::from_name);
                kind.map(Self::Ggml).ok_or_else(|| Error::input(format!("the scheme {v} names no type of ggml")))
            }
            _ if !v["signs"].is_null() => SignScheme::from_json(v).map(Self::Signs),
            _ if v["table"] == true => match bits_and_group(v) {
                (Some(bits), Some(group)) => {
                    Ok(Self::Table(TableScheme { bits, group, second: SecondLevel::from_json(v)? }))
                }
                _ => Err(Error::input(format!(
                    "the scheme {v} does not have `bits` from 1 to 8 and `group` (`row`, `tensor` or a number)"
                ))),
            },
            _ if !v["lattice"].is_null() => {
                let group = bits_and_group(v).1.filter(|_| v["lattice"] == "e8p");
                let scheme = named(&SECOND_STAGES, &v["second"]).zip(group);
                scheme.map(|(second, group)| Self::Lattice(LatticeScheme { second, group })).ok_or_else(|| {
                    Error::input(format!(
                        "the scheme {v} is not `lattice` e8p with a `second` (`none`, `e8`, `e8p`) and a `group`"
                    ))
                })
            }
            _ if !v["vector"].is_null() => {
                let byte = |key: &str| v[key].as_u64().and_then(|n| u8::try_from(n).ok());
                let grid = (byte("vector"), byte("bits"), byte("residual_bits"), v["columns"].as_bool());
                let (Some(len), Some(bits), Some(residual_bits), Some(has_columns)) = grid else {
                    return Err(Error::input(format!(
                        "the scheme {v} does not have `vector`, `bits`, `residual_bits` and `columns`"
                    )));
                };
                let grid = VectorGrid { len, bits, residual_bits, has_columns };
                grid.check().map(|()| Self::Vector(grid))
            }
            _ if !v["trellis"].is_null() => {
                let short = |key: &str| v[key].as_u64().and_then(|n| u16::try_from(n).ok());
                let state_bits = short("state_bits").and_then(|n| u8::try_from(n).ok());
                let numbers = (state_bits, short("tile_bits"), named(&TRELLIS_CODES, &v["trellis"]));
                let ((Some(state_bits), Some(tile_bits), Some(code)), Some(group)) = (numbers, bits_and_group(v).1)
                else {
                    return Err(Error::input(format!(
                        "the scheme {v} does not have `trellis` (`1mad`, `3inst`), `state_bits`, `tile_bits` and `group`"
                    )));
                };
                Ok(Self::Trellis(TrellisScheme { state_bits, tile_bits, code, group }))
            }
            _ => IntScheme::from_json(v).map(Self::Int),
        }
    }

    /// The scheme of a weight in bands; `None` unless all of them are integer codes.
    pub fn of_bands(bands: &[Band]) -> Option<Self> {
        match bands {
            [band] => Self::of(&band.storage),
            _ => bands
                .iter()
                .map(|b| match &b.storage {
                    Storage::Int(codes) => Some((b.rows.len(), IntScheme::of(codes))),
                    _ => None,
                })
                .collect::<Option<_>>()
                .map(Self::Bands),
        }
    }
}

impl From<Scheme> for Value {
    fn from(scheme: Scheme) -> Self {
        scheme.to_json()
    }
}

impl TryFrom<Value> for Scheme {
    type Error = Error;

    fn try_from(v: Value) -> Result<Self> {
        Self::from_json(&v)
    }
}

impl IntScheme {
    /// The scheme of these codes.
    pub fn of(codes: &IntCodes) -> Self {
        let grid = codes.grid();
        let second = match codes.zeros() {
            Zeros::Offsets(z) | Zeros::Points(z) => SecondLevel::of(z),
            Zeros::Middle | Zeros::Codes(_) => None,
        };
        Self {
            bits: grid.bits,
            group: grid.group,
            symmetric: *codes.zeros() == Zeros::Middle,
            act_order: codes.group_index().is_some(),
            second: SecondLevel::of(codes.scales()).or(second),
        }
    }

    /// As it stands in the settings of the `fewbit` layout.
    fn to_json(self) -> Value {
        let mut json = json!({ "bits": self.bits, "group": group_json(self.group), "symmetric": self.symmetric });
        if self.act_order {
            json["act_order"] = true.into();
        }
        with_second(json, self.second)
    }

    /// Reads what [`IntScheme::to_json`] wrote.
    fn from_json(v: &Value) -> Result<Self> {
        match (bits_and_group(v), v["symmetric"].as_bool()) {
            ((Some(bits), Some(group)), Some(symmetric)) => {
                let act_order = v["act_order"] == true;
                Ok(Self { bits, group, symmetric, act_order, second: SecondLevel::from_json(v)? })
            }
            _ => Err(Error::input(format!(
                "the scheme {v} does not have `bits` from 1 to 8, `group` (`row`, `tensor` or a number) and `symmetric`"
            ))),
        }
    }
}

impl FloatScheme {
    /// The scheme of these codes.
    pub fn of(codes: &FloatCodes) -> Self {
        let grid = codes.grid();
        let scale = match grid.scale {
            ScaleType::F16 | ScaleType::BF16 | ScaleType::F32 => ScaleKind::Plain,
            ScaleType::E8M0 => ScaleKind::PowerOfTwo,
            ScaleType::E4M3 => ScaleKind::Float8,
        };
        Self { element: grid.element, group: grid.group, scale }
    }

    /// As it stands in the settings of the `fewbit` layout.
    fn to_json(self) -> Value {
        let scale = match self.scale {
            ScaleKind::Plain => Value::Null,
            ScaleKind::PowerOfTwo => json!("e8m0"),
            ScaleKind::Float8 => json!("e4m3"),
        };
        json!({ "element": self.element.to_string(), "group": group_json(self.group), "scale": scale })
    }

    /// Reads what [`FloatScheme::to_json`] wrote.
    fn from_json(v: &Value) -> Result<Self> {
        let element = v["element"].as_str().and_then(|name| Minifloat::parse(name).ok());
        let scale = match v["scale"].as_str() {
            None => Some(ScaleKind::Plain),
            Some("e8m0") => Some(ScaleKind::PowerOfTwo),
            Some("e4m3") => Some(ScaleKind::Float8),
            Some(_) => None,
        };
        match (element, group_from(&v["group"]), scale) {
            (Some(element), Some(group), Some(scale)) => Ok(Self { element, group, scale }),
            _ => Err(Error::input(format!(
                "the scheme {v} does not have `element` (such as `e2m1`), `group` and `scale` (`e8m0`, `e4m3` or none)"
            ))),
        }
    }
}

fn group_json(group: Group) -> Value {
    match group {
        Group::Tensor => json!("tensor"),
        Group::Row => json!("row"),
        Group::Columns(g) => json!(g),
        Group::Block(sizes) => json!(sizes),
    }
}

fn group_from(v: &Value) -> Option<Group> {
    let size = |n: &Value| n.as_u64().filter(|g| *g > 0).and_then(|g| usize::try_from(g).ok());
    match v {
        Value::String(s) if s == "tensor" => Some(Group::Tensor),
        Value::String(s) if s == "row" => Some(Group::Row),
        Value::Array(sizes) => match &sizes[..] {
            [rows, cols] => Some(Group::Block([size(rows)?, size(cols)?])),
            _ => None,
        },
        n => size(n).map(Group::Columns),
    }
}

fn bits_of(v: &Value) -> Option<u8> {
    v["bits"].as_u64().and_then(|b| u8::try_from(b).ok()).filter(|b| (1..=8).contains(b))
}

fn bits_and_group(v: &Value) -> (Option<u8>, Option<Group>) {
    (bits_of(v), group_from(&v["group"]))
}

fn with_second(mut scheme: Value, second: Option<SecondLevel>) -> Value {
    if let Some(second) = second {
        scheme["second"] = second.to_json();
    }
    scheme
}

/// A group in words: `per row`, `group 32`.
fn words(group: Group) -> String {
    match group {
        Group::Columns(g) => format!("group {g}"),
        Group::Block([rows, cols]) => format!("block {rows}x{cols}"),
        other => format!("per {other}"),
    }
}

impl fmt::Display for IntScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symmetry = if self.symmetric { "symmetric" } else { "asymmetric" };
        let second = self.second.map_or_else(String::new, |s| format!(", scales of {} bits", s.bits));
        let order = if self.act_order { ", act order" } else { "" };
        write!(f, "{} bit {} {symmetry}{order}{second}", self.bits, words(self.group))
    }
}

impl fmt::Display for FloatScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scale = match self.scale {
            ScaleKind::Plain => "",
            ScaleKind::PowerOfTwo => ", scales powers of two",
            ScaleKind::Float8 => ", scales e4m3",
        };
        write!(f, "float {} {}{scale}", self.element, words(self.group))
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(scheme) => scheme.fmt(f),
            Self::Table(scheme) => {
                let second = scheme.second.map_or_else(String::new, |s| format!(", scales of {} bits", s.bits));
                write!(f, "{} bit table {}{second}", scheme.bits, words(scheme.group))
            }
            Self::Signs(scheme) => scheme.fmt(f),
            Self::Lattice(scheme) => {
                let bits = 2 + scheme.second.bits() / 8;
                write!(f, "{bits} bit lattice {}", words(scheme.group))
            }
            Self::Vector(grid) => {
                let bits = f64::from(grid.bits + grid.residual_bits) / f64::from(grid.len);
                write!(f, "{bits} bit vectors of {}", grid.len)
            }
            Self::Trellis(scheme) => {
                write!(f, "{} bit trellis {}", f64::from(scheme.tile_bits) / 256.0, words(scheme.group))
            }
            Self::Float(scheme) => scheme.fmt(f),
            Self::Ggml(kind) => f.write_str(kind.name()),
            Self::TwoOfFour(Some(kept)) => write!(f, "two of four, {kept}"),
            Self::TwoOfFour(None) => write!(f, "two of four"),
            Self::Rounded(weights, grid) => write!(f, "{weights}, input {grid}"),
            Self::Bands(bands) => {
                for (i, (rows, scheme)) in bands.iter().enumerate() {
                    write!(f, "{}{rows} rows {scheme}", if i > 0 { ", " } else { "" })?;
                }
                Ok(())
            }
        }
    }
}
