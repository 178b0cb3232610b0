use std::collections::BTreeMap;

use fewbit_format::{ActivationGrid, Error, Result};
use serde_json::Value;

use super::Tensors;
use super::awq::AwqConfig;
use super::bitsandbytes::BitsAndBytesConfig;
use super::compressed_tensors::CtConfig;
use super::fewbit::FewbitConfig;
use super::float8::Float8Config;
use super::gptq::GptqConfig;
use super::hqq::HqqConfig;
use super::mlx::MlxConfig;
use super::scheme::Scheme;
use super::torchao::TorchAoConfig;

/// How a checkpoint says that its linears are quantized.
#[derive(Clone, Debug)]
pub enum Quantization {
    /// It says nothing.
    None,
    /// compressed-tensors: integer weights are read.
    CompressedTensors(CtConfig),
    /// GPTQ, versions 1 and 2.
    Gptq(GptqConfig),
    /// AWQ in the layout `gemm`.
    Awq(AwqConfig),
    /// MLX: affine integers, MXFP4 and MXFP8.
    Mlx(MlxConfig),
    /// bitsandbytes, 4 and 8 bits.
    BitsAndBytes(BitsAndBytesConfig),
    /// HQQ, 1 to 8 bits.
    Hqq(HqqConfig),
    /// torchao: integers and FP8.
    TorchAo(TorchAoConfig),
    /// Our own layout.
    Fewbit(FewbitConfig),
    /// FP8 with scales per block or matrix.
    Float8(Float8Config),
    /// A method that is not read: its `quant_method`.
    Other(String),
}

impl Quantization {
    /// Reads the settings from a parsed `config.json` and, where the folder has one and config.json is silent, from a
    /// parsed `quantize_config.json`.
    ///
    /// # Errors
    /// If settings are there but make no sense.
    pub fn parse(config: &Value, quantize_config: Option<&Value>) -> Result<Self> {
        // mlx-lm writes its settings under both names, and says in neither whose they are.
        let mlx = &config["quantization"];
        if mlx["bits"].is_u64() && config["quantization_config"]["quant_method"].is_null() {
            let place = |e: Error| e.place("`quantization` of config.json");
            return MlxConfig::parse(mlx).map(Self::Mlx).map_err(place);
        }
        let settings = ["quantization_config", "compression_config"].into_iter().map(|key| (key, &config[key]));
        if let Some((key, v)) = settings.into_iter().find(|(_, v)| !v.is_null()) {
            return Self::settings(v).map_err(|e| e.place(format!("`{key}` of config.json")));
        }
        match quantize_config {
            Some(v) => Self::settings(v).map_err(|e| e.place("quantize_config.json")),
            None => Ok(Self::None),
        }
    }

