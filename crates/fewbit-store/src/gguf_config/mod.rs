//! `config.json` and `generation_config.json`, made from the metadata of a GGUF file.

mod rotation;
#[cfg(test)]
mod tests;

use fewbit_format::{Error, Result};
use serde_json::{Map, Value, json};

use crate::{Checkpoint, Gguf};

/// GGUF's name of a family, its `model_type`, and its class in transformers.
const FAMILIES: [(&str, &str, &str); 4] = [
    ("llama", "llama", "LlamaForCausalLM"),
    ("qwen2", "qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "qwen3", "Qwen3ForCausalLM"),
    ("gemma3", "gemma3_text", "Gemma3ForCausalLM"),
];

/// The configuration that transformers would have beside the same weights.
pub(crate) fn config(checkpoint: &Checkpoint) -> Result<Map<String, Value>> {
    let Some(gguf) = checkpoint.gguf() else { return Err(Error::internal("no GGUF file")) };
    let name = gguf.string("general.architecture")?;
    let name = name.ok_or_else(|| absent("general.architecture").file(gguf.path()))?;
    let Some((_, model_type, class)) = FAMILIES.iter().find(|(gguf_name, ..)| *gguf_name == name) else {
        let known: Vec<&str> = FAMILIES.iter().map(|(gguf_name, ..)| *gguf_name).collect();
        return Err(Error::input(format!("has the unknown architecture `{name}`"))
            .hint(format!("known in GGUF files: {}", known.join(", ")))
            .file(gguf.path()));
    };
    let keys = Keys { gguf, family: name };
    let mut config = Map::new();
    config.insert("architectures".into(), json!([class]));
    config.insert("model_type".into(), json!(model_type));
    sizes(&keys, checkpoint, &mut config)?;
    rotation::rotation(&keys, checkpoint, &mut config)?;
    tokens(gguf, &mut config)?;
    if name == "gemma3" {
        gemma3(&keys, &mut config)?;
    }
    Ok(config)
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

fn sizes(keys: &Keys<'_>, checkpoint: &Checkpoint, config: &mut Map<String, Value>) -> Result<()> {
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
    let head_dim = keys.u64("attention.key_length")?.or(keys.u64("rope.dimension_count")?).or(default_head_dim);
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
    let activation = if keys.family == "gemma3" { "hidden_activation" } else { "hidden_act" };
    config.insert(activation.into(), json!(if keys.family == "gemma3" { "gelu_pytorch_tanh" } else { "silu" }));
    let eps = keys.number("attention.layer_norm_rms_epsilon")?;
    let eps =
        eps.ok_or_else(|| absent(&format!("{}.attention.layer_norm_rms_epsilon", keys.family)).file(keys.gguf.path()))?;
    config.insert("rms_norm_eps".into(), json!(eps));
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

/// What Gemma 3 files do not say because llama.cpp has it in its code.
fn gemma3(keys: &Keys<'_>, config: &mut Map<String, Value>) -> Result<()> {
    const PATTERN: u64 = 6;
    const LAYERS_OF_27B: u64 = 62;
    let layers = keys.needed("block_count")?;
    if layers > 10_000 {
        return Err(
            Error::input(format!("key `gemma3.block_count` is {layers}, which is out of range")).file(keys.gguf.path())
        );
    }
    let kind = |layer| if layer % PATTERN == PATTERN - 1 { "full_attention" } else { "sliding_attention" };
    config.insert("layer_types".into(), json!((0..layers).map(kind).collect::<Vec<_>>()));
    config.insert("rope_local_base_freq".into(), json!(keys.number("rope.freq_base_swa")?.unwrap_or(1e4)));
    let (hidden, heads) = (keys.needed("embedding_length")?, keys.per_layer("attention.head_count")?.unwrap_or(1));
    // The largest model alone divides by the width of a head in the residual stream.
    let scalar = if layers == LAYERS_OF_27B { hidden.checked_div(heads) } else { None };
    config.insert("query_pre_attn_scalar".into(), scalar.map_or_else(|| config["head_dim"].clone(), |s| json!(s)));
    if let Some(cap) = keys.number("final_logit_softcapping")? {
        config.insert("final_logit_softcapping".into(), json!(cap));
    }
    Ok(())
}
