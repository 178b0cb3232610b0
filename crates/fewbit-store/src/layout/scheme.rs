use std::fmt;

use fewbit_format::{Band, Error, Group, IntCodes, Result, Storage, Zeros};
use serde_json::{Value, json};

/// How a weight is stored, as far as settings say it (the type of the scales is the tensors' matter).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Integer codes of one kind.
    Int(IntScheme),
    /// Codes into tables of numbers.
    Table(TableScheme),
    /// Bands of rows: the number of rows of each, and its codes.
    Bands(Vec<(usize, IntScheme)>),
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
}

/// Codes into tables, with scales per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableScheme {
    /// Bits of a code.
    pub bits: u8,
    /// Which weights share a scale.
    pub group: Group,
}

impl Scheme {
    /// The scheme of one storage; `None` for plain floats and for ggml's blocks.
    pub fn of(storage: &Storage) -> Option<Self> {
        match storage {
            Storage::Int(codes) => Some(Self::Int(IntScheme::of(codes))),
            Storage::Table(codes) => {
                Some(Self::Table(TableScheme { bits: codes.grid().bits, group: codes.grid().group }))
            }
            Storage::Dense(_) | Storage::Ggml(_) => None,
        }
    }

    /// As it stands in the settings of the `fewbit` layout.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Int(scheme) => scheme.to_json(),
            Self::Table(scheme) => {
                json!({ "bits": scheme.bits, "group": group_json(scheme.group), "table": true })
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
            _ if v["table"] == true => match bits_and_group(v) {
                (Some(bits), Some(group)) => Ok(Self::Table(TableScheme { bits, group })),
                _ => Err(Error::input(format!(
                    "the scheme {v} does not have `bits` from 1 to 8 and `group` (`row`, `tensor` or a number)"
                ))),
            },
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
                    Storage::Dense(_) | Storage::Table(_) | Storage::Ggml(_) => None,
                })
                .collect::<Option<_>>()
                .map(Self::Bands),
        }
    }
}

impl IntScheme {
    /// The scheme of these codes.
    pub fn of(codes: &IntCodes) -> Self {
        let grid = codes.grid();
        Self { bits: grid.bits, group: grid.group, symmetric: *codes.zeros() == Zeros::Middle }
    }

    /// As it stands in the settings of the `fewbit` layout.
    fn to_json(self) -> Value {
        json!({ "bits": self.bits, "group": group_json(self.group), "symmetric": self.symmetric })
    }

    /// Reads what [`IntScheme::to_json`] wrote.
    fn from_json(v: &Value) -> Result<Self> {
        match (bits_and_group(v), v["symmetric"].as_bool()) {
            ((Some(bits), Some(group)), Some(symmetric)) => Ok(Self { bits, group, symmetric }),
            _ => Err(Error::input(format!(
                "the scheme {v} does not have `bits` from 1 to 8, `group` (`row`, `tensor` or a number) and `symmetric`"
            ))),
        }
    }
}

fn group_json(group: Group) -> Value {
    match group {
        Group::Tensor => json!("tensor"),
        Group::Row => json!("row"),
        Group::Columns(g) => json!(g),
    }
}

fn bits_and_group(v: &Value) -> (Option<u8>, Option<Group>) {
    let group = match &v["group"] {
        Value::String(s) if s == "tensor" => Some(Group::Tensor),
        Value::String(s) if s == "row" => Some(Group::Row),
        n => n.as_u64().filter(|g| *g > 0).and_then(|g| usize::try_from(g).ok()).map(Group::Columns),
    };
    (v["bits"].as_u64().and_then(|b| u8::try_from(b).ok()).filter(|b| (1..=8).contains(b)), group)
}

/// A group in words: `per row`, `group 32`.
fn words(group: Group) -> String {
    match group {
        Group::Columns(g) => format!("group {g}"),
        other => format!("per {other}"),
    }
}

impl fmt::Display for IntScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symmetry = if self.symmetric { "symmetric" } else { "asymmetric" };
        write!(f, "{} bit {} {symmetry}", self.bits, words(self.group))
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(scheme) => scheme.fmt(f),
            Self::Table(scheme) => write!(f, "{} bit table {}", scheme.bits, words(scheme.group)),
            Self::Bands(bands) => {
                for (i, (rows, scheme)) in bands.iter().enumerate() {
                    write!(f, "{}{rows} rows {scheme}", if i > 0 { ", " } else { "" })?;
                }
                Ok(())
            }
        }
    }
}
