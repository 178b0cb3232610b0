//! The card of a written model, README.md.

use std::fmt::Write;

use fewbit_format::Result;
use fewbit_graph::Part;
use fewbit_store::ModelFile;
use fewbit_store::layout;

use crate::gguf::{Plan, family};
use crate::{facts, table};

/// What a card is made of.
#[derive(Clone, Debug)]
pub struct CardInfo<'a> {
    /// The written model, opened.
    pub file: &'a ModelFile,
    /// The model that it was made from.
    pub source: &'a ModelFile,
    /// The source's hub id (`owner/name`) or name.
    pub base_model: &'a str,
    /// The recipe's name.
    pub recipe: &'a str,
    /// Its citation.
    pub cite: &'a str,
    /// The settings that were given, `key=value`.
    pub settings: Vec<String>,
    /// What it was calibrated on.
    pub calibration: Option<String>,
    /// `compressed-tensors`, `gguf` or `fewbit`.
    pub format: &'static str,
}

/// Sizes as they are counted from the files.
struct Sizes {
    /// Bits and weights of the quantized linears.
    quantized: (u64, u64),
    /// Bytes of all tensors.
    bytes: u64,
}

/// The text of README.md: front matter, recipe, true sizes, how to run it, and an empty table of evaluations.
///
/// No date, host or path stands in it: the same model has the same card. Sizes of the `gguf` format are those that
/// [`crate::write_gguf`] will write; where it will refuse, the folder's.
pub fn card(info: &CardInfo<'_>) -> String {
    let of_gguf = if info.format == "gguf" { of_gguf(info.file).ok() } else { None };
    let sizes = of_gguf.unwrap_or_else(|| of_folder(info.file));
    let name = info.base_model.rsplit(['/', '\\']).find(|s| !s.is_empty()).unwrap_or("model");
    let mut out = front_matter(info);
    let bits = sizes.quantized.0 as f64 / sizes.quantized.1.max(1) as f64;
    let parameters = info.file.model().parameters();
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "# {name}, {}\n\n\
         `{name}` with its linear layers quantized by fewbit's recipe `{}` ({bits:.3} bits per weight), in the {} format.\n\n\
         ## How it was made\n\n{}\n\
         ## Size\n\n\
         | | |\n|---|---|\n\
         | bits per weight, quantized linears (scales and zero points included) | {bits:.3} |\n\
         | bits per weight, whole model | {:.3} |\n\
         | parameters | {parameters} |\n\
         | bytes of all tensors | {} |\n\n\
         ## How to run it\n\n{}\n\
         ## Evaluation\n\n\
         Rows are written by `fewbit eval MODEL --against ORIGINAL --text FILE --card`.\n\n{}",
        info.recipe,
        info.recipe,
        format_name(info.format),
        made(info),
        8.0 * sizes.bytes as f64 / parameters.max(1) as f64,
        sizes.bytes,
        run(info.format),
        table::empty(),
    );
    out
}

fn front_matter(info: &CardInfo<'_>) -> String {
    let mut out = "---\n".to_owned();
    if is_hub_id(info.base_model) {
        let _ = write!(out, "base_model: {}\nbase_model_relation: quantized\n", info.base_model);
    }
    if let Some(license) = facts::license(info.source) {
        let _ = writeln!(out, "license: {}", yaml(&license));
    }
    let library = match info.format {
        "gguf" => Some("gguf"),
        "compressed-tensors" => Some("transformers"),
        _ => None,
    };
    if let Some(library) = library {
        let _ = writeln!(out, "library_name: {library}");
    }
    let _ = write!(
        out,
        "pipeline_tag: text-generation\ntags:\n- fewbit\n- {}\n- {}\n---\n\n",
        yaml(info.recipe),
        info.format
    );
    out
}

/// A hub's `owner/name`, not a path.
fn is_hub_id(name: &str) -> bool {
    let is_word = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphanumeric())
            && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split_once('/').is_some_and(|(owner, name)| is_word(owner) && is_word(name))
}

