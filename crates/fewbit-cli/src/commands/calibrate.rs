use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use fewbit_engine::{Format, Recipe, Request, Settings, importances};
use fewbit_format::{Error, Result};
use fewbit_methods::REGISTRY;
use serde_json::json;

use crate::bundled::{model_name, resolve_model};
use crate::commands::quantize::CalibrationOptions;
use crate::compress::Listener;
use crate::session::Session;

/// Measure how large the inputs of a model's linears are: an importance matrix
///
/// For `quantize --stats`, and for llama.cpp's quantizer. The older form is written where FILE ends in `.dat`.
///
/// JSON: out, tensors, tokens, seconds.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit calibrate demo --out demo.imatrix.gguf")]
pub(crate) struct Calibrate {
    /// Folder, GGUF file, `owner/name` of the Hugging Face hub, or `demo`
    model: String,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    calibration: CalibrationOptions,
}

impl Calibrate {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        if self.out.exists() {
            return Err(Error::input("exists already").hint("choose another name, or remove it").file(&self.out));
        }
        let clock = Instant::now();
        let request = Request {
            model: resolve_model(session, &self.model)?,
            model_name: model_name(&self.model),
            recipe: Recipe::of_nothing(),
            settings: Settings::default(),
            registry: &REGISTRY,
            out: self.out.clone(),
            format: Format::Fewbit,
            keep: Vec::new(),
            overrides: Vec::new(),
            requantize: true,
            calibration: self.calibration.text()?,
            importances: None,
            samples: self.calibration.samples.map(|n| n as usize),
            length: self.calibration.length.map(|n| n as usize),
            seed: 0,
            resume: false,
            force: false,
        };
        let mut listener = Listener { output: &session.output, bar: None, is_quiet: false };
        let matrix = importances(&request, &session.team(), &mut listener, session.stop)?;
        drop(listener);
        matrix.write(&self.out)?;
        let (tensors, tokens) = (matrix.entries.len(), u64::from(matrix.chunks) * u64::from(matrix.chunk_tokens));
        let seconds = clock.elapsed().as_secs_f64();
        session.output.line(&format!(
            "{}: the inputs of {tensors} tensors over {tokens} tokens; {seconds:.1} s",
            self.out.display()
        ))?;
        session.output.object(&json!({ "out": self.out, "tensors": tensors, "tokens": tokens, "seconds": seconds }))
    }
}
