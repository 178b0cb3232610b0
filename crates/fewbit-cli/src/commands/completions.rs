use clap::{Args, CommandFactory};
use clap_complete::Shell;
use fewbit_format::Result;
use serde_json::json;

use crate::arguments::Arguments;
use crate::session::Session;

/// Print completions for a shell
///
/// JSON: shell, script.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit completions bash > ~/.local/share/bash-completion/completions/fewbit")]
pub(crate) struct Completions {
    /// Whose
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "fewbit", &mut script);
        let script = String::from_utf8_lossy(&script);
        session.output.text(&script)?;
        session.output.object(&json!({ "shell": self.shell.to_string(), "script": script }))
    }
}
