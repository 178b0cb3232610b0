use fewbit_format::{ActivationGrid, Error, Group, Minifloat, Number, Online, Result, ScaleType, Sharing};
use serde_json::Value;

use super::target::Target;
use super::transform::{self, Transform};
use crate::layout::module::Module;
use crate::layout::scheme::{FloatScheme, IntScheme, ScaleKind, Scheme};

/// compressed-tensors' `quantization_config`: groups of modules with one scheme each.
///
/// What is not read yet does not stop the parsing; it is refused, by scheme and module, where it is needed.
#[derive(Clone, Debug)]
pub struct CtConfig {
    groups: Vec<CtGroup>,
    ignore: Vec<Target>,
    transforms: std::result::Result<Vec<Transform>, Error>,
    sparsity: Option<String>,
    cache: Option<Input>,
}

/// One entry of `config_groups`.
#[derive(Clone, Debug)]
pub(super) struct CtGroup {
    pub(super) name: String,
    targets: Vec<Target>,
    pub(super) weights: Weights,
    pub(super) input: Option<Input>,
    scheme: Option<Scheme>,
}

/// What is rounded while the model runs: as a format, or in words where that is not done.
#[derive(Clone, Debug)]
pub(super) enum Input {
    Known(ActivationGrid),
    Unknown(String),
}

impl Input {
    fn of(v: &Value) -> Option<Self> {
        is_set(v).then(|| activation(v).map_or_else(|| Self::Unknown(describe(v)), Self::Known))
    }

    fn known(&self) -> Option<ActivationGrid> {
        if let Self::Known(grid) = self { Some(*grid) } else { None }
    }

    fn words(&self) -> String {
        match self {
            Self::Known(grid) => grid.to_string(),
            Self::Unknown(what) => what.clone(),
        }
    }
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
        // Transforms may stand alone.
        if !v["config_groups"].is_object() && !is_set(&v["transform_config"]) {
            return Err(Error::input("has no `config_groups`"));
        }
        let groups = v["config_groups"].as_object();
        let format = v["format"].as_str();
        let groups =
            groups.into_iter().flatten().map(|(name, g)| CtGroup::parse(name, g, format)).collect::<Result<_>>()?;
        Ok(Self {
            groups,
            ignore: targets(&v["ignore"], "ignore")?,
            transforms: transform::parse(&v["transform_config"], is_set(&v["kv_cache_scheme"])),
            sparsity: (is_set(&v["sparsity_config"]) && v["sparsity_config"]["format"] != "dense")
                .then(|| format!("sparsity_config ({})", v["sparsity_config"]["format"])),
            cache: Input::of(&v["kv_cache_scheme"]),
        })
    }

    /// The scheme of a module's weight; `None` where it is plain, or in a form that is not read.
    pub fn scheme_of(&self, module: &str) -> Option<&Scheme> {
        self.group_of(module)?.scheme.as_ref()
    }

    /// The group whose targets name the module most closely.
    pub(super) fn group_of(&self, module: &str) -> Option<&CtGroup> {
        if self.ignore.iter().any(|t| t.matches(module).is_some()) {
            return None;
        }
        let closeness = |g: &CtGroup| g.targets.iter().filter_map(|t| t.matches(module)).min();
        self.groups.iter().filter_map(|g| closeness(g).map(|m| (m, g))).min_by_key(|(m, _)| *m).map(|(_, g)| g)
    }

    /// Refuses what makes the weights another model and is not read.
    pub(in crate::layout) fn check(&self) -> Result<()> {
        self.transforms.as_ref().map_err(Clone::clone)?;
        match &self.sparsity {
            Some(what) => Err(Error::input(format!("the checkpoint has a `{what}`, which is not read yet"))),
            None => Ok(()),
        }
    }

    /// The names of the matrices that may lie beside a module.
    pub(in crate::layout) fn transform_names(&self, module: &str) -> impl Iterator<Item = String> {
        self.transforms.iter().flatten().flat_map(move |t| t.names(module))
    }

    /// The maps at one end of a module that run with the model.
    pub(in crate::layout) fn online(&self, m: Module<'_>, end: &str, dim: usize) -> Result<Vec<Online>> {
        let transforms = self.transforms.as_ref().map_err(Clone::clone)?;
        let maps: Vec<Online> =
            transforms.iter().filter_map(|t| t.map(m, end, dim).transpose()).collect::<Result<_>>()?;
        let place = |e: Error| Err(e.place(format!("`{}`", m.name)).hint("use the original checkpoint"));
        match (&maps[..], end) {
            ([_, _, ..], _) => place(Error::input(format!("several transforms at its {end} are not read yet"))),
            ([_], "output") if m.has("bias") => {
                place(Error::input("a transform of its output and bias is not read yet"))
            }
            _ => Ok(maps),
        }
    }

    /// What the checkpoint rounds at run time, activations and cache: `None` if nothing.
    pub(in crate::layout) fn rounding(&self) -> Option<String> {
        let activations = self.groups.iter().find_map(|g| g.input.as_ref());
        in_words(activations, self.cache.as_ref())
    }

    /// What of that is not done: `None` if nothing.
    pub(in crate::layout) fn unknown_rounding(&self) -> Option<String> {
        let is_unknown = |i: &&Input| i.known().is_none();
        let activations = self.groups.iter().filter_map(|g| g.input.as_ref()).find(is_unknown);
        in_words(activations, self.cache.as_ref().filter(is_unknown))
    }

    /// How keys and values are rounded before they are remembered.
    pub(in crate::layout) fn cache(&self) -> Option<ActivationGrid> {
        self.cache.as_ref().and_then(Input::known)
    }

    /// How the input of a module is rounded.
    pub(in crate::layout) fn activation_of(&self, module: &str) -> Option<ActivationGrid> {
        self.group_of(module)?.input.as_ref().and_then(Input::known)
    }

    /// The schemes of the groups, in one line.
    pub(in crate::layout) fn summary(&self) -> String {
        let mut each: Vec<String> = (self.groups.iter())
            .filter_map(|g| match (&g.scheme, &g.weights) {
                (Some(scheme), _) => Some(scheme.to_string()),
                (None, Weights::Unread(what)) => Some(what.clone()),
                (None, _) => None,
            })
            .collect();
        each.extend(self.cache.as_ref().map(|c| format!("cache {}", c.words())));
        each.join("; ")
    }
}

