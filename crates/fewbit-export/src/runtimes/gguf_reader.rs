//! What transformers' reader makes of a GGUF file (`integrations/ggml.py` and `modeling_gguf_pytorch_utils.py` of
//! transformers 5.20.2), from which vLLM has its configurations too.
//!
//! It takes a few keys of each architecture that it knows, and the defaults of its own configurations for all else: a
//! file that says something else there loads without a word, and computes something else.

use fewbit_format::{GgmlType, Result};
use fewbit_store::{Elements, Gguf};

use super::{LoadedBy, Obstacle};

/// An architecture, and what is taken for granted of it.
struct Known {
    name: &'static str,
    /// Keys that are not read, and what they are taken to be.
    assumed: &'static [(&'static str, f64)],
    /// The share of a head that rotates; `None` where it is read.
    rotated: Option<f64>,
    /// What names of tensors hold that are left out.
    left_out: &'static [&'static str],
}

const PLAIN: Known = Known { name: "", assumed: &[], rotated: Some(1.0), left_out: &[] };
/// What queries are scaled by: heads of other widths have the same.
const GEMMA: (&str, f64) = ("attention.key_length", 256.0);

const KNOWN: [Known; 12] = [
    Known { name: "llama", assumed: &[("expert_count", 0.0)], rotated: None, left_out: &[".bias"] },
    Known { name: "qwen2", ..PLAIN },
    Known { name: "qwen2moe", ..PLAIN },
    Known { name: "qwen3", assumed: &[("attention.key_length", 128.0)], ..PLAIN },
    Known { name: "qwen3moe", ..PLAIN },
    Known { name: "phi3", ..PLAIN },
    Known { name: "falcon", left_out: &["attn_norm_2."], ..PLAIN },
    Known { name: "gpt2", rotated: None, ..PLAIN },
    Known { name: "gpt-oss", ..PLAIN },
    Known {
        name: "stablelm",
        assumed: &[("rope.freq_base", 10000.0)],
        rotated: Some(0.25),
        left_out: &["attn_q_norm.", "attn_k_norm."],
    },
    Known {
        name: "gemma2",
        assumed: &[("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0), GEMMA],
        ..PLAIN
    },
    Known { name: "gemma3", assumed: &[("rope.freq_base_swa", 10000.0), GEMMA], ..PLAIN },
];

/// Factors of positions, by tensors.
const SCALED: [&str; 2] = ["rope_freqs.", "rope_factors_"];

/// What keeps the reader from a file, or makes another model of it.
///
/// # Errors
/// If a key has another type than it must have.
pub(super) fn obstacles(gguf: &Gguf, program: LoadedBy) -> Result<Vec<Obstacle>> {
    if let Some(files) = gguf.u64("split.count")?.filter(|n| *n > 1) {
        return Ok(Obstacle::of_model(format!("it reads models of one file, and this one is split into {files}")));
    }
    let architecture = gguf.string("general.architecture")?.unwrap_or_default();
    let Some(known) = KNOWN.iter().find(|k| k.name == architecture) else {
        return Ok(Obstacle::of_model(format!("its reader does not know the architecture `{architecture}`")));
    };
    let of_model = settings(gguf, known)?.into_iter().flat_map(Obstacle::of_model);
    let of_tensors = gguf.tensors().iter().filter_map(|t| {
        let why = tensor(&t.name, t.elements, known, program)?;
        Some(Obstacle { module: t.name.clone(), why })
    });
    Ok(of_model.chain(of_tensors).collect())
}

/// What the file says that the reader does not take from it.
fn settings(gguf: &Gguf, known: &Known) -> Result<Vec<String>> {
    let number = |key: &str| gguf.f64(&format!("{}.{key}", known.name));
    let mut found = Vec::new();
    for (key, assumed) in known.assumed {
        if let Some(value) = number(key)?.filter(|v| v != assumed) {
            found.push(format!("its reader takes `{}.{key}` to be {assumed}, where it is {value}", known.name));
        }
    }
    let scaling = gguf.string(&format!("{}.rope.scaling.type", known.name))?.filter(|s| *s != "none");
    if let Some(scaling) = scaling {
        found.push(format!("its reader scales no positions, which are scaled by `{scaling}`"));
    }
    let width = match (number("attention.key_length")?, number("embedding_length")?, number("attention.head_count")?) {
        (Some(width), ..) => Some(width),
        (None, Some(dim), Some(heads)) => Some(dim / heads),
        _ => None,
    };
    if let (Some(share), Some(width), Some(rotated)) = (known.rotated, width, number("rope.dimension_count")?)
        && rotated != share * width
    {
        found.push(format!("its reader rotates {} of a head's {width} dimensions, not {rotated}", share * width));
    }
    Ok(found)
}

/// What is wrong with one tensor.
fn tensor(name: &str, elements: Elements, known: &Known, program: LoadedBy) -> Option<String> {
    use GgmlType as T;
    if SCALED.iter().any(|part| name.starts_with(part)) {
        return Some("its reader scales no positions".to_owned());
    }
    if known.left_out.iter().any(|part| name.contains(part)) {
        return Some(format!("its reader has no such tensor in `{}`", known.name));
    }
    let Elements::Blocks(kind) = elements else { return None };
    let is_unknown = match program {
        LoadedBy::Vllm => matches!(kind, T::Q8K | T::Tq1_0 | T::Tq2_0 | T::Mxfp4 | T::Nvfp4 | T::Q1_0 | T::Q2_0),
        _ => matches!(kind, T::Q8_1 | T::Q8K | T::Q1_0 | T::Q2_0),
    };
    is_unknown.then(|| format!("it has no decoder of {}", kind.name()))
}
