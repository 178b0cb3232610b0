use fewbit_format::{Error, Result};
use serde_json::{Map, Value, json};

use super::{Keys, decimal};
use crate::Checkpoint;

/// The base of the rotation, and how it is stretched beyond the length of training.
pub(super) fn rotation(keys: &Keys<'_>, checkpoint: &Checkpoint, config: &mut Map<String, Value>) -> Result<()> {
    let default_base = if keys.family == "gemma3" { 1e6 } else { 1e4 };
    config.insert("rope_theta".into(), json!(keys.number("rope.freq_base")?.unwrap_or(default_base)));
    if checkpoint.contains("rope_freqs.weight") {
        let factors = checkpoint.tensor("rope_freqs.weight")?.to_f32()?;
        let base = config["rope_theta"].as_f64().unwrap_or(default_base);
        if let Some(scaling) = llama3(&factors, base) {
            config.insert("rope_scaling".into(), scaling);
        } else {
            let factors: Vec<f64> = factors.into_iter().map(decimal).collect();
            config.insert("rope_freq_factors".into(), json!(factors));
        }
        return Ok(());
    }
    if checkpoint.contains("rope_factors_short.weight") {
        return longrope(keys, checkpoint, config);
    }
    let name = format!("{}.rope.scaling.type", keys.family);
    let old_factor = keys.number("rope.scale_linear")?.filter(|f| *f != 1.0);
    let kind = keys.gguf.string(&name)?.unwrap_or(if old_factor.is_some() { "linear" } else { "none" });
    let factor = keys.number("rope.scaling.factor")?.or(old_factor).unwrap_or(1.0);
    let mut scaling = Map::new();
    scaling.insert("rope_type".into(), json!(kind));
    scaling.insert("factor".into(), json!(factor));
    match kind {
        "none" => return Ok(()),
        "linear" => {}
        "yarn" => {
            let renamed = [
                ("rope.scaling.original_context_length", "original_max_position_embeddings"),
                ("rope.scaling.yarn_beta_fast", "beta_fast"),
                ("rope.scaling.yarn_beta_slow", "beta_slow"),
            ];
            for (from, to) in renamed {
                if let Some(v) = keys.number(from)? {
                    scaling.insert(to.into(), if v.fract() == 0.0 { json!(v as i64) } else { json!(v) });
                }
            }
            match keys.family {
                "deepseek2" => super::mixture::yarn_weights(keys, &mut scaling)?,
                // Its limits lie between pairs, which no key says.
                "gpt-oss" => _ = scaling.insert("truncate".into(), json!(false)),
                _ => {}
            }
            // llama.cpp multiplies the rule by it; transformers puts the product in the rule's place.
            if let Some(by) = keys.number("rope.scaling.attn_factor")?.filter(|by| *by != 1.0) {
                scaling.insert("attention_factor".into(), json!(by * (0.1 * factor.ln() + 1.0)));
            }
        }
        other => {
            return Err(Error::input(format!("key `{name}` is `{other}`, where none, linear and yarn are known"))
                .file(keys.gguf.path()));
        }
    }
    config.insert("rope_scaling".into(), Value::Object(scaling));
    Ok(())
}

/// Phi-3's divisors of the frequencies, for short and for long sequences.
fn longrope(keys: &Keys<'_>, checkpoint: &Checkpoint, config: &mut Map<String, Value>) -> Result<()> {
    let mut scaling = Map::new();
    scaling.insert("rope_type".into(), json!("longrope"));
    for (from, to) in [("rope_factors_short.weight", "short_factor"), ("rope_factors_long.weight", "long_factor")] {
        let factors = checkpoint.tensor(from)?.to_f32()?;
        scaling.insert(to.into(), json!(factors.into_iter().map(decimal).collect::<Vec<f64>>()));
    }
    if let Some(trained) = keys.u64("rope.scaling.original_context_length")? {
        config.insert("original_max_position_embeddings".into(), json!(trained));
    }
    if let Some(factor) = keys.number("rope.scaling.attn_factor")? {
        scaling.insert("attention_factor".into(), json!(factor));
    }
    config.insert("rope_scaling".into(), Value::Object(scaling));
    Ok(())
}

/// The `llama3` scaling whose divisors of the frequencies these are, with the constants that all its models have.
///
/// Transformers knows the rule only, GGUF files its result only.
fn llama3(factors: &[f32], base: f64) -> Option<Value> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const TRAINED: f64 = 8192.0;
    let factor = decimal(*factors.last()?);
    let divisor = |i: usize| {
        let wave = 2.0 * std::f64::consts::PI * base.powf(i as f64 / factors.len() as f64);
        let smooth = ((TRAINED / wave - LOW) / (HIGH - LOW)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    let fits = factors.iter().enumerate().all(|(i, f)| (f64::from(*f) / divisor(i) - 1.0).abs() < 1e-5);
    fits.then(|| {
        json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH,
               "original_max_position_embeddings": TRAINED as u64})
    })
}
