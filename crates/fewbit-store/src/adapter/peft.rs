use std::path::Path;

use fancy_regex::Regex;
use fewbit_format::{Error, Result};
use fewbit_graph::Container;
use serde_json::{Map, Value};

use super::{CONFIG, Factor, Form, LoraAdapter, Pair, WEIGHTS, pairs};
use crate::{Safetensors, json};

/// Opens an adapter that PEFT saved into a folder.
pub(super) fn open(folder: &Path) -> Result<LoraAdapter> {
    let config_path = folder.join(CONFIG);
    let settings = Settings::read(&json::read_object(&config_path)?).map_err(|e| e.file(&config_path))?;
    let weights_path = folder.join(WEIGHTS);
    let weights = Safetensors::open(&weights_path)?;
    let mut found = Vec::new();
    for (name, tensor) in weights.tensors() {
        match Role::of(name) {
            Role::Factor { module, is_a, .. } => {
                found.push((module.to_owned(), is_a, Factor { name: name.to_owned(), tensor }));
            }
            // What PEFT saves beside the factors of an embedding: the matrix of the model, which is not trained.
            Role::Copy => {}
            Role::Other(why) => return Err(Error::input(why).tensor(name).file(&weights_path)),
        }
    }
    let pair = |module: &str, a: Factor, b: Factor| {
        let (rank, scale) = settings.rank_and_scale(module);
        let found = a.tensor.shape.first().copied().unwrap_or(0);
        if found != rank {
            let e = Error::input(format!("has a rank of {found}, where {CONFIG} says {rank}"));
            return Err(e.hint("take the configuration that belongs to the adapter").tensor(&a.name));
        }
        let Role::Factor { form, .. } = Role::of(&a.name) else { return Err(Error::internal("a factor that is none")) };
        Ok(Pair { a, b, scale, form })
    };
    let pairs = pairs(found, pair).map_err(|e| e.file(&weights_path))?;
    Ok(LoraAdapter { path: folder.to_owned(), container: Container::HuggingFace, architecture: None, pairs })
}

