use fewbit_format::{Error, Group, Minifloat, Result};
use serde_json::Value;

use super::target::Target;
use crate::layout::scheme::{FloatScheme, IntScheme, ScaleKind, Scheme};

/// compressed-tensors' `quantization_config`: groups of modules with one scheme each.
///
/// What is not read yet does not stop the parsing; it is refused, by scheme and module, where it is needed.
#[derive(Clone, Debug)]
pub struct CtConfig {
    groups: Vec<CtGroup>,
    ignore: Vec<Target>,
    transform: Option<String>,
    sparsity: Option<String>,
    cache: Option<String>,
}

/// One entry of `config_groups`.
#[derive(Clone, Debug)]
pub(super) struct CtGroup {
    pub(super) name: String,
    targets: Vec<Target>,
    pub(super) weights: Weights,
    activations: Option<String>,
}

/// What a group says of weights.
#[derive(Clone, Debug)]
pub(super) enum Weights {
    /// They stay plain.
    Plain,
    /// Codes, in words of `bits`-wide codes or one code a byte.
    Coded { scheme: Scheme, packing: Packing },
    /// Something that is not read: what.
    Unread(String),
}

/// How codes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    /// `weight_packed`: integers as a bit stream in 32-bit words, floats of four bits in pairs.
    Words,
    /// `weight`, one byte each.
    Bytes,
}

impl CtConfig {
    pub(in crate::layout) fn parse(v: &Value) -> Result<Self> {
        let groups = v["config_groups"].as_object().ok_or_else(|| Error::input("has no `config_groups`"))?;
        let format = v["format"].as_str();
        let groups = groups.iter().map(|(name, g)| CtGroup::parse(name, g, format)).collect::<Result<_>>()?;
        Ok(Self {
            groups,
            ignore: targets(&v["ignore"], "ignore")?,
            transform: is_set(&v["transform_config"]).then(|| "transform_config".to_owned()),
            sparsity: (is_set(&v["sparsity_config"]) && v["sparsity_config"]["format"] != "dense")
                .then(|| format!("sparsity_config ({})", v["sparsity_config"]["format"])),
            cache: is_set(&v["kv_cache_scheme"]).then(|| describe(&v["kv_cache_scheme"])),
        })
    }

    /// The scheme of a module's weight; `None` where it is plain, or in a form that is not read.
    pub fn scheme_of(&self, module: &str) -> Option<&Scheme> {
        match &self.group_of(module)?.weights {
            Weights::Coded { scheme, .. } => Some(scheme),
            Weights::Plain | Weights::Unread(_) => None,
        }
    }

    /// The group whose targets name the module most closely.
    pub(super) fn group_of(&self, module: &str) -> Option<&CtGroup> {
        if self.ignore.iter().any(|t| t.matches(module).is_some()) {
            return None;
        }
        let closeness = |g: &CtGroup| g.targets.iter().filter_map(|t| t.matches(module)).min();
        self.groups.iter().filter_map(|g| closeness(g).map(|m| (m, g))).min_by_key(|(m, _)| *m).map(|(_, g)| g)
    }

    /// What makes the weights alone another model: `None` if nothing.
    pub(in crate::layout) fn beyond_weights(&self) -> Option<&str> {
        self.transform.as_deref().or(self.sparsity.as_deref())
    }

    /// What the checkpoint rounds at run time, activations and cache: `None` if nothing.
    pub(in crate::layout) fn rounding(&self) -> Option<String> {
        let activations =
            self.groups.iter().find_map(|g| g.activations.as_ref().map(|a| format!("activations to {a}")));
        let cache = self.cache.as_ref().map(|c| format!("the cache to {c}"));
        match (activations, cache) {
            (Some(a), Some(c)) => Some(format!("{a} and {c}")),
            (a, c) => a.or(c),
        }
    }

    /// The schemes of the groups, in one line.
    pub(in crate::layout) fn summary(&self) -> String {
        let each: Vec<String> = (self.groups.iter())
            .filter_map(|g| match &g.weights {
                Weights::Coded { scheme, .. } => Some(scheme.to_string()),
                Weights::Unread(what) => Some(what.clone()),
                Weights::Plain => None,
            })
            .collect();
        each.join("; ")
    }
}

impl CtGroup {
    fn parse(name: &str, v: &Value, format: Option<&str>) -> Result<Self> {
        let name = name.to_owned();
        if v.is_array() {
            let weights = Weights::Unread(format!("the preset `{name}`"));
            return Ok(Self { targets: targets(v, &name)?, name, weights, activations: None });
        }
        let weights = weights(&v["weights"], v["format"].as_str().or(format).unwrap_or("pack-quantized"));
        let activations = ["input_activations", "output_activations"].into_iter().find(|k| is_set(&v[*k]));
        let activations = activations.map(|k| describe(&v[k]));
        Ok(Self { targets: targets(&v["targets"], &name)?, name, weights, activations })
    }
}

/// Neither absent, null nor empty.
fn is_set(v: &Value) -> bool {
    !v.is_null() && v.as_object().is_none_or(|o| !o.is_empty())
}

