use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result};

use super::parse::{DEFAULT_ALIGNMENT, MAGIC};
use super::value::{ARRAY, NumberType, Numbers, STRING, Value};
use crate::{Elements, HugePageWriter};

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorPlan {
    /// Its name.
    pub name: String,
    /// How its elements are stored.
    pub elements: Elements,
    /// Sizes, outermost first: `[out, in]` for a linear.
    pub shape: Vec<usize>,
}

/// Writes a GGUF file of version 3: the header at once, then the tensors in the order of their plans.
///
/// Everything goes to `PATH.partial`, which gets its name in [`GgufWriter::finish`] and is removed when the writer is
/// dropped before. Offsets are contiguous in file order, aligned to 32 bytes, as llama.cpp demands.
pub struct GgufWriter {
    path: PathBuf,
    partial: PathBuf,
    out: HugePageWriter,
    sizes: Vec<usize>,
    written: usize,
    is_finished: bool,
}

impl GgufWriter {
    /// Begins a file that has these keys (in this order) and will have these tensors.
    ///
    /// # Errors
    /// If a tensor cannot be held, a name occurs twice, the file exists, or it cannot be written.
    pub fn create(path: &Path, metadata: &[(String, Value)], tensors: &[TensorPlan]) -> Result<Self> {
        let (header, sizes) = header(metadata, tensors).map_err(|e| e.file(path))?;
        if path.exists() {
            return Err(Error::input("exists already").hint("choose another name, or remove it").file(path));
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).map_err(|e| Error::io("writing", &partial, &e))?;
        let out = HugePageWriter::new(file);
        let mut writer = Self { path: path.to_owned(), partial, out, sizes, written: 0, is_finished: false };
        writer.put(&header)?;
        Ok(writer)
    }

    /// Writes the next tensor.
    ///
    /// # Errors
    /// If its length is not that of the plan, or the disk refuses.
    pub fn tensor(&mut self, bytes: &[u8]) -> Result<()> {
        self.tensor_of([Ok(bytes)])
    }

    /// Writes the next tensor from parts that follow one another, each made when it is written.
    ///
    /// # Errors
    /// If a part cannot be made, their length is not that of the plan, or the disk refuses.
    pub fn tensor_of<B: AsRef<[u8]>>(&mut self, parts: impl IntoIterator<Item = Result<B>>) -> Result<()> {
        let mut len = 0;
        for part in parts {
            let part = part?;
            len += part.as_ref().len();
            self.put(part.as_ref())?;
        }
        let planned = self.sizes.get(self.written).copied();
        if planned != Some(len) {
            let (written, all) = (self.written, self.sizes.len());
            let what = format!("tensor {written} of {all} has {len} bytes, where the plan says {planned:?}");
            return Err(Error::internal(what).file(&self.path));
        }
        self.put(&[0; DEFAULT_ALIGNMENT][..padding(len)])?;
        self.written += 1;
        Ok(())
    }

    /// Ends the file, waits until the disk has it, and gives it its name.
    ///
    /// # Errors
    /// If a planned tensor was not written, or the disk refuses.
    pub fn finish(mut self) -> Result<()> {
        if self.written != self.sizes.len() {
            let (written, planned) = (self.written, self.sizes.len());
            return Err(Error::internal(format!("{written} of {planned} tensors were written")).file(&self.path));
        }
        self.out.sync().map_err(|e| Error::io("writing", &self.partial, &e))?;
        std::fs::rename(&self.partial, &self.path).map_err(|e| Error::io("renaming", &self.partial, &e))?;
        self.is_finished = true;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::io("writing", &self.partial, &e))
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        if !self.is_finished {
            // There is nobody left to tell, and the next attempt overwrites it.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

fn padding(length: usize) -> usize {
    length.next_multiple_of(DEFAULT_ALIGNMENT) - length
}

/// Everything in front of the data, padded, and the bytes of each tensor.
fn header(metadata: &[(String, Value)], tensors: &[TensorPlan]) -> Result<(Vec<u8>, Vec<usize>)> {
    let mut header = Vec::from(MAGIC);
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    check_unique("key", metadata.iter().map(|(key, _)| key.as_str()))?;
    check_unique("tensor", tensors.iter().map(|t| t.name.as_str()))?;
    for (key, value) in metadata {
        put_text(&mut header, key);
        put_value(&mut header, value);
    }
    let (mut offset, mut sizes) = (0u64, Vec::with_capacity(tensors.len()));
    for tensor in tensors {
        let size = put_tensor(&mut header, tensor, offset).map_err(|e| e.tensor(&tensor.name))?;
        offset += (size + padding(size)) as u64;
        sizes.push(size);
    }
    header.resize(header.len() + padding(header.len()), 0);
    Ok((header, sizes))
}

fn check_unique<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::internal(format!("{what} `{}` is to be written twice", pair[0]))),
        None => Ok(()),
    }
}