/// What a tensor is.
enum Role<'a> {
    Factor { module: &'a str, is_a: bool, form: Form },
    Copy,
    Other(&'static str),
}

/// Ends of the names of factors, and whether it is `a`.
const ENDS: [(&str, bool, Form); 6] = [
    (".lora_A.weight", true, Form::Linear),
    (".lora_B.weight", false, Form::Linear),
    (".lora_A.default.weight", true, Form::Linear),
    (".lora_B.default.weight", false, Form::Linear),
    (".lora_embedding_A", true, Form::Embedding),
    (".lora_embedding_B", false, Form::Embedding),
];

impl<'a> Role<'a> {
    fn of(name: &'a str) -> Self {
        let rest = name.strip_prefix("base_model.model.").unwrap_or(name);
        let factor = |&(end, is_a, form): &(&str, bool, Form)| {
            Some(Self::Factor { module: rest.strip_suffix(end)?, is_a, form })
        };
        if let Some(factor) = ENDS.iter().find_map(factor) {
            return factor;
        }
        if rest.ends_with(".base_layer.weight") {
            return Self::Copy;
        }
        Self::Other(if rest.contains("lora_magnitude_vector") {
            "is of DoRA, which is not supported"
        } else if rest.ends_with("bias") {
            "is a trained bias, which is not supported"
        } else {
            "is a whole tensor, where pairs of factors are read"
        })
    }
}

/// What `adapter_config.json` says about the sizes of the factors.
struct Settings {
    rank: usize,
    alpha: f64,
    is_rank_stabilized: bool,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl Settings {
    fn read(config: &Map<String, Value>) -> Result<Self> {
        refuse_the_rest(config)?;
        let wrong = |key: &str| Error::input(format!("`{key}` is {}, which is not read", config[key]));
        let count = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        let number = |v: &Value| v.as_f64().filter(|n| n.is_finite());
        let absent = |key: &str| Error::input(format!("`{key}` is absent")).hint("it is no LoRA adapter of PEFT");
        Ok(Self {
            rank: config.get("r").ok_or_else(|| absent("r")).and_then(|v| count(v).ok_or_else(|| wrong("r")))?,
            alpha: (config.get("lora_alpha").ok_or_else(|| absent("lora_alpha")))
                .and_then(|v| number(v).ok_or_else(|| wrong("lora_alpha")))?,
            is_rank_stabilized: config.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
            ranks: patterns(config, "rank_pattern", count)?,
            alphas: patterns(config, "alpha_pattern", number)?,
        })
    }

    /// Of a module, named as in the model.
    fn rank_and_scale(&self, module: &str) -> (usize, f32) {
        let rank = first(&self.ranks, module).unwrap_or(self.rank);
        let alpha = first(&self.alphas, module).unwrap_or(self.alpha);
        let over = if self.is_rank_stabilized { (rank as f64).sqrt() } else { rank as f64 };
        (rank, (alpha / over) as f32)
    }
}

/// Modules by regular expressions; the first that names one counts.
fn patterns<T>(config: &Map<String, Value>, key: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Vec<(Regex, T)>> {
    let map = match config.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(Error::input(format!("`{key}` is {other}, where an object is needed"))),
    };
    let pattern = |(text, value): (&String, &Value)| {
        // PEFT compares the end of a module's path, from a dot on.
        let regex = Regex::new(&format!(r"\A(?:.*\.)?(?:{text})\z"))
            .map_err(|e| Error::input(format!("`{key}`: `{text}` is no regular expression that can be read: {e}")))?;
        let value =
            read(value).ok_or_else(|| Error::input(format!("`{key}`: `{text}` has {value}, which is not read")))?;
        Ok((regex, value))
    };
    map.iter().map(pattern).collect()
}

fn first<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    // A pattern that backtracks without end names nothing.
    patterns.iter().find(|(regex, _)| regex.is_match(module).unwrap_or(false)).map(|(_, value)| *value)
}

/// Settings under which the product of the factors is not all that an adapter does, and why they are refused.
const OTHER: [(&str, &str); 13] = [
    ("use_dora", "DoRA scales the sum's columns, which needs the whole matrix"),
    ("use_qalora", "QALoRA pools the inputs"),
    ("lora_bias", "the second factor has a bias"),
    ("modules_to_save", "whole modules are trained"),
    ("trainable_token_indices", "rows of the embedding are trained"),
    ("target_parameters", "tensors of fused experts have factors"),
    ("layer_replication", "the model's blocks are repeated"),
    ("alora_invocation_tokens", "it takes effect behind certain tokens alone"),
    ("ensure_weight_tying", "embedding and head share their factors"),
    ("use_bdlora", "the factors are blocks"),
    ("arrow_config", "tokens choose among adapters"),
    ("kasa_config", "the model's own weights are changed"),
    ("monteclora_config", "the factors are drawn at random"),
];

/// Beginnings of `init_lora_weights` that change the model's own weights.
const CHANGING: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

fn refuse_the_rest(config: &Map<String, Value>) -> Result<()> {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    if let Some(kind) = text("peft_type").filter(|kind| *kind != "LORA") {
        return Err(Error::input(format!("`peft_type` is `{kind}`, where `LORA` is read")));
    }
    let merge = "merge it into the model with PEFT's `merge_and_unload`";
    let is_set = |v: &Value| match v {
        Value::Null | Value::Bool(false) => false,
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
        _ => true,
    };
    if let Some((key, why)) = OTHER.iter().find(|(key, _)| config.get(*key).is_some_and(is_set)) {
        return Err(Error::input(format!("`{key}` is set, which is not supported: {why}")).hint(merge));
    }
    if let Some(bias) = text("bias").filter(|b| *b != "none") {
        return Err(Error::input(format!("`bias` is `{bias}`, which is not supported: biases are trained")).hint(merge));
    }
    match text("init_lora_weights").filter(|init| CHANGING.iter().any(|c| init.starts_with(c))) {
        Some(init) => {
            Err(Error::input(format!("`init_lora_weights` is `{init}`, which changes the model's own weights"))
                .hint("save it with `path_initial_model_for_weight_conversion`, as PEFT's documentation says"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(value: &Value) -> Result<Settings, String> {
        let Value::Object(map) = value else { panic!("an object") };
        Settings::read(map).map_err(|e| e.to_string())
    }

    #[test]
    fn the_first_pattern_that_ends_a_path_counts() {
        let s = settings(&json!({
            "r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 4, "layers\\.1\\..*_proj": 2, "proj": 3},
            "alpha_pattern": {"model.layers.0.self_attn.q_proj": 1.5}
        }))
        .unwrap();
        assert_eq!(s.rank_and_scale("model.layers.0.self_attn.q_proj"), (4, 0.375));
        assert_eq!(s.rank_and_scale("model.layers.1.self_attn.q_proj"), (4, 4.0));
        assert_eq!(s.rank_and_scale("model.layers.1.self_attn.k_proj"), (2, 8.0));
        assert_eq!(s.rank_and_scale("model.layers.0.self_attn.k_proj"), (8, 2.0), "`proj` is no whole part");
        let s = settings(&json!({"r": 4, "lora_alpha": 6.0, "use_rslora": true})).unwrap();
        assert_eq!(s.rank_and_scale("x"), (4, 3.0));
    }

    #[test]
    fn what_is_more_than_factors_is_refused() {
        let with = |key: &str, value: Value| {
            let mut config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": false,
                "modules_to_save": null, "rank_pattern": {}, "init_lora_weights": true, "layer_replication": []});
            assert!(settings(&config).is_ok());
            config[key] = value;
            settings(&config).err().unwrap_or_default()
        };
        for (key, _) in OTHER {
            assert!(with(key, json!(true)).starts_with(&format!("`{key}` is set, which is not supported")), "{key}");
        }
        assert!(with("modules_to_save", json!(["lm_head"])).ends_with("`merge_and_unload`"));
        assert!(with("peft_type", json!("IA3")).contains("`IA3`"));
        assert!(with("bias", json!("lora_only")).contains("biases are trained"));
        assert!(
            with("init_lora_weights", json!("pissa_niter_16")).contains("path_initial_model_for_weight_conversion")
        );
        assert_eq!(with("init_lora_weights", json!("gaussian")), "");
        for (key, value) in [("r", json!(0)), ("r", json!("8")), ("lora_alpha", json!("x"))] {
            assert!(with(key, value).starts_with(&format!("`{key}` is ")), "{key}");
        }
        assert!(with("rank_pattern", json!({"(": 4})).contains("no regular expression"));
        assert!(with("alpha_pattern", json!({"q": null})).contains("`q` has null"));
        assert!(settings(&json!({"lora_alpha": 8})).err().unwrap().starts_with("`r` is absent"));
    }
}
