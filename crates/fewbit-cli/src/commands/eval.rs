use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use fewbit_eval::{Bits, Cache, Interval, Measured, Original, Windows, bits_per_weight, evaluate, read_text, windows};
use fewbit_export::{EvalRow, add_row};
use fewbit_format::{Error, Kind, Result};
use fewbit_runtime::language;
use fewbit_store::ModelFile;
use serde_json::{Value, json};

use crate::adapters::Adapters;
use crate::arguments::ArithmeticName;
use crate::bundled::NAME;
use crate::progress::Progress;
use crate::session::Session;
use crate::{hub, loading};

/// Tokens of a block where the model was made for more.
const USUAL_LENGTH: usize = 512;

/// Measure perplexity, and what was lost against the original
///
/// JSON: tokens, nll, perplexity, perplexity_ci95, bits_per_byte, kl_mean, kl_mean_ci95, kl_p99, top1_agreement,
/// bits_per_weight, size_bytes, tokens_per_second; bits_per_weight_model, original_perplexity, nll_increase (mean nats
/// less the original's), nll_increase_ci95, protocol, rule (what is fed and scored), length, windows, notes. The keys of
/// the comparison are null without `--against`; an interval is null for a single block.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit eval OUT --against MODEL --text held-out.txt --card")]
pub(crate) struct Eval {
    /// Folder, GGUF file, `owner/name` of the Hugging Face hub, or `demo`
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) adapters: Adapters,
    /// UTF-8 text to predict
    #[arg(long, value_name = "FILE")]
    pub(crate) text: PathBuf,
    /// The model that this one was made of; it runs in f32
    #[arg(long, value_name = "ORIGINAL")]
    pub(crate) against: Option<String>,
    /// How the text is cut
    #[arg(long, value_enum, default_value = "blocks", value_name = "P")]
    pub(crate) protocol: Protocol,
    /// Tokens of a block [default: what the model was made for, at most 512]
    #[arg(long, value_name = "L", value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) length: Option<u32>,
    /// The first N blocks only [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) blocks: Option<u32>,
    /// What may be rounded in the model (never in the original)
    #[arg(long, value_enum, default_value = "exact", value_name = "A")]
    pub(crate) arithmetic: ArithmeticName,
    /// Write the row into the model card of the folder
    #[arg(long, requires = "against", conflicts_with = "lora")]
    pub(crate) card: bool,
}

/// How a text becomes sequences whose tokens are predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// Consecutive blocks, BOS in front of each where the model's own rule adds it
    Blocks,
    /// Windows that overlap by half: each token is predicted once, with context
    Strided,
    /// As llama.cpp's perplexity: the second half of each chunk counts
    Llamacpp,
}

