use fewbit_format::{Error, Result};
use serde_json::{Map, Value};

/// What `tokenizer_config.json` and `special_tokens_map.json` say beside the tokenizer itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Whether a text starts with the BOS token; the tokenizer's own rule where absent.
    pub add_bos: Option<bool>,
    /// Whether a text ends with the EOS token; the tokenizer's own rule where absent.
    pub add_eos: Option<bool>,
    /// The token that begins a text.
    pub bos_token: Option<String>,
    /// The token that ends a text.
    pub eos_token: Option<String>,
    /// The token that fills a batch.
    pub pad_token: Option<String>,
    /// The token for what the vocabulary lacks.
    pub unk_token: Option<String>,
    /// Chat templates by name; a single one is called `default`.
    pub chat_templates: Vec<(String, String)>,
    /// Tokens beside the model's vocabulary: id, text, whether it is a control token.
    pub added_tokens: Vec<(u32, String, bool)>,
}

impl Settings {
    /// Reads the two files, either of which may be absent; the first wins where both speak.
    ///
    /// A token is a string or an object with `content`; `chat_template` is a string or a list of `{name, template}`.
    pub fn from_json(tokenizer_config: Option<&[u8]>, special_tokens_map: Option<&[u8]>) -> Result<Self> {
        let config = object(tokenizer_config, "tokenizer_config.json")?;
        let special = object(special_tokens_map, "special_tokens_map.json")?;
        let token = |key: &str| content(config.get(key)).or_else(|| content(special.get(key)));
        let flag = |key: &str| config.get(key).and_then(Value::as_bool);
        Ok(Self {
            add_bos: flag("add_bos_token"),
            add_eos: flag("add_eos_token"),
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            pad_token: token("pad_token"),
            unk_token: token("unk_token"),
            chat_templates: templates(config.get("chat_template")),
            added_tokens: added_tokens(config.get("added_tokens_decoder")),
        })
    }

    /// The chat template: with `tools`, the one called `tool_use` where there is one, else `default`.
    pub fn chat_template(&self, tools: bool) -> Option<&str> {
        let named = |name: &str| self.chat_templates.iter().find(|(n, _)| n == name).map(|(_, t)| t.as_str());
        tools.then(|| named("tool_use")).flatten().or_else(|| named("default"))
    }
}

fn object(bytes: Option<&[u8]>, name: &str) -> Result<Map<String, Value>> {
    let Some(bytes) = bytes else { return Ok(Map::new()) };
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::input("is not a JSON object").place(format!("`{name}`"))),
        Err(e) => Err(Error::input(format!("is not JSON ({e})")).place(format!("`{name}`"))),
    }
}

fn content(token: Option<&Value>) -> Option<String> {
    match token? {
        Value::String(s) => Some(s.clone()),
        Value::Object(map) => map.get("content")?.as_str().map(str::to_owned),
        _ => None,
    }
}

fn templates(value: Option<&Value>) -> Vec<(String, String)> {
    match value {
        Some(Value::String(s)) => vec![("default".to_owned(), s.clone())],
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(|t| Some((t.get("name")?.as_str()?.to_owned(), t.get("template")?.as_str()?.to_owned())))
            .collect(),
        _ => Vec::new(),
    }
}

fn added_tokens(value: Option<&Value>) -> Vec<(u32, String, bool)> {
    let Some(Value::Object(map)) = value else { return Vec::new() };
    map.iter()
        .filter_map(|(id, token)| {
            let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
            Some((id.parse().ok()?, content(Some(token))?, special))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_strings_or_objects_and_the_first_file_wins() {
        let config = br#"{"bos_token": {"content": "<s>", "lstrip": false}, "add_bos_token": true, "pad_token": null}"#;
        let map = br#"{"bos_token": "<other>", "eos_token": "</s>", "pad_token": "<pad>"}"#;
        let s = Settings::from_json(Some(config), Some(map)).unwrap();
        assert_eq!(s.bos_token.as_deref(), Some("<s>"));
        assert_eq!(s.eos_token.as_deref(), Some("</s>"));
        assert_eq!(s.pad_token.as_deref(), Some("<pad>"));
        assert_eq!((s.add_bos, s.add_eos), (Some(true), None));
    }

    #[test]
    fn templates_are_one_or_named() {
        let one = Settings::from_json(Some(br#"{"chat_template": "a"}"#), None).unwrap();
        assert_eq!((one.chat_template(false), one.chat_template(true)), (Some("a"), Some("a")));
        let named =
            br#"{"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]}"#;
        let named = Settings::from_json(Some(named), None).unwrap();
        assert_eq!((named.chat_template(false), named.chat_template(true)), (Some("a"), Some("b")));
    }

    #[test]
    fn a_file_that_is_not_json_is_named() {
        let e = Settings::from_json(Some(b"{"), None).unwrap_err().to_string();
        assert!(e.starts_with("`tokenizer_config.json`: is not JSON"), "{e}");
        let deep = "[".repeat(200_000);
        assert!(Settings::from_json(None, Some(deep.as_bytes())).is_err());
    }
}
