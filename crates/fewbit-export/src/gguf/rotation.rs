//! Rotary positions in the words of a GGUF file.

use fewbit_format::{Error, Result};
use fewbit_graph::Rope;
use fewbit_store::{ModelFile, Value};
use serde_json::{Map, Value as Json};

use super::metadata::refused;

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

/// The tensors of what frequencies are divided by, for the rules that a GGUF file knows only by their result.
///
/// # Errors
/// If llama.cpp does not read such a tensor for the family.
pub(super) fn tensors(file: &ModelFile, family: &str) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let config = file.checkpoint().config();
    let has_factors = config.get("rope_freq_factors").is_some_and(Json::is_array);
    let (kind, rope) = (kind(config), file.model().ropes.first());
    let is_long = matches!(kind, "longrope" | "su");
    let Some(rope) = rope.filter(|_| is_long || has_factors || kind == "llama3") else { return Ok(Vec::new()) };
    let reader = if is_long { "phi3" } else { "llama" };
    if family != reader {
        return Err(refused(&format!("llama.cpp reads no factors of frequencies for `{family}`"))
            .file(file.checkpoint().path()));
    }
    if !is_long {
        let (base, pairs) = (base(config), rope.inverse_frequency.len() as f64);
        let plain = (0..).map(|i| base.powf(-f64::from(i) / pairs));
        let factors = rope.inverse_frequency.iter().zip(plain).map(|(scaled, plain)| (plain / scaled) as f32).collect();
        return Ok(vec![("rope_freqs.weight", factors)]);
    }
    let pairs = rope.inverse_frequency.len();
    let factors = |key: &str| {
        let list = scaling(config).and_then(|s| s.get(key)).and_then(Json::as_array);
        let numbers = list.and_then(|l| l.iter().map(|v| Some(v.as_f64()? as f32)).collect::<Option<Vec<f32>>>());
        numbers.filter(|n| n.len() == pairs).ok_or_else(|| {
            Error::input(format!("config.json: the rope scaling's `{key}` must be a list of {pairs} numbers"))
                .file(file.checkpoint().path())
        })
    };
    Ok(vec![
        ("rope_factors_long.weight", factors("long_factor")?),
        ("rope_factors_short.weight", factors("short_factor")?),
    ])
}

/// The keys of a scaled rotation, without the family's name.
///
/// # Errors
/// If the scaling has a setting that llama.cpp does not.
pub(super) fn keys(config: &Map<String, Json>, family: &str, ropes: &[Rope]) -> Result<Vec<(&'static str, Value)>> {
    let Some(s) = scaling(config) else { return Ok(Vec::new()) };
    let number = |key: &str| s.get(key).and_then(Json::as_f64);
    let factor = number("factor").unwrap_or(1.0);
    let scale = ropes.first().map_or(1.0, |rope| rope.scale);
    let trained = number("original_max_position_embeddings")
        .or_else(|| config.get("original_max_position_embeddings").and_then(Json::as_f64));
    let trained = trained.or_else(|| config.get("max_position_embeddings").and_then(Json::as_f64));
    let trained = trained.map(|n| ("rope.scaling.original_context_length", Value::U32(n as u32)));
    let mut keys = Vec::new();
    match kind(config) {
        kind @ ("linear" | "yarn") => {
            keys.push(("rope.scaling.type", Value::String(kind.into())));
            keys.push(("rope.scaling.factor", Value::F32(factor as f32)));
        }
        // The tables of both lengths are tensors; llama.cpp takes the long one where the context is longer.
        "longrope" | "su" => {
            keys.extend(trained);
            keys.push(("rope.scaling.attn_factor", Value::F32(scale as f32)));
            return Ok(keys);
        }
        _ => return Ok(keys),
    }
    if kind(config) == "linear" {
        return Ok(keys);
    }
    keys.extend(trained);
    keys.extend(number("beta_fast").map(|b| ("rope.scaling.yarn_beta_fast", Value::F32(b as f32))));
    keys.extend(number("beta_slow").map(|b| ("rope.scaling.yarn_beta_slow", Value::F32(b as f32))));
    let (is_oss, is_deepseek) = (family == "gpt-oss", family == "deepseek2");
    if s.get("truncate").and_then(Json::as_bool).unwrap_or(true) == is_oss {
        let (is, wanted) = if is_oss { ("true", "false") } else { ("false", "true") };
        return Err(refused(&format!(
            "the YaRN scaling's `truncate` is {is}, where files of `{family}` have {wanted}"
        )));
    }
    // llama.cpp computes the factor of attention itself, and by the rule only.
    let rule = if is_deepseek { 1.0 } else { 0.1 * factor.ln() + 1.0 };
    if (scale / rule - 1.0).abs() > 1e-6 {
        return Err(refused(&format!(
            "the YaRN scaling has an `attention_factor` of {scale}, where GGUF files have the rule's {rule}"
        )));
    }
    if is_deepseek {
        let weight = number("mscale_all_dim").filter(|w| *w != 0.0).ok_or_else(|| {
            refused("the YaRN scaling has no `mscale_all_dim`, without which llama.cpp scales scores otherwise")
        })?;
        keys.push(("rope.scaling.yarn_log_multiplier", Value::F32((0.1 * weight) as f32)));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The keys of a model whose cosines are multiplied by the rule of `factor`.
    fn keys_of(config: &Json) -> Result<Vec<(&'static str, Value)>> {
        scaled(config, "llama", 0.1 * 4f64.ln() + 1.0)
    }

    fn scaled(config: &Json, family: &str, scale: f64) -> Result<Vec<(&'static str, Value)>> {
        keys(config.as_object().unwrap(), family, &[Rope { inverse_frequency: vec![1.0], scale, beyond: None }])
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
        let e = scaled(&own, "llama", 1.0).unwrap_err().to_string();
        assert!(e.starts_with("the YaRN scaling has an `attention_factor` of 1,"), "{e}");
        let sharp = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": false}});
        assert!(keys_of(&sharp).unwrap_err().to_string().starts_with("the YaRN scaling's `truncate` is false"));
        assert!(scaled(&sharp, "gpt-oss", 0.1 * 4f64.ln() + 1.0).is_ok());
    }

    #[test]
    fn deepseek_weighs_the_logarithm() {
        let of = |all: f64| json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale_all_dim": all}});
        let keys = scaled(&of(0.5), "deepseek2", 1.0).unwrap();
        assert_eq!(keys.last().unwrap(), &("rope.scaling.yarn_log_multiplier", Value::F32(0.05)));
        let e = scaled(&of(0.0), "deepseek2", 1.0).unwrap_err().to_string();
        assert!(e.starts_with("the YaRN scaling has no `mscale_all_dim`"), "{e}");
    }
}
