//! Which files of a repository a model needs.

use std::collections::{BTreeMap, BTreeSet};

use fewbit_format::{Error, Result};
use serde::Deserialize;

use crate::untrusted::is_inside;

const INDEX: &str = "model.safetensors.index.json";
/// The configuration of an adapter, whose weights lie beside it.
const ADAPTER: &str = "adapter_config.json";
const INDEX_END: &str = ".safetensors.index.json";

/// What is read beside the weights. `README.md` for its licence.
const BESIDE: [&str; 15] = [
    "config.json",
    ADAPTER,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "quantize_config.json",
    "fewbit.json",
    "README.md",
];

/// Beginnings of the names of files that bind whoever passes the model on.
const LEGAL: [&str; 5] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING"];

const PICKLES: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];

/// How many names a refusal lists.
const LISTED: usize = 12;

/// The files of a model.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// A folder's: what lies beside the weights, and these.
    Folder { beside: Vec<String>, weights: Weights },
    /// A GGUF file, or all parts of a split one, in order.
    Gguf(Vec<String>),
}

/// Where the names of the files with weights stand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Weights {
    Index(String),
    Files(Vec<String>),
}

/// Chooses among the files of a repository. `wanted` is a GGUF file or a part of its name.
///
/// # Errors
/// If nothing that can be read is there, or it is not clear what is meant.
pub(crate) fn choose(files: &[String], wanted: Option<&str>) -> Result<Choice> {
    if let Some(wanted) = wanted {
        return named_gguf(files, wanted).map(Choice::Gguf);
    }
    let top: Vec<&str> = files.iter().map(String::as_str).filter(|f| is_inside(f) && !f.contains('/')).collect();
    let models = gguf_models(files);
    if top.contains(&ADAPTER) && top.contains(&"adapter_model.safetensors") && !top.contains(&"model.safetensors") {
        let weights = Weights::Files(vec!["adapter_model.safetensors".to_owned()]);
        return Ok(Choice::Folder { beside: beside(&top), weights });
    }
    match (weights(&top)?, top.contains(&"config.json")) {
        (Some(weights), true) => Ok(Choice::Folder { beside: beside(&top), weights }),
        (None, _) if models.is_empty() => Err(nothing_to_read(files)),
        (Some(_), false) if models.is_empty() => {
            Err(Error::input("holds no `config.json`, so that the architecture is not known")
                .hint("choose another model"))
        }
        _ => one_of(models, None).map(Choice::Gguf),
    }
}

fn beside(top: &[&str]) -> Vec<String> {
    let is_legal = |name: &str| LEGAL.iter().any(|legal| name.to_uppercase().starts_with(legal));
    top.iter().filter(|name| BESIDE.contains(name) || is_legal(name)).map(|name| (*name).to_owned()).collect()
}

/// The index, else `model.safetensors`, else the only one, else all of them if they are parts of one.
fn weights(top: &[&str]) -> Result<Option<Weights>> {
    if top.contains(&INDEX) {
        return Ok(Some(Weights::Index(INDEX.to_owned())));
    }
    if top.contains(&"model.safetensors") {
        return Ok(Some(Weights::Files(vec!["model.safetensors".to_owned()])));
    }
    let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let indices: Vec<&str> = top.iter().copied().filter(|n| n.ends_with(INDEX_END)).collect();
    if let [only] = indices[..] {
        return Ok(Some(Weights::Index(only.to_owned())));
    }
    let mut found: Vec<&str> = top.iter().copied().filter(|n| n.ends_with(".safetensors")).collect();
    found.sort_unstable();
    match found[..] {
        [] => Ok(None),
        [_] => Ok(Some(Weights::Files(owned(&found)))),
        [first, ..] => match part(first, ".safetensors") {
            Some((prefix, _, count)) => parts(&found, prefix, count, ".safetensors").map(|p| Some(Weights::Files(p))),
            None => Err(Error::input(format!("holds several safetensors files and no index: {}", listed(&found)))
                .hint("choose a model that has `model.safetensors` or an index")),
        },
    }
}

