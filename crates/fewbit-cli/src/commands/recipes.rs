use clap::Args;
use fewbit_format::{Error, Result};

use crate::session::Session;

/// List the recipes, or show the passes and settings of one
///
/// JSON: recipes (name, cite, summary, cost; with NAME also passes).
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit recipes gptq")]
pub(crate) struct Recipes {
    /// Which one
    name: Option<String>,
}

impl Recipes {
    pub(crate) fn run(&self, _session: &Session) -> Result<()> {
        let _ = &self.name;
        Err(Error::internal("`fewbit recipes` is not done yet"))
    }
}