    /// The same with what the files themselves say: hqq says all in tensors, and its own files have no settings; torchao's
    /// metadata says what its tensors are.
    ///
    /// # Errors
    /// If the metadata is none of torchao's.
    pub fn with_files<'a>(
        self,
        tensors: &dyn Tensors,
        names: impl Iterator<Item = &'a str> + Clone,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        Ok(match self {
            Self::None if names.clone().any(|n| n.ends_with(".W_q")) => {
                Self::Hqq(HqqConfig::of_tensors(tensors, names))
            }
            Self::Hqq(_) => Self::Hqq(HqqConfig::of_tensors(tensors, names)),
            Self::TorchAo(config) => Self::TorchAo(config.with_metadata(metadata, tensors)?),
            said => said,
        })
    }

    fn settings(v: &Value) -> Result<Self> {
        let method = match v["quant_method"].as_str().or(v["method"].as_str()) {
            Some(method) => method,
            None if v["config_groups"].is_object() => "compressed-tensors",
            // The settings of old GPTQ files do not say what they are.
            None if v["bits"].is_u64() && !v["group_size"].is_null() => "gptq",
            None => return Err(Error::input("has no `quant_method`")),
        };
        Ok(match method {
            "compressed-tensors" => Self::CompressedTensors(CtConfig::parse(v)?),
            "gptq" => Self::Gptq(GptqConfig::parse(v)?),
            "awq" => Self::Awq(AwqConfig::parse(v)?),
            "bitsandbytes" => Self::BitsAndBytes(BitsAndBytesConfig::parse(v)),
            "hqq" => Self::Hqq(HqqConfig::default()),
            "torchao" => Self::TorchAo(TorchAoConfig::parse(v)),
            "fewbit" => Self::Fewbit(FewbitConfig::parse(v)?),
            "fp8" => Self::Float8(Float8Config::parse(v)?),
            other => Self::Other(other.to_owned()),
        })
    }

    /// The scheme that the settings give to a module's weight. Settings may name modules that lie plain in the file:
    /// [`is_quantized`](super::is_quantized) looks.
    pub fn scheme_of(&self, module: &str) -> Option<&Scheme> {
        match self {
            Self::CompressedTensors(config) => config.scheme_of(module),
            Self::Gptq(config) => Some(config.scheme()),
            Self::Awq(config) => Some(config.scheme()),
            Self::Mlx(config) => Some(config.scheme_of(module)),
            Self::Hqq(config) => config.scheme_of(module),
            Self::TorchAo(config) => config.scheme_of(module),
            Self::Fewbit(config) => config.scheme_of(module),
            Self::Float8(config) => Some(config.scheme()),
            Self::None | Self::BitsAndBytes(_) | Self::Other(_) => None,
        }
    }

    /// How a quantized module's weight is stored, in a few words.
    pub fn words_of(&self, module: &str) -> Option<String> {
        let words = self.scheme_of(module).map(ToString::to_string);
        words
            .or_else(|| if let Self::Hqq(config) = self { config.words_of(module) } else { None })
            .or_else(|| self.describe())
    }

    /// How the input of a quantized module is rounded while the model runs.
    pub fn input_of(&self, module: &str) -> Option<ActivationGrid> {
        match self {
            Self::CompressedTensors(config) => config.activation_of(module),
            Self::Fewbit(config) => config.scheme_of(module).and_then(Scheme::input),
            Self::Float8(config) => config.activation(),
            Self::TorchAo(config) => config.activation_of(module),
            _ => None,
        }
    }

    /// Method and schemes in a few words, such as `GPTQ 4 bit group 128 symmetric`; `None` for a plain checkpoint.
    pub fn describe(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::CompressedTensors(config) => Some(format!("compressed-tensors {}", config.summary())),
            Self::Gptq(config) => Some(format!("GPTQ {}", config.scheme())),
            Self::Awq(config) => Some(format!("AWQ {}", config.scheme())),
            Self::Mlx(config) => Some(format!("MLX {}", config.scheme_of(""))),
            Self::BitsAndBytes(config) => Some(config.describe().to_owned()),
            Self::Hqq(config) => Some(config.describe()),
            Self::TorchAo(config) => Some(config.describe()),
            Self::Fewbit(config) => Some(format!("fewbit {}", config.summary())),
            Self::Float8(_) => Some("FP8".to_owned()),
            Self::Other(method) => Some(method.clone()),
        }
    }

    /// What the checkpoint rounds while it runs (activations, cache), which reading the weights does not do.
    pub fn runtime_rounding(&self) -> Option<String> {
        match self {
            Self::CompressedTensors(config) => config.rounding(),
            Self::Float8(config) => config.activation().map(|a| format!("activations to {a}")),
            Self::TorchAo(config) => config.rounding(),
            _ => None,
        }
    }

    /// How keys and values are rounded before they are remembered.
    pub fn cache(&self) -> Option<ActivationGrid> {
        match self {
            Self::CompressedTensors(config) => config.cache(),
            Self::Fewbit(config) => config.cache(),
            _ => None,
        }
    }

    /// Refuses what the weights alone do not give: transforms and sparsity always, rounding of activations or cache
    /// that is not known unless `weights_only` is wanted.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self, weights_only: bool) -> Result<()> {
        if let Self::CompressedTensors(config) = self {
            config.check().map_err(|e| e.or_hint("use the original checkpoint"))?;
        }
        let unknown = match self {
            Self::CompressedTensors(config) => config.unknown_rounding(),
            Self::TorchAo(config) => config.unknown_rounding(),
            _ => None,
        };
        match unknown {
            Some(what) if !weights_only => {
                Err(Error::input(format!("the checkpoint rounds {what}, which is not done yet"))
                    .hint("`--arithmetic weights-only` runs its weights without"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_lie_in_either_file() {
        let gptq = json!({ "bits": 4, "group_size": 32, "desc_act": false, "sym": true });
        let q = Quantization::parse(&json!({}), Some(&gptq)).unwrap();
        assert_eq!(q.describe().unwrap(), "GPTQ 4 bit group 32 symmetric");
        let awq = json!({ "quantization_config": { "quant_method": "awq", "bits": 4, "group_size": 128 } });
        assert!(matches!(Quantization::parse(&awq, Some(&gptq)).unwrap(), Quantization::Awq(_)));
        assert!(matches!(
            Quantization::parse(&json!({ "quantization_config": null }), None).unwrap(),
            Quantization::None
        ));
    }

    #[test]
    fn senseless_settings_are_named() {
        let fails = |v: Value| Quantization::parse(&json!({ "quantization_config": v }), None).unwrap_err().to_string();
        assert_eq!(
            fails(json!({ "quant_method": "gptq", "bits": 5, "group_size": 32 })),
            "`quantization_config` of config.json: GPTQ with `bits` 5, where 2, 3, 4 and 8 are read"
        );
        assert!(fails(json!({ "quant_method": "gptq", "bits": 4, "group_size": 0 })).contains("`group_size` 0"));
        assert!(
            fails(json!({ "quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin" })).contains("`marlin`")
        );
        assert!(fails(json!([])).contains("no `quant_method`"));
    }
}
