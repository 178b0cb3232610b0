//! LoRA adapters that run beside a model.

use std::path::Path;

use clap::Args;
use fewbit_format::{Error, Result};
use fewbit_store::{Checkpoint, LoraAdapter, ModelFile};
use serde_json::Value;

use crate::session::Session;
use crate::{hub, loading};

/// The option of every command that runs a model.
#[derive(Args, Debug)]
pub(crate) struct Adapters {
    /// Add a LoRA adapter: a folder of PEFT, a GGUF file, or `owner/name` of the hub; SCALE times its own scale
    /// [default: 1]. May be given several times
    #[arg(long = "lora", value_name = "PATH[:SCALE]")]
    lora: Vec<String>,
}

impl Adapters {
    /// Opens a model, says what was noticed, and puts the adapters beside its linears.
    pub(crate) fn model_file(&self, session: &Session, model: &str) -> Result<ModelFile> {
        let mut file = loading::model_file(session, model)?;
        if self.lora.is_empty() {
            return Ok(file);
        }
        for text in &self.lora {
            let (name, scale) = name_and_scale(text)?;
            file.attach(&LoraAdapter::open(&hub::resolve(session, name)?)?, scale)?;
        }
        if let Some(by) = changed_inputs(file.checkpoint()) {
            session.output.note(&format!(
                "note: `{by}` changed what the linears of this model read: an adapter fits if it was trained on this model, \
                 not if it was trained on the original"
            ));
        }
        Ok(file)
    }
}

/// What stands before the last colon, and the number behind it; a path that exists has none.
fn name_and_scale(text: &str) -> Result<(&str, f32)> {
    let number = text.rsplit_once(':').and_then(|(name, number)| Some((name, number.parse::<f32>().ok()?)));
    match number {
        Some(_) if Path::new(text).exists() => Ok((text, 1.0)),
        Some((name, scale)) if scale.is_finite() => Ok((name, scale)),
        Some((_, scale)) => {
            Err(Error::input(format!("`--lora {text}`: the scale is {scale}")).hint("give a finite number"))
        }
        None => Ok((text, 1.0)),
    }
}

/// The transform that was folded into a model's weights, so that its linears read other numbers than the original's.
fn changed_inputs(checkpoint: &Checkpoint) -> Option<String> {
    // Those that run with the model, maps of single inputs, change nothing that an adapter sees.
    const FOLDED: [&str; 4] = ["transform.scale", "transform.smooth", "transform.rotate", "transform.fence"];
    if checkpoint.config().get("quantization_config").is_some_and(|q| q["quant_method"] == "awq") {
        return Some("awq".to_owned());
    }
    let manifest = std::fs::read(checkpoint.sidecar("fewbit.json")?).ok()?;
    let manifest: Value = serde_json::from_slice(&manifest).ok()?;
    let passes = manifest["recipe"]["passes"].as_array()?;
    passes.iter().filter_map(|p| p["use"].as_str()).find(|name| FOLDED.contains(name)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_behind_the_last_colon_is_the_scale() {
        assert_eq!(name_and_scale("a/b").unwrap(), ("a/b", 1.0));
        assert_eq!(name_and_scale("a/b:0.5").unwrap(), ("a/b", 0.5));
        assert_eq!(name_and_scale("o/n@main:f16.gguf:-2").unwrap(), ("o/n@main:f16.gguf", -2.0));
        assert_eq!(name_and_scale("o/n:f16.gguf").unwrap(), ("o/n:f16.gguf", 1.0));
        assert!(name_and_scale("a:nan").unwrap_err().to_string().contains("the scale is NaN"));
        let dir = tempfile::tempdir().unwrap();
        let named = dir.path().join("run:3");
        std::fs::create_dir(&named).unwrap();
        let text = named.to_str().unwrap();
        assert_eq!(name_and_scale(text).unwrap(), (text, 1.0));
    }
}
