//! The keys of a GGUF file.

use fewbit_format::{Dtype, Error, GgmlType, Result};
use fewbit_graph::{Activation, Graph, Op, architecture_of};
use fewbit_store::{Elements, Gguf, GgufFamily, ModelFile, Value};
use serde_json::Value as Json;

use super::mix::GgufMix;
use super::plan::Plan;
use super::vocabulary::Exported;
use super::{mixture, rotation};
use crate::facts;

/// The model's family in GGUF.
///
/// # Errors
/// If it is none of those that are written, or is set up in a way that llama.cpp does not run.
pub(crate) fn family(file: &ModelFile) -> Result<&'static GgufFamily> {
    let config = file.checkpoint().config();
    let names = architecture_of(config)?.answers_to();
    let family = GgufFamily::ALL.iter().find(|f| names.contains(&f.model_type));
    let family = family.ok_or_else(|| {
        let known: Vec<&str> = GgufFamily::ALL.iter().map(|f| f.model_type).collect();
        refused(&format!("GGUF is written for {}, and this is `{}`", known.join(", "), names[0]))
    })?;
    let model = file.model();
    check_window(file, family)?;
    check_queries(file, family)?;
    check_gpt2(file, family)?;
    check_neox(file, family)?;
    check_command_r(file, family)?;
    mixture::check(file, family)?;
    let has_bias = model.blocks.iter().flat_map(|g| &g.weights).any(|w| w.has_bias);
    if has_bias && matches!(family.name, "qwen3" | "qwen3moe" | "falcon") {
        return Err(refused(&format!("it has biases, which llama.cpp does not read for `{}`", family.name)));
    }
    Ok(family)
}

pub(super) fn refused(what: &str) -> Error {
    Error::input(what).hint("write it with `--format compressed-tensors` or `--format fewbit`")
}

/// The windows of the layers.
fn windows(file: &ModelFile) -> impl Iterator<Item = Option<usize>> {
    let of =
        |g: &Graph| g.nodes.iter().find_map(|n| if let Op::Attention { window, .. } = n.op { window } else { None });
    file.model().blocks.iter().map(of)
}

/// Which layers see everything is in llama.cpp's code, for the families that have windows there.
fn sees_all(family: &GgufFamily) -> Option<fn(usize) -> bool> {
    match family.name {
        "gemma2" => Some(|layer| layer % 2 == 1),
        "gemma3" => Some(|layer| layer % 6 == 5),
        "cohere2" => Some(|layer| layer % 4 == 3),
        "gpt-oss" => Some(|layer| layer % 2 == 1),
        _ => None,
    }
}

fn check_window(file: &ModelFile, family: &GgufFamily) -> Result<()> {
    let Some(sees_all) = sees_all(family) else {
        let window = windows(file).flatten().find(|w| *w < file.model().longest);
        let Some(window) = window else { return Ok(()) };
        let name = family.name;
        return Err(refused(&format!(
            "attention sees a window of {window} positions, which llama.cpp ignores for `{name}`"
        )));
    };
    match windows(file).enumerate().find(|(layer, w)| w.is_none() != sees_all(*layer)) {
        None => Ok(()),
        Some((layer, _)) => {
            Err(refused(&format!("layer {layer} has another window than llama.cpp gives it in `{}`", family.name)))
        }
    }
}

/// What Gemma's queries are divided by follows from the sizes in llama.cpp.
fn check_queries(file: &ModelFile, family: &GgufFamily) -> Result<()> {
    let Some(largest) = family.layers_of_largest else { return Ok(()) };
    let config = file.checkpoint().settings();
    let (heads, _, head_dim) = config.heads()?;
    let is_largest = file.model().blocks.len() as u64 == largest;
    let by_size = if is_largest { file.model().hidden / heads } else { head_dim };
    let scalar = config.f64_or("query_pre_attn_scalar", 256.0)?;
    if scalar == by_size as f64 {
        return Ok(());
    }
    Err(refused(&format!("`query_pre_attn_scalar` is {scalar}, where llama.cpp takes {by_size} for these sizes")))
}

