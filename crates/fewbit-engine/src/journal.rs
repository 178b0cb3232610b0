//! What is finished: one line a block, so that a run that was killed goes on where it was.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::quantize::BlockReport;

/// What a run is, so that another run does not go on with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) version: String,
    pub(crate) profile: String,
    pub(crate) source: String,
    pub(crate) recipe: String,
    pub(crate) calibration: String,
    pub(crate) seed: u64,
    pub(crate) format: String,
}

impl Identity {
    /// The first thing in which two runs differ.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let pairs = [
            ("the program's version", &self.version, &other.version),
            ("the arithmetic profile", &self.profile, &other.profile),
            ("the model's files", &self.source, &other.source),
            ("the recipe or its settings", &self.recipe, &other.recipe),
            ("the calibration text", &self.calibration, &other.calibration),
            ("the format", &self.format, &other.format),
        ];
        let found = pairs.into_iter().find(|(_, a, b)| a != b).map(|(what, ..)| what);
        found.or((self.seed != other.seed).then_some("the seed"))
    }
}

/// A finished block.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) block: usize,
    pub(crate) report: BlockReport,
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
        let path = folder.join("journal.jsonl");
        let file = File::create(&path).map_err(|e| Error::io("creating", &path, &e))?;
        let mut journal = Self { path, file, done: Vec::new() };
        journal.line(identity)?;
        Ok(journal)
    }

    /// Goes on with one: a last line that was cut off does not count.
    pub(crate) fn open(folder: &Path, identity: &Identity) -> Result<Self> {
        let path = folder.join("journal.jsonl");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("reading", &path, &e))?;
        let whole = text.rfind('\n').map_or("", |at| &text[..=at]);
        let mut lines = whole.lines();
        let first: Option<Identity> = lines.next().and_then(|l| serde_json::from_str(l).ok());
        let Some(first) = first else { return Self::create(folder, identity) };
        if let Some(what) = identity.difference(&first) {
            return Err(Error::input(format!("belongs to another run: {what} differs"))
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
        self.file.write_all(text.as_bytes()).map_err(|e| fail(&e))?;
        self.file.sync_data().map_err(|e| fail(&e))
    }
}

/// A point at which a test may end the process as a power cut would: `FEWBIT_CRASH_AT=n` is the n-th that is passed.
pub(crate) fn crash_point() {
    use std::sync::atomic::{AtomicU64, Ordering};
    static PASSED: AtomicU64 = AtomicU64::new(0);
    let n = PASSED.fetch_add(1, Ordering::Relaxed) + 1;
    if std::env::var("FEWBIT_CRASH_AT").is_ok_and(|v| v.parse() == Ok(n)) {
        std::process::abort();
    }
}
