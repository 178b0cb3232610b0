//! What surrounds a checkpoint's weights: tokenizer, chat template, the ids that end a text.

use std::path::Path;

use fewbit_format::{Error, Result};
use fewbit_store::{Checkpoint, Gguf, read_file};
use fewbit_text::{ChatTemplate, GgufVocabulary, Settings, Tokenizer};
use serde_json::Value;

use crate::Sampling;

/// A checkpoint's tokenizer.
///
/// # Errors
/// If there is none, or it is damaged.
pub fn tokenizer_of(checkpoint: &Checkpoint) -> Result<Tokenizer> {
    if let Some(gguf) = checkpoint.gguf() {
        return tokenizer_of_gguf(gguf);
    }
    let settings = settings_of(checkpoint)?;
    if let Some(path) = checkpoint.sidecar("tokenizer.json") {
        return Tokenizer::from_json(&read(&path)?, &settings).map_err(|e| e.file(&path));
    }
    if let Some(path) = checkpoint.sidecar("tokenizer.model") {
        return Tokenizer::from_sentencepiece(&read(&path)?, &settings).map_err(|e| e.file(&path));
    }
    Err(Error::input("holds neither `tokenizer.json` nor `tokenizer.model`")
        .hint("copy one from the model's page; only `fewbit logits --ids` needs none")
        .file(checkpoint.path()))
}

/// The tokenizer in a GGUF file, whatever its architecture.
///
/// # Errors
/// If there is none, or it is damaged.
pub fn tokenizer_of_gguf(gguf: &Gguf) -> Result<Tokenizer> {
    Tokenizer::from_gguf(&vocabulary(gguf)?).map_err(|e| e.file(gguf.path()))
}

/// Seven times the largest tokenizer that is known.
const LONGEST_BYTES: u64 = 256 << 20;

fn read(path: &Path) -> Result<Vec<u8>> {
    read_file(path, LONGEST_BYTES)
}

/// `tokenizer_config.json` and `special_tokens_map.json` of a folder.
///
/// # Errors
/// If one is there but cannot be read.
pub fn settings_of(checkpoint: &Checkpoint) -> Result<Settings> {
    let file = |name: &str| checkpoint.sidecar(name).map(|p| read(&p)).transpose();
    Settings::from_json(file("tokenizer_config.json")?.as_deref(), file("special_tokens_map.json")?.as_deref())
        .map_err(|e| e.file(checkpoint.path()))
}

/// The source of the chat template, if the model has one.
///
/// # Errors
/// If a file is there but cannot be read.
pub fn chat_template_source(checkpoint: &Checkpoint) -> Result<Option<String>> {
    if let Some(gguf) = checkpoint.gguf() {
        return Ok(gguf.string("tokenizer.chat_template")?.map(str::to_owned));
    }
    if let Some(path) = checkpoint.sidecar("chat_template.jinja") {
        return String::from_utf8(read(&path)?).map(Some).map_err(|_| Error::input("is not UTF-8").file(&path));
    }
    Ok(settings_of(checkpoint)?.chat_template(false).map(str::to_owned))
}

/// The chat template, ready to render.
///
/// # Errors
/// If there is none, or it is no template.
pub fn chat_template_of(checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    let source = chat_template_source(checkpoint)?.ok_or_else(|| {
        Error::input("has no chat template")
            .hint("use `fewbit run --raw`, or a model that was made for chat")
            .file(checkpoint.path())
    })?;
    let text = |id: Option<u32>| id.map(|i| tokenizer.piece(i)).unwrap_or_default();
    ChatTemplate::new(&source, &text(tokenizer.bos()), &text(tokenizer.eos())).map_err(|e| e.file(checkpoint.path()))
}

