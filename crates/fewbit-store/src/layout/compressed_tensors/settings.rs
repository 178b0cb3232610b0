use std::collections::BTreeSet;

use fewbit_format::{ActivationGrid, Group, Minifloat, Number, ScaleType, Sharing};
use serde_json::{Value, json};

use crate::layout::scheme::{FloatScheme, IntScheme, ScaleKind, Scheme};

/// The release of compressed-tensors whose formats are written.
const VERSION: &str = "0.19.0";

/// The `quantization_config` for these linears: one scheme targets `Linear`; several target their modules by pattern over
/// the blocks where this says neither more nor less than the list, else by name. Every plain linear is ignored by its
/// exact name, for old readers stop at a linear that nothing mentions.
pub(super) fn quantization_config(modules: &[(String, Option<Scheme>)], cache: Option<ActivationGrid>) -> Value {
    let mut schemes: Vec<&Scheme> = Vec::new();
    for scheme in modules.iter().filter_map(|(_, s)| s.as_ref()) {
        if !schemes.contains(&scheme) {
            schemes.push(scheme);
        }
    }
    let by_class = schemes.len() == 1;
    let mut groups = serde_json::Map::new();
    let mut formats: Vec<&str> = schemes.iter().map(|s| format(s)).collect();
    for (i, (scheme, format)) in schemes.iter().zip(&formats).enumerate() {
        let targets = if by_class { vec!["Linear".to_owned()] } else { ct_targets(modules, scheme) };
        groups.insert(
            format!("group_{i}"),
            json!({
                "format": format,
                "input_activations": scheme.input().map(input),
                "output_activations": null,
                "targets": targets,
                "weights": weights(scheme),
            }),
        );
    }
    formats.dedup();
    let format = match formats[..] {
        [] => "dense",
        [format] => format,
        _ => "mixed-precision",
    };
    let plain = modules.iter().filter(|(_, s)| s.is_none()).map(|(name, _)| name);
    json!({
        "config_groups": groups,
        "format": format,
        "global_compression_ratio": null,
        "ignore": plain.collect::<Vec<_>>(),
        "kv_cache_scheme": cache.map(input),
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "version": VERSION,
    })
}

/// The format of one scheme; what has none was refused before.
fn format(scheme: &Scheme) -> &'static str {
    match (scheme.weights(), scheme.input()) {
        (Scheme::Float(scheme), _) => float_format(*scheme).unwrap_or("float-quantized"),
        (Scheme::Int(scheme), Some(input)) if is_bytes(*scheme, input) => "int-quantized",
        _ => "pack-quantized",
    }
}

/// Whether integer weights lie one in a byte: where an integer kernel multiplies them with inputs of 8 bits.
pub(super) fn is_bytes(scheme: IntScheme, input: ActivationGrid) -> bool {
    let is_int8 = matches!(input.number, Number::Int { bits: 8, .. });
    is_int8 && scheme.bits == 8 && scheme.symmetric && !matches!(scheme.group, Group::Columns(_))
}

/// How an input is rounded, as compressed-tensors says it.
fn input(grid: ActivationGrid) -> Value {
    let (bits, symmetric, kind) = match grid.number {
        Number::Int { bits, symmetric } => (bits, symmetric, "int"),
        Number::Float(element) => (element.bits(), true, "float"),
    };
    let (strategy, dynamic, size) = match (grid.sharing, grid.scale) {
        (Sharing::Tensor, _) => ("tensor", json!(false), None),
        (Sharing::Token, _) => ("token", json!(true), None),
        (Sharing::Columns(g), ScaleType::E4M3) => ("tensor_group", json!("local"), Some(g)),
        (Sharing::Columns(g), _) => ("group", json!(true), Some(g)),
    };
    let scale = match grid.scale {
        ScaleType::E8M0 => ScaleKind::PowerOfTwo,
        ScaleType::E4M3 => ScaleKind::Float8,
        _ => ScaleKind::Plain,
    };
    json!({
        "actorder": null,
        "block_structure": null,
        "dynamic": dynamic,
        "group_size": size,
        "num_bits": bits,
        "observer": if grid.has_stored_scale() { Some("static_minmax") } else { None },
        "observer_kwargs": {},
        "scale_dtype": scale_dtype(scale),
        "strategy": strategy,
        "symmetric": symmetric,
        "type": kind,
        "zp_dtype": if symmetric { Value::Null } else { json!("torch.int8") },
    })
}