fn put_tensor(header: &mut Vec<u8>, tensor: &TensorPlan, offset: u64) -> Result<usize> {
    let number = (tensor.elements.ggml_number())
        .ok_or_else(|| Error::input(format!("a GGUF file cannot hold the type {}", tensor.elements.name())))?;
    let size = (tensor.elements.tensor_bytes(&tensor.shape)).ok_or_else(|| {
        Error::input(format!("blocks of {} do not tile shape {:?}", tensor.elements.name(), tensor.shape))
    })?;
    if tensor.shape.len() > 4 {
        return Err(Error::input(format!("has {} dimensions, where a GGUF file holds 4", tensor.shape.len())));
    }
    put_text(header, &tensor.name);
    header.extend((tensor.shape.len() as u32).to_le_bytes());
    for size in tensor.shape.iter().rev() {
        header.extend((*size as u64).to_le_bytes());
    }
    header.extend(number.to_le_bytes());
    header.extend(offset.to_le_bytes());
    Ok(size)
}

fn put_text(header: &mut Vec<u8>, text: &str) {
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(text.as_bytes());
}

fn put_value(header: &mut Vec<u8>, value: &Value) {
    let mut number = |kind: NumberType, bytes: &[u8]| {
        header.extend(kind.code().to_le_bytes());
        header.extend(bytes);
    };
    match value {
        Value::U8(v) => number(NumberType::U8, &v.to_le_bytes()),
        Value::I8(v) => number(NumberType::I8, &v.to_le_bytes()),
        Value::U16(v) => number(NumberType::U16, &v.to_le_bytes()),
        Value::I16(v) => number(NumberType::I16, &v.to_le_bytes()),
        Value::U32(v) => number(NumberType::U32, &v.to_le_bytes()),
        Value::I32(v) => number(NumberType::I32, &v.to_le_bytes()),
        Value::F32(v) => number(NumberType::F32, &v.to_le_bytes()),
        Value::Bool(v) => number(NumberType::Bool, &[u8::from(*v)]),
        Value::U64(v) => number(NumberType::U64, &v.to_le_bytes()),
        Value::I64(v) => number(NumberType::I64, &v.to_le_bytes()),
        Value::F64(v) => number(NumberType::F64, &v.to_le_bytes()),
        Value::String(text) => {
            header.extend(STRING.to_le_bytes());
            put_text(header, text);
        }
        Value::Numbers(numbers) => put_numbers(header, numbers),
        Value::Strings(texts) => {
            header.extend(ARRAY.to_le_bytes());
            header.extend(STRING.to_le_bytes());
            header.extend((texts.len() as u64).to_le_bytes());
            for text in texts {
                put_text(header, text);
            }
        }
    }
}

fn put_numbers(header: &mut Vec<u8>, numbers: &Numbers) {
    header.extend(ARRAY.to_le_bytes());
    header.extend(numbers.kind().code().to_le_bytes());
    header.extend((numbers.len() as u64).to_le_bytes());
    header.extend(numbers.bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use fewbit_format::{Dtype, GgmlType};

    fn plan(name: &str, elements: Elements, shape: &[usize]) -> TensorPlan {
        TensorPlan { name: name.into(), elements, shape: shape.into() }
    }

    #[test]
    fn nothing_is_left_of_a_file_that_was_not_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let plans = [plan("a", Elements::Plain(Dtype::F16), &[2, 3])];
        let mut writer = GgufWriter::create(&path, &[], &plans).unwrap();
        assert!(dir.path().join("m.gguf.partial").exists());
        let e = writer.tensor(&[0; 11]).unwrap_err().to_string();
        assert!(e.contains("tensor 0 of 1 has 11 bytes, where the plan says Some(12)"), "{e}");
        let e = writer.finish().unwrap_err().to_string();
        assert!(e.contains("0 of 1 tensors were written"), "{e}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_held_is_refused_before_writing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let refused = |plan| GgufWriter::create(&path, &[], &[plan]).err().unwrap().to_string();
        assert!(
            refused(plan("a", Elements::Plain(Dtype::F8E4M3), &[1]))
                .ends_with("tensor `a`: a GGUF file cannot hold the type F8_E4M3")
        );
        assert!(
            refused(plan("a", Elements::Blocks(GgmlType::Q4_0), &[2, 31]))
                .contains("blocks of Q4_0 do not tile shape [2, 31]")
        );
        assert!(refused(plan("a", Elements::Plain(Dtype::F32), &[1; 5])).contains("has 5 dimensions"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        GgufWriter::create(&path, &[], &[]).unwrap().finish().unwrap();
        assert!(GgufWriter::create(&path, &[], &[]).err().unwrap().to_string().contains("exists already"));
    }
}
