//! `config.json` and `generation_config.json`, made from the metadata of a GGUF file.

mod family;
mod mixture;
mod names;
mod rotation;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use fewbit_format::{Error, Result};
use serde_json::{Map, Value, json};

pub use self::family::GgufFamily;
use crate::{Checkpoint, Gguf};

/// The configuration that transformers would have beside the same weights, and by its keys those of the file.
pub(crate) fn config(checkpoint: &Checkpoint) -> Result<(Map<String, Value>, BTreeMap<String, String>)> {
    let Some(gguf) = checkpoint.gguf() else { return Err(Error::internal("no GGUF file")) };
    if gguf.string("general.type")? == Some("adapter") {
        return Err(Error::input("holds an adapter, no model")
            .hint("give it with `--lora` beside the model that it was made for")
            .file(gguf.path()));
    }
    let name = gguf.string("general.architecture")?;
    let name = name.ok_or_else(|| absent("general.architecture").file(gguf.path()))?;
    let keys = Keys { gguf, family: name };
    let mut family = None;
    for of_name in GgufFamily::ALL.iter().filter(|f| f.name == name) {
        if family.is_none() && keys.has_mark(of_name)? {
            family = Some(of_name);
        }
    }
    let Some(family) = family else {
        let mut known: Vec<&str> = GgufFamily::ALL.iter().map(|f| f.name).collect();
        known.dedup();
        return Err(Error::input(format!("has the unknown architecture `{name}`"))
            .hint(format!("known in GGUF files: {}", known.join(", ")))
            .file(gguf.path()));
    };
    let mut config = Map::new();
    config.insert("architectures".into(), json!([family.class]));
    config.insert("model_type".into(), json!(family.model_type));
    sizes(&keys, family, checkpoint, &mut config)?;
    rotation::rotation(&keys, checkpoint, &mut config)?;
    tokens(gguf, &mut config)?;
    particulars(&keys, family, checkpoint, &mut config)?;
    mixture::experts(&keys, family, checkpoint, &mut config)?;
    if family.name == "deepseek2" {
        mixture::latent(&keys, checkpoint, &mut config)?;
    }
    Ok((config, names::key_names(family)))
}

/// What ends a text: the end of a sequence and, where it is another token, of a turn.
pub(crate) fn generation_config(checkpoint: &Checkpoint) -> Result<Option<Map<String, Value>>> {
    let Some(gguf) = checkpoint.gguf() else { return Ok(None) };
    let mut config = Map::new();
    if let Some(bos) = gguf.u64("tokenizer.ggml.bos_token_id")? {
        config.insert("bos_token_id".into(), json!(bos));
    }
    let mut ends = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        if let Some(id) = gguf.u64(&format!("tokenizer.ggml.{key}"))?
            && !ends.contains(&id)
        {
            ends.push(id);
        }
    }
    let ends = match ends[..] {
        [] => None,
        [only] => Some(json!(only)),
        _ => Some(json!(ends)),
    };
    config.extend(ends.map(|ends| ("eos_token_id".to_owned(), ends)));
    Ok((!config.is_empty()).then_some(config))
}

/// The keys that begin with the family's name.
struct Keys<'a> {
    gguf: &'a Gguf,
    family: &'a str,
}

impl Keys<'_> {
    fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.gguf.u64(&format!("{}.{key}", self.family))
    }

    /// Whether a family of this name is that of the file.
    fn has_mark(&self, family: &GgufFamily) -> Result<bool> {
        let Some((key, least)) = family.mark else { return Ok(true) };
        Ok(self.u64(key)?.unwrap_or(0) >= least)
    }

    fn needed(&self, key: &str) -> Result<u64> {
        self.u64(key)?.ok_or_else(|| absent(&format!("{}.{key}", self.family)).file(self.gguf.path()))
    }

    /// A number; f32 values become the decimal that was rounded to them, so that 1e-6 stays 1e-6.
    fn number(&self, key: &str) -> Result<Option<f64>> {
        let value = self.gguf.f64(&format!("{}.{key}", self.family))?;
        Ok(value.map(|v| if f64::from(v as f32) == v { decimal(v as f32) } else { v }))
    }

    /// One figure for all layers, which some files give as a list.
    fn per_layer(&self, key: &str) -> Result<Option<u64>> {
        let name = format!("{}.{key}", self.family);
        let Some(crate::Value::Numbers(list)) = self.gguf.metadata().get(&name) else { return self.u64(key) };
        let list = list.to_i64s().unwrap_or_default();
        match (list.first(), list.iter().all(|n| Some(n) == list.first())) {
            (Some(n), true) if *n >= 0 => Ok(Some(*n as u64)),
            _ => Err(Error::input(format!("key `{name}` differs from layer to layer, which is not supported"))
                .file(self.gguf.path())),
        }
    }
}