/// The files that an index names, each once. They lie beside it, and among `files`.
///
/// # Errors
/// If the index is none, names what does not lie beside it, or a file that is not there.
pub(crate) fn shards(index: &[u8], files: &[String]) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Index { weight_map } = serde_json::from_slice(index)
        .map_err(|e| Error::input(format!("is no index of safetensors files: {e}")).hint("choose another revision"))?;
    let names: BTreeSet<String> = weight_map.into_values().collect();
    let there: BTreeSet<&str> = files.iter().map(String::as_str).collect();
    for name in &names {
        if !is_inside(name) || name.contains('/') || !name.ends_with(".safetensors") {
            return Err(Error::input(format!("names the file {name:?}, which cannot lie beside it"))
                .hint("do not use this model: no honest index does so"));
        }
    }
    let missing: Vec<&String> = names.iter().filter(|name| !there.contains(name.as_str())).collect();
    match missing[..] {
        [] => Ok(names.into_iter().collect()),
        [only] => Err(Error::input(format!("names the file `{only}`, which is not there"))),
        [first, ..] => {
            Err(Error::input(format!("names {} files that are not there, the first `{first}`", missing.len())))
        }
    }
}

/// The GGUF models of a repository: their files by what the model is called, without `.gguf`.
fn gguf_models(files: &[String]) -> BTreeMap<String, Vec<&str>> {
    let mut models: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for file in files.iter().filter(|f| is_inside(f)) {
        let Some(stem) = file.strip_suffix(".gguf") else { continue };
        let base = stem.rsplit('/').next().unwrap_or(stem).to_lowercase();
        // A vision tower or statistics of activations are no language model.
        if base.starts_with("mmproj") || base.starts_with("imatrix") {
            continue;
        }
        let model = part(file, ".gguf").map_or(stem, |(prefix, _, _)| prefix);
        models.entry(model.to_owned()).or_default().push(file);
    }
    models
}

fn named_gguf(files: &[String], wanted: &str) -> Result<Vec<String>> {
    let models = gguf_models(files);
    if models.is_empty() {
        return Err(Error::input("holds no GGUF file").hint(format!("leave `:{wanted}` out")));
    }
    let is_called = |file: &&str| *file == wanted || file.rsplit('/').next() == Some(wanted);
    let lower = wanted.to_lowercase();
    let of = |is_meant: &dyn Fn(&str, &[&str]) -> bool| -> BTreeMap<String, Vec<&str>> {
        models.iter().filter(|(m, f)| is_meant(m, f)).map(|(m, f)| (m.clone(), f.clone())).collect()
    };
    // The file itself, else the part as a word, as `F16` is none of `BF16`, else the part anywhere.
    let tries = [
        of(&|_, files| files.iter().any(is_called)),
        of(&|model, _| has_word(&model.to_lowercase(), &lower)),
        of(&|model, _| model.to_lowercase().contains(&lower)),
    ];
    if let Some(found) = tries.into_iter().find(|found| !found.is_empty()) {
        return one_of(found, Some(wanted));
    }
    let all: Vec<&str> = models.keys().map(String::as_str).collect();
    Err(Error::input(format!("holds no GGUF file `{wanted}`; there are {}", listed(&all))).hint("name one of them"))
}

/// Whether `word` stands in `text` with nothing beside it that could belong to it.
fn has_word(text: &str, word: &str) -> bool {
    let is_edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    text.match_indices(word)
        .any(|(at, found)| is_edge(text[..at].chars().next_back()) && is_edge(text[at + found.len()..].chars().next()))
}

/// All files of the only model.
fn one_of(models: BTreeMap<String, Vec<&str>>, wanted: Option<&str>) -> Result<Vec<String>> {
    if models.len() > 1 {
        let all: Vec<&str> = models.keys().map(String::as_str).collect();
        let which = wanted
            .map_or_else(|| "holds several GGUF files".to_owned(), |w| format!("`{w}` may mean several GGUF files"));
        return Err(Error::input(format!("{which}: {}", listed(&all)))
            .hint("name one by a part of its name, as in `owner/name:Q4_K_M`"));
    }
    let Some((model, files)) = models.into_iter().next() else { return Err(Error::internal("no GGUF file to choose")) };
    match part(files[0], ".gguf") {
        Some((_, _, count)) => parts(&files, &model, count, ".gguf"),
        None => Ok(files.into_iter().map(str::to_owned).collect()),
    }
}

