use std::collections::BTreeMap;
use std::fmt::Write;

use fewbit_format::{Dtype, Tensor};
use serde_json::{Map, json};

/// All tensors of a listing together.
const MOST_TENSOR_BYTES: usize = 1 << 22;
const MOST_TENSORS: usize = 512;

/// Tensors as lines of text (`NAME TYPE 4,8`), so that what changes a line changes a tensor and not its place alone.
pub struct Listing {
    tensors: BTreeMap<String, Tensor>,
}

impl Listing {
    /// Reads lines; the tensors' bytes are `data`, over and over. Lines that name no tensor are passed over.
    ///
    /// `None` if the tensors are more than a target looks at.
    pub fn read<'a>(lines: impl Iterator<Item = &'a str>, data: &[u8]) -> Option<Self> {
        let mut endless = data.iter().copied().cycle();
        let (mut tensors, mut total) = (BTreeMap::new(), 0);
        for (name, dtype, shape) in lines.filter_map(line) {
            let length = shape.iter().try_fold(dtype.size_bytes(), |n, d| n.checked_mul(*d));
            let length = length.filter(|n| *n <= MOST_TENSOR_BYTES - total)?;
            total += length;
            let mut bytes: Vec<u8> = endless.by_ref().take(length).collect();
            bytes.resize(length, 0);
            tensors.insert(name.to_owned(), Tensor { dtype, shape, bytes: bytes.into() });
            if tensors.len() > MOST_TENSORS {
                return None;
            }
        }
        Some(Self { tensors })
    }

    /// The tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// A safetensors file of them.
    pub fn safetensors(&self) -> Vec<u8> {
        let (mut header, mut at) = (Map::new(), 0);
        for (name, t) in &self.tensors {
            let end = at + t.bytes.len();
            header.insert(name.clone(), json!({"dtype": t.dtype.name(), "shape": t.shape, "data_offsets": [at, end]}));
            at = end;
        }
        let header = serde_json::Value::Object(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        for t in self.tensors.values() {
            file.extend_from_slice(&t.bytes);
        }
        file
    }

    /// The line of one tensor.
    pub fn line(name: &str, dtype: Dtype, shape: &[usize]) -> String {
        let mut line = format!("{name} {} ", dtype.name());
        for (i, size) in shape.iter().enumerate() {
            let _ = write!(line, "{}{size}", if i > 0 { "," } else { "" });
        }
        line.push('\n');
        line
    }
}

fn line(line: &str) -> Option<(&str, Dtype, Vec<usize>)> {
    let mut words = line.split(' ');
    let (name, dtype, sizes) = (words.next()?, words.next()?, words.next()?);
    let dtype = Dtype::ALL.into_iter().find(|d| d.name() == dtype)?;
    let sizes = sizes.split(',').filter(|s| !s.is_empty()).map(|s| s.parse().ok()).collect::<Option<Vec<usize>>>()?;
    (sizes.len() <= 16).then_some((name, dtype, sizes))
}
