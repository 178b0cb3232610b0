//! Where tests find reference files and models; each test that lacks one says so and returns.

use std::path::PathBuf;

use fewbit_store::Gguf;
use fewbit_text::GgufVocabulary;

/// A file of the reference material beside the repository.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    present(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")).join(path), "")
}

/// A real model that `tools/fetch-models.sh` has fetched.
pub(crate) fn fetched(file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("FEWBIT_MODELS").map(PathBuf::from);
    let folder = folder.or_else(|| std::env::home_dir().map(|home| home.join(".cache/fewbit/models")))?;
    present(folder.join(file), "; `tools/fetch-models.sh all` gets it")
}

fn present(path: PathBuf, way_out: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is not there{way_out}", path.display());
    None
}

/// The vocabulary of a GGUF file.
pub(crate) fn vocabulary(path: &std::path::Path) -> GgufVocabulary {
    let g = Gguf::open(path).unwrap();
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let id = |name: &str| g.u64(&key(name)).unwrap().map(|n| n as u32);
    let flag = |name: &str| g.bool(&key(name)).unwrap();
    let strings = |name: &str| g.strings(&key(name)).unwrap().unwrap_or_default().to_vec();
    GgufVocabulary {
        model: g.string(&key("model")).unwrap().unwrap().to_owned(),
        pre: g.string(&key("pre")).unwrap().map(str::to_owned),
        tokens: strings("tokens"),
        scores: g.f32s(&key("scores")).unwrap().unwrap_or_default(),
        types: g.i64s(&key("token_type")).unwrap().unwrap_or_default().into_iter().map(|t| t as i32).collect(),
        merges: strings("merges"),
        bos: id("bos_token_id"),
        eos: id("eos_token_id"),
        unk: id("unknown_token_id"),
        pad: id("padding_token_id"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
    }
}
