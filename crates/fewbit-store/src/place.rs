use std::io::Read;
use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result};

use crate::gguf::SplitName;

/// What a path that a user typed leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A Hugging Face folder, and its files with weights.
    Folder { dir: PathBuf, weights: Weights },
    /// A GGUF file, or any part of a split one.
    Gguf(PathBuf),
}

/// Which files of a folder hold the weights.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    /// Those that an index names.
    Index(PathBuf),
    /// These.
    Files(Vec<PathBuf>),
}

const INDEX: &str = ".safetensors.index.json";
/// What `save_quantized` of hqq writes.
const HQQ: &str = "qmodel.pt";
const PICKLES: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];

/// Finds out what lies at a path.
pub(crate) fn find(path: &Path) -> Result<Place> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io("opening", path, &e))?;
    if metadata.is_dir() {
        return in_folder(path);
    }
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    match extension(path) {
        Some("gguf") => Ok(Place::Gguf(path.to_owned())),
        Some("safetensors") => {
            let weights = weights(parent, &list(parent)?)?;
            let is_listed = match &weights {
                // Which files an index names is not known yet; a part is never a model by itself.
                Some(Weights::Index(_)) => true,
                Some(Weights::Files(files)) => files.iter().any(|f| f.file_name() == path.file_name()),
                None => false,
            };
            let alone = || Weights::Files(vec![path.to_owned()]);
            let weights = if is_listed { weights.unwrap_or_else(alone) } else { alone() };
            Ok(Place::Folder { dir: parent.to_owned(), weights })
        }
        Some("json") => in_folder(parent),
        Some(e) if PICKLES.contains(&e) => {
            Err(pickle(path.file_name().and_then(|n| n.to_str()).unwrap_or_default()).file(path))
        }
        // Caches of some programs name files by their hashes.
        _ if metadata.is_file() && begins_as_gguf(path) => Ok(Place::Gguf(path.to_owned())),
        _ => Err(Error::input("is no model that can be read")
            .hint("give a folder with `config.json` and safetensors files, or a `.gguf` file")
            .file(path)),
    }
}

fn in_folder(dir: &Path) -> Result<Place> {
    let names = list(dir)?;
    let weights = weights(dir, &names)?;
    let has_config = names.iter().any(|n| n == "config.json");
    let ggufs: Vec<PathBuf> = of_extension(dir, &names, "gguf").collect();
    match weights {
        Some(weights) if has_config || ggufs.is_empty() => Ok(Place::Folder { dir: dir.to_owned(), weights }),
        _ if !ggufs.is_empty() => one_gguf(dir, &ggufs).map(Place::Gguf),
        _ => {
            let is_pickle = |n: &&String| extension(Path::new(n)).is_some_and(|e| PICKLES.contains(&e));
            Err(match names.iter().find(is_pickle) {
                Some(name) => pickle(name),
                None => Error::input("holds no weights")
                    .hint("a folder with `config.json` and `model.safetensors`, or with a `.gguf` file, is needed"),
            }
            .file(dir))
        }
    }
}

pub(crate) fn begins_as_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut magic));
    read.is_ok() && &magic == b"GGUF"
}

pub(crate) fn pickle(name: &str) -> Error {
    let tool = match name {
        HQQ => "`AutoHQQHFModel.save_to_safetensors(AutoHQQHFModel.from_quantized(FOLDER), OUT)` of hqq",
        _ => "`AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OUT)` of transformers",
    };
    Error::input("holds its weights as a pickle, which can run any program when it is read")
        .hint(format!("convert it: {tool} writes safetensors"))
}

/// The names of the files of a folder, sorted.
pub(crate) fn list(dir: &Path) -> Result<Vec<String>> {
    let unread = |e| Error::io("listing the folder", dir, &e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unread)? {
        // Names beyond Unicode belong to no model.
        if let Ok(name) = entry.map_err(unread)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn extension(path: &Path) -> Option<&str> {
    path.extension()?.to_str()
}

pub(crate) fn of_extension<'a>(
    dir: &Path,
    names: &'a [String],
    wanted: &'a str,
) -> impl Iterator<Item = PathBuf> + use<'a> {
    let dir = dir.to_owned();
    names.iter().filter(move |n| extension(Path::new(n)) == Some(wanted)).map(move |n| dir.join(n))
}

/// The files with weights: those of the index, else `model.safetensors`, else the only one, else a complete set of parts.
fn weights(dir: &Path, names: &[String]) -> Result<Option<Weights>> {
    let single = names.iter().any(|n| n == "model.safetensors").then(|| dir.join("model.safetensors"));
    let indices: Vec<&String> = names.iter().filter(|n| n.ends_with(INDEX)).collect();
    let index = indices.iter().find(|n| n.as_str() == "model.safetensors.index.json").or(match &indices[..] {
        [only] => Some(only),
        _ => None,
    });
    if let Some(index) = index {
        return Ok(Some(Weights::Index(dir.join(index))));
    }
    if let Some(single) = single {
        return Ok(Some(Weights::Files(vec![single])));
    }
    let files: Vec<PathBuf> = of_extension(dir, names, "safetensors").collect();
    match &files[..] {
        [] => Ok(None),
        [only] if part(only).is_none() => Ok(Some(Weights::Files(files))),
        [first, ..] => complete(dir, first, &files).map(|()| Some(Weights::Files(files))),
    }
}

/// `(prefix, number, count)` of `PREFIX-00002-of-00005.safetensors`.
fn part(path: &Path) -> Option<(&str, u32, u32)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".safetensors")?;
    let (stem, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = stem.rsplit_once('-')?;
    Some((prefix, number.parse().ok()?, count.parse().ok()?))
}

