use std::path::Path;
use std::sync::Arc;

use clap::Args;
use fewbit_engine::{CalibrationSource, Format, Recipe, Request, Settings, quantize};
use fewbit_eval::{Cache, Original, Protocol, Windows, bits_per_weight, evaluate, windows};
use fewbit_format::{Error, Result};
use fewbit_kernel::Team;
use fewbit_methods::{RECIPES, REGISTRY};
use fewbit_runtime::{Arithmetic, Generation, Limits, Runtime, Sampling, language};
use fewbit_store::ModelFile;
use fewbit_text::{Special, Tokenizer};
use serde::Serialize;
use serde_json::json;

use crate::bundled::{CALIBRATION, EVALUATION, NAME, resolve_model};
use crate::compress::Listener;
use crate::progress::Progress;
use crate::session::Session;

/// Quantize the model that comes with the program in several ways, and compare
///
/// No network is needed; less than a minute on two cores. JSON: rows (recipe, bits_per_weight, size_bytes, perplexity,
/// kl_mean, tokens_per_second, text); the first row is the original.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit demo --threads 2")]
pub(crate) struct Demo {}

/// Recipe, bits, group.
const SETTINGS: &[(&str, u8, u32)] = &[
    ("rtn", 8, 128),
    ("rtn", 4, 128),
    ("awq", 4, 128),
    ("gptq", 4, 128),
    ("rtn", 3, 128),
    ("gptq", 3, 128),
    ("gptq", 2, 32),
];

/// Calibration: sequences and their tokens. Evaluation: blocks of as many tokens.
const SAMPLES: usize = 64;
const LENGTH: usize = 256;
const BLOCKS: usize = 32;

const PROMPT: &str = "Once upon a time, there was a little";

/// What is said of one model.
#[derive(Debug, Serialize)]
struct Row {
    recipe: String,
    bits_per_weight: f64,
    bits_per_weight_model: f64,
    size_bytes: u64,
    perplexity: f64,
    kl_mean: f64,
    tokens_per_second: f64,
    text: String,
}

impl Demo {
    #[expect(clippy::unused_self, reason = "the signature of every command")]
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let folder =
            tempfile::tempdir().map_err(|e| Error::io("making a folder for the results", &std::env::temp_dir(), &e))?;
        let team = session.team();
        let bench = Bench::new(session, &team, folder.path())?;
        let progress = Progress::new(&session.output, "models", SETTINGS.len() as u64 + 1);
        let mut rows = vec![bench.row("original".to_owned(), &resolve_model(session, NAME)?)?];
        for (i, (recipe, bits, group)) in SETTINGS.iter().enumerate() {
            let label = format!("{recipe} w{bits} g{group}");
            progress.set(i as u64 + 1, label.clone());
            let out = folder.path().join(&label);
            bench.quantize(recipe, *bits, *group, &out)?;
            rows.push(bench.row(label, &out)?);
        }
        drop(progress);
        say(session, &bench.windows, &rows)
    }
}

/// What all rows share.
struct Bench<'a> {
    session: &'a Session,
    team: &'a Arc<Team>,
    original: ModelFile,
    tokenizer: Tokenizer,
    windows: Windows,
    cache: Cache,
}

impl<'a> Bench<'a> {
    fn new(session: &'a Session, team: &'a Arc<Team>, folder: &Path) -> Result<Self> {
        let original = ModelFile::open(&resolve_model(session, NAME)?)?;
        let tokenizer = language::tokenizer_of(original.checkpoint())?;
        let windows = windows(&tokenizer, EVALUATION, Protocol::Blocks, LENGTH, Some(BLOCKS))?;
        Ok(Self { session, team, original, tokenizer, windows, cache: Cache::at(folder.join("original")) })
    }

    fn quantize(&self, recipe: &str, bits: u8, group: u32, out: &Path) -> Result<()> {
        let mut settings = Settings::default();
        settings.add(&format!("grid.bits={bits}"))?;
        settings.add(&format!("grid.group={group}"))?;
        let request = Request {
            model: resolve_model(self.session, NAME)?,
            model_name: NAME.to_owned(),
            recipe: Recipe::find(recipe, RECIPES)?,
            settings,
            registry: &REGISTRY,
            out: out.to_owned(),
            format: Format::Auto,
            keep: Vec::new(),
            overrides: Vec::new(),
            requantize: false,
            calibration: CalibrationSource::Bundled(CALIBRATION),
            importances: None,
            samples: Some(SAMPLES),
            length: Some(LENGTH),
            seed: 0,
            resume: false,
            force: false,
        };
        let mut quiet = Listener { output: &self.session.output, bar: None, is_quiet: true };
        quantize(&request, self.team, &mut quiet, self.session.stop).map(|_| ())
    }

    fn row(&self, recipe: String, path: &Path) -> Result<Row> {
        let file = ModelFile::open(path)?;
        let exact = Runtime::load(&file, Arithmetic::Exact, self.team.clone())?;
        let mut original = Original::open(&self.original, &self.windows, Some(&self.cache), self.team.clone())?;
        let measured = evaluate(&exact, Some(&mut original), &self.windows, &mut |_, _| {}, self.session.stop)?;
        drop(exact);
        let fast = Runtime::load(&file, Arithmetic::Fast, self.team.clone())?;
        let prompt = self.tokenizer.encode(PROMPT, Special::PlainWithBos)?;
        let limits = Limits {
            max_tokens: Some(48),
            end_ids: language::end_ids(file.checkpoint(), Some(&self.tokenizer)),
            stop: Vec::new(),
        };
        let made =
            Generation::new(&fast, &self.tokenizer, 256).run(&prompt, Sampling::default(), &limits, &mut |_| true)?;
        let bits = bits_per_weight(&file)?;
        Ok(Row {
            recipe,
            bits_per_weight: bits.linears,
            bits_per_weight_model: bits.model,
            size_bytes: bits.size_bytes,
            perplexity: measured.perplexity,
            kl_mean: measured.divergence.map_or(0.0, |d| d.kl_mean),
            tokens_per_second: made.ids.len().saturating_sub(1) as f64 / made.seconds.max(1e-9),
            text: made.text,
        })
    }
}

fn say(session: &Session, windows: &Windows, rows: &[Row]) -> Result<()> {
    let output = &session.output;
    output.line("recipe          bits  model bits   size kB  perplexity   KL mean  tokens/s")?;
    for r in rows {
        output.line(&format!(
            "{:<14} {:>5.2} {:>11.2} {:>9.0} {:>11.3} {:>9.4} {:>9.0}",
            r.recipe,
            r.bits_per_weight,
            r.bits_per_weight_model,
            r.size_bytes as f64 / 1e3,
            r.perplexity,
            r.kl_mean,
            r.tokens_per_second
        ))?;
    }
    output
        .line(&format!("\n{}; bits: everything stored for the quantized linears ÷ their weights\n", windows.rule()))?;
    for r in rows {
        output.line(&format!("{}: {PROMPT}{}\n", r.recipe, r.text.trim_end().replace('\n', " ")))?;
    }
    output.object(&json!({ "rows": rows, "protocol": windows.rule(), "prompt": PROMPT }))
}
