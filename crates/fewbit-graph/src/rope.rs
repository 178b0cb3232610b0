use fewbit_format::{Error, Result};
use serde_json::{Map, Value};

use crate::Config;

/// A rotary table: angle of pair `i` at position `p` is `p · inverse_frequency[i]`; cos and sin are multiplied by `scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// One per pair.
    pub inverse_frequency: Vec<f64>,
    /// Factor of cos and sin (YaRN's attention factor).
    pub scale: f64,
    /// The table of longer sequences, where they have another.
    pub beyond: Option<Beyond>,
}

/// The rotary table of sequences of more than so many positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Beyond {
    /// Positions of the longest sequence that has the other table.
    pub positions: usize,
    /// One per pair.
    pub inverse_frequency: Vec<f64>,
}

impl Rope {
    /// The table of the configuration: `rope_theta` and `rope_scaling`, or both inside `rope_parameters` (transformers 5).
    ///
    /// # Errors
    /// Names an unknown type, or a number that is out of range.
    pub fn from_config(c: &Config<'_>, rotary_dims: usize) -> Result<Self> {
        let parameters = c.object("rope_parameters")?;
        let theta = match parameters.and_then(|p| p.get("rope_theta")) {
            Some(t) => t.as_f64().ok_or_else(|| c.wrong("rope_parameters.rope_theta", t))?,
            None => c.f64_or("rope_theta", 10000.0)?,
        };
        let scaling = parameters.or(c.object("rope_scaling")?);
        Self::scaled(c, theta, rotary_dims, scaling)
    }

    /// The table with base `theta` under a `rope_scaling` object (none: unscaled).
    ///
    /// # Errors
    /// Names an unknown type, or a number that is out of range.
    pub fn scaled(
        c: &Config<'_>,
        theta: f64,
        rotary_dims: usize,
        scaling: Option<&Map<String, Value>>,
    ) -> Result<Self> {
        if !(theta.is_finite() && theta > 0.0) {
            return Err(c.error_at("rope_theta", format_args!("is {theta}, where a positive number is needed")));
        }
        let d = rotary_dims as f64;
        let mut inv: Vec<f64> = (0..rotary_dims / 2).map(|i| theta.powf(-2.0 * i as f64 / d)).collect();
        let (mut scale, mut beyond) = (1.0, None);
        if let Some(s) = scaling {
            let kind = (s.get("rope_type").or_else(|| s.get("type"))).and_then(Value::as_str).unwrap_or("default");
            match kind {
                "default" => {}
                "linear" => {
                    let factor = number(c, s, "factor")?;
                    for f in &mut inv {
                        *f /= factor;
                    }
                }
                "llama3" => llama3(c, s, &mut inv)?,
                "yarn" => scale = yarn(c, s, theta, rotary_dims, &mut inv)?,
                "longrope" | "su" => (scale, beyond) = longrope(c, s, &mut inv)?,
                other => {
                    return Err(c
                        .error(format_args!("rope type `{other}` is unknown"))
                        .hint("known are default, linear, llama3, longrope, yarn"));
                }
            }
        }
        if let Some(factors) = c.array("rope_freq_factors")? {
            if factors.len() != inv.len() {
                return Err(Error::input(format!("{} rope frequency factors for {} pairs", factors.len(), inv.len())));
            }
            for (f, by) in inv.iter_mut().zip(factors) {
                *f /= by.as_f64().filter(|b| *b > 0.0).ok_or_else(|| c.wrong("rope_freq_factors", by))?;
            }
        }
        Ok(Self { inverse_frequency: inv, scale, beyond })
    }

    /// What DeepSeek's scores are multiplied by under YaRN beside the factor of cos and sin: `m²`, where `m` belongs to
    /// `mscale_all_dim`.
    ///
    /// # Errors
    /// If a number of the scaling is out of range.
    pub(crate) fn scores_scale(c: &Config<'_>) -> Result<f64> {
        let Some(s) = c.object("rope_parameters")?.or(c.object("rope_scaling")?) else { return Ok(1.0) };
        let weight = s.get("mscale_all_dim").and_then(Value::as_f64).unwrap_or(0.0);
        let kind = s.get("rope_type").or_else(|| s.get("type")).and_then(Value::as_str);
        if weight == 0.0 || kind.is_none_or(|k| k == "default") {
            return Ok(1.0);
        }
        Ok(yarn_scale(number(c, s, "factor")?, weight).powi(2))
    }

    /// cos and sin of one position, `[pairs]` each. Angles are formed in f32, as the models were trained.
    pub fn fill(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((f, c), s) in self.inverse_frequency.iter().zip(cos).zip(sin) {
            let angle = f64::from(position as f32 * *f as f32);
            *c = (angle.cos() * self.scale) as f32;
            *s = (angle.sin() * self.scale) as f32;
        }
    }
}

