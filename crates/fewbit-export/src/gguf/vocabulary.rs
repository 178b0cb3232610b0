//! The model's tokenizer as `tokenizer.ggml.*` keys that give its ids.

use fewbit_format::{Error, Result};
use fewbit_runtime::language;
use fewbit_store::{Checkpoint, ModelFile, Numbers, Value};
use fewbit_text::{GgufVocabulary, Special, Tokenizer, check_round_trip};
use serde_json::Value as Json;

/// A vocabulary that has been tried.
pub(super) struct Exported {
    /// The keys, in order.
    pub(super) keys: Vec<(String, Value)>,
    /// The tokenizer whose ids the file must give.
    pub(super) reference: Tokenizer,
    /// In what it differs from the model's own.
    pub(super) notes: Vec<String>,
}

const UNUSED: i32 = 5;

/// The keys of the vocabulary: those of a GGUF source, else a translation that is tried on sample texts.
///
/// # Errors
/// If there is no tokenizer, or the translation gives other ids: with the first text on which it does.
pub(super) fn vocabulary(file: &ModelFile) -> Result<Exported> {
    let checkpoint = file.checkpoint();
    let tokenizer = language::tokenizer_of(checkpoint)?;
    if let Some(gguf) = checkpoint.gguf() {
        let keys = gguf.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer."));
        let keys = keys.map(|(k, v)| (k.clone(), v.clone())).collect();
        return Ok(Exported { keys, reference: tokenizer, notes: Vec::new() });
    }
    translated(checkpoint, &tokenizer, file.model().vocabulary).map_err(|e| e.file(checkpoint.path()))
}

fn translated(checkpoint: &Checkpoint, tokenizer: &Tokenizer, rows: usize) -> Result<Exported> {
    let mut notes = Vec::new();
    let mut v = tokenizer.to_gguf()?;
    fit(&mut v, rows, &mut notes)?;
    let settings = language::settings_of(checkpoint)?;
    let known = |id: Option<u32>| id.filter(|id| (*id as usize) < rows);
    let id_of = |token: &Option<String>| token.as_deref().and_then(|t| tokenizer.token_to_id(t));
    let configured = |key: &str| first_id(checkpoint.config().get(key));
    v.bos = known(v.bos.or_else(|| configured("bos_token_id")));
    v.eos = known(v.eos.or_else(|| configured("eos_token_id")));
    v.pad = known(id_of(&settings.pad_token).or_else(|| configured("pad_token_id")));
    v.unk = known(v.unk.or_else(|| id_of(&settings.unk_token)));
    let reference = reference(checkpoint, tokenizer, &mut notes)?;
    if let Some(text) = first_difference(&reference, &Tokenizer::from_gguf(&v)?, &v) {
        return Err(differs(&text));
    }
    let mut keys = keys(&v);
    keys.extend(other_ends(checkpoint, tokenizer, v.eos, rows, &mut notes));
    let template = language::chat_template_source(checkpoint)?;
    keys.extend(template.map(|t| ("tokenizer.chat_template".into(), Value::String(t))));
    Ok(Exported { keys, reference, notes })
}

/// The ids that end a text beside `eos`: a GGUF file has keys for two, the ends of a turn and of a message.
fn other_ends(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    eos: Option<u32>,
    rows: usize,
    notes: &mut Vec<String>,
) -> Vec<(String, Value)> {
    let is_other = |id: &u32| Some(*id) != eos && (*id as usize) < rows;
    let ends: Vec<u32> = language::end_ids(checkpoint, Some(tokenizer)).into_iter().filter(is_other).collect();
    let names = ["eot", "eom"];
    if let Some(rest) = ends.get(names.len()..).filter(|rest| !rest.is_empty()) {
        let rest: Vec<String> = rest.iter().map(ToString::to_string).collect();
        notes.push(format!("a GGUF file has keys for three ids that end a text: {} are not in it", rest.join(", ")));
    }
    let key = |(name, id): (&str, &u32)| (format!("tokenizer.ggml.{name}_token_id"), Value::U32(*id));
    names.into_iter().zip(&ends).map(key).collect()
}

/// The sentence for a vocabulary that gives other ids.
pub(super) fn differs(text: &str) -> Error {
    let shown: String = text.chars().take(60).collect();
    Error::input(format!(
        "the vocabulary of a GGUF file would give other ids than the tokenizer, first on the text {shown:?}"
    ))
    .hint("write it with `--format compressed-tensors` or `--format fewbit`")
}

