use clap::Args;
use fewbit_format::Result;
use fewbit_hub::{Stored, size_text};
use serde_json::{Value, json};

use crate::hub;
use crate::session::Session;

/// List the models of the Hugging Face hub that are in the cache
///
/// JSON: cache, models (name, revisions, commit, size_bytes, path), size_bytes (on disk; revisions share files). The commit
/// is null for what downloads left that did not end.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit list")]
pub(crate) struct List {}

impl List {
    #[expect(clippy::unused_self, reason = "the signature of every command")]
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let settings = hub::settings(session)?;
        let (models, size) = (fewbit_hub::list(&settings)?, fewbit_hub::disk_bytes(&settings)?);
        session.output.text(&table(&models))?;
        let cache = settings.cache.display();
        session.output.line(&match models.len() {
            0 => format!("no model is in `{cache}`"),
            _ => format!("{} in `{cache}`", size_text(size)),
        })?;
        session.output.object(&json!({
            "cache": settings.cache,
            "models": models.iter().map(object).collect::<Vec<_>>(),
            "size_bytes": size,
        }))
    }
}

fn table(models: &[Stored]) -> String {
    let width = models.iter().map(|m| m.name.len()).max().unwrap_or(0);
    let row = |m: &Stored| {
        format!("{:<width$}  {:<14}  {:>12}  {}\n", m.name, revision(m), size_text(m.size_bytes), m.path.display())
    };
    models.iter().map(row).collect()
}

/// The branches and tags, else the beginning of the commit.
fn revision(model: &Stored) -> String {
    match &model.commit {
        None => "unfinished".to_owned(),
        Some(_) if !model.revisions.is_empty() => model.revisions.join(","),
        Some(commit) => commit.chars().take(12).collect(),
    }
}

fn object(model: &Stored) -> Value {
    json!({
        "name": model.name,
        "revisions": model.revisions,
        "commit": model.commit,
        "size_bytes": model.size_bytes,
        "path": model.path,
    })
}
