use std::collections::BTreeMap;
use std::fmt::Display;

use fewbit_format::{Error, Result};
use serde_json::{Map, Value};

/// Typed, bounded access to `config.json`, or to what a GGUF file has in its place: a figure that is absent, zero or absurd
/// is an error that names its key as the file does.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    map: &'a Map<String, Value>,
    gguf_keys: Option<&'a BTreeMap<String, String>>,
}

/// Figures of every family, and what GPT-2 calls them.
const OLDER: [(&str, &str); 5] = [
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("intermediate_size", "n_inner"),
    ("max_position_embeddings", "n_positions"),
];

/// The largest size that any figure of a configuration may have.
const MOST: u64 = 1 << 24;
/// Experts of all blocks: five times those of the largest models. A graph names each expert's matrices, so that a file of
/// a few kilobytes could ask for gigabytes.
const MOST_EXPERTS: usize = 1 << 17;

impl<'a> Config<'a> {
    /// Reads from `map`, which stands in `config.json`.
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, gguf_keys: None }
    }

    /// Reads from `map`, which was made of a GGUF file: `keys` gives the file's key for those of `config.json`.
    pub fn of_gguf(map: &'a Map<String, Value>, keys: &'a BTreeMap<String, String>) -> Self {
        Self { map, gguf_keys: Some(keys) }
    }

    /// What an error calls a key: as the file has it, in backticks.
    pub fn name(&self, key: &str) -> String {
        match self.gguf_keys {
            None => format!("`{key}`"),
            Some(keys) => match keys.get(key) {
                Some(name) => format!("`{name}`"),
                None => format!("what stands for `{key}` of config.json"),
            },
        }
    }

    /// [`name`](Self::name) of a key within the object `of`.
    pub fn name_within(&self, of: &str, key: &str) -> String {
        let name = self.gguf_keys.and_then(|keys| keys.get(&format!("{of}.{key}")));
        format!("`{}`", name.map_or(key, String::as_str))
    }

    /// The error for settings that do not fit each other, or are not supported.
    pub fn error(&self, what: impl Display) -> Error {
        let place = if self.gguf_keys.is_none() { "config.json: " } else { "" };
        Error::input(format!("{place}{what}"))
    }

    /// The error for one key: `what` follows its name.
    pub fn error_at(&self, key: &str, what: impl Display) -> Error {
        self.error(format_args!("{} {what}", self.name(key)))
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        let present = |key: &str| self.map.get(key).filter(|v| !v.is_null());
        let older = || OLDER.iter().find(|(k, _)| *k == key).and_then(|(_, older)| present(older));
        present(key).or_else(older)
    }

    /// The error for a value that does not fit its key.
    pub fn wrong(&self, key: &str, value: &Value) -> Error {
        let text: String = value.to_string().chars().take(60).collect();
        self.error_at(key, format_args!("is {text}, which is out of range"))
    }

    /// A size from 1 to 2²⁴, if there.
    pub fn usize_opt(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => match v.as_u64() {
                Some(n) if (1..=MOST).contains(&n) => Ok(Some(n as usize)),
                _ => Err(self.wrong(key, v)),
            },
        }
    }

    /// A size from 1 to 2²⁴.
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.usize_opt(key)?.ok_or_else(|| self.error_at(key, "is absent"))
    }

    /// A number from 0 to 2²⁴, or the default where it is absent.
    pub fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => match v.as_u64() {
                Some(n @ 0..=MOST) => Ok(n as usize),
                _ => Err(self.wrong(key, v)),
            },
        }
    }

    /// The number of blocks: from 1 to 10,000.
    pub fn layers(&self) -> Result<usize> {
        let n = self.usize("num_hidden_layers")?;
        if n > 10_000 {
            return Err(self.wrong("num_hidden_layers", &n.into()));
        }
        Ok(n)
    }

    /// Experts of a block, from 1 to 4096 and at most 2¹⁷ in all, under any of these keys, and how many of them a token
    /// goes to.
    pub fn experts(&self, keys: &[&str]) -> Result<(usize, usize)> {
        let key = keys.iter().find(|k| self.get(k).is_some()).or(keys.first()).copied().unwrap_or_default();
        let experts = self.usize(key)?;
        if experts > 4096 || experts * self.layers()? > MOST_EXPERTS {
            return Err(self.wrong(key, &experts.into()));
        }
        let top = self.usize("num_experts_per_tok")?;
        if top > experts {
            return Err(self
                .error_at("num_experts_per_tok", format_args!("({top}) is more than {} ({experts})", self.name(key))));
        }
        Ok((experts, top))
    }

    /// A number, or the default where it is absent.
    pub fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v.as_f64().filter(|f| f.is_finite()).ok_or_else(|| self.wrong(key, v)),
        }
    }

    /// A small positive number, such as a norm's epsilon.
    pub fn eps(&self, key: &str, default: f64) -> Result<f32> {
        let eps = self.f64_or(key, default)?;
        if !(0.0..=1.0).contains(&eps) {
            return Err(self.wrong(key, &eps.into()));
        }
        Ok(eps as f32)
    }

    /// A truth value, or the default where it is absent.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v.as_bool().ok_or_else(|| self.wrong(key, v)),
        }
    }

    /// A text, if there.
    pub fn str(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// An object, if there.
    pub fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => v.as_object().map(Some).ok_or_else(|| self.wrong(key, v)),
        }
    }

    /// An array, if there.
    pub fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => v.as_array().map(Some).ok_or_else(|| self.wrong(key, v)),
        }
    }

    /// Query heads, key-value heads and the size of a head, checked against each other.
    pub fn heads(&self) -> Result<(usize, usize, usize)> {
        let hidden = self.usize("hidden_size")?;
        let heads = self.usize("num_attention_heads")?;
        let kv_heads = self.usize_opt("num_key_value_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(self.error_at(
                "num_key_value_heads",
                format_args!("({kv_heads}) does not divide {} ({heads})", self.name("num_attention_heads")),
            ));
        }
        let head_dim = match self.usize_opt("head_dim")? {
            Some(d) => d,
            None if hidden % heads == 0 => hidden / heads,
            None => {
                return Err(self.error_at(
                    "num_attention_heads",
                    format_args!("({heads}) does not divide {} ({hidden})", self.name("hidden_size")),
                ));
            }
        };
        if head_dim % 2 != 0 || (heads as u64) * (head_dim as u64) > MOST {
            return Err(self.error(format_args!("heads of size {head_dim} cannot be rotated or are too large")));
        }
        Ok((heads, kv_heads, head_dim))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_named_as_the_file_has_them() {
        let config = json!({"num_attention_heads": 0, "hidden_size": 64});
        let map = config.as_object().unwrap();
        let keys = BTreeMap::from([("num_attention_heads".to_owned(), "llama.attention.head_count".to_owned())]);
        let refusals = [Config::new(map), Config::of_gguf(map, &keys)].map(|c| c.heads().unwrap_err().to_string());
        assert_eq!(refusals[0], "config.json: `num_attention_heads` is 0, which is out of range");
        assert_eq!(refusals[1], "`llama.attention.head_count` is 0, which is out of range");
    }

    #[test]
    fn experts_are_bounded_over_all_blocks() {
        let refusal = |layers: u64, experts: u64| {
            let config = json!({"num_hidden_layers": layers, "num_experts": experts, "num_experts_per_tok": 2});
            Config::new(config.as_object().unwrap()).experts(&["num_experts"]).map_err(|e| e.to_string())
        };
        assert_eq!(refusal(61, 384), Ok((384, 2)));
        assert_eq!(refusal(1, 4097).unwrap_err(), "config.json: `num_experts` is 4097, which is out of range");
        assert_eq!(refusal(10_000, 4096).unwrap_err(), "config.json: `num_experts` is 4096, which is out of range");
    }
}
