use std::path::PathBuf;

use clap::{Args, ValueEnum};
use fewbit_engine::{Conversion, Difference, Format, convert, difference};
use fewbit_format::{Error, Kind, Result};
use fewbit_store::ModelFile;
use serde_json::json;

use super::check;
use super::quantize::{CalibrationOptions, FormatName, GridOptions, Quantize};
use crate::bundled::{model_name, resolve_model};
use crate::compress::{self, Listener};
use crate::session::Session;

/// Write a model in another format, with the same weights to the bit
///
/// Codes stay codes, plain floats stay plain. What the format cannot hold is refused, with the tensor and the reason,
/// unless `--requantize` is given. The result is read again and held against the source.
///
/// JSON: out, format, exact, loads, max_difference, relative_rms, requantized.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit convert model-gptq model.gguf --format gguf")]
pub(crate) struct Convert {
    /// Folder, GGUF file, `owner/name` of the Hugging Face hub, or `demo`
    model: String,
    /// Folder (or .gguf file) to write
    out: PathBuf,
    /// What to write
    #[arg(long, value_enum, value_name = "F")]
    format: Target,
    /// Round what the format cannot hold to the nearest, and say how far the weights moved
    #[arg(long)]
    requantize: bool,
    /// Replace what stands at OUT
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    grid: GridOptions,
}

/// What a model is converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Safetensors of plain floats, as small as hold the numbers
    Plain,
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

impl Target {
    /// The format with that name of `quantize`.
    fn format_name(self) -> Option<FormatName> {
        match self {
            Self::Plain => None,
            Self::CompressedTensors => Some(FormatName::CompressedTensors),
            Self::Gptq => Some(FormatName::Gptq),
            Self::GptqV2 => Some(FormatName::GptqV2),
            Self::Awq => Some(FormatName::Awq),
            Self::Fp8 => Some(FormatName::Fp8),
            Self::Gguf => Some(FormatName::Gguf),
            Self::Fewbit => Some(FormatName::Fewbit),
        }
    }
}

impl Convert {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let has_grid =
            !self.grid.settings()?.is_empty() || !self.grid.keep.is_empty() || !self.grid.overrides.is_empty();
        if has_grid && !self.requantize {
            return Err(Error::input("options of a grid are for weights that are rounded anew")
                .hint("add `--requantize`, or leave them out"));
        }
        // A grid that was asked for is made, whether the format could hold the source or not.
        let exactly = if has_grid { None } else { Some(self.exactly(session)) };
        match (exactly, self.format.format_name()) {
            (Some(Ok(difference)), _) => self.say(session, difference, false),
            (Some(Err(e)), Some(_)) if !self.requantize || e.kind() != Kind::Input => Err(e),
            (Some(Err(e)), None) => Err(e),
            (_, None) => {
                Err(Error::input("plain floats have no grid").hint("leave `--requantize` and its options out"))
            }
            (exactly, Some(format)) => {
                if let Some(Err(e)) = exactly {
                    session.output.note(&format!("note: rounded anew, since {e}"));
                }
                self.rounded(format, session)
            }
        }
    }

    /// The same numbers in the other format.
    fn exactly(&self, session: &Session) -> Result<Difference> {
        let job = Conversion {
            model: resolve_model(session, &self.model)?,
            model_name: model_name(&self.model),
            out: self.out.clone(),
            format: self.format.format_name().map(Format::from),
            rounds: self.requantize,
            force: self.force,
        };
        let mut listener = Listener { output: &session.output, bar: None, is_quiet: false };
        convert(&job, &session.team(), &mut listener, session.stop)
    }

    /// The nearest numbers that the format can hold, by the recipe that does nothing else.
    fn rounded(&self, format: FormatName, session: &Session) -> Result<()> {
        let mut grid = self.grid.clone();
        if grid.settings()?.is_empty() && format != FormatName::Fp8 {
            grid.bits = Some(4);
            grid.group = Some(if format == FormatName::Gguf { "32" } else { "128" }.to_owned());
            grid.symmetric = matches!(format, FormatName::Gguf | FormatName::Gptq);
        }
        let options = Quantize {
            model: self.model.clone(),
            recipe: if format == FormatName::Fp8 { "fp8-block" } else { "rtn" }.to_owned(),
            out: self.out.clone(),
            format,
            grid,
            calibration: CalibrationOptions::default(),
            requantize: true,
            seed: 0,
            resume: false,
            force: self.force,
            dry_run: false,
        };
        let mut listener = Listener { output: &session.output, bar: None, is_quiet: false };
        let team = session.team();
        compress::make(&options, &team, &mut listener, session)?;
        let [source, written] =
            [resolve_model(session, &self.model)?, self.out.clone()].map(|path| ModelFile::open(&path));
        let difference = difference(&source?, &written?, &team, &mut listener, session.stop)?;
        self.say(session, difference, true)
    }

    fn say(&self, session: &Session, difference: Difference, is_requantized: bool) -> Result<()> {
        let is_exact = difference.max == 0.0;
        let out = self.out.display();
        session.output.line(&if is_exact {
            format!("{out}: the same weights, to the bit")
        } else {
            let (max, rms) = (difference.max, difference.relative_rms);
            format!("{out}: weights moved by up to {max:.3e}, {:.3} % of their size", 100.0 * rms)
        })?;
        let loads = check::summary(&ModelFile::open(&self.out)?, &session.output)?;
        let format = self.format.to_possible_value().map(|v| v.get_name().to_owned());
        session.output.object(&json!({
            "out": self.out,
            "format": format,
            "exact": is_exact,
            "loads": loads,
            "max_difference": difference.max,
            "relative_rms": difference.relative_rms,
            "requantized": is_requantized,
        }))
    }
}
