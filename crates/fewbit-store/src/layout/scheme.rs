use std::fmt;

use fewbit_format::{Band, Error, Group, IntCodes, Result, Storage, Zeros};
use serde_json::{Value, json};

/// How a weight is stored, as far as settings say it (the type of the scales is the tensors' matter).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Integer codes of one kind.
    Int(IntScheme),
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

impl Scheme {
    /// The scheme of one storage; `None` for plain floats and for ggml's blocks.
    pub fn of(storage: &Storage) -> Option<Self> {
        match storage {
            Storage::Int(codes) => Some(Self::Int(IntScheme::of(codes))),
            Storage::Dense(_) | Storage::Ggml(_) => None,
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
                    Storage::Dense(_) | Storage::Ggml(_) => None,
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
    pub(super) fn to_json(self) -> Value {
        let group = match self.group {
            Group::Tensor => json!("tensor"),
            Group::Row => json!("row"),
            Group::Columns(g) => json!(g),
        };
        json!({ "bits": self.bits, "group": group, "symmetric": self.symmetric })
    }

    /// Reads what [`IntScheme::to_json`] wrote.
    pub(super) fn from_json(v: &Value) -> Result<Self> {
        let group = match &v["group"] {
            Value::String(s) if s == "tensor" => Some(Group::Tensor),
            Value::String(s) if s == "row" => Some(Group::Row),
            n => n.as_u64().filter(|g| *g > 0).and_then(|g| usize::try_from(g).ok()).map(Group::Columns),
        };
        let bits = v["bits"].as_u64().and_then(|b| u8::try_from(b).ok()).filter(|b| (1..=8).contains(b));
        match (bits, group, v["symmetric"].as_bool()) {
            (Some(bits), Some(group), Some(symmetric)) => Ok(Self { bits, group, symmetric }),
            _ => Err(Error::input(format!(
                "the scheme {v} does not have `bits` from 1 to 8, `group` (`row`, `tensor` or a number) and `symmetric`"
            ))),
        }
    }
}

impl fmt::Display for IntScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let symmetry = if self.symmetric { "symmetric" } else { "asymmetric" };
        match self.group {
            Group::Tensor => write!(f, "{} bit per tensor {symmetry}", self.bits),
            Group::Row => write!(f, "{} bit per row {symmetry}", self.bits),
            Group::Columns(g) => write!(f, "{} bit group {g} {symmetry}", self.bits),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(scheme) => scheme.fmt(f),
            Self::Bands(bands) => {
                for (i, (rows, scheme)) in bands.iter().enumerate() {
                    write!(f, "{}{rows} rows {scheme}", if i > 0 { ", " } else { "" })?;
                }
                Ok(())
            }
        }
    }
}
