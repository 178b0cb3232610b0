//! A written folder, read again as its configuration describes it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use fewbit_format::{Error, Result};
use fewbit_graph::{Container, Part, WeightId};
use fewbit_store::ModelFile;
use fewbit_store::layout::{self, Quantization, Scheme};
use serde_json::{Value, json};

/// A linear as other programs see it: by the name of its module.
pub(crate) struct Linear {
    pub(crate) module: String,
    pub(crate) part: Part,
    pub(crate) weight: WeightId,
    pub(crate) is_quantized: bool,
}

/// Linears that runtimes multiply as one.
pub(crate) const FUSED: [&[&str]; 2] = [&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"]];

/// Opens a written folder and holds its tensors against its configuration.
///
/// Every tensor is used and has its shape; every quantized linear has a scheme, every plain one has none; no entry of
/// the configuration names nothing.
///
/// # Errors
/// Says what contradicts what. All are mistakes of the program that wrote the folder.
pub fn verify_folder(path: &Path) -> Result<()> {
    let file = ModelFile::open(path)?;
    let wrong = |reason: String| Err(Error::internal(reason).file(path));
    if let Some(note) = file.notes().first() {
        return wrong(note.clone());
    }
    if file.checkpoint().container() != Container::HuggingFace {
        return Ok(());
    }
    let linears = linears(&file)?;
    for linear in &linears {
        let scheme = file.quantization().scheme_of(&linear.module);
        match (linear.is_quantized, scheme, file.quantization()) {
            (true, None, _) => {
                return wrong(format!("`{}` is packed, and no entry of the configuration names it", linear.module));
            }
            (false, Some(_), Quantization::CompressedTensors(_)) => {
                return wrong(format!("`{}` is plain, and the configuration does not ignore it", linear.module));
            }
            _ => {}
        }
        // Reading checks types and shapes of the packed tensors.
        file.linear(linear.part, linear.weight)?;
        file.drop_pages(linear.part);
    }
    let embedding = file.module(Part::Embed, 0);
    let is_quantized = layout::is_quantized(file.quantization(), file.checkpoint(), &embedding);
    let embedding = is_quantized.then_some(&*embedding);
    match idle(file.checkpoint().config().get("quantization_config"), &linears, embedding) {
        Some(entry) => wrong(format!("the entry `{entry}` of `quantization_config` names no linear")),
        None => Ok(()),
    }
}

pub(crate) fn linears(file: &ModelFile) -> Result<Vec<Linear>> {
    let mut linears = Vec::new();
    for (part, graph) in file.model().parts().filter(|(part, _)| *part != Part::Embed) {
        for (weight, w) in graph.weights.iter().enumerate() {
            let stored = file.module(part, weight);
            let is_quantized = layout::is_quantized(file.quantization(), file.checkpoint(), &stored);
            // A tied head is a module of its own for other programs, though its matrix is the embedding's.
            let module = if is_quantized { stored } else { file.exported(part, &w.name)?.name };
            linears.push(Linear { module, part, weight, is_quantized });
        }
    }
    Ok(linears)
}

/// The first entry of the settings that names no linear that it could mean, nor an embedding that is quantized.
fn idle(settings: Option<&Value>, linears: &[Linear], embedding: Option<&str>) -> Option<String> {
    let settings = settings?;
    let entries = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|e| e.as_str().map(str::to_owned)).collect()
    };
    let names_one = |entry: &str, wanted: bool| {
        // What an entry names is asked of the reader, with a configuration that has only this entry.
        let alone = json!({"quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": [entry], "weights": {"num_bits": 4, "type": "int", "strategy": "channel"}}},
        }});
        let alone = Quantization::parse(&alone, None).ok();
        alone.is_some_and(|q| linears.iter().any(|l| l.is_quantized == wanted && q.scheme_of(&l.module).is_some()))
    };
    let groups = settings["config_groups"].as_object().into_iter().flatten();
    let targets: Vec<String> = groups.flat_map(|(_, g)| entries(&g["targets"])).collect();
    let quantized = linears.iter().filter(|l| l.is_quantized).map(|l| l.module.as_str());
    let modules: BTreeSet<&str> = quantized.chain(embedding).collect();
    let named = settings["modules"].as_object().into_iter().flatten().map(|(name, _)| name);
    let idle_name = named.into_iter().find(|name| !modules.contains(name.as_str())).cloned();
    let idle_target = targets.into_iter().find(|e| !names_one(e, true));
    let idle_ignore = entries(&settings["ignore"]).into_iter().find(|e| !names_one(e, false));
    idle_target.or(idle_ignore).or(idle_name)
}