/// llama.cpp has one GPT-2: the tanh form of gelu, and scores by the size of a head in every layer.
fn check_gpt2(file: &ModelFile, family: &GgufFamily) -> Result<()> {
    if family.name != "gpt2" {
        return Ok(());
    }
    for (layer, node) in file.model().blocks.iter().enumerate().flat_map(|(i, g)| g.nodes.iter().map(move |n| (i, n))) {
        match node.op {
            Op::Attention { head_dim, scale, .. } if scale != (head_dim as f32).powf(-0.5) => {
                return Err(refused(&format!("it scales the scores of layer {layer} otherwise than llama.cpp")));
            }
            Op::Activation(f) if f != Activation::GeluTanh => {
                return Err(refused("its `activation_function` is not the `gelu_new` that llama.cpp has for `gpt2`"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// llama.cpp adds a bias to queries, keys and values of every GPT-NeoX, has two matrices for embedding and head, and
/// gelu in between.
fn check_neox(file: &ModelFile, family: &GgufFamily) -> Result<()> {
    if family.name != "gptneox" {
        return Ok(());
    }
    let config = file.checkpoint().settings();
    if !config.bool_or("attention_bias", true)? {
        return Err(refused("attention has no biases, which llama.cpp wants for `gptneox`"));
    }
    if file.is_tied() {
        return Err(refused("embedding and head are one matrix, where llama.cpp wants two for `gptneox`"));
    }
    match config.str("hidden_act") {
        Some("relu") => Err(refused("its `hidden_act` is not the gelu that llama.cpp has for `gptneox`")),
        _ => Ok(()),
    }
}

/// llama.cpp looks for norms of queries and keys where there are as many layers as in Command R+, and wants them there.
fn check_command_r(file: &ModelFile, family: &GgufFamily) -> Result<()> {
    const OF_PLUS: usize = 64;
    let (has_norms, layers) = (file.checkpoint().settings().bool_or("use_qk_norm", false)?, file.model().blocks.len());
    if family.name != "command-r" || has_norms == (layers >= OF_PLUS) {
        return Ok(());
    }
    let has = if has_norms { "has" } else { "lacks" };
    Err(refused(&format!(
        "attention {has} norms of queries and keys in a model of {layers} layers, and llama.cpp wants them for `command-r` from {OF_PLUS} layers on, only there"
    )))
}

/// All keys, in the order of the file.
pub(super) fn keys(
    file: &ModelFile,
    family: &GgufFamily,
    plan: &Plan,
    vocabulary: &Exported,
    mix: Option<GgufMix>,
) -> Result<Vec<(String, Value)>> {
    let mut keys = vec![("general.architecture".to_owned(), Value::String(family.name.into()))];
    if let Some(gguf) = file.checkpoint().gguf() {
        copied(gguf, family.name, &mut keys);
        if family.name == "deepseek2" {
            // An older file has them for keys and values from one matrix, which are written parted.
            let latent = named(family, mixture::latent(file)?);
            keys.retain(|(key, _)| !latent.iter().any(|(other, _)| other == key));
            keys.extend(latent);
        }
    } else {
        general(file, &mut keys);
        figures(file, family, &mut keys)?;
    }
    let main = plan.main_type();
    let of_source = match file.checkpoint().gguf() {
        Some(gguf) => gguf.u64("general.file_type")?.and_then(|n| u32::try_from(n).ok()),
        None => mix.map(GgufMix::number),
    };
    keys.push(("general.file_type".into(), Value::U32(of_source.unwrap_or_else(|| file_type(main)))));
    if matches!(main, Elements::Blocks(_)) {
        keys.push(("general.quantization_version".into(), Value::U32(2)));
    }
    keys.extend(vocabulary.keys.iter().cloned());
    Ok(keys)
}

/// In what llama.cpp computes a family otherwise.
pub(super) fn notes(family: &GgufFamily) -> Option<String> {
    let note = "llama.cpp rounds the limits of gpt-oss's YaRN to whole pairs, which transformers does not";
    (family.name == "gpt-oss").then(|| note.to_owned())
}

fn named(family: &GgufFamily, keys: Vec<(&'static str, Value)>) -> Vec<(String, Value)> {
    keys.into_iter().map(|(key, value)| (format!("{}.{key}", family.name), value)).collect()
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

fn figures(file: &ModelFile, family: &GgufFamily, keys: &mut Vec<(String, Value)>) -> Result<()> {
    let (json, model) = (file.checkpoint().config(), file.model());
    let config = file.checkpoint().settings();
    let attention = model.blocks.iter().flat_map(|g| &g.nodes).find_map(|n| match n.op {
        Op::Attention { heads, kv_heads, head_dim, .. } => Some((heads, kv_heads, head_dim)),
        _ => None,
    });
    let (heads, kv_heads, head_dim) = attention.ok_or_else(|| Error::internal("a model without attention"))?;
    let mlp = config.usize_opt("intermediate_size")?.or(config.usize_opt("ffn_hidden_size")?);
    let mut put = |key: &str, value: Value| keys.push((format!("{}.{key}", family.name), value));
    let size = |n: usize| Value::U32(n as u32);
    put("block_count", size(model.blocks.len()));
    put("context_length", size(model.longest));
    put("embedding_length", size(model.hidden));
    put("feed_forward_length", size(mlp.unwrap_or(4 * model.hidden)));
    put("attention.head_count", size(heads));
    if family.name == "deepseek2" {
        mixture::latent(file)?.into_iter().for_each(|(key, value)| put(key, value));
    } else {
        put("attention.head_count_kv", size(kv_heads));
        if heads * head_dim != model.hidden || family.layers_of_largest.is_some() {
            put("attention.key_length", size(head_dim));
            put("attention.value_length", size(head_dim));
        }
    }
    mixture::keys(file, family)?.into_iter().for_each(|(key, value)| put(key, value));
    let eps = model.head.nodes.iter().find_map(|n| match n.op {
        Op::RmsNorm { eps, .. } | Op::LayerNorm { eps, .. } => Some(eps),
        _ => None,
    });
    let eps_key =
        if family.has_layer_norm { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    put(eps_key, Value::F32(eps.unwrap_or(1e-6)));
    put("rope.freq_base", Value::F32(rotation::base(json) as f32));
    let turning = model.ropes.first().map_or(head_dim, |rope| 2 * rope.inverse_frequency.len());
    put("rope.dimension_count", size(turning));
    for (key, value) in rotation::keys(json, family.name, &model.ropes)? {
        put(key, value);
    }
    if let (Some(_), Some(window)) = (sees_all(family), windows(file).flatten().next()) {
        put("attention.sliding_window", size(window));
    }
    for (to, from) in family.numbers {
        if let Some(number) = json.get(*from).and_then(Json::as_f64) {
            put(to, Value::F32(number as f32));
        }
    }
    if matches!(family.name, "stablelm" | "gptneox") {
        let is_parallel = config.bool_or("use_parallel_residual", family.name == "gptneox")?;
        put("use_parallel_residual", Value::Bool(is_parallel));
    }
    if family.name == "gptneox" {
        put("hidden_activation", Value::String(config.str("hidden_act").unwrap_or("gelu").into()));
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
            GgmlType::Iq2Xxs => 19,
            GgmlType::Iq2Xs => 20,
            GgmlType::Iq3Xxs => 23,
            GgmlType::Iq1S => 24,
            GgmlType::Iq4Nl => 25,
            GgmlType::Iq3S => 26,
            GgmlType::Iq2S => 28,
            GgmlType::Iq4Xs => 30,
            GgmlType::Iq1M => 31,
            GgmlType::Tq1_0 => 36,
            GgmlType::Tq2_0 => 37,
            GgmlType::Mxfp4 => 38,
            GgmlType::Nvfp4 => 39,
            GgmlType::Q1_0 => 40,
            GgmlType::Q2_0 => 41,
            // Forms of activations, which no file is mostly made of.
            GgmlType::Q8_1 | GgmlType::Q8K => 0,
        },
        Elements::Plain(_) => 0,
    }
}
