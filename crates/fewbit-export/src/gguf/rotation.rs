//! Rotary positions in the words of a GGUF file.

use fewbit_format::{Error, Result};
use fewbit_store::{ModelFile, Value};
use serde_json::{Map, Value as Json};

/// The base of the rotation.
pub(super) fn base(config: &Map<String, Json>) -> f64 {
    let of_parameters = parameters(config).and_then(|p| p.get("rope_theta")).and_then(Json::as_f64);
    of_parameters.or_else(|| config.get("rope_theta").and_then(Json::as_f64)).unwrap_or(10000.0)
}

/// `rope_parameters`, or those of the layers that see everything where they are told apart (Gemma 3).
fn parameters(config: &Map<String, Json>) -> Option<&Map<String, Json>> {
    let all = config.get("rope_parameters")?.as_object()?;
    all.get("full_attention").and_then(Json::as_object).or(Some(all))
}

fn scaling(config: &Map<String, Json>) -> Option<&Map<String, Json>> {
    parameters(config).or_else(|| config.get("rope_scaling")?.as_object())
}

fn kind(config: &Map<String, Json>) -> &str {
    let kind = scaling(config).and_then(|s| s.get("rope_type").or_else(|| s.get("type")));
    kind.and_then(Json::as_str).unwrap_or("default")
}

/// What the frequencies are divided by, for the rules that a GGUF file knows only by their result.
///
/// # Errors
/// If llama.cpp does not read such a tensor for the family.
pub(super) fn factors(file: &ModelFile, family: &str) -> Result<Option<Vec<f32>>> {
    let config = file.checkpoint().config();
    let has_factors = config.get("rope_freq_factors").is_some_and(Json::is_array);
    if kind(config) != "llama3" && !has_factors {
        return Ok(None);
    }
    if family != "llama" {
        return Err(Error::input(format!("llama.cpp reads no factors of frequencies for `{family}`"))
            .hint("write it with `--format compressed-tensors` or `--format fewbit`")
            .file(file.checkpoint().path()));
    }
    let Some(rope) = file.model().ropes.first() else { return Ok(None) };
    let (base, pairs) = (base(config), rope.inverse_frequency.len() as f64);
    let plain = (0..).map(|i| base.powf(-f64::from(i) / pairs));
    Ok(Some(rope.inverse_frequency.iter().zip(plain).map(|(scaled, plain)| (plain / scaled) as f32).collect()))
}

/// The keys of a scaled rotation, without the family's name.
///
/// # Errors
/// If the scaling has a setting that llama.cpp does not.
pub(super) fn keys(config: &Map<String, Json>) -> Result<Vec<(&'static str, Value)>> {
    let Some(s) = scaling(config) else { return Ok(Vec::new()) };
    let number = |key: &str| s.get(key).and_then(Json::as_f64);
    let factor = number("factor").unwrap_or(1.0);
    let mut keys = Vec::new();
    match kind(config) {
        kind @ ("linear" | "yarn") => {
            keys.push(("rope.scaling.type", Value::String(kind.into())));
            keys.push(("rope.scaling.factor", Value::F32(factor as f32)));
        }
        kind @ ("longrope" | "su") => {
            return Err(Error::input(format!("GGUF files with a rotation of type `{kind}` are not written"))
                .hint("write it with `--format compressed-tensors` or `--format fewbit`"));
        }
        _ => return Ok(keys),
    }
    if kind(config) == "linear" {
        return Ok(keys);
    }
    // llama.cpp computes the factor of attention itself, and by the rule only.
    let rule = 0.1 * factor.ln() + 1.0;
    if let Some(f) = number("attention_factor").filter(|f| (f / rule - 1.0).abs() > 1e-6) {
        return Err(Error::input(format!(
            "the YaRN scaling has an `attention_factor` of {f}, where GGUF files have the rule's {rule}"
        ))
        .hint("write it with `--format compressed-tensors` or `--format fewbit`"));
    }
    let trained = number("original_max_position_embeddings");
    let trained = trained.or_else(|| config.get("max_position_embeddings").and_then(Json::as_f64));
    keys.extend(trained.map(|n| ("rope.scaling.original_context_length", Value::U32(n as u32))));
    keys.extend(number("beta_fast").map(|b| ("rope.scaling.yarn_beta_fast", Value::F32(b as f32))));
    keys.extend(number("beta_slow").map(|b| ("rope.scaling.yarn_beta_slow", Value::F32(b as f32))));
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn keys_of(config: &Json) -> Result<Vec<(&'static str, Value)>> {
        keys(config.as_object().unwrap())
    }

    #[test]
    fn scalings_become_keys() {
        assert_eq!(keys_of(&json!({"rope_scaling": null})).unwrap(), []);
        assert_eq!(keys_of(&json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})).unwrap(), []);
        let linear = keys_of(&json!({"rope_scaling": {"type": "linear", "factor": 4.0}})).unwrap();
        assert_eq!(linear[1], ("rope.scaling.factor", Value::F32(4.0)));
        let yarn =
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}});
        assert!(keys_of(&yarn).unwrap().contains(&("rope.scaling.original_context_length", Value::U32(32768))));
        let full = json!({"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6});
        let gemma = json!({"rope_parameters": {"full_attention": full, "sliding_attention": {"rope_theta": 1e4}}});
        assert_eq!(base(gemma.as_object().unwrap()), 1e6);
        assert_eq!(keys_of(&gemma).unwrap()[1], ("rope.scaling.factor", Value::F32(8.0)));
        let own = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0}});
        assert!(keys_of(&own).unwrap_err().to_string().starts_with("the YaRN scaling has an `attention_factor` of 1,"));
    }
}
