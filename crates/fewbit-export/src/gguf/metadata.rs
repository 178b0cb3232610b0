//! The keys of a GGUF file.

use fewbit_format::{Dtype, Error, GgmlType, Result};
use fewbit_graph::{Config, Op, architecture_of};
use fewbit_store::{Elements, Gguf, ModelFile, Value};

use super::plan::Plan;
use super::rotation;
use super::vocabulary::Exported;
use crate::facts;

/// GGUF's name of the model's family.
///
/// # Errors
/// If it is none of those that are written, or is set up in a way that llama.cpp does not run.
pub(crate) fn family(file: &ModelFile) -> Result<&'static str> {
    let other = || "write it with `--format compressed-tensors` or `--format fewbit`";
    let family = match architecture_of(file.checkpoint().config())?.answers_to()[0] {
        family @ ("llama" | "qwen2" | "qwen3") => family,
        family => {
            return Err(Error::input(format!(
                "GGUF is written for Llama, Mistral, Qwen2 and Qwen3, and this is `{family}`"
            ))
            .hint(other()));
        }
    };
    let model = file.model();
    let windows = model.blocks.iter().flat_map(|g| &g.nodes).filter_map(|n| match n.op {
        Op::Attention { window, .. } => window,
        _ => None,
    });
    if let Some(window) = windows.min().filter(|w| *w < model.context) {
        return Err(Error::input(format!(
            "attention sees a window of {window} positions, which llama.cpp ignores for `{family}`"
        ))
        .hint(other()));
    }
    let has_bias = model.blocks.iter().flat_map(|g| &g.weights).any(|w| w.has_bias);
    if family == "qwen3" && has_bias {
        return Err(Error::input("attention has biases, which llama.cpp does not read for `qwen3`").hint(other()));
    }
    Ok(family)
}

/// All keys, in the order of the file.
pub(super) fn keys(file: &ModelFile, family: &str, plan: &Plan, vocabulary: &Exported) -> Result<Vec<(String, Value)>> {
    let mut keys = vec![("general.architecture".to_owned(), Value::String(family.into()))];
    if let Some(gguf) = file.checkpoint().gguf() {
        copied(gguf, family, &mut keys);
    } else {
        general(file, &mut keys);
        figures(file, family, &mut keys)?;
    }
    let main = plan.main_type();
    keys.push(("general.file_type".into(), Value::U32(file_type(main))));
    if matches!(main, Elements::Blocks(_)) {
        keys.push(("general.quantization_version".into(), Value::U32(2)));
    }
    keys.extend(vocabulary.keys.iter().cloned());
    Ok(keys)
}

/// What another GGUF file says of the model itself.
fn copied(gguf: &Gguf, family: &str, keys: &mut Vec<(String, Value)>) {
    let own = ["general.architecture", "general.file_type", "general.quantization_version", "general.alignment"];
    let family = format!("{family}.");
    let is_copied =
        |key: &&String| (key.starts_with("general.") && !own.contains(&key.as_str())) || key.starts_with(&family);
    keys.extend(gguf.metadata().iter().filter(|(key, _)| is_copied(key)).map(|(k, v)| (k.clone(), v.clone())));
}

fn general(file: &ModelFile, keys: &mut Vec<(String, Value)>) {
    let mut text = |key: &str, value: Option<String>| {
        keys.extend(value.map(|v| (format!("general.{key}"), Value::String(v))));
    };
    text("type", Some("model".into()));
    text("name", facts::name(file));
    text("license", facts::license(file));
}

fn figures(file: &ModelFile, family: &str, keys: &mut Vec<(String, Value)>) -> Result<()> {
    let (json, model) = (file.checkpoint().config(), file.model());
    let config = Config::new(json);
    let (heads, kv_heads, head_dim) = config.heads()?;
    let mut put = |key: &str, value: Value| keys.push((format!("{family}.{key}"), value));
    let size = |n: usize| Value::U32(n as u32);
    put("block_count", size(model.blocks.len()));
    put("context_length", size(model.context));
    put("embedding_length", size(model.hidden));
    put("feed_forward_length", size(config.usize("intermediate_size")?));
    put("attention.head_count", size(heads));
    put("attention.head_count_kv", size(kv_heads));
    if heads * head_dim != model.hidden {
        put("attention.key_length", size(head_dim));
        put("attention.value_length", size(head_dim));
    }
    let eps = model.head.nodes.iter().find_map(|n| if let Op::RmsNorm { eps, .. } = n.op { Some(eps) } else { None });
    put("attention.layer_norm_rms_epsilon", Value::F32(eps.unwrap_or(1e-6)));
    put("rope.freq_base", Value::F32(rotation::base(json) as f32));
    put("rope.dimension_count", size(head_dim));
    for (key, value) in rotation::keys(json)? {
        put(key, value);
    }
    put("vocab_size", size(model.vocabulary));
    Ok(())
}

/// llama.cpp's number for a file whose weights are mostly of one type.
fn file_type(main: Elements) -> u32 {
    match main {
        Elements::Plain(Dtype::F16) => 1,
        Elements::Plain(Dtype::BF16) => 32,
        Elements::Blocks(kind) => match kind {
            GgmlType::Q4_0 => 2,
            GgmlType::Q4_1 => 3,
            GgmlType::Q8_0 => 7,
            GgmlType::Q5_0 => 8,
            GgmlType::Q5_1 => 9,
            GgmlType::Q2K => 10,
            GgmlType::Q3K => 12,
            GgmlType::Q4K => 15,
            GgmlType::Q5K => 17,
            GgmlType::Q6K => 18,
        },
        Elements::Plain(_) | Elements::Unread(_) => 0,
    }
}