fn number(c: &Config<'_>, s: &Map<String, Value>, key: &str) -> Result<f64> {
    s.get(key).and_then(Value::as_f64).filter(|v| v.is_finite() && *v > 0.0).ok_or_else(|| {
        c.error(format_args!(
            "the rope scaling's {} is absent or not a positive number",
            c.name_within("rope_scaling", key)
        ))
    })
}

/// Llama 3.1: long waves are slowed by `factor`, short ones kept, a ramp between.
fn llama3(c: &Config<'_>, s: &Map<String, Value>, inv: &mut [f64]) -> Result<()> {
    let (factor, low, high) =
        (number(c, s, "factor")?, number(c, s, "low_freq_factor")?, number(c, s, "high_freq_factor")?);
    let trained = number(c, s, "original_max_position_embeddings")?;
    for f in inv {
        let wave = std::f64::consts::TAU / *f;
        let mix = ((trained / wave - low) / (high - low)).clamp(0.0, 1.0);
        *f = (1.0 - mix) * *f / factor + mix * *f;
    }
    Ok(())
}

/// LongRoPE (Ding et al. 2024) as Phi-3 has it: a divisor for each pair, others for sequences beyond the length of
/// training; returns the factor of cos and sin of both, and the table of the longer ones.
fn longrope(c: &Config<'_>, s: &Map<String, Value>, inv: &mut [f64]) -> Result<(f64, Option<Beyond>)> {
    let trained = match s.get("original_max_position_embeddings") {
        Some(_) => number(c, s, "original_max_position_embeddings")?,
        None => c.usize("original_max_position_embeddings")? as f64,
    };
    if trained < 2.0 {
        return Err(c.wrong("original_max_position_embeddings", &trained.into()));
    }
    let all = c.usize("max_position_embeddings")? as f64;
    let divided = |key: &str, inv: &[f64]| -> Result<Vec<f64>> {
        let divisors = s.get(key).and_then(Value::as_array).filter(|d| d.len() == inv.len()).ok_or_else(|| {
            c.error(format_args!("the rope scaling's `{key}` must be a list of {} numbers", inv.len()))
        })?;
        let by =
            |by: &Value| by.as_f64().filter(|b| *b > 0.0).ok_or_else(|| c.wrong(&format!("rope_scaling.{key}"), by));
        inv.iter().zip(divisors).map(|(f, d)| Ok(f / by(d)?)).collect()
    };
    let beyond = if all > trained {
        Some(Beyond { positions: trained as usize, inverse_frequency: divided("long_factor", inv)? })
    } else {
        None
    };
    inv.copy_from_slice(&divided("short_factor", inv)?);
    let factor = if s.contains_key("factor") { number(c, s, "factor")? } else { all / trained };
    let scale = match s.get("attention_factor") {
        Some(_) => number(c, s, "attention_factor")?,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / trained.ln()).sqrt(),
    };
    Ok((scale, beyond))
}

/// YaRN (Peng et al. 2023): interpolate slow pairs, keep fast ones; returns the attention factor.
fn yarn(c: &Config<'_>, s: &Map<String, Value>, theta: f64, dims: usize, inv: &mut [f64]) -> Result<f64> {
    let factor = number(c, s, "factor")?;
    let trained = match s.get("original_max_position_embeddings") {
        Some(_) => number(c, s, "original_max_position_embeddings")?,
        None => c.usize("max_position_embeddings")? as f64,
    };
    let get = |key: &str, default: f64| s.get(key).and_then(Value::as_f64).unwrap_or(default);
    let turn = |beta: f64| dims as f64 * (trained / (beta * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (turn(get("beta_fast", 32.0)), turn(get("beta_slow", 1.0)));
    if s.get("truncate").and_then(Value::as_bool).unwrap_or(true) {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
    for (i, f) in inv.iter_mut().enumerate() {
        let ramp = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        *f = *f / factor * ramp + *f * (1.0 - ramp);
    }
    let scale = match (get("mscale", 0.0), get("mscale_all_dim", 0.0)) {
        (all, of_scores) if all != 0.0 && of_scores != 0.0 => yarn_scale(factor, all) / yarn_scale(factor, of_scores),
        _ => yarn_scale(factor, 1.0),
    };
    Ok(s.get("attention_factor").and_then(Value::as_f64).unwrap_or(scale))
}

/// What YaRN multiplies by where frequencies are divided by `factor`, with a weight of its own for the logarithm.
fn yarn_scale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}
