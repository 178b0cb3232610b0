//! Models of the Hugging Face hub, as the program names them and brings them.

use std::path::{Path, PathBuf};

use fewbit_format::Result;
use fewbit_hub::{Listener, ModelName, Settings, fetch, size_text};

use crate::output::Output;
use crate::progress::Progress;
use crate::session::Session;

/// The model of the hub that a text names. A path that exists names none.
pub(crate) fn named(text: &str) -> Result<Option<ModelName>> {
    if Path::new(text).exists() { Ok(None) } else { ModelName::parse(text) }
}

/// The path that a text names, in the cache where it names something of the hub.
pub(crate) fn resolve(session: &Session, text: &str) -> Result<PathBuf> {
    named(text)?.map_or_else(|| Ok(PathBuf::from(text)), |name| path(session, &name))
}

/// What the environment and `--offline` say.
pub(crate) fn settings(session: &Session) -> Result<Settings> {
    let mut settings = Settings::from_environment()?;
    settings.is_offline |= session.is_offline;
    Ok(settings)
}

/// The path of a model in the cache, once it is there.
pub(crate) fn path(session: &Session, name: &ModelName) -> Result<PathBuf> {
    let mut teller = Teller { output: &session.output, bar: None, total: 0, of_all: 0 };
    let path = fetch(name, &settings(session)?, &mut teller, session.stop)?;
    teller.bar = None;
    if teller.of_all > 0 {
        session.output.note(&format!("`{name}`: {} downloaded into `{}`", size_text(teller.of_all), path.display()));
    }
    Ok(path)
}

/// Tells of a download on stderr.
struct Teller<'a> {
    output: &'a Output,
    bar: Option<Progress<'a>>,
    /// Of the files that come now.
    total: u64,
    of_all: u64,
}

impl Listener for Teller<'_> {
    fn begin(&mut self, bytes: u64) {
        self.bar = Some(Progress::new(self.output, "downloading", bytes));
        self.total = bytes;
        self.of_all += bytes;
    }

    fn at(&mut self, bytes: u64, file: &str) {
        if let Some(bar) = &self.bar {
            bar.set(bytes, format!("{file}, {} of {}", size_text(bytes), size_text(self.total)));
        }
    }

    fn note(&mut self, text: &str) {
        self.output.note(&format!("note: {text}"));
    }
}