/// Without an index, several files are a model only if their names say that they are all its parts.
fn complete(dir: &Path, first: &Path, files: &[PathBuf]) -> Result<()> {
    let numbers: Option<Vec<u32>> = part(first).and_then(|(prefix, _, count)| {
        files.iter().map(|f| part(f).filter(|(p, _, c)| (*p, *c) == (prefix, count)).map(|(_, n, _)| n)).collect()
    });
    let (Some(mut numbers), Some((_, _, count))) = (numbers, part(first)) else {
        let names: Vec<String> =
            files.iter().take(4).filter_map(|f| Some(f.file_name()?.display().to_string())).collect();
        return Err(Error::input(format!(
            "holds {} safetensors files and no index: {}",
            files.len(),
            names.join(", ")
        ))
        .hint("name the one that is meant")
        .file(dir));
    };
    numbers.sort_unstable();
    match (1..=count).zip(numbers.iter().copied().chain(std::iter::repeat(0))).find(|(wanted, there)| wanted != there) {
        Some((missing, _)) => {
            Err(Error::input(format!("part {missing} of {count} is missing")).hint("download it again").file(dir))
        }
        None => Ok(()),
    }
}

fn one_gguf(dir: &Path, files: &[PathBuf]) -> Result<PathBuf> {
    if let [only] = files {
        return Ok(only.clone());
    }
    let set = |f: &PathBuf| SplitName::of(f).map(|n| (n.prefix, n.count));
    let first = set(&files[0]);
    if first.is_some() && files.iter().all(|f| set(f) == first) {
        return Ok(files[0].clone());
    }
    let names: Vec<String> = files.iter().take(4).filter_map(|f| Some(f.file_name()?.display().to_string())).collect();
    Err(Error::input(format!("holds {} GGUF files: {}", files.len(), names.join(", ")))
        .hint("name the one that is meant")
        .file(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(dir.path().join(name), b"x").unwrap();
        }
        dir
    }

    fn found(names: &[&str]) -> Result<Place, String> {
        let dir = folder(names);
        find(dir.path()).map_err(|e| e.to_string())
    }

    fn files(names: &[&str]) -> Vec<String> {
        match found(names).unwrap() {
            Place::Folder { weights: Weights::Files(files), .. } => {
                files.iter().map(|f| f.file_name().unwrap().to_str().unwrap().to_owned()).collect()
            }
            Place::Folder { weights: Weights::Index(index), .. } => {
                vec![index.file_name().unwrap().to_str().unwrap().to_owned()]
            }
            Place::Gguf(path) => vec![path.file_name().unwrap().to_str().unwrap().to_owned()],
        }
    }

    #[test]
    fn finds_the_weights() {
        assert_eq!(files(&["config.json", "model.safetensors", "adapter.safetensors"]), ["model.safetensors"]);
        assert_eq!(files(&["config.json", "gptq_model-4bit.safetensors"]), ["gptq_model-4bit.safetensors"]);
        let index = "model.safetensors.index.json";
        assert_eq!(files(&["config.json", index, "model.safetensors", "a.safetensors"]), [index]);
        let parts = ["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"];
        assert_eq!(files(&["config.json", parts[0], parts[1]]), parts);
        assert_eq!(files(&["model.safetensors", "m.gguf"]), ["m.gguf"]);
        assert_eq!(files(&["config.json", "model.safetensors", "m.gguf"]), ["model.safetensors"]);
        assert_eq!(files(&["m-00002-of-00002.gguf", "m-00001-of-00002.gguf"]), ["m-00001-of-00002.gguf"]);
    }

    #[test]
    fn refuses_with_the_way_out() {
        let refused = |names: &[&str]| found(names).unwrap_err();
        assert!(refused(&["config.json"]).contains("holds no weights; a folder with"));
        assert!(refused(&["config.json", "pytorch_model.bin"]).contains("pickle"));
        assert!(
            refused(&["a-00001-of-00003.safetensors", "a-00003-of-00003.safetensors"])
                .contains("part 2 of 3 is missing")
        );
        assert!(refused(&["a-00001-of-00002.safetensors"]).contains("part 2 of 2 is missing"));
        assert!(
            refused(&["a.safetensors", "b.safetensors"])
                .contains("no index: a.safetensors, b.safetensors; name the one")
        );
        assert!(refused(&["a.gguf", "b.gguf"]).contains("holds 2 GGUF files: a.gguf, b.gguf"));
        assert!(find(Path::new("/nowhere/at/all")).unwrap_err().to_string().contains("check the path"));
    }

    #[test]
    fn a_file_leads_to_its_folder() {
        let dir = folder(&["config.json", "model.safetensors", "other.safetensors", "x.pt", "qmodel.pt", "notes.txt"]);
        let at = |name: &str| find(&dir.path().join(name));
        let Place::Folder { weights: Weights::Files(files), .. } = at("other.safetensors").unwrap() else { panic!() };
        assert_eq!(files, [dir.path().join("other.safetensors")]);
        assert!(at("x.pt").unwrap_err().to_string().contains("pickle"));
        assert!(at("qmodel.pt").unwrap_err().to_string().contains("save_to_safetensors"));
        std::fs::write(dir.path().join("sha256-0123"), b"GGUF\x03").unwrap();
        assert_eq!(at("sha256-0123").unwrap(), Place::Gguf(dir.path().join("sha256-0123")));
        assert!(at("notes.txt").unwrap_err().to_string().contains("is no model"));
    }
}
