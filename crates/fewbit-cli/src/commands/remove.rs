use clap::Args;
use fewbit_format::{Error, Result};
use fewbit_hub::{ModelName, size_text};
use serde_json::json;

use crate::hub;
use crate::session::Session;

/// Remove a model of the Hugging Face hub from the cache
///
/// It asks nothing. Without a revision or a file all of the model goes.
///
/// JSON: name, freed_bytes.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit rm HuggingFaceTB/SmolLM2-135M")]
pub(crate) struct Remove {
    /// `owner/name`, `owner/name@revision`, or `owner/name:FILE` for one GGUF file
    name: String,
}

impl Remove {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let name = ModelName::parse(&self.name)?.ok_or_else(|| {
            Error::input(format!("`{}` is no name of a model of the hub", self.name))
                .hint("give one that `fewbit list` shows; folders of your own are yours to remove")
        })?;
        let freed = fewbit_hub::remove(&name, &hub::settings(session)?)?;
        session.output.line(&format!("`{name}` is removed, {} are free again", size_text(freed)))?;
        session.output.object(&json!({ "name": self.name, "freed_bytes": freed }))
    }
}