fn targets(v: &Value, of: &str) -> Result<Vec<Target>> {
    let list = match v {
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) => list,
        _ => return Err(Error::input(format!("`{of}` is not a list of names"))),
    };
    list.iter()
        .map(|t| {
            t.as_str()
                .ok_or_else(|| Error::input(format!("`{of}` names {t}, which is no text")))
                .and_then(Target::parse)
        })
        .collect()
}

/// A scheme as the settings have it: `8 bit int per token dynamic`.
fn describe(v: &Value) -> String {
    let text = |key: &str| v[key].as_str().unwrap_or("unknown").to_owned();
    let dynamic = if v["dynamic"] == true { " dynamic" } else { "" };
    format!("{} bit {} per {}{dynamic}", v["num_bits"].as_u64().unwrap_or(8), text("type"), text("strategy"))
}

fn weights(v: &Value, format: &str) -> Weights {
    if v.is_null() {
        return Weights::Plain;
    }
    coded(v, format).unwrap_or_else(|| Weights::Unread(format!("{} in `{format}`", describe(v))))
}

fn coded(v: &Value, format: &str) -> Option<Weights> {
    let (bits, group) = (v["num_bits"].as_u64().unwrap_or(8), group(v)?);
    if !(1..=8).contains(&bits) || v["dynamic"] == true {
        return None;
    }
    let symmetric = v["symmetric"].as_bool().unwrap_or(true);
    let is_int = v["type"].as_str().is_none_or(|t| t.eq_ignore_ascii_case("int"));
    let int = |packing| {
        let is_possible = is_int && !matches!(group, Group::Block(_));
        let scheme = Scheme::Int(IntScheme { bits: bits as u8, group, symmetric, second: None });
        is_possible.then_some(Weights::Coded { scheme, packing })
    };
    let float = |element: Minifloat, scale, packing| {
        let is_possible = !is_int && symmetric && bits == u64::from(element.bits());
        let scheme = Scheme::Float(FloatScheme { element, group, scale });
        is_possible.then_some(Weights::Coded { scheme, packing })
    };
    match format {
        "pack-quantized" => int(Packing::Words),
        "int-quantized" => int(Packing::Bytes),
        "naive-quantized" if is_int => int(Packing::Bytes),
        "float-quantized" | "naive-quantized" => float(Minifloat::E4M3, ScaleKind::Plain, Packing::Bytes),
        "mxfp8-quantized" => float(Minifloat::E4M3, ScaleKind::PowerOfTwo, Packing::Bytes),
        "mxfp4-pack-quantized" => float(Minifloat::E2M1, ScaleKind::PowerOfTwo, Packing::Words),
        "nvfp4-pack-quantized" => float(Minifloat::E2M1, ScaleKind::Float8, Packing::Words),
        _ => None,
    }
}

/// Which weights share a scale.
fn group(v: &Value) -> Option<Group> {
    let size = v["group_size"].as_i64();
    let strategy = v["strategy"].as_str().unwrap_or(match size {
        None => "tensor",
        Some(-1) => "channel",
        Some(_) => "group",
    });
    let block = |i: usize| v["block_structure"][i].as_u64().filter(|n| *n > 0).map(|n| n as usize);
    match (strategy, size) {
        ("tensor", _) => Some(Group::Tensor),
        ("channel", _) => Some(Group::Row),
        ("group" | "tensor_group", Some(g)) if g > 0 => Some(Group::Columns(g as usize)),
        ("block", _) => Some(Group::Block([block(0)?, block(1)?])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(groups: &Value, ignore: &[&str]) -> CtConfig {
        CtConfig::parse(&json!({ "config_groups": groups, "format": "pack-quantized", "ignore": ignore })).unwrap()
    }

    fn int(bits: u8, targets: &[&str]) -> Value {
        json!({ "targets": targets, "weights": { "num_bits": bits, "type": "int", "strategy": "channel" } })
    }

    #[test]
    fn the_closest_target_decides() {
        let groups = json!({ "a": int(4, &["Linear"]), "b": int(8, &["re:.*q_proj"]), "c": int(6, &["m.1.q_proj"]) });
        let c = config(&groups, &["lm_head"]);
        let bits = |m: &str| match c.scheme_of(m) {
            Some(Scheme::Int(s)) => Some(s.bits),
            _ => None,
        };
        assert_eq!(bits("m.0.k_proj"), Some(4));
        assert_eq!(bits("m.0.q_proj"), Some(8));
        assert_eq!(bits("m.1.q_proj"), Some(6));
        assert_eq!(bits("lm_head"), None);
    }

    #[test]
    fn what_is_not_read_is_named() {
        let fp8 = json!({ "targets": ["Linear"], "weights": { "num_bits": 8, "type": "float", "strategy": "tensor" },
            "input_activations": { "num_bits": 8, "type": "float", "strategy": "token", "dynamic": true } });
        let c = config(&json!({ "group_0": fp8 }), &[]);
        assert_eq!(c.scheme_of("a"), None);
        assert_eq!(c.summary(), "8 bit float per tensor in `pack-quantized`");
        assert_eq!(c.rounding().unwrap(), "activations to 8 bit float per token dynamic");
        assert!(CtConfig::parse(&json!({ "config_groups": { "g": { "targets": ["re:["] } } })).is_err());
    }
}