impl Eval {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let card = self.card.then(|| self.card_path()).transpose()?;
        let text = read_text(&self.text)?;
        let mut file = self.adapters.model_file(session, &self.model)?;
        let length = self.length.map_or_else(|| file.model().context.min(USUAL_LENGTH), |l| l as usize);
        file.reach(length);
        let windows = self.windows(&file, &text, length)?;
        for note in windows.notes() {
            session.output.note(&format!("note: {note}"));
        }
        let bits = bits_per_weight(&file)?;
        let mut original = self.original(session)?;
        if let Some(original) = &mut original {
            original.reach(length);
        }
        let measured = self.measure(session, &file, original.as_ref(), &windows)?;
        session.output.text(&self.table(&windows, &measured, &bits))?;
        if let Some(path) = card {
            write_card(&path, &self.row(length, &measured))?;
            session.output.note(&format!("written into `{}`", path.display()));
        }
        session.output.object(&self.object(length, &windows, &measured, &bits))
    }

    fn original(&self, session: &Session) -> Result<Option<ModelFile>> {
        let checkpoint = self.against.as_ref().map(|name| loading::checkpoint(session, name)).transpose()?;
        checkpoint.map(ModelFile::of).transpose()
    }

    fn windows(&self, file: &ModelFile, text: &str, length: usize) -> Result<Windows> {
        let tokenizer = language::tokenizer_of(file.checkpoint())?;
        let blocks = self.blocks.map(|n| n as usize);
        windows(&tokenizer, text, self.protocol.rule(), length, blocks).map_err(|e| e.file(&self.text))
    }

    fn measure(
        &self,
        session: &Session,
        file: &ModelFile,
        original: Option<&ModelFile>,
        windows: &Windows,
    ) -> Result<Measured> {
        let model = loading::runtime(session, file, self.arithmetic)?;
        let mut against = match original {
            None => None,
            Some(o) => {
                o.quantization().check(false).map_err(|e| e.file(o.checkpoint().path()))?;
                Some(Original::open(o, windows, Cache::of_user().as_ref(), model.team().clone())?)
            }
        };
        if against.as_ref().is_some_and(Original::is_recorded) {
            session.output.note("the original's log-probabilities are those of an earlier evaluation");
        }
        let progress = Progress::new(&session.output, "evaluating", windows.len() as u64);
        let mut heard = |done: usize, _| progress.set(done as u64, "");
        evaluate(&model, against.as_mut(), windows, &mut heard, session.stop).map_err(|e| match e.kind() {
            Kind::Interrupted => e,
            _ => e.file(file.checkpoint().path()),
        })
    }

    /// The card that `--card` writes into, which must be there to be written before the long work begins.
    fn card_path(&self) -> Result<PathBuf> {
        if self.model == NAME {
            return Err(Error::input("the bundled model has no card to write into").hint("leave `--card` out"));
        }
        if hub::named(&self.model)?.is_some() {
            return Err(
                Error::input("the card of a model of the hub is not ours to write into").hint("leave `--card` out")
            );
        }
        let path = Path::new(&self.model);
        let folder = if path.is_dir() { Some(path) } else { path.parent() };
        let folder = folder.filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if fs::metadata(folder).is_ok_and(|m| m.permissions().readonly()) {
            return Err(Error::input("is read-only, and so is its card").hint("leave `--card` out").file(folder));
        }
        Ok(folder.join("README.md"))
    }

    fn row(&self, length: usize, m: &Measured) -> EvalRow {
        let name = self.text.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        EvalRow {
            text: name,
            protocol: self.protocol.name().to_owned(),
            length,
            tokens: m.tokens as u64,
            perplexity: m.perplexity,
            original_perplexity: m.divergence.map(|d| d.original_nll.exp()),
            bits_per_byte: m.bits_per_byte,
            kl_mean: m.divergence.map(|d| d.kl_mean),
            kl_mean_ci95: m.divergence.and_then(|d| d.kl_mean_ci95),
            kl_p99: m.divergence.map(|d| d.kl_p99),
            top1_agreement: m.divergence.map(|d| d.top1_agreement),
        }
    }

    fn table(&self, windows: &Windows, m: &Measured, bits: &Bits) -> String {
        let between = |ci: Option<Interval>, digits: usize| {
            ci.map(|[low, high]| format!("  (95 %: {low:.digits$} to {high:.digits$})")).unwrap_or_default()
        };
        let mut out = String::new();
        let mut row = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name:<20}{value}");
        };
        row("protocol", format!("{}: {}", self.protocol.name(), windows.rule()));
        let s = if windows.len() == 1 { "" } else { "s" };
        row("tokens scored", format!("{} in {} window{s}", m.tokens, windows.len()));
        row("perplexity", format!("{:.4}{}", m.perplexity, between(m.perplexity_ci95, 4)));
        if let Some(bits) = m.bits_per_byte {
            row("bits per byte", format!("{bits:.5}"));
        }
        if let Some(d) = m.divergence {
            row("original", format!("{:.4}", d.original_nll.exp()));
            row("nats more", format!("{:.5}{}", d.nll_increase, between(d.nll_increase_ci95, 5)));
            row("KL mean", format!("{:.5}{}", d.kl_mean, between(d.kl_mean_ci95, 5)));
            row("KL 99th percentile", format!("{:.5}", d.kl_p99));
            row("same first choice", format!("{:.2} %", 100.0 * d.top1_agreement));
        }
        row("bits per weight", format!("{:.3}  (whole model: {:.3})", bits.linears, bits.model));
        row("size", format!("{:.1} MB", bits.size_bytes as f64 / 1e6));
        row("speed", format!("{:.0} tokens/s", m.tokens_per_second));
        out
    }

    fn object(&self, length: usize, windows: &Windows, m: &Measured, bits: &Bits) -> Value {
        let d = m.divergence;
        json!({
            "tokens": m.tokens,
            "nll": m.nll,
            "perplexity": m.perplexity,
            "perplexity_ci95": m.perplexity_ci95,
            "bits_per_byte": m.bits_per_byte,
            "kl_mean": d.map(|d| d.kl_mean),
            "kl_mean_ci95": d.and_then(|d| d.kl_mean_ci95),
            "kl_p99": d.map(|d| d.kl_p99),
            "top1_agreement": d.map(|d| d.top1_agreement),
            "original_perplexity": d.map(|d| d.original_nll.exp()),
            "nll_increase": d.map(|d| d.nll_increase),
            "nll_increase_ci95": d.and_then(|d| d.nll_increase_ci95),
            "bits_per_weight": bits.linears,
            "bits_per_weight_model": bits.model,
            "size_bytes": bits.size_bytes,
            "tokens_per_second": m.tokens_per_second,
            "protocol": self.protocol.name(),
            "rule": windows.rule(),
            "length": length,
            "windows": windows.len(),
            "notes": windows.notes(),
        })
    }
}

impl Protocol {
    /// As it is typed.
    fn name(self) -> &'static str {
        match self {
            Self::Blocks => "blocks",
            Self::Strided => "strided",
            Self::Llamacpp => "llamacpp",
        }
    }

    fn rule(self) -> fewbit_eval::Protocol {
        match self {
            Self::Blocks => fewbit_eval::Protocol::Blocks,
            Self::Strided => fewbit_eval::Protocol::Strided { stride: None },
            Self::Llamacpp => fewbit_eval::Protocol::LlamaCpp,
        }
    }
}

/// Puts a row into a model's card, which is replaced whole.
fn write_card(path: &Path, row: &EvalRow) -> Result<()> {
    let old = match fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        old => old.map_err(|e| Error::io("reading the card", path, &e))?,
    };
    let aside = path.with_extension("md.partial");
    let written = fs::write(&aside, add_row(&old, row)).and_then(|()| fs::rename(&aside, path));
    if written.is_err() {
        // What is left over is of no use.
        let _ = fs::remove_file(&aside);
    }
    written.map_err(|e| Error::io("writing the card", path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_goes_into_the_card() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("README.md");
        let row = EvalRow { text: "a.txt".into(), protocol: "blocks".into(), length: 512, ..EvalRow::default() };
        write_card(&path, &row).unwrap();
        let once = fs::read_to_string(&path).unwrap();
        assert!(once.contains("| a.txt | blocks | 512 |"), "{once}");
        write_card(&path, &row).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), once);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