fn first_id(value: Option<&Json>) -> Option<u32> {
    let id = |v: &Json| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value? {
        Json::Array(list) => list.first().and_then(id),
        v => id(v),
    }
}

/// Gives the vocabulary as many tokens as the embedding has rows, as llama.cpp demands.
fn fit(v: &mut GgufVocabulary, rows: usize, notes: &mut Vec<String>) -> Result<()> {
    for id in v.tokens.len()..rows {
        v.tokens.push(format!("[PAD{id}]"));
        v.types.push(UNUSED);
        if !v.scores.is_empty() {
            v.scores.push(-(id as f32));
        }
    }
    if v.tokens.len() > rows {
        const ADDED: [i32; 3] = [3, 4, UNUSED];
        if v.types[rows..].iter().any(|t| !ADDED.contains(t)) {
            return Err(Error::input(format!(
                "the tokenizer has {} tokens, where the embedding has {rows} rows",
                v.tokens.len()
            ))
            .hint("the tokenizer belongs to another model"));
        }
        let first = &v.tokens[rows];
        notes.push(format!(
            "tokens without a row in the embedding are not in the GGUF file: from `{first}` (id {rows}) on"
        ));
        v.tokens.truncate(rows);
        v.types.truncate(rows);
        v.scores.truncate(rows);
    }
    Ok(())
}

/// The tokenizer that the vocabulary is held against: the model's own, without a normalization to NFC, which no GGUF
/// file has and which changes no text that is composed already.
fn reference(checkpoint: &Checkpoint, tokenizer: &Tokenizer, notes: &mut Vec<String>) -> Result<Tokenizer> {
    let json = tokenizer.to_json()?;
    let mut json: Json = serde_json::from_slice(&json).map_err(|e| Error::internal(format!("tokenizer.json: {e}")))?;
    if json["normalizer"]["type"] == "NFC" {
        json["normalizer"] = Json::Null;
        notes.push("llama.cpp does not compose characters (NFC) as this tokenizer does: text that is not composed gets other ids".into());
    }
    Tokenizer::from_json(json.to_string().as_bytes(), &language::settings_of(checkpoint)?)
}

/// The first text to which two tokenizers give different ids: sample texts, then each added token inside a text.
pub(super) fn first_difference(a: &Tokenizer, b: &Tokenizer, v: &GgufVocabulary) -> Option<String> {
    const MOST: usize = 4096;
    let added = v.tokens.iter().zip(&v.types).filter(|(_, kind)| matches!(kind, 3 | 4)).take(MOST);
    let around = added.map(|(token, _)| format!("a {token} b"));
    let differs = |text: &String| match (a.encode(text, Special::Parsed), b.encode(text, Special::Parsed)) {
        (Ok(x), Ok(y)) => x != y,
        _ => true,
    };
    check_round_trip(a, b).or_else(|| around.into_iter().find(differs))
}

fn keys(v: &GgufVocabulary) -> Vec<(String, Value)> {
    let mut keys = Vec::new();
    let mut put = |name: &str, value: Option<Value>| keys.extend(value.map(|v| (format!("tokenizer.ggml.{name}"), v)));
    let id = |id: Option<u32>| id.map(Value::U32);
    let texts = |t: &[String]| (!t.is_empty()).then(|| Value::Strings(t.to_vec()));
    put("model", Some(Value::String(v.model.clone())));
    put("pre", Some(Value::String(v.pre.clone().unwrap_or_else(|| "default".to_owned()))));
    put("tokens", texts(&v.tokens));
    put("scores", (!v.scores.is_empty()).then(|| Value::Numbers(Numbers::from_f32s(&v.scores))));
    put("token_type", Some(Value::Numbers(Numbers::from_i32s(&v.types))));
    put("merges", texts(&v.merges));
    put("bos_token_id", id(v.bos));
    put("eos_token_id", id(v.eos));
    put("unknown_token_id", id(v.unk));
    put("padding_token_id", id(v.pad));
    put("add_bos_token", v.add_bos.map(Value::Bool));
    put("add_eos_token", v.add_eos.map(Value::Bool));
    put("add_space_prefix", v.add_space_prefix.map(Value::Bool));
    keys
}
