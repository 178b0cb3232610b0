//! A model as one GGUF file that llama.cpp runs with the same answers.

mod blocks;
mod metadata;
mod mix;
mod mixture;
mod plan;
mod read_back;
mod rotation;
mod vocabulary;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result};
use fewbit_store::{GgufWriter, ModelFile};

pub use blocks::can_hold_gguf;
pub(crate) use metadata::family;
pub use mix::{GgufMix, MixModel, MixTensor};
pub(crate) use plan::Plan;

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GgufReport {
    /// Bytes of the file.
    pub size_bytes: u64,
    /// How many tensors have which type.
    pub types: BTreeMap<&'static str, usize>,
    /// What the reader should know: numbers that were rounded, tokens that were left out.
    pub notes: Vec<String>,
}

/// Writes a model as a GGUF file of version 3, which says that it is of a mix if one is given.
///
/// Linears are written only in types that hold them exactly; plain F32 becomes F16 unless it overflows. The file is
/// written aside and read back: its vocabulary must give the ids of the model's tokenizer, its weights the model's
/// numbers; then it gets its name.
///
/// # Errors
/// If the family, its settings, a linear or the tokenizer cannot be held, the file exists, or it cannot be written.
pub fn write_gguf(file: &ModelFile, path: &Path, mix: Option<GgufMix>) -> Result<GgufReport> {
    if path.exists() {
        return Err(Error::input("exists already").hint("choose another name, or remove it").file(path));
    }
    let place = |e: Error| e.file(file.checkpoint().path());
    let family = metadata::family(file).map_err(place)?;
    let plan = Plan::of(file, family.name)?;
    let vocabulary = vocabulary::vocabulary(file)?;
    let keys = metadata::keys(file, family, &plan, &vocabulary, mix)?;
    let aside = Aside::new(path)?;
    let mut writer = GgufWriter::create(&aside.0, &keys, &plan.tensor_plans())?;
    plan.write(file, &mut writer)?;
    writer.finish()?;
    let report = GgufReport {
        size_bytes: std::fs::metadata(&aside.0).map_err(|e| Error::io("reading", &aside.0, &e))?.len(),
        types: plan.types(),
        notes: vocabulary.notes.iter().cloned().chain(plan.notes()).chain(metadata::notes(family)).collect(),
    };
    read_back::check(file, &aside.0, &vocabulary.reference)?;
    std::fs::rename(&aside.0, path).map_err(|e| Error::io("renaming to", path, &e))?;
    report.notes.iter().for_each(|note| log::warn!("{note}"));
    Ok(report)
}

/// Whether the keys and the vocabulary of a model can be written.
pub(crate) fn check(file: &ModelFile) -> Result<()> {
    let place = |e: Error| e.file(file.checkpoint().path());
    let family = metadata::family(file).map_err(place)?;
    rotation::tensors(file, family.name)?;
    if file.checkpoint().gguf().is_none() {
        rotation::keys(file.checkpoint().config(), family.name, &file.model().ropes).map_err(place)?;
    }
    vocabulary::vocabulary(file).map(|_| ())
}

/// The file before it is checked; removed when it was not renamed.
struct Aside(PathBuf);

impl Aside {
    fn new(path: &Path) -> Result<Self> {
        let mut name = path.as_os_str().to_owned();
        name.push(".unchecked");
        let aside = PathBuf::from(name);
        if aside.exists() {
            std::fs::remove_file(&aside).map_err(|e| Error::io("removing", &aside, &e))?;
        }
        Ok(Self(aside))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // It has been renamed, or there is nobody left to tell.
        let _ = std::fs::remove_file(&self.0);
    }
}