/// The ids that end a text: `eos_token_id` of the generation configuration (one or several), of the configuration, and the tokenizer's.
pub fn end_ids(checkpoint: &Checkpoint, tokenizer: Option<&Tokenizer>) -> Vec<u32> {
    let ids = |v: Option<&Value>| -> Vec<u32> {
        match v {
            Some(Value::Array(a)) => a.iter().filter_map(Value::as_u64).map(|i| i as u32).collect(),
            Some(v) => v.as_u64().map(|i| i as u32).into_iter().collect(),
            None => Vec::new(),
        }
    };
    let of_generation = ids(checkpoint.generation_config().and_then(|g| g.get("eos_token_id")));
    let mut all = if of_generation.is_empty() { ids(checkpoint.config().get("eos_token_id")) } else { of_generation };
    if all.is_empty() {
        all.extend(tokenizer.and_then(Tokenizer::eos));
    }
    all
}

/// How the model's makers sample from it, where the generation configuration says so; greedy otherwise.
pub fn sampling_of(checkpoint: &Checkpoint) -> Sampling {
    let Some(g) = checkpoint.generation_config() else { return Sampling::default() };
    let number = |key: &str| g.get(key).and_then(Value::as_f64).map(|v| v as f32);
    let is_sampled = g.get("do_sample").and_then(Value::as_bool).unwrap_or(false);
    Sampling {
        temperature: if is_sampled { number("temperature").unwrap_or(1.0) } else { 0.0 },
        top_k: number("top_k").unwrap_or(0.0) as usize,
        top_p: number("top_p").unwrap_or(1.0),
        min_p: number("min_p").unwrap_or(0.0),
        repetition_penalty: number("repetition_penalty").unwrap_or(1.0),
        seed: 0,
    }
}

fn vocabulary(gguf: &Gguf) -> Result<GgufVocabulary> {
    const PREFIX: &str = "tokenizer.ggml.";
    let key = |name: &str| format!("{PREFIX}{name}");
    let text = |name: &str| gguf.string(&key(name)).map(|t| t.map(str::to_owned));
    let texts = |name: &str| gguf.strings(&key(name)).map(|t| t.unwrap_or_default().to_vec());
    let id = |name: &str| match gguf.u64(&key(name))? {
        // Cut to 32 bits it would be another token.
        Some(id) if id > u64::from(u32::MAX) => {
            Err(Error::input(format!("key `{}` is {id}, which is no id", key(name)))
                .hint("the file is damaged: download it again")
                .file(gguf.path()))
        }
        id => Ok(id.map(|id| id as u32)),
    };
    let flag = |name: &str| gguf.bool(&key(name));
    let types = gguf.i64s(&key("token_type"))?.unwrap_or_default();
    Ok(GgufVocabulary {
        model: text("model")?.ok_or_else(|| {
            Error::input("holds no tokenizer (`tokenizer.ggml.model`)")
                .hint("use a GGUF file with its vocabulary")
                .file(gguf.path())
        })?,
        pre: text("pre")?,
        tokens: texts("tokens")?,
        scores: gguf.f32s(&key("scores"))?.unwrap_or_default(),
        types: types.into_iter().map(|t| i32::try_from(t).unwrap_or(0)).collect(),
        merges: texts("merges")?,
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        unk: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: flag("add_bos_token")?,
        add_eos: flag("add_eos_token")?,
        add_space_prefix: flag("add_space_prefix")?,
    })
}

#[cfg(test)]
mod tests {
    use fewbit_store::{GgufWriter, Value};

    use super::*;

    #[test]
    fn a_file_of_any_length_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let e = read(&path).unwrap_err().to_string();
        assert!(e.ends_with("is 1099511627776 bytes long, where at most 268435456 are read; download it again"), "{e}");
    }

    #[test]
    fn ids_of_a_vocabulary_are_not_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let keys = [("model", Value::String("llama".into())), ("bos_token_id", Value::U64(1 << 32 | 5))];
        let keys = keys.map(|(k, v)| (format!("tokenizer.ggml.{k}"), v));
        GgufWriter::create(&path, &keys, &[]).unwrap().finish().unwrap();
        let e = vocabulary(&Gguf::open(&path).unwrap()).unwrap_err().to_string();
        assert!(e.contains("key `tokenizer.ggml.bos_token_id` is 4294967301, which is no id; the file is"), "{e}");
    }
}
