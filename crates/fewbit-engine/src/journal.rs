//! What is finished: one line a block, so that a run that was killed goes on where it was.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::outputs::Schemes;
use crate::report::BlockReport;
use crate::stop::crash_point;

/// What a run is, so that another run does not go on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) version: String,
    pub(crate) profile: String,
    pub(crate) source: String,
    pub(crate) recipe: String,
    pub(crate) settings: String,
    pub(crate) keep: String,
    pub(crate) overrides: String,
    pub(crate) calibration: String,
    #[serde(default)]
    pub(crate) importances: String,
    pub(crate) seed: String,
    pub(crate) format: String,
}

impl Identity {
    /// The first thing in which this run differs from the one that was begun, in words.
    fn difference(&self, begun: &Self) -> Option<String> {
        let hashes = [
            ("the model's files differ", &self.source, &begun.source),
            ("the recipe differs", &self.recipe, &begun.recipe),
            ("the calibration text differs", &self.calibration, &begun.calibration),
            ("the importance matrix differs", &self.importances, &begun.importances),
        ];
        let values = [
            ("version", &self.version, &begun.version),
            ("arithmetic profile", &self.profile, &begun.profile),
            ("--set", &self.settings, &begun.settings),
            ("--keep", &self.keep, &begun.keep),
            ("--override", &self.overrides, &begun.overrides),
            ("--format", &self.format, &begun.format),
            ("--seed", &self.seed, &begun.seed),
        ];
        let value = values.into_iter().find(|(_, now, then)| now != then);
        let hash = || hashes.into_iter().find(|(_, now, then)| now != then).map(|(what, ..)| what.to_owned());
        value.map(|(what, now, then)| format!("`{what}` was `{then}`, and is `{now}` now")).or_else(hash)
    }
}

/// Name of the journal in the working folder.
pub(crate) const JOURNAL: &str = "journal.jsonl";

/// A finished block.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) block: usize,
    pub(crate) report: BlockReport,
    /// How its linears were written, by module.
    pub(crate) schemes: Schemes,
}

/// The journal of `OUT.partial/`.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    pub(crate) done: Vec<Done>,
}

impl Journal {
    /// Begins one.
    pub(crate) fn create(folder: &Path, identity: &Identity) -> Result<Self> {
        let path = folder.join(JOURNAL);
        let file = File::create(&path).map_err(|e| Error::io("creating", &path, &e))?;
        let mut journal = Self { path, file, done: Vec::new() };
        journal.line(identity)?;
        Ok(journal)
    }

    /// Goes on with one, or begins one where the run was ended before that. A last line that was cut off does not count.
    pub(crate) fn open(folder: &Path, identity: &Identity) -> Result<Self> {
        let path = folder.join(JOURNAL);
        if !path.exists() {
            return Self::create(folder, identity);
        }
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("reading", &path, &e))?;
        let whole = text.rfind('\n').map_or("", |at| &text[..=at]);
        let mut lines = whole.lines();
        let first: Option<Identity> = lines.next().and_then(|l| serde_json::from_str(l).ok());
        let Some(first) = first else { return Self::create(folder, identity) };
        if let Some(what) = identity.difference(&first) {
            return Err(Error::input(format!("belongs to another run: {what}"))
                .hint("resume with the same arguments, or start anew with `--force`")
                .file(&path));
        }
        let done = lines.map_while(|l| serde_json::from_str::<Done>(l).ok());
        let done: Vec<Done> = done.enumerate().take_while(|(i, d)| d.block == *i).map(|(_, d)| d).collect();
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io("opening", &path, &e))?;
        file.set_len(whole.len() as u64).map_err(|e| Error::io("writing", &path, &e))?;
        Ok(Self { path, file, done })
    }

    /// Writes one block down, on the disk when this returns.
    pub(crate) fn add(&mut self, done: Done) -> Result<()> {
        self.line(&done)?;
        self.done.push(done);
        Ok(())
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let fail = |e: &std::io::Error| Error::io("writing", &self.path, e);
        let mut text = serde_json::to_string(value).map_err(|e| Error::internal(e.to_string()))?;
        text.push('\n');
        let (first, second) = text.as_bytes().split_at(text.len() / 2);
        self.file.write_all(first).map_err(|e| fail(&e))?;
        crash_point();
        self.file.write_all(second).map_err(|e| fail(&e))?;
        self.file.sync_data().map_err(|e| fail(&e))?;
        crash_point();
        Ok(())
    }
}
