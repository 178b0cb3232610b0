use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use fewbit_engine::{CalibrationSource, Format};
use fewbit_format::{Error, Result};

use crate::bundled::CALIBRATION;
use crate::session::Session;

/// Make a model small by a recipe
///
/// Writes a whole folder that other runtimes load. Work goes on in OUT.partial, which `--resume` continues after an
/// interruption, to the same bytes.
///
/// JSON: out, format, loads, seconds, cpu_seconds, peak_rss_bytes, peak_anon_bytes, bits_per_weight, bits_per_weight_model, blocks,
/// allocation;
/// with --dry-run: sweeps, peak_bytes, out_bytes, seconds_estimate, refused.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  fewbit quantize demo --recipe gptq --bits 4 --group 128 --calibration bundled --out demo-w4"
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Quantize {
    /// Folder, GGUF file, `owner/name` of the Hugging Face hub, or `demo`
    pub(crate) model: String,
    /// Name of a recipe (see `fewbit recipes`), or the path of one
    #[arg(long, value_name = "R")]
    pub(crate) recipe: String,
    /// Folder (or .gguf file) to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Layout of the result
    #[arg(long, value_enum, default_value = "auto", value_name = "F")]
    pub(crate) format: FormatName,
    #[command(flatten)]
    pub(crate) grid: GridOptions,
    #[command(flatten)]
    pub(crate) calibration: CalibrationOptions,
    /// An importance matrix (of `fewbit calibrate`, or of llama.cpp in either form), for grids that search by it
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,
    /// Quantize a model that is quantized already: its decoded weights are the original
    #[arg(long)]
    pub(crate) requantize: bool,
    /// Of all random choices
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Continue what lies in OUT.partial
    #[arg(long, conflicts_with = "force")]
    pub(crate) resume: bool,
    /// Replace what stands at OUT and OUT.partial
    #[arg(long)]
    pub(crate) force: bool,
    /// Say what would be done, and what it needs; write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Which numbers can be stored, where the recipe does not say it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Grid options")]
pub(crate) struct GridOptions {
    /// Bits of a code; short for `--set grid.bits=B`
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) bits: Option<u8>,
    /// Weights that share a scale: a number of columns, `row` or `tensor`; short for `--set grid.group=G`
    #[arg(long, value_name = "G|row|tensor", value_parser = group)]
    pub(crate) group: Option<String>,
    /// No zero point; short for `--set grid.symmetric=true`
    #[arg(long, conflicts_with = "asymmetric")]
    pub(crate) symmetric: bool,
    /// A zero point for each scale; short for `--set grid.symmetric=false`
    #[arg(long)]
    pub(crate) asymmetric: bool,
    /// A setting of the recipe's passes, such as `solve.damping=0.05`
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Leave these linears as they are; `lm_head` and embeddings are kept in any case
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    pub(crate) keep: Vec<String>,
    /// Another grid for these linears, such as `down_proj:group=row,bits=8`
    #[arg(long = "override", value_name = "PATTERN:KEY=VALUE,…")]
    pub(crate) overrides: Vec<String>,
}

/// The text that the recipe looks at.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Calibration options")]
pub(crate) struct CalibrationOptions {
    /// Text files (.txt, or .jsonl with `text` or `messages`), `bundled`, or `self` (sampled by the model) [default: bundled]
    #[arg(long, value_name = "FILE…|bundled|self", num_args = 1.., action = ArgAction::Append)]
    pub(crate) calibration: Vec<String>,
    /// Sequences [default: the recipe's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) samples: Option<u32>,
    /// Tokens of a sequence [default: the recipe's]
    #[arg(long, value_name = "L", value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) length: Option<u32>,
}

/// How the result is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatName {
    /// compressed-tensors where it can hold the result, else fewbit
    Auto,
    /// What vLLM and transformers load
    CompressedTensors,
    /// GPTQ's layout, version 1: symmetric codes of 2, 3, 4 or 8 bits
    Gptq,
    /// GPTQ's layout, version 2: zero points too
    #[value(name = "gptq_v2")]
    GptqV2,
    /// AWQ's layout `gemm`: codes of 4 bits
    Awq,
    /// FP8 as DeepSeek stores it, with inputs that are rounded too
    Fp8,
    /// What llama.cpp loads
    Gguf,
    /// Our documented safetensors layout
    Fewbit,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Auto => Self::Auto,
            FormatName::CompressedTensors => Self::CompressedTensors,
            FormatName::Gptq => Self::Gptq,
            FormatName::GptqV2 => Self::GptqV2,
            FormatName::Awq => Self::Awq,
            FormatName::Fp8 => Self::Fp8,
            FormatName::Gguf => Self::Gguf,
            FormatName::Fewbit => Self::Fewbit,
        }
    }
}

