use std::path::PathBuf;

use clap::{Args, ValueEnum};
use fewbit_format::{Error, Result};

use crate::arguments::ArithmeticName;
use crate::session::Session;

/// Measure perplexity, and what was lost against the original
///
/// JSON: tokens, nll, perplexity, perplexity_ci95, bits_per_byte, kl_mean, kl_mean_ci95, kl_p99, top1_agreement,
/// bits_per_weight, size_bytes, tokens_per_second; the keys of the comparison are null without `--against`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit eval OUT --against MODEL --text held-out.txt --card")]
pub(crate) struct Eval {
    /// Folder, GGUF file, or `demo`
    pub(crate) model: String,
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
    #[arg(long, requires = "against")]
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
    #[expect(clippy::unused_self, reason = "the signature of every command")]
    pub(crate) fn run(&self, _session: &Session) -> Result<()> {
        Err(Error::internal("`fewbit eval` is not done yet"))
    }
}