fn absent(key: &str) -> Error {
    Error::input(format!("key `{key}` is absent")).hint("the file holds no model, or it is damaged")
}

fn decimal(v: f32) -> f64 {
    v.to_string().parse().unwrap_or_else(|_| f64::from(v))
}

fn sizes(keys: &Keys<'_>, family: &GgufFamily, checkpoint: &Checkpoint, config: &mut Map<String, Value>) -> Result<()> {
    let hidden = keys.needed("embedding_length")?;
    let heads = match keys.per_layer("attention.head_count")? {
        Some(heads) => heads,
        None => keys.needed("attention.head_count")?,
    };
    let intermediate = match keys.per_layer("feed_forward_length")? {
        Some(size) => size,
        None => keys.needed("feed_forward_length")?,
    };
    let default_head_dim = hidden.checked_div(heads);
    let turning = keys.u64("rope.dimension_count")?;
    let head_dim = keys.u64("attention.key_length")?;
    let head_dim = head_dim.or(turning.filter(|_| !family.turns_partly)).or(default_head_dim);
    if let (true, Some(turning), Some(head_dim @ 1..)) = (family.turns_partly, turning, head_dim) {
        config.insert("partial_rotary_factor".into(), json!(turning as f64 / head_dim as f64));
    }
    config.insert("hidden_size".into(), json!(hidden));
    config.insert("intermediate_size".into(), json!(intermediate));
    config.insert("num_hidden_layers".into(), json!(keys.needed("block_count")?));
    config.insert("num_attention_heads".into(), json!(heads));
    let kv_heads = keys.per_layer("attention.head_count_kv")?.unwrap_or(heads);
    config.insert("num_key_value_heads".into(), json!(kv_heads));
    config.insert("head_dim".into(), json!(head_dim));
    config.insert("vocab_size".into(), json!(checkpoint.shape("token_embd.weight")?.first()));
    if let Some(length) = keys.u64("context_length")? {
        config.insert("max_position_embeddings".into(), json!(length));
    }
    match keys.family {
        "gemma2" | "gemma3" => config.insert("hidden_activation".into(), json!("gelu_pytorch_tanh")),
        "falcon" => config.insert("activation".into(), json!("gelu")),
        "gpt2" => config.insert("activation_function".into(), json!("gelu_new")),
        _ => config.insert("hidden_act".into(), json!("silu")),
    };
    let (key, to) = match (family.has_layer_norm, family.name) {
        (true, "falcon" | "gpt2") => ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
        (true, _) => ("attention.layer_norm_epsilon", "layer_norm_eps"),
        (false, _) => ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    };
    let eps = keys.number(key)?;
    let eps = eps.ok_or_else(|| absent(&format!("{}.{key}", keys.family)).file(keys.gguf.path()))?;
    config.insert(to.into(), json!(eps));
    config.insert("tie_word_embeddings".into(), json!(!checkpoint.contains("output.weight")));
    let has_bias = checkpoint.contains("blk.0.attn_q.bias");
    config.insert("attention_bias".into(), json!(has_bias));
    if checkpoint.contains("blk.0.ffn_gate.bias") {
        config.insert("mlp_bias".into(), json!(true));
    }
    let window = keys.u64("attention.sliding_window")?.filter(|w| *w > 0);
    if let Some(window) = window {
        config.insert("sliding_window".into(), json!(window));
    }
    Ok(())
}

