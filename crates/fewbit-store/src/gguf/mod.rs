//! The GGUF container, versions 2 and 3, little-endian.
//!
//! `GGUF`, version u32, number of tensors u64, number of keys u64; keys with typed values; for each tensor its name,
//! dimensions (innermost first), type and offset; padding to the alignment; data. Source: `docs/gguf.md` of
//! ggml-org/ggml.

#[cfg(test)]
mod hostile;
mod parse;
mod split;
mod value;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use fewbit_format::{Error, Result};

use crate::Elements;
use crate::mapped::Mapped;

pub(crate) use split::{SplitName, open_all};
pub use value::{NumberType, Numbers, Value};
pub use write::{GgufWriter, TensorPlan};

/// One GGUF file: mapped, its whole header checked.
#[derive(Debug)]
pub struct Gguf {
    pub(crate) file: Mapped,
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<GgufTensor>,
}

/// Where a tensor lies in a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub elements: Elements,
    /// Sizes, outermost first (the reverse of the file's order): `[out, in]` for a linear.
    pub shape: Vec<usize>,
    /// Its bytes, counted from the file's beginning.
    pub range: Range<usize>,
}

impl Gguf {
    /// Maps one file (of a split model: one part) and checks its header.
    ///
    /// # Errors
    /// If the file cannot be read, is truncated, or its header is not that of a sound file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Mapped::open(path)?;
        let parse::Parsed { version, metadata, tensors } = parse::parse(file.bytes()).map_err(|e| e.file(path))?;
        Ok(Self { file, version, metadata, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The version of the container, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All keys with their values.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// The tensors of this file, in the order of its header.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The bytes of a tensor of this file, mapped.
    pub fn bytes(&self, tensor: &GgufTensor) -> bytes::Bytes {
        self.file.bytes().slice(tensor.range.clone())
    }

    /// A text, if the key is there.
    ///
    /// # Errors
    /// As for the other getters: names the key if its value has another type.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "a text", Value::as_str)
    }

    /// A whole number of any type that is not negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.get(key, "a whole number that is not negative", Value::as_u64)
    }

    /// A number of any type.
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", Value::as_f64)
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "a boolean", Value::as_bool)
    }

    /// A list of texts.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.get(key, "a list of texts", Value::as_strings)
    }

    /// A list of whole numbers of any type.
    pub fn i64s(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.get(key, "a list of whole numbers", |v| v.as_numbers()?.to_i64s())
    }

    /// A list of numbers of any type.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.get(key, "a list of numbers", |v| v.as_numbers().map(Numbers::to_f32s))
    }

    fn get<'a, T>(&'a self, key: &str, wanted: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let read = read(value).ok_or_else(|| {
            Error::input(format!("key `{key}` is {}, where {wanted} is needed", value.describe())).file(self.path())
        });
        read.map(Some)
    }
}