/// Why an input that is rounded so is not written, if it is not.
pub(super) fn why_not_input(grid: ActivationGrid) -> Option<String> {
    let is_known = matches!(
        (grid.number, grid.sharing, grid.scale),
        (Number::Int { .. } | Number::Float(Minifloat::E4M3), _, ScaleType::F32)
            | (Number::Float(Minifloat::E4M3 | Minifloat::E2M1), Sharing::Columns(32), ScaleType::E8M0)
            | (Number::Float(Minifloat::E2M1), Sharing::Columns(16), ScaleType::E4M3)
    ) && !grid.is_searched;
    (!is_known).then(|| format!("compressed-tensors has no inputs in {grid}"))
}

/// The format that holds small floats of a scheme, or why none does.
pub(super) fn float_format(scheme: FloatScheme) -> Result<&'static str, String> {
    match (scheme.element, scheme.scale, scheme.group) {
        (Minifloat::E4M3, ScaleKind::Plain, _) => Ok("float-quantized"),
        (Minifloat::E4M3, ScaleKind::PowerOfTwo, Group::Columns(32)) => Ok("mxfp8-quantized"),
        (Minifloat::E2M1, ScaleKind::PowerOfTwo, Group::Columns(32)) => Ok("mxfp4-pack-quantized"),
        (Minifloat::E2M1, ScaleKind::Float8, Group::Columns(16)) => Ok("nvfp4-pack-quantized"),
        _ => Err(format!("compressed-tensors holds FP8, MXFP8, MXFP4 and NVFP4, not {scheme}")),
    }
}

fn weights(scheme: &Scheme) -> Value {
    let scheme = scheme.weights();
    let (bits, group, symmetric, kind, scale) = match scheme {
        Scheme::Int(s) => (s.bits, s.group, s.symmetric, "int", Value::Null),
        Scheme::Float(s) => (s.element.bits(), s.group, true, "float", scale_dtype(s.scale)),
        // The layout holds none of these.
        _ => return Value::Null,
    };
    let is_global = matches!(scheme, Scheme::Float(s) if s.scale == ScaleKind::Float8);
    let (strategy, group_size, block) = match group {
        Group::Tensor => ("tensor", None, None),
        Group::Row => ("channel", None, None),
        Group::Columns(g) => (if is_global { "tensor_group" } else { "group" }, Some(g), None),
        Group::Block(sizes) => ("block", None, Some(sizes)),
    };
    json!({
        "actorder": null,
        "block_structure": block,
        "dynamic": false,
        "group_size": group_size,
        "num_bits": bits,
        "observer": "minmax",
        "observer_kwargs": {},
        "scale_dtype": scale,
        "strategy": strategy,
        "symmetric": symmetric,
        "type": kind,
    })
}

/// The type of scales that is not the model's.
fn scale_dtype(scale: ScaleKind) -> Value {
    match scale {
        ScaleKind::Plain => Value::Null,
        ScaleKind::PowerOfTwo => json!("torch.uint8"),
        ScaleKind::Float8 => json!("torch.float8_e4m3fn"),
    }
}

