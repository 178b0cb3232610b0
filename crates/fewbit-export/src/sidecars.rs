use std::path::Path;

use fewbit_format::{Error, Result};
use fewbit_runtime::language;
use fewbit_store::{Checkpoint, ModelFile};
use fewbit_text::{Settings, Tokenizer, check_round_trip};
use serde_json::{Map, Value, json};

/// What is copied from a Hugging Face folder. Not its card, which speaks of other weights, nor another tool's settings.
const COPIED: [&str; 10] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// Beginnings of the names of files that bind whoever passes the model on, or credit its makers.
const LEGAL: [&str; 5] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING"];

/// The files of a written folder beside weights, config.json, manifest and card: name and content.
///
/// A Hugging Face folder's are copied; those of a GGUF file are made from its metadata, and its tokenizer.json is tried
/// on sample texts.
///
/// # Errors
/// If a file cannot be read, or the tokenizer of a GGUF file cannot be expressed as tokenizer.json.
pub fn sidecars(file: &ModelFile) -> Result<Vec<(String, Vec<u8>)>> {
    let checkpoint = file.checkpoint();
    if checkpoint.gguf().is_some() {
        return made(file).map_err(|e| e.file(checkpoint.path()));
    }
    let mut files = Vec::new();
    for path in checkpoint.sidecars()? {
        let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|n| is_copied(n)) else { continue };
        files.push((name.to_owned(), read(&path)?));
    }
    Ok(files)
}

fn is_copied(name: &str) -> bool {
    let upper = name.to_uppercase();
    COPIED.contains(&name) || LEGAL.iter().any(|legal| upper.starts_with(legal))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io("reading", path, &e))
}

fn made(file: &ModelFile) -> Result<Vec<(String, Vec<u8>)>> {
    let checkpoint = file.checkpoint();
    let mut files = Vec::new();
    if let Some(generation) = checkpoint.generation_config() {
        files.push(("generation_config.json".to_owned(), pretty(generation)?));
    }
    let has_tokenizer = checkpoint.gguf().is_some_and(|g| g.metadata().contains_key("tokenizer.ggml.model"));
    if !has_tokenizer {
        return Ok(files);
    }
    let tokenizer = language::tokenizer_of(checkpoint)?;
    let config = tokenizer_config(checkpoint, &tokenizer, file.model().longest)?;
    let (json, config) = (tokenizer.to_json()?, pretty(&config)?);
    let again = Tokenizer::from_json(&json, &Settings::from_json(Some(&config), None)?)?;
    if let Some(text) = check_round_trip(&tokenizer, &again) {
        let shown: String = text.chars().take(60).collect();
        return Err(Error::input(format!(
            "its vocabulary as tokenizer.json gives other ids, first on the text {shown:?}"
        ))
        .hint("use the model's Hugging Face folder"));
    }
    files.push(("tokenizer.json".to_owned(), json));
    files.push(("tokenizer_config.json".to_owned(), config));
    if let Some(template) = language::chat_template_source(checkpoint)? {
        files.push(("chat_template.jinja".to_owned(), template.into_bytes()));
    }
    Ok(files)
}

fn tokenizer_config(checkpoint: &Checkpoint, tokenizer: &Tokenizer, context: usize) -> Result<Map<String, Value>> {
    let Some(gguf) = checkpoint.gguf() else { return Err(Error::internal("no GGUF file")) };
    let mut config = Map::new();
    for (key, of) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")] {
        if let Some(id) = gguf.u64(&format!("tokenizer.ggml.{of}_token_id"))? {
            let piece = tokenizer.piece(u32::try_from(id).unwrap_or(u32::MAX));
            if !piece.is_empty() {
                config.insert(key.into(), json!(piece));
            }
        }
    }
    config.insert("add_bos_token".into(), json!(tokenizer.adds_bos()));
    config.insert("add_eos_token".into(), json!(gguf.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false)));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    config.insert("model_max_length".into(), json!(context));
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    if let Some(template) = language::chat_template_source(checkpoint)? {
        config.insert("chat_template".into(), json!(template));
    }
    Ok(config)
}

fn pretty(map: &Map<String, Value>) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(map).map_err(|e| Error::internal(e.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_copied_and_cards_are_not() {
        for name in ["tokenizer.json", "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "licence.md"] {
            assert!(is_copied(name), "{name}");
        }
        for name in ["README.md", "quantize_config.json", "config.json", "fewbit.json", "recipe.yaml", "modeling_x.py"]
        {
            assert!(!is_copied(name), "{name}");
        }
    }
}
