//! A small model, a little text, and a folder for what is made of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::{Ran, command, fewbit};

/// A random Llama of so many small blocks, whose rows take groups of 64 at most.
pub(crate) fn small_model(path: &Path, layers: &str, seed: &str) -> String {
    let model = path.display().to_string();
    let args = ["make-model", &model, "--layers", layers, "--hidden", "64", "--mlp", "128", "--heads", "2"];
    assert_eq!(
        fewbit(&[&args[..], &["--kv-heads", "1", "--vocabulary", "4096", "--seed", seed]].concat()).code,
        Some(0)
    );
    model
}

/// Every file of a folder with its content, by name; of a file, the content alone.
pub(crate) fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    if path.is_file() {
        return BTreeMap::from([(String::new(), fs::read(path).unwrap())]);
    }
    let entries = fs::read_dir(path).unwrap().map(|e| e.unwrap().path());
    entries.map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(p).unwrap())).collect()
}

/// Holds two results together by the names of their files, not by megabytes of them.
#[track_caller]
pub(crate) fn same_bytes(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in a {
        assert!(bytes == &b[name], "{what}: {name} differs");
    }
}

/// A model, a text, and a folder for results.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    pub(crate) model: String,
}

impl Bench {
    pub(crate) fn new(layers: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = small_model(&dir.path().join("model"), layers, "0");
        let text = "Once upon a time there was a dog who liked to run in the park with the other dogs. ".repeat(12);
        fs::write(dir.path().join("text.txt"), text).unwrap();
        Self { dir, model }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, out: &Path, args: &[&str]) -> Command {
        let text = self.path("text.txt");
        let all = ["quantize", &self.model, "--out", out.to_str().unwrap(), "--group", "32", "--calibration"];
        command(&[&all[..], &[text.to_str().unwrap(), "--samples", "3", "--length", "32"], args].concat())
    }

    pub(crate) fn run(&self, out: &Path, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(out, args))
    }

    /// The bytes of a run that nothing disturbed.
    pub(crate) fn whole(&self, name: &str, args: &[&str]) -> BTreeMap<String, Vec<u8>> {
        let out = self.path(name);
        let ran = self.run(&out, args);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        files(&out)
    }

    /// Checks that nothing lies beside the results that are named.
    #[track_caller]
    pub(crate) fn holds_only(&self, names: &[&str]) {
        let mut found: Vec<String> = (fs::read_dir(self.dir.path()).unwrap())
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| n != "model" && n != "text.txt" && !names.contains(&n.as_str()))
            .collect();
        found.sort();
        assert!(found.is_empty(), "left over: {found:?}");
    }
}