/// Linears that runtimes fuse (q, k and v; gate and up) although their schemes differ: one sentence for each block.
///
/// Such a folder is sound, but vLLM, among others, does not load it.
pub fn mixed_schemes(linears: &[(String, Option<Scheme>)]) -> Vec<String> {
    mixed(linears).into_iter().map(|(parent, what)| format!("`{parent}`: {what}")).collect()
}

/// By the module that they lie in, linears that runtimes fuse although their schemes differ.
pub(crate) fn mixed(linears: &[(String, Option<Scheme>)]) -> Vec<(String, String)> {
    // By parent and by which of the two they belong to, with their schemes in words.
    let mut groups: BTreeMap<(&str, usize), Vec<(&str, String)>> = BTreeMap::new();
    for (name, scheme) in linears {
        let Some((parent, last)) = name.rsplit_once('.') else { continue };
        if let Some(group) = FUSED.iter().position(|names| names.contains(&last)) {
            let words = scheme.as_ref().map_or("plain".to_owned(), Scheme::to_string);
            groups.entry((parent, group)).or_default().push((last, words));
        }
    }
    let differ = groups.into_iter().filter(|(_, members)| members.iter().any(|(_, words)| *words != members[0].1));
    differ
        .map(|((parent, _), members)| {
            let each: Vec<String> = members.iter().map(|(name, words)| format!("{name} {words}")).collect();
            (parent.to_owned(), format!("{}; vLLM fuses these and needs one scheme for them", each.join(", ")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewbit_format::Group;
    use fewbit_store::layout::IntScheme;

    #[test]
    fn fused_linears_with_several_schemes_are_named() {
        let int = |bits| {
            Some(Scheme::Int(IntScheme { bits, group: Group::Row, symmetric: true, act_order: false, second: None }))
        };
        let list = |v: Option<Scheme>| {
            let names = ["a.q_proj", "a.k_proj", "a.v_proj", "b.gate_proj", "b.up_proj", "b.down_proj", "lm_head"];
            let schemes = [int(4), int(4), v, int(4), int(4), int(8), None];
            names.iter().map(|n| (*n).to_owned()).zip(schemes).collect::<Vec<_>>()
        };
        assert!(mixed_schemes(&list(int(4))).is_empty());
        let said = mixed_schemes(&list(None));
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with("`a`: q_proj 4 bit per row symmetric, k_proj 4 bit"), "{}", said[0]);
        assert!(said[0].contains("v_proj plain; vLLM"));
    }

    #[test]
    fn entries_that_name_nothing_are_found() {
        let linear =
            |module: &str, is_quantized| Linear { module: module.into(), part: Part::Head, weight: 0, is_quantized };
        let linears = [linear("m.0.q_proj", true), linear("lm_head", false)];
        let settings = |targets: &[&str], ignore: &[&str]| json!({"config_groups": {"group_0": {"targets": targets}}, "ignore": ignore});
        let found = |targets: &[&str], ignore: &[&str]| idle(Some(&settings(targets, ignore)), &linears, None);
        assert_eq!(found(&["Linear"], &["lm_head"]), None);
        assert_eq!(found(&["re:m\\.\\d+\\.q_proj$"], &[]), None);
        assert_eq!(found(&["m.1.q_proj"], &[]).as_deref(), Some("m.1.q_proj"));
        assert_eq!(found(&["Linear"], &["m.9.k_proj"]).as_deref(), Some("m.9.k_proj"));
        let entry = json!({"modules": {"m.7": {}}});
        assert_eq!(idle(Some(&entry), &linears, None).as_deref(), Some("m.7"));
        assert_eq!(idle(Some(&entry), &linears, Some("m.7")), None, "an embedding of its own");
    }
}