impl CtGroup {
    fn parse(name: &str, v: &Value, format: Option<&str>) -> Result<Self> {
        let name = name.to_owned();
        if v.is_array() {
            let weights = Weights::Unread(format!("the preset `{name}`"));
            return Ok(Self { targets: targets(v, &name)?, name, weights, input: None, scheme: None });
        }
        let weights = weights(&v["weights"], v["format"].as_str().or(format).unwrap_or("pack-quantized"));
        let output = &v["output_activations"];
        let input =
            if is_set(output) { Some(Input::Unknown(describe(output))) } else { Input::of(&v["input_activations"]) };
        let scheme = match &weights {
            Weights::Coded { scheme, .. } => Some(scheme.clone().rounded(input.as_ref().and_then(Input::known))),
            Weights::Plain | Weights::Unread(_) => None,
        };
        Ok(Self { targets: targets(&v["targets"], &name)?, name, weights, input, scheme })
    }
}

fn in_words(activations: Option<&Input>, cache: Option<&Input>) -> Option<String> {
    let activations = activations.map(|a| format!("activations to {}", a.words()));
    let cache = cache.map(|c| format!("the cache to {}", c.words()));
    match (activations, cache) {
        (Some(a), Some(c)) => Some(format!("{a} and {c}")),
        (a, c) => a.or(c),
    }
}

/// Neither absent, null nor empty.
fn is_set(v: &Value) -> bool {
    !v.is_null() && v.as_object().is_none_or(|o| !o.is_empty())
}

pub(super) fn targets(v: &Value, of: &str) -> Result<Vec<Target>> {
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
        let act_order = v["actorder"] == "group";
        let scheme = Scheme::Int(IntScheme { bits: bits as u8, group, symmetric, act_order, second: None });
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

/// How an input is rounded, where this is done.
fn activation(v: &Value) -> Option<ActivationGrid> {
    let bits = v["num_bits"].as_u64().unwrap_or(8);
    let symmetric = v["symmetric"].as_bool().unwrap_or(true);
    let is_int = v["type"].as_str().is_none_or(|t| t.eq_ignore_ascii_case("int"));
    let number = match (is_int, bits, symmetric) {
        (true, 2..=8, _) => Number::Int { bits: bits as u8, symmetric },
        (false, 4, true) => Number::Float(Minifloat::E2M1),
        (false, 8, true) => Number::Float(Minifloat::E4M3),
        _ => return None,
    };
    let size = v["group_size"].as_u64().filter(|g| *g > 0).map(|g| g as usize);
    let (sharing, scale) = match (v["strategy"].as_str()?, &v["dynamic"], size) {
        ("token", Value::Bool(true), _) => (Sharing::Token, ScaleType::F32),
        ("tensor", Value::Bool(false) | Value::Null, _) => (Sharing::Tensor, ScaleType::F32),
        ("group", Value::Bool(true), Some(32)) if !is_int && v["scale_dtype"] == "torch.uint8" => {
            (Sharing::Columns(32), ScaleType::E8M0)
        }
        ("group", Value::Bool(true), Some(g)) => (Sharing::Columns(g), ScaleType::F32),
        ("tensor_group", local, Some(g)) if local == "local" && bits == 4 => (Sharing::Columns(g), ScaleType::E4M3),
        _ => return None,
    };
    Some(ActivationGrid { number, sharing, scale, is_searched: false })
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
        assert_eq!(c.rounding().unwrap(), "activations to e4m3 per token");
        assert!(c.unknown_rounding().is_none());
        assert!(CtConfig::parse(&json!({ "config_groups": { "g": { "targets": ["re:["] } } })).is_err());
    }
}