/// A text as a scalar of YAML: quoted unless it is plainly a word.
fn yaml(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if is_plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

fn made(info: &CardInfo<'_>) -> String {
    let mut out = format!("| | |\n|---|---|\n| recipe | `{}` |\n", info.recipe);
    if !info.cite.is_empty() {
        let _ = writeln!(out, "| method | {} |", info.cite.replace('|', "\\|").replace('\n', " "));
    }
    if !info.settings.is_empty() {
        let settings: Vec<String> = info.settings.iter().map(|s| format!("`{s}`")).collect();
        let _ = writeln!(out, "| settings | {} |", settings.join(", "));
    }
    if let Some(calibration) = &info.calibration {
        let _ = writeln!(out, "| calibration | {calibration} |");
    }
    if let Some(quantization) = info.file.quantization().describe() {
        let _ = writeln!(out, "| stored as | {quantization} |");
    }
    if info.source.is_quantized() {
        out.push_str("| note | the source was quantized already: its dequantized weights were taken |\n");
    }
    out
}

fn format_name(format: &str) -> &str {
    match format {
        "gguf" => "GGUF",
        other => other,
    }
}

fn run(format: &str) -> &'static str {
    match format {
        "gguf" => "```sh\nfewbit chat model.gguf\nllama-cli -m model.gguf -p \"Once upon a time\"\n```\n",
        "compressed-tensors" => {
            "```sh\nfewbit chat FOLDER\nvllm serve FOLDER\n```\n\nor, with the packages `transformers` and `compressed-tensors`:\n\n\
             ```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\
             model = AutoModelForCausalLM.from_pretrained(\"FOLDER\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\"FOLDER\")\n```\n"
        }
        _ => {
            "```sh\nfewbit chat FOLDER\nfewbit run FOLDER --prompt \"Once upon a time\"\n```\n\n\
             The tensors are safetensors in the layout of fewbit's `docs/format.md`.\n"
        }
    }
}

fn of_gguf(file: &ModelFile) -> Result<Sizes> {
    let plan = Plan::of(file, family(file)?.name)?;
    Ok(Sizes { quantized: plan.in_blocks(), bytes: plan.size_bytes() })
}

fn of_folder(file: &ModelFile) -> Sizes {
    let (checkpoint, quantization) = (file.checkpoint(), file.quantization());
    let bytes_of = |name: &String| {
        let bytes = checkpoint.elements(name).ok()?.tensor_bytes(&checkpoint.shape(name).ok()?)?;
        Some(bytes as u64)
    };
    let (mut bits, mut weights) = (0, 0);
    for (part, graph) in file.model().parts().filter(|(part, _)| matches!(part, Part::Block(_) | Part::Head)) {
        for (w, weight) in graph.weights.iter().enumerate() {
            let module = file.module(part, w);
            if !layout::is_quantized(quantization, checkpoint, &module) {
                continue;
            }
            // The shape is no part of the weight, and known without.
            let names = layout::tensor_names(quantization, &module).into_iter();
            let names = names.filter(|n| !n.ends_with(".weight_shape"));
            bits += 8 * names.filter_map(|n| bytes_of(&n)).sum::<u64>();
            weights += (weight.shape[0] * weight.shape[1]) as u64;
        }
    }
    Sizes { quantized: (bits, weights), bytes: checkpoint.size_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids_and_yaml() {
        assert!(is_hub_id("HuggingFaceTB/SmolLM2-135M"));
        for other in ["/data/model", "./a/b", "a/b/c", "model", "../x", "a b/c"] {
            assert!(!is_hub_id(other), "{other}");
        }
        assert_eq!(yaml("apache-2.0"), "apache-2.0");
        assert_eq!(yaml("see: LICENSE"), "\"see: LICENSE\"");
    }
}