impl GridOptions {
    /// What the options set, as `(key, value)` in the order given: the short forms first.
    ///
    /// # Errors
    /// If one is not of the form KEY=VALUE, or two set the same key to different values.
    pub(crate) fn settings(&self) -> Result<Vec<(String, String)>> {
        let mut all: Vec<(String, String, String)> = Vec::new();
        let mut add = |option: String, key: &str, value: String| match all.iter().find(|(_, k, _)| k == key) {
            Some((_, _, v)) if *v == value => Ok(()),
            Some((earlier, _, _)) => {
                Err(Error::input(format!("`{earlier}` contradicts `{option}`")).hint("give one of them"))
            }
            None => {
                all.push((option, key.to_owned(), value));
                Ok(())
            }
        };
        if let Some(bits) = self.bits {
            add(format!("--bits {bits}"), "grid.bits", bits.to_string())?;
        }
        if let Some(group) = &self.group {
            add(format!("--group {group}"), "grid.group", group.clone())?;
        }
        if self.symmetric || self.asymmetric {
            let name = if self.symmetric { "--symmetric" } else { "--asymmetric" };
            add(name.to_owned(), "grid.symmetric", self.symmetric.to_string())?;
        }
        for setting in &self.set {
            let (key, value) = setting.split_once('=').filter(|(k, _)| !k.trim().is_empty()).ok_or_else(|| {
                Error::input(format!("`--set {setting}` is not of the form KEY=VALUE"))
                    .hint("such as `--set solve.damping=0.05`")
            })?;
            let value = value.trim();
            let bare = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            add(format!("--set {setting}"), same_key(key.trim()), bare.to_owned())?;
        }
        Ok(all.into_iter().map(|(_, key, value)| (key, value)).collect())
    }
}

/// The short name of a key that has two.
fn same_key(key: &str) -> &str {
    match key {
        "grid.int.bits" => "grid.bits",
        "grid.int.group" => "grid.group",
        "grid.int.symmetric" => "grid.symmetric",
        other => other,
    }
}

impl CalibrationOptions {
    /// Where the text comes from.
    ///
    /// # Errors
    /// If a word for a source stands beside others.
    pub(crate) fn text(&self) -> Result<CalibrationSource> {
        match &self.calibration[..] {
            [] => Ok(CalibrationSource::Bundled(CALIBRATION)),
            [one] if one == "bundled" => Ok(CalibrationSource::Bundled(CALIBRATION)),
            [one] if one == "self" => Ok(CalibrationSource::Own),
            many => match many.iter().find(|m| *m == "bundled" || *m == "self") {
                Some(word) => Err(Error::input(format!("`--calibration {word}` stands for all of the text"))
                    .hint(format!("give it alone, or `./{word}` for a file of that name"))),
                None => Ok(CalibrationSource::Files(many.iter().map(PathBuf::from).collect())),
            },
        }
    }
}

fn group(text: &str) -> Result<String, String> {
    let is_columns = text.parse::<u32>().is_ok_and(|g| g > 0);
    match text {
        // −1 is what GPTQ's settings call a row.
        "-1" => Ok("row".to_owned()),
        "row" | "tensor" => Ok(text.to_owned()),
        _ if is_columns => Ok(text.trim_start_matches(['+', '0']).to_owned()),
        _ => Err("a number of columns from 1, `row` or `tensor` is needed".to_owned()),
    }
}

impl Quantize {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        crate::compress::run(self, session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(options: &GridOptions) -> Result<Vec<(String, String)>, String> {
        options.settings().map_err(|e| e.to_string())
    }

    fn set(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn short_forms_are_settings() {
        let options = GridOptions {
            bits: Some(4),
            group: Some("row".to_owned()),
            asymmetric: true,
            set: set(&["grid.bits=4", "solve.damping = 0.05"]),
            ..GridOptions::default()
        };
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let expected = [
            pair("grid.bits", "4"),
            pair("grid.group", "row"),
            pair("grid.symmetric", "false"),
            pair("solve.damping", "0.05"),
        ];
        assert_eq!(settings(&options).unwrap(), expected);
    }

    #[test]
    fn contradictions_are_named() {
        let options = GridOptions { bits: Some(4), set: set(&["grid.bits=3"]), ..GridOptions::default() };
        assert_eq!(settings(&options).unwrap_err(), "`--bits 4` contradicts `--set grid.bits=3`; give one of them");
        let options =
            GridOptions { symmetric: true, set: set(&["grid.int.symmetric=false"]), ..GridOptions::default() };
        assert!(settings(&options).unwrap_err().starts_with("`--symmetric` contradicts"));
        let options = GridOptions { set: set(&["grid.group=32", "grid.group=\"row\""]), ..GridOptions::default() };
        assert!(settings(&options).unwrap_err().contains("`--set grid.group=32` contradicts"));
        let options = GridOptions { set: set(&["bits"]), ..GridOptions::default() };
        assert!(settings(&options).unwrap_err().contains("not of the form KEY=VALUE"));
    }

    #[test]
    fn groups_and_texts() {
        assert_eq!(group("032").unwrap(), "32");
        assert_eq!(group("-1").unwrap(), "row");
        assert!(group("0").is_err() && group("x").is_err() && group("-2").is_err());
        let source = |list: &[&str]| {
            CalibrationOptions { calibration: set(list), samples: None, length: None }.text().map_err(|e| e.to_string())
        };
        assert_eq!(source(&[]).unwrap(), CalibrationSource::Bundled(CALIBRATION));
        assert_eq!(source(&["self"]).unwrap(), CalibrationSource::Own);
        assert_eq!(source(&["a", "b"]).unwrap(), CalibrationSource::Files(vec!["a".into(), "b".into()]));
        assert!(source(&["a", "self"]).unwrap_err().contains("`./self`"));
    }
}
