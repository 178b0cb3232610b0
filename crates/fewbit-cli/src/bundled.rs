//! The model that comes with the program.

use std::fs;
use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result};
use sha2::{Digest, Sha256};

use crate::hub;
use crate::session::Session;

macro_rules! demo_file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../../assets/demo-model/", $name)))
    };
}

/// The files of `assets/demo-model`.
const FILES: &[(&str, &[u8])] = &[
    demo_file!("README.md"),
    demo_file!("config.json"),
    demo_file!("generation_config.json"),
    demo_file!("model.safetensors"),
    demo_file!("tokenizer.json"),
    demo_file!("tokenizer_config.json"),
];

/// The word that stands for the bundled model.
pub(crate) const NAME: &str = "demo";

/// Calibration text for any model.
pub(crate) const CALIBRATION: &str = include_str!("../../../assets/calibration.txt");

/// Stories that no calibration text holds.
pub(crate) const EVALUATION: &str = include_str!("../../../assets/evaluation.txt");

/// The files of its tokenizer.
pub(crate) fn tokenizer_files() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    FILES.iter().filter(|(name, _)| name.starts_with("tokenizer")).copied()
}

/// What a model is called in cards and manifests: its name on the hub, else the last part of its path.
pub(crate) fn model_name(name: &str) -> String {
    if let Ok(Some(model)) = hub::named(name) {
        return model.repository().to_owned();
    }
    let path = Path::new(name);
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.file_name().map_or_else(|| name.to_owned(), |n| n.to_string_lossy().into_owned())
}

/// The path of a model: `demo` is the bundled one, put into a cache folder where it is not there yet; what names a model
/// of the hub is downloaded where it is not there yet; all else is a path.
pub(crate) fn resolve_model(session: &Session, name: &str) -> Result<PathBuf> {
    if name != NAME {
        return hub::resolve(session, name);
    }
    let folder = format!("demo-{}", content_hash());
    let mut failure = None;
    for cache in caches() {
        match unpack(&cache.join(&folder)) {
            Ok(path) => return Ok(path),
            Err(e) => failure = Some(e),
        }
    }
    Err(failure.unwrap_or_else(|| Error::internal("there is no folder to try")))
}

/// Folders to try: the user's cache, then the one for temporary files.
fn caches() -> impl Iterator<Item = PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let user = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    user.into_iter().chain([std::env::temp_dir()]).map(|dir| dir.join("fewbit"))
}

fn content_hash() -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in FILES {
        hash.update(name);
        hash.update(bytes.len().to_le_bytes());
        hash.update(bytes);
    }
    let start = hash.finalize().iter().take(8).fold(0_u64, |n, b| n << 8 | u64::from(*b));
    format!("{start:016x}")
}

/// Writes the files aside and renames the folder, unless all of them are there.
fn unpack(path: &Path) -> Result<PathBuf> {
    if is_whole(path) {
        return Ok(path.to_owned());
    }
    let aside = path.with_extension(format!("{}.partial", std::process::id()));
    fs::create_dir_all(&aside).map_err(|e| Error::io("making a folder for the bundled model", &aside, &e))?;
    let written = FILES.iter().try_for_each(|(name, bytes)| {
        let file = aside.join(name);
        fs::write(&file, bytes).map_err(|e| Error::io("writing the bundled model", &file, &e))
    });
    let renamed = written.and_then(|()| match fs::rename(&aside, path) {
        // Another process was faster.
        Err(_) if is_whole(path) => Ok(()),
        Err(_) if path.is_dir() => {
            let replace = fs::remove_dir_all(path).and_then(|()| fs::rename(&aside, path));
            replace.map_err(|e| Error::io("replacing a damaged copy of the bundled model", path, &e))
        }
        other => other.map_err(|e| Error::io("renaming the bundled model's folder", path, &e)),
    });
    if aside.exists() {
        // What is left over is of no use, and of little harm.
        let _ = fs::remove_dir_all(&aside);
    }
    renamed.map(|()| path.to_owned())
}

/// Whether all files are there, byte for byte: the folder may be anybody's.
fn is_whole(path: &Path) -> bool {
    FILES.iter().all(|(name, bytes)| {
        let file = path.join(name);
        fs::metadata(&file).is_ok_and(|m| m.len() == bytes.len() as u64) && fs::read(&file).is_ok_and(|b| b == *bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_written_once_and_mended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fewbit/demo-1");
        assert_eq!(unpack(&path).unwrap(), path);
        let written = fs::metadata(path.join("config.json")).unwrap().modified().unwrap();
        unpack(&path).unwrap();
        assert_eq!(fs::metadata(path.join("config.json")).unwrap().modified().unwrap(), written);
        fs::write(path.join("config.json"), b"{").unwrap();
        unpack(&path).unwrap();
        assert!(is_whole(&path));
        assert_eq!(fs::read_dir(dir.path().join("fewbit")).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("fewbit"), b"").unwrap();
        let e = unpack(&dir.path().join("fewbit/demo-1")).unwrap_err().to_string();
        assert!(e.contains("making a folder for the bundled model failed"), "{e}");
    }
}
