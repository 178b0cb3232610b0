use clap::Args;
use fewbit_format::{Error, Result};

use crate::session::Session;

/// Quantize the model that comes with the program in several ways, and compare
///
/// No network is needed; less than a minute on two cores. JSON: rows (recipe, bits_per_weight, size_bytes, perplexity,
/// kl_mean, tokens_per_second, text); the first row is the original.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit demo --threads 2")]
pub(crate) struct Demo {}

impl Demo {
    #[expect(clippy::unused_self, reason = "the signature of every command")]
    pub(crate) fn run(&self, _session: &Session) -> Result<()> {
        Err(Error::internal("`fewbit demo` is not done yet"))
    }
}
