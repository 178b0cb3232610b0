//! What the program says: one stream for people or one object for programs on stdout, all else on stderr.

use std::cell::Cell;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use fewbit_format::{Error, Kind, Result};
use serde_json::{Value, json};

use crate::interrupt;

/// Where results, notes and failures go.
#[derive(Debug)]
pub(crate) struct Output {
    is_json: bool,
    is_quiet: bool,
    /// Whether the one object was printed.
    has_object: Cell<bool>,
}

impl Output {
    pub(crate) fn new(is_json: bool, is_quiet: bool) -> Self {
        Self { is_json, is_quiet, has_object: Cell::new(false) }
    }

    /// Whether stdout takes one JSON object and nothing else.
    pub(crate) fn is_json(&self) -> bool {
        self.is_json
    }

    /// Whether neither progress nor notes are wanted.
    pub(crate) fn is_quiet(&self) -> bool {
        self.is_quiet
    }

    /// Text for people on stdout, at once; nothing with `--json`.
    pub(crate) fn text(&self, text: &str) -> Result<()> {
        if self.is_json { Ok(()) } else { write(text.as_bytes()) }
    }

    /// [`Self::text`] and the end of the line.
    pub(crate) fn line(&self, text: &str) -> Result<()> {
        self.text(&format!("{text}\n"))
    }

    /// The one object, with `--json`.
    pub(crate) fn object(&self, object: &Value) -> Result<()> {
        self.object_text(|| object.to_string())
    }

    /// The one object as it is written, with `--json`; for those that are too large for a [`Value`].
    pub(crate) fn object_text(&self, object: impl FnOnce() -> String) -> Result<()> {
        if !self.is_json || self.has_object.replace(true) {
            return Ok(());
        }
        write((object() + "\n").as_bytes())
    }

    /// A line on stderr, unless `--quiet`.
    pub(crate) fn note(&self, text: &str) {
        if !self.is_quiet {
            complain(text);
        }
    }

    /// Says how it ended; the exit code of that.
    pub(crate) fn end(&self, result: Result<()>) -> ExitCode {
        let Err(error) = result else { return ExitCode::SUCCESS };
        if self.is_json && !self.has_object.replace(true) {
            object_line(&json!({ "error": error.to_string() }));
        }
        complain(&format!("error: {error}"));
        ExitCode::from(match error.kind() {
            Kind::Input => 2,
            Kind::Interrupted => interrupt::EXIT_CODE,
            Kind::Internal => 1,
        })
    }
}

/// Prints an object; where stdout is gone there is nothing better to do than to go on.
pub(crate) fn object_line(object: &Value) {
    let _ = writeln!(io::stdout(), "{object}");
}

fn complain(text: &str) {
    // Nobody is left to tell if stderr is gone.
    let _ = writeln!(io::stderr(), "{text}");
}

fn write(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        // The reader has seen enough, as with `| head`.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Error::input(format!("writing to stdout failed: {e}"))),
    }
}