/// The targets of one scheme: for each module its pattern over the blocks, where all linears of that pattern share
/// the scheme, else its name.
fn ct_targets(modules: &[(String, Option<Scheme>)], scheme: &Scheme) -> Vec<String> {
    let is_ours = |s: &Option<Scheme>| s.as_ref() == Some(scheme);
    let foreign: BTreeSet<String> =
        modules.iter().filter(|(_, s)| !is_ours(s)).map(|(name, _)| over_blocks(name)).collect();
    let mut targets = Vec::new();
    for (name, _) in modules.iter().filter(|(_, s)| is_ours(s)) {
        let pattern = over_blocks(name);
        let target = if foreign.contains(&pattern) || !pattern.starts_with("re:") { name.clone() } else { pattern };
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    targets
}

/// `model.layers.3.mlp.up_proj` as the pattern of all blocks; a name without numbers as itself.
fn over_blocks(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !name.split('.').any(is_number) {
        return name.to_owned();
    }
    let parts: Vec<&str> = name.split('.').map(|p| if is_number(p) { r"\d+" } else { p }).collect();
    format!("re:{}$", parts.join(r"\."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Quantization;

    fn int(bits: u8, group: Group) -> Scheme {
        Scheme::Int(IntScheme { bits, group, symmetric: true, act_order: false, second: None })
    }

    /// What a reader of the settings makes of each module is what was written, and no entry is idle.
    fn check(modules: &[(String, Option<Scheme>)]) -> Value {
        let settings = quantization_config(modules, None);
        let back = Quantization::parse(&json!({ "quantization_config": settings }), None).unwrap();
        for (name, scheme) in modules {
            assert_eq!(back.scheme_of(name), scheme.as_ref(), "{name} in {settings}");
        }
        let lists = (settings["config_groups"].as_object().unwrap().values()).map(|g| &g["targets"]);
        for entry in lists.chain([&settings["ignore"]]).flat_map(|l| l.as_array().unwrap()) {
            let target = super::super::target::Target::parse(entry.as_str().unwrap()).unwrap();
            assert!(modules.iter().any(|(name, _)| target.matches(name).is_some()), "{entry} is idle");
        }
        settings
    }

    fn block(i: usize, scheme: impl Fn(&str) -> Option<Scheme>) -> Vec<(String, Option<Scheme>)> {
        let names = ["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj"];
        names.iter().map(|n| (format!("model.layers.{i}.{n}"), scheme(n))).collect()
    }

    #[test]
    fn one_scheme_targets_the_class_and_ignores_by_name() {
        let mut modules = block(0, |_| Some(int(4, Group::Columns(32))));
        modules[1].1 = None;
        modules.push(("lm_head".to_owned(), None));
        let settings = check(&modules);
        assert_eq!(settings["config_groups"]["group_0"]["targets"], json!(["Linear"]));
        assert_eq!(settings["ignore"], json!(["model.layers.0.self_attn.k_proj", "lm_head"]));
    }

    #[test]
    fn several_schemes_target_patterns_where_these_fit_and_names_where_not() {
        let of = |name: &str| Some(int(if name.starts_with("mlp") { 4 } else { 8 }, Group::Row));
        let mut modules: Vec<_> = (0..12).flat_map(|i| block(i, of)).collect();
        modules.push(("lm_head".to_owned(), None));
        let settings = check(&modules);
        let patterns = json!([r"re:model\.layers\.\d+\.mlp\.up_proj$", r"re:model\.layers\.\d+\.mlp\.down_proj$"]);
        assert_eq!(settings["config_groups"]["group_1"]["targets"], patterns);
        assert_eq!(settings["ignore"], json!(["lm_head"]));

        modules[3].1 = Some(int(8, Group::Row));
        modules[6].1 = None;
        let targets = &check(&modules)["config_groups"]["group_0"]["targets"];
        assert!(targets.as_array().unwrap().contains(&json!("model.layers.0.mlp.down_proj")));
    }

    #[test]
    fn a_few_linears_and_a_quantized_head() {
        let mut modules: Vec<_> = (0..3).flat_map(|i| block(i, |_| None)).collect();
        for i in [0, 5, 10] {
            modules[i].1 = Some(int(4, Group::Columns(64)));
        }
        modules.push(("lm_head".to_owned(), Some(int(8, Group::Row))));
        check(&modules);
        for (_, scheme) in &mut modules {
            *scheme = Some(int(4, Group::Columns(64)));
        }
        assert_eq!(check(&modules)["ignore"], json!([]));
    }
}