fn tokens(gguf: &Gguf, config: &mut Map<String, Value>) -> Result<()> {
    for (from, to) in [("bos", "bos"), ("eos", "eos"), ("padding", "pad")] {
        if let Some(id) = gguf.u64(&format!("tokenizer.ggml.{from}_token_id"))? {
            config.insert(format!("{to}_token_id"), json!(id));
        }
    }
    Ok(())
}

/// What only some families have.
fn particulars(
    keys: &Keys<'_>,
    family: &GgufFamily,
    checkpoint: &Checkpoint,
    config: &mut Map<String, Value>,
) -> Result<()> {
    for (from, to) in family.numbers {
        if let Some(number) = keys.number(from)? {
            config.insert((*to).into(), json!(number));
        }
    }
    let has = |tensor: &str| json!(checkpoint.contains(tensor));
    match family.name {
        "gemma2" => query_scale(keys, family, config)?,
        "gemma3" => gemma3(keys, family, config)?,
        "falcon" => {
            let norms = if checkpoint.contains("blk.0.attn_norm_2.weight") { 2 } else { 1 };
            config.insert("new_decoder_architecture".into(), json!(true));
            config.insert("num_ln_in_parallel_attn".into(), json!(norms));
            config.insert("num_kv_heads".into(), config["num_key_value_heads"].clone());
            config.insert("ffn_hidden_size".into(), config["intermediate_size"].clone());
        }
        "gpt2" => _ = config.insert("n_inner".into(), config["intermediate_size"].clone()),
        "gptneox" => {
            let activation = keys.gguf.string("gptneox.hidden_activation")?.unwrap_or("gelu");
            config.insert("hidden_act".into(), json!(activation));
            config.insert("rotary_pct".into(), config.get("partial_rotary_factor").cloned().unwrap_or(json!(1.0)));
            config.insert("attention_bias".into(), has("blk.0.attn_qkv.bias"));
            let is_parallel = keys.gguf.bool("gptneox.use_parallel_residual")?.unwrap_or(true);
            config.insert("use_parallel_residual".into(), json!(is_parallel));
        }
        "command-r" | "cohere2" => _ = config.insert("use_qk_norm".into(), has("blk.0.attn_q_norm.weight")),
        "stablelm" => {
            config.insert("use_qkv_bias".into(), has("blk.0.attn_q.bias"));
            config.insert("qk_layernorm".into(), has("blk.0.attn_q_norm.weight"));
            config.insert("use_parallel_residual".into(), json!(!checkpoint.contains("blk.0.ffn_norm.weight")));
        }
        _ => {}
    }
    Ok(())
}

/// The largest model of a Gemma generation alone divides queries by the width of a head in the residual stream; the
/// others by that of a head.
fn query_scale(keys: &Keys<'_>, family: &GgufFamily, config: &mut Map<String, Value>) -> Result<()> {
    let (hidden, heads) = (keys.needed("embedding_length")?, keys.per_layer("attention.head_count")?.unwrap_or(1));
    let is_largest = Some(keys.needed("block_count")?) == family.layers_of_largest;
    let scalar = if is_largest { hidden.checked_div(heads) } else { None };
    config.insert("query_pre_attn_scalar".into(), scalar.map_or_else(|| config["head_dim"].clone(), |s| json!(s)));
    Ok(())
}

/// What Gemma 3 files do not say because llama.cpp has it in its code.
fn gemma3(keys: &Keys<'_>, family: &GgufFamily, config: &mut Map<String, Value>) -> Result<()> {
    const PATTERN: u64 = 6;
    let layers = keys.needed("block_count")?;
    if layers > 10_000 {
        return Err(
            Error::input(format!("key `gemma3.block_count` is {layers}, which is out of range")).file(keys.gguf.path())
        );
    }
    let kind = |layer| if layer % PATTERN == PATTERN - 1 { "full_attention" } else { "sliding_attention" };
    config.insert("layer_types".into(), json!((0..layers).map(kind).collect::<Vec<_>>()));
    config.insert("rope_local_base_freq".into(), json!(keys.number("rope.freq_base_swa")?.unwrap_or(1e4)));
    query_scale(keys, family, config)
}
