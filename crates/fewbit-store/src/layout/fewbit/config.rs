use std::collections::BTreeMap;

use fewbit_format::{ActivationGrid, Error, Result};
use serde_json::{Map, Value, json};

use crate::layout::input;
use crate::layout::scheme::Scheme;

/// The version of the layout that is written; those before it, which have no tiles, are read too.
const VERSION: u64 = 2;

/// Settings of `"quant_method": "fewbit"`: a scheme for all quantized modules, and those that differ.
#[derive(Clone, Debug, PartialEq)]
pub struct FewbitConfig {
    default: Option<Scheme>,
    modules: BTreeMap<String, Scheme>,
    cache: Option<ActivationGrid>,
}

impl FewbitConfig {
    pub(in crate::layout) fn parse(v: &Value) -> Result<Self> {
        if !v["version"].as_u64().is_some_and(|version| (1..=VERSION).contains(&version)) {
            return Err(Error::input(format!(
                "the `fewbit` layout has version {}, where 1 to {VERSION} are read",
                v["version"]
            ))
            .hint("use a newer release of this program"));
        }
        let default = match &v["default"] {
            Value::Null => None,
            scheme => Some(Scheme::from_json(scheme)?),
        };
        let modules = match &v["modules"] {
            Value::Null => BTreeMap::new(),
            Value::Object(modules) => modules
                .iter()
                .map(|(name, s)| Ok((name.clone(), Scheme::from_json(s).map_err(|e| e.place(format!("`{name}`")))?)))
                .collect::<Result<_>>()?,
            _ => return Err(Error::input("`modules` is not an object")),
        };
        let cache = match &v["cache"] {
            Value::Null => None,
            grid => Some(input::from_json(grid)?),
        };
        Ok(Self { default, modules, cache })
    }

    /// The scheme that the settings give to a module, if it is quantized.
    pub fn scheme_of(&self, module: &str) -> Option<&Scheme> {
        self.modules.get(module).or(self.default.as_ref())
    }

    /// How keys and values are rounded before they are remembered.
    pub(in crate::layout) fn cache(&self) -> Option<ActivationGrid> {
        self.cache
    }

    /// The schemes in one line.
    pub(in crate::layout) fn summary(&self) -> String {
        let mut each: Vec<String> = self.default.iter().chain(self.modules.values()).map(Scheme::to_string).collect();
        each.sort();
        each.dedup();
        each.join("; ")
    }
}

/// The `quantization_config` for these linears: the commonest scheme is the default; modules with another are named.
pub(super) fn quantization_config(modules: &[(String, Option<Scheme>)], cache: Option<ActivationGrid>) -> Value {
    let mut counts: Vec<(&Scheme, usize)> = Vec::new();
    for scheme in modules.iter().filter_map(|(_, s)| s.as_ref()).filter(|s| !matches!(s.weights(), Scheme::Bands(_))) {
        match counts.iter_mut().find(|(known, _)| *known == scheme) {
            Some((_, count)) => *count += 1,
            None => counts.push((scheme, 1)),
        }
    }
    let most = counts.iter().map(|(_, n)| *n).max();
    let default = counts.iter().find(|(_, n)| Some(*n) == most).map(|(s, _)| *s);
    let others: Map<String, Value> = modules
        .iter()
        .filter_map(|(name, scheme)| Some((name, scheme.as_ref()?)))
        .filter(|(_, scheme)| Some(*scheme) != default)
        .map(|(name, scheme)| (name.clone(), scheme.to_json()))
        .collect();
    json!({
        "quant_method": "fewbit",
        "version": VERSION,
        "default": default.map(Scheme::to_json),
        "modules": others,
        "cache": cache.map(input::to_json),
    })
}
