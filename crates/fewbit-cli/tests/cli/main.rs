//! The compiled program, driven end to end.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails loudly, and says what it lacks")]

mod activations;
mod adapters;
mod allocation;
mod bench;
mod calibration;
mod combinations;
mod converting;
mod damage;
mod evaluate;
mod experts;
mod hub;
mod learning;
mod mixes;
mod models;
mod places;
mod program;
mod quantize;
mod resume;
mod rotations;
mod speed;
mod stress;
mod talk;
mod trouble;
mod trouble_quantizing;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// What a run left behind.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ran {
    fn from(out: Output) -> Self {
        Self {
            code: out.status.code(),
            stdout: String::from_utf8(out.stdout).unwrap(),
            stderr: String::from_utf8(out.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// Runs a command with nothing on stdin; the code of one that a signal ended is `None`.
    fn of(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).output().unwrap().into()
    }

    /// The one object on stdout.
    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "{}{}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }

    /// The object of a run that went well.
    #[track_caller]
    fn good(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.json()
    }

    /// Checks that it was refused as something that the user can mend, in one sentence with these words.
    #[track_caller]
    fn refused(&self, words: &[&str]) {
        assert_eq!(self.code, Some(2), "{}{}", self.stdout, self.stderr);
        let sentence = self.stderr.lines().last().unwrap_or_default();
        assert!(sentence.starts_with("error: "), "{}", self.stderr);
        for w in words {
            assert!(sentence.contains(w), "`{w}` is not in: {sentence}");
        }
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fewbit"));
    command.args(args).env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR")).env_remove("RUST_LOG");
    // What looks like the name of a model is never asked for.
    command.env("HF_HUB_OFFLINE", "1");
    command
}

fn fewbit(args: &[&str]) -> Ran {
    fewbit_reading(args, "")
}

/// Runs the program with a text on stdin.
fn fewbit_reading(args: &[&str], stdin: &str) -> Ran {
    let mut child = command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that refuses its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap().into()
}

/// A folder of the reference material, if it is there.
fn shared(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")).join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}
