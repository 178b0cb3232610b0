use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use fewbit_engine::{Conversion, Converted, Difference, Format, convert, difference};
use fewbit_format::{Error, Result};
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
    #[arg(long, value_name = "F", value_parser = target())]
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

/// What a model is converted to: a format of `quantize`, or plain floats.
#[derive(Clone, Copy, Debug)]
struct Target(Option<FormatName>);

const PLAIN: &str = "plain";

/// `plain`, and the formats that `quantize` takes, less the one that chooses for itself.
fn target() -> impl TypedValueParser<Value = Target> {
    let plain = PossibleValue::new(PLAIN).help("Safetensors of plain floats, as small as hold the numbers");
    let formats = FormatName::value_variants().iter().filter(|f| **f != FormatName::Auto);
    PossibleValuesParser::new([plain].into_iter().chain(formats.filter_map(ValueEnum::to_possible_value)))
        .map(|name| Target(FormatName::from_str(&name, false).ok()))
}

impl Target {
    fn name(self) -> String {
        let format = self.0.and_then(|f| f.to_possible_value());
        format.map_or(PLAIN.to_owned(), |v| v.get_name().to_owned())
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
        let exactly = if has_grid { None } else { Some(self.exactly(session)?) };
        match (exactly, self.format.0) {
            (Some(Converted::Written(difference)), _) => self.say(session, difference, false),
            (Some(Converted::CannotHold(e)), Some(format)) if self.requantize => {
                session.output.note(&format!("note: rounded anew, since {e}"));
                self.rounded(format, session)
            }
            (Some(Converted::CannotHold(e)), _) => Err(e),
            (None, Some(format)) => self.rounded(format, session),
            (None, None) => {
                Err(Error::input("plain floats have no grid").hint("leave `--requantize` and its options out"))
            }
        }
    }

    /// The same numbers in the other format.
    fn exactly(&self, session: &Session) -> Result<Converted> {
        let job = Conversion {
            model: resolve_model(session, &self.model)?,
            model_name: model_name(&self.model),
            out: self.out.clone(),
            format: self.format.0.map(Format::from),
            rounds: self.requantize,
            force: self.force,
        };
        let mut listener = Listener { output: &session.output, bar: None, is_quiet: false };
        convert(&job, &session.team(), &mut listener, session.stop)
    }

    /// The nearest numbers that the format can hold, by the recipe that does nothing else.
    fn rounded(&self, format: FormatName, session: &Session) -> Result<()> {
        let grid = self.grid_for(format)?;
        let options = Quantize {
            model: self.model.clone(),
            recipe: if format == FormatName::Fp8 { "fp8-block" } else { "rtn" }.to_owned(),
            out: self.out.clone(),
            format,
            grid,
            calibration: CalibrationOptions::default(),
            stats: None,
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

    /// The grid that the options say, and where they say nothing the format's own.
    fn grid_for(&self, format: FormatName) -> Result<GridOptions> {
        let mut grid = self.grid.clone();
        if format == FormatName::Fp8 {
            return Ok(grid);
        }
        let given = grid.settings()?;
        let is_open = |key: &str| given.iter().all(|(k, _)| k != key);
        if is_open("grid.bits") {
            grid.bits = Some(4);
        }
        if is_open("grid.group") {
            grid.group = Some(if format == FormatName::Gguf { "32" } else { "128" }.to_owned());
        }
        if is_open("grid.symmetric") {
            grid.symmetric = matches!(format, FormatName::Gguf | FormatName::Gptq);
        }
        Ok(grid)
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
        session.output.object(&json!({
            "out": self.out,
            "format": self.format.name(),
            "exact": is_exact,
            "loads": loads,
            "max_difference": difference.max,
            "relative_rms": difference.relative_rms,
            "requantized": is_requantized,
        }))
    }
}