/// `(prefix, number, count)` of `PREFIX-00002-of-00005.EXTENSION`.
fn part<'a>(file: &'a str, extension: &str) -> Option<(&'a str, u32, u32)> {
    let (front, count) = file.strip_suffix(extension)?.rsplit_once("-of-")?;
    let (prefix, number) = front.rsplit_once('-')?;
    let digits = |s: &str| (s.len() == 5).then(|| s.parse::<u32>().ok()).flatten();
    let (number, count) = (digits(number)?, digits(count)?);
    (1..=count).contains(&number).then_some((prefix, number, count))
}

/// All parts, in order, if all of them are there and nothing else is.
fn parts(files: &[&str], prefix: &str, count: u32, extension: &str) -> Result<Vec<String>> {
    let names: Vec<String> = (1..=count).map(|n| format!("{prefix}-{n:05}-of-{count:05}{extension}")).collect();
    if let Some(missing) = names.iter().find(|name| !files.contains(&name.as_str())) {
        return Err(
            Error::input(format!("`{missing}`, a part of the model, is not there")).hint("choose another revision")
        );
    }
    match files.iter().find(|file| !names.iter().any(|name| name == *file)) {
        Some(other) => Err(Error::input(format!("holds parts of several models, `{}` and `{other}`", names[0]))
            .hint("choose a model with an index")),
        None => Ok(names),
    }
}

fn nothing_to_read(files: &[String]) -> Error {
    let is_pickle = |f: &String| f.rsplit_once('.').is_some_and(|(_, e)| PICKLES.contains(&e));
    if files.iter().any(is_pickle) {
        return Error::input("holds its weights as a pickle alone, which can run any program when it is read")
            .hint("look for a revision or a copy of it with safetensors or GGUF files");
    }
    Error::input("holds neither safetensors nor GGUF files").hint("choose another model or revision")
}

fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(LISTED).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    fn chosen(names: &[&str], wanted: Option<&str>) -> Result<Choice, String> {
        choose(&owned(names), wanted).map_err(|e| e.to_string())
    }

    fn gguf(names: &[&str], wanted: &str) -> Result<Vec<String>, String> {
        match chosen(names, Some(wanted))? {
            Choice::Gguf(files) => Ok(files),
            other @ Choice::Folder { .. } => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_folder_is_taken_without_what_nobody_reads() {
        let all = [
            "pytorch_model.bin",
            "onnx/model.onnx",
            "model.safetensors",
            "config.json",
            "LICENSE.txt",
            "tokenizer.json",
            "flax_model.msgpack",
            "original/consolidated.00.pth",
            "modeling.py",
            "README.md",
            "consolidated.safetensors",
        ];
        let beside = owned(&["config.json", "LICENSE.txt", "tokenizer.json", "README.md"]);
        let weights = Weights::Files(owned(&["model.safetensors"]));
        assert_eq!(chosen(&all, None).unwrap(), Choice::Folder { beside, weights });
    }

    #[test]
    fn an_adapter_is_taken_whatever_else_is_there() {
        let all = ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors", "training_args.bin"];
        let weights = Weights::Files(owned(&["adapter_model.safetensors"]));
        assert_eq!(chosen(&all, None).unwrap(), Choice::Folder { beside: owned(&["adapter_config.json"]), weights });
        let pickled = ["adapter_model.bin", "adapter_config.json"];
        assert!(chosen(&pickled, None).unwrap_err().contains("pickle"));
    }

    #[test]
    fn weights_go_by_the_index_or_by_their_names() {
        let weights = |names: &[&str]| match chosen(&[&["config.json"], names].concat(), None).unwrap() {
            Choice::Folder { weights, .. } => weights,
            other @ Choice::Gguf(_) => panic!("{other:?}"),
        };
        assert_eq!(weights(&["model.safetensors", INDEX]), Weights::Index(INDEX.into()));
        assert_eq!(weights(&["m.safetensors.index.json"]), Weights::Index("m.safetensors.index.json".into()));
        assert_eq!(weights(&["gptq.safetensors", "a.gguf"]), Weights::Files(owned(&["gptq.safetensors"])));
        let parts = ["m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"];
        assert_eq!(weights(&[parts[1], parts[0]]), Weights::Files(owned(&parts)));
        let refused = |names: &[&str]| chosen(&[&["config.json"], names].concat(), None).unwrap_err();
        assert!(refused(&[parts[0], "m-00003-of-00003.safetensors"]).contains("`m-00002-of-00002.safetensors`"));
        assert!(
            refused(&["a.safetensors", "b.safetensors"]).contains("no index: `a.safetensors`, `b.safetensors`; choose")
        );
        assert!(refused(&["pytorch_model.bin"]).contains("pickle"));
        assert!(refused(&["readme.txt"]).contains("neither safetensors nor GGUF"));
        assert!(chosen(&["model.safetensors"], None).unwrap_err().contains("no `config.json`"));
    }

    #[test]
    fn a_gguf_file_is_named_by_a_part() {
        let all = [
            "m-Q4_K_M.gguf",
            "m-Q4_K_S.gguf",
            "m-F16.gguf",
            "m-BF16.gguf",
            "mmproj-F16.gguf",
            "q8/m-Q8_0-00002-of-00002.gguf",
            "q8/m-Q8_0-00001-of-00002.gguf",
            "config.json",
            "../m-IQ1_S.gguf",
        ];
        assert_eq!(gguf(&all, "m-Q4_K_M.gguf").unwrap(), ["m-Q4_K_M.gguf"]);
        assert_eq!(gguf(&all, "q4_k_m").unwrap(), ["m-Q4_K_M.gguf"]);
        assert_eq!(gguf(&all, "F16").unwrap(), ["m-F16.gguf"]);
        let split = ["q8/m-Q8_0-00001-of-00002.gguf", "q8/m-Q8_0-00002-of-00002.gguf"];
        for wanted in ["Q8_0", split[1], "m-Q8_0-00001-of-00002.gguf"] {
            assert_eq!(gguf(&all, wanted).unwrap(), split, "{wanted}");
        }
        let e = gguf(&all, "Q4").unwrap_err();
        assert!(e.contains("`Q4` may mean several GGUF files: `m-Q4_K_M`, `m-Q4_K_S`; name one"), "{e}");
        let e = gguf(&all, "IQ1_S").unwrap_err();
        assert!(
            e.contains("no GGUF file `IQ1_S`; there are `m-BF16`, `m-F16`, `m-Q4_K_M`, `m-Q4_K_S`, `q8/m-Q8_0`;"),
            "{e}"
        );
        let e = gguf(&all[..6], "Q8_0").unwrap_err();
        assert!(e.contains("`q8/m-Q8_0-00001-of-00002.gguf`, a part of the model, is not there"), "{e}");
        let e = chosen(&all, None).unwrap_err();
        assert!(e.contains("holds several GGUF files: `m-BF16`"), "{e}");
        assert_eq!(chosen(&["a.gguf", "README.md"], None).unwrap(), Choice::Gguf(owned(&["a.gguf"])));
        assert!(gguf(&["config.json"], "Q8_0").unwrap_err().contains("leave `:Q8_0` out"));
    }

    #[test]
    fn an_index_is_not_trusted() {
        let index = |file: &str| format!(r#"{{"weight_map": {{"a": "m.safetensors", "b": {file:?}}}}}"#);
        let read = |file: &str| {
            let there = owned(&["m.safetensors", "n.safetensors", "sub/n.safetensors", "x.bin", file]);
            shards(index(file).as_bytes(), &there).map_err(|e| e.to_string())
        };
        assert_eq!(read("n.safetensors").unwrap(), ["m.safetensors", "n.safetensors"]);
        assert_eq!(read("m.safetensors").unwrap(), ["m.safetensors"]);
        for file in
            ["../n.safetensors", "/etc/n.safetensors", "sub/n.safetensors", "..", "x.bin", "a\\n.safetensors", ""]
        {
            assert!(read(file).unwrap_err().contains("cannot lie beside it"), "{file}");
        }
        let e = shards(index("o.safetensors").as_bytes(), &owned(&["m.safetensors"])).unwrap_err().to_string();
        assert!(e.contains("`o.safetensors`, which is not there"), "{e}");
        assert!(shards(b"[]", &[]).unwrap_err().to_string().contains("no index"));
    }
}
