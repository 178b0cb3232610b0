use fewbit_text::{GgufVocabulary, Settings, Tokenizer};
use serde_json::Value;

/// `tokenizer_config.json` (none if empty), then a vocabulary: as GGUF keeps it, written as a JSON object, or a
/// SentencePiece model.
pub fn vocabulary(data: &[u8]) {
    let Some(([settings], body)) = crate::texts(data) else { return };
    let tokenizer = if body.first() == Some(&b'{') {
        let Ok(v) = serde_json::from_slice(body) else { return };
        Tokenizer::from_gguf(&of_gguf(&v))
    } else {
        let settings = (!settings.is_empty()).then_some(settings.as_bytes());
        let Ok(settings) = Settings::from_json(settings, None) else { return };
        Tokenizer::from_sentencepiece(body, &settings)
    };
    if let Ok(tokenizer) = tokenizer {
        crate::tokenizer::use_up(&tokenizer);
    }
}

fn of_gguf(v: &Value) -> GgufVocabulary {
    let text = |key: &str| v[key].as_str().map(str::to_owned);
    let list = |key: &str| v[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let texts = |key: &str| list(key).iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let id = |key: &str| v[key].as_u64().map(|id| id as u32);
    GgufVocabulary {
        model: text("model").unwrap_or_default(),
        pre: text("pre"),
        tokens: texts("tokens"),
        scores: list("scores").iter().filter_map(Value::as_f64).map(|s| s as f32).collect(),
        types: list("types").iter().filter_map(Value::as_i64).map(|t| t as i32).collect(),
        merges: texts("merges"),
        bos: id("bos"),
        eos: id("eos"),
        unk: id("unk"),
        pad: id("pad"),
        add_bos: v["add_bos"].as_bool(),
        add_eos: v["add_eos"].as_bool(),
        add_space_prefix: v["add_space_prefix"].as_bool(),
    }
}
