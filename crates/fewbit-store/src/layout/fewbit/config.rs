use std::collections::BTreeMap;

use fewbit_format::{Error, Result};
use serde_json::{Map, Value, json};

use crate::layout::scheme::{IntScheme, Scheme};

/// The version of the layout that is written and read.
const VERSION: u64 = 1;

/// Settings of `"quant_method": "fewbit"`: a scheme for all quantized modules, and those that differ.
#[derive(Clone, Debug, PartialEq)]
pub struct FewbitConfig {
    default: Option<Scheme>,
    modules: BTreeMap<String, Scheme>,
}

impl FewbitConfig {
    pub(in crate::layout) fn parse(v: &Value) -> Result<Self> {
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
    pub(in crate::layout) fn summary(&self) -> String {
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

/// The `quantization_config` for these linears: the commonest scheme is the default; modules with another are named.
pub(super) fn quantization_config(modules: &[(String, Option<Scheme>)]) -> Value {
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
