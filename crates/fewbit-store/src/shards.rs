use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result};
use serde::Deserialize;

use crate::Safetensors;
use crate::place::Weights;

/// The opened files of a checkpoint, and which of them holds each tensor.
pub(crate) struct Shards {
    pub(crate) files: Vec<Safetensors>,
    /// For each name the file and the place in its list.
    pub(crate) tensors: BTreeMap<String, (usize, usize)>,
    /// Names that the index gives to a file which does not hold them.
    pub(crate) absent: BTreeMap<String, PathBuf>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens all files at once: a missing or truncated one is found before any work.
pub(crate) fn open(weights: &Weights) -> Result<Shards> {
    match weights {
        Weights::Files(paths) => assemble(paths, &BTreeMap::new()),
        Weights::Index(path) => {
            let Index { weight_map } = crate::json::read(path)?;
            let dir = path.parent().unwrap_or(Path::new("."));
            let names: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
            check_names(&names, dir).map_err(|e| e.file(path))?;
            let places: BTreeMap<String, PathBuf> = weight_map.iter().map(|(t, f)| (t.clone(), dir.join(f))).collect();
            let paths: Vec<PathBuf> = names.into_iter().map(|n| dir.join(n)).collect();
            assemble(&paths, &places)
        }
    }
}

fn check_names(names: &BTreeSet<&str>, dir: &Path) -> Result<()> {
    for name in names {
        // A name with a folder in it could lead anywhere.
        if Path::new(name).file_name() != Some(name.as_ref()) {
            return Err(Error::input(format!("names the file `{name}`, which does not lie beside it"))
                .hint("download the index again"));
        }
        if Path::new(name).extension().is_none_or(|e| e != "safetensors") {
            return Err(Error::input(format!("names the file `{name}`, which is no safetensors file"))
                .hint("save the model again with `safe_serialization=True`: nothing else is read as weights"));
        }
    }
    names.iter().try_for_each(|n| crate::reading::check_link(&dir.join(n)))?;
    let missing: Vec<&&str> = names.iter().filter(|n| !dir.join(n).exists()).collect();
    match &missing[..] {
        [] => Ok(()),
        [name] => Err(Error::input(format!("names the file `{name}`, which is missing")).hint("download it again")),
        [name, ..] => Err(Error::input(format!("names {} missing files, the first `{name}`", missing.len()))
            .hint("download them again")),
    }
}

/// The index decides where a tensor is; one that it does not list is taken from where it lies.
fn assemble(paths: &[PathBuf], places: &BTreeMap<String, PathBuf>) -> Result<Shards> {
    let files = paths.iter().map(|p| Safetensors::open(p)).collect::<Result<Vec<_>>>()?;
    let mut tensors: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (f, file) in files.iter().enumerate() {
        for (t, tensor) in file.tensors.iter().enumerate() {
            match places.get(&tensor.name) {
                Some(place) if place != file.file.path() => continue,
                _ => {}
            }
            if let Some((other, _)) = tensors.insert(tensor.name.clone(), (f, t)) {
                return Err(Error::input(format!(
                    "lies in `{}` too, and no index decides",
                    files[other].file.path().display()
                ))
                .hint("remove one of the files")
                .tensor(&tensor.name)
                .file(file.file.path()));
            }
        }
    }
    let absent = places.iter().filter(|(name, _)| !tensors.contains_key(*name));
    let absent = absent.map(|(name, path)| (name.clone(), path.clone())).collect();
    Ok(Shards { files, tensors, absent })
}
