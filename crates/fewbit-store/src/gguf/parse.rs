use std::collections::BTreeMap;

use bytes::Bytes;
use fewbit_format::{Error, Result};

use super::value::{ARRAY, NumberType, Numbers, STRING, Value};
use super::{Elements, GgufTensor};

pub(super) const MAGIC: &[u8; 4] = b"GGUF";
pub(super) const DEFAULT_ALIGNMENT: usize = 32;
/// Beyond the pages of any machine; what llama.cpp writes is 32.
const LARGEST_ALIGNMENT: u64 = 1 << 16;
const MOST_DIMENSIONS: u32 = 4;

/// The least bytes of a key with its value, of a tensor's description, and of a text.
const LEAST_KEY_BYTES: usize = 8 + 4 + 1;
const LEAST_TENSOR_BYTES: usize = 8 + 4 + 4 + 8;
const LEAST_TEXT_BYTES: usize = 8;

pub(super) struct Parsed {
    pub(super) version: u32,
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: Vec<GgufTensor>,
}

/// Checks a whole file.
///
/// Counts and lengths are held against the bytes that are left before anything is allocated.
pub(super) fn parse(bytes: &Bytes) -> Result<Parsed> {
    let mut cursor = Cursor { bytes, at: 0 };
    let version = version(&mut cursor)?;
    let tensor_count = cursor.count("tensors", LEAST_TENSOR_BYTES)?;
    let key_count = cursor.count("keys", LEAST_KEY_BYTES)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = cursor.text().map_err(|e| e.place("name of a key"))?;
        let value = cursor.value().map_err(|e| e.place(format!("key `{key}`")))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(
                Error::input(format!("key `{key}` occurs twice")).hint("the file is damaged: download it again")
            );
        }
    }
    let alignment = alignment(&metadata)?;
    let raw = (0..tensor_count).map(|_| cursor.tensor()).collect::<Result<Vec<_>>>()?;
    let data_start = cursor.at.next_multiple_of(alignment);
    let mut tensors = raw.into_iter().map(|t| t.placed(data_start, alignment)).collect::<Result<Vec<_>>>()?;
    check_names(&tensors)?;
    check_places(&mut tensors, bytes.len())?;
    Ok(Parsed { version, metadata, tensors })
}

fn version(cursor: &mut Cursor<'_>) -> Result<u32> {
    if cursor.bytes.is_empty() {
        return Err(Error::input("is empty").hint("download it again"));
    }
    if cursor.take(4)? != MAGIC {
        return Err(Error::input("does not begin with `GGUF`")
            .hint("this is no GGUF file, or it is damaged: download it again"));
    }
    let way_out = "convert the model again with llama.cpp";
    match cursor.u32()? {
        version @ 2..=3 => Ok(version),
        version if (1..=3).contains(&version.swap_bytes()) => Err(Error::input(format!(
            "is a big-endian GGUF (version {}), where little-endian ones are read",
            version.swap_bytes()
        ))
        .hint(way_out)),
        version => {
            Err(Error::input(format!("is GGUF version {version}, where versions 2 and 3 are read")).hint(way_out))
        }
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<usize> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    match value.as_u64() {
        Some(n) if n.is_power_of_two() && n <= LARGEST_ALIGNMENT => Ok(n as usize),
        _ => Err(Error::input(format!(
            "key `general.alignment` is {}, where a power of two up to {LARGEST_ALIGNMENT} is needed",
            value.describe()
        ))
        .hint("the file is damaged: download it again")),
    }
}

fn check_names(tensors: &[GgufTensor]) -> Result<()> {
    let mut names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            Err(Error::input("the name occurs twice").hint("the file is damaged: download it again").tensor(pair[0]))
        }
        None => Ok(()),
    }
}

/// No tensor beyond the file's end, none over another.
fn check_places(tensors: &mut [GgufTensor], file_length: usize) -> Result<()> {
    let described = tensors.iter().map(|t| t.range.end).max().unwrap_or(0);
    if described > file_length {
        return Err(Error::input(format!("is {file_length} bytes long, but its header describes {described}"))
            .hint("the file is truncated: download it again"));
    }
    let mut order: Vec<&GgufTensor> = tensors.iter().collect();
    order.sort_by_key(|t| (t.range.start, t.range.end));
    match order.windows(2).find(|pair| pair[1].range.start < pair[0].range.end) {
        Some(pair) => Err(Error::input(format!("overlaps `{}`", pair[0].name))
            .hint("the file is damaged: download it again")
            .tensor(&pair[1].name)),
        None => Ok(()),
    }
}

struct RawTensor {
    name: String,
    elements: Elements,
    shape: Vec<usize>,
    size_bytes: usize,
    offset: u64,
}

impl RawTensor {
    fn placed(self, data_start: usize, alignment: usize) -> Result<GgufTensor> {
        let start = usize::try_from(self.offset).ok().and_then(|o| data_start.checked_add(o));
        let range = start.and_then(|s| Some(s..s.checked_add(self.size_bytes)?));
        match range {
            Some(range) if self.offset.is_multiple_of(alignment as u64) => {
                Ok(GgufTensor { name: self.name, elements: self.elements, shape: self.shape, range })
            }
            Some(_) => Err(Error::input(format!("lies at offset {}, no multiple of {alignment}", self.offset))
                .hint("the file is damaged: download it again")
                .tensor(&self.name)),
            None => Err(Error::input(format!("lies at offset {}, beyond any file", self.offset))
                .hint("the file is damaged: download it again")
                .tensor(&self.name)),
        }
    }
}

/// Reads the header from its beginning on.
struct Cursor<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        if length > self.left() {
            return Err(Error::input(format!("the file ends at byte {}, inside its header", self.bytes.len()))
                .hint("it is truncated: download it again"));
        }
        let taken = &self.bytes[self.at..self.at + length];
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of things, each of at least so many bytes.
    fn count(&mut self, what: &str, least_bytes: usize) -> Result<usize> {
        let count = self.u64()?;
        match usize::try_from(count) {
            Ok(n) if n.checked_mul(least_bytes).is_some_and(|bytes| bytes <= self.left()) => Ok(n),
            _ => Err(Error::input(format!(
                "says that it holds {count} {what}, more than its {} bytes can",
                self.bytes.len()
            ))
            .hint("the file is truncated or damaged: download it again")),
        }
    }

    fn text(&mut self) -> Result<String> {
        let length = self.count("bytes of a text", 1)?;
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| Error::input("holds a text that is not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn value(&mut self) -> Result<Value> {
        match self.u32()? {
            STRING => self.text().map(Value::String),
            ARRAY => self.list(),
            code => {
                let kind = number_type(code)?;
                self.numbers(kind, 1)?.iter().next().ok_or_else(|| Error::internal("a number without bytes"))
            }
        }
    }

    fn list(&mut self) -> Result<Value> {
        match self.u32()? {
            ARRAY => Err(Error::input("is a list of lists, which no reader takes")
                .hint("the file is damaged: download it again")),
            STRING => {
                let count = self.count("texts", LEAST_TEXT_BYTES)?;
                (0..count).map(|_| self.text()).collect::<Result<_>>().map(Value::Strings)
            }
            code => {
                let kind = number_type(code)?;
                let count = self.count("numbers", kind.size_bytes())?;
                self.numbers(kind, count).map(Value::Numbers)
            }
        }
    }

    /// `count` numbers; the caller has seen that their bytes can be counted.
    fn numbers(&mut self, kind: NumberType, count: usize) -> Result<Numbers> {
        let taken = self.take(count * kind.size_bytes())?;
        if kind == NumberType::Bool
            && let Some(other) = taken.iter().find(|b| **b > 1)
        {
            return Err(Error::input(format!("holds the boolean {other}, where 0 and 1 are possible"))
                .hint("the file is damaged: download it again"));
        }
        Ok(Numbers::new(kind, self.bytes.slice_ref(taken)))
    }

    fn tensor(&mut self) -> Result<RawTensor> {
        let name = self.text().map_err(|e| e.place("name of a tensor"))?;
        match self.tensor_after_name() {
            Ok(tensor) => Ok(RawTensor { name, ..tensor }),
            Err(e) => Err(e.tensor(&name)),
        }
    }

    fn tensor_after_name(&mut self) -> Result<RawTensor> {
        let dimensions = self.u32()?;
        if dimensions > MOST_DIMENSIONS {
            return Err(Error::input(format!(
                "has {dimensions} dimensions, where at most {MOST_DIMENSIONS} are possible"
            ))
            .hint("the file is damaged: download it again"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            let size = usize::try_from(size).ok().filter(|n| (1..=isize::MAX as usize).contains(n));
            shape.insert(
                0,
                size.ok_or_else(|| {
                    Error::input("has a size of zero or beyond 63 bits").hint("the file is damaged: download it again")
                })?,
            );
        }
        let number = self.u32()?;
        let elements = Elements::from_ggml_number(number).ok_or_else(|| {
            Error::input(format!("has the unknown type {number}"))
                .hint("the file is damaged, or newer than this program")
        })?;
        let size_bytes = elements.tensor_bytes(&shape).ok_or_else(|| {
            let (block_len, name) = (elements.block_len(), elements.name());
            let reason = match shape.last() {
                Some(cols) if !cols.is_multiple_of(block_len) => {
                    format!("has rows of {cols}, no multiple of the {block_len} weights of a {name} block")
                }
                _ => format!("has shape {shape:?} of {name}, more bytes than can be counted"),
            };
            Error::input(reason).hint("the file is damaged: download it again")
        })?;
        Ok(RawTensor { name: String::new(), elements, shape, size_bytes, offset: self.u64()? })
    }
}

fn number_type(code: u32) -> Result<NumberType> {
    NumberType::from_code(code).ok_or_else(|| {
        Error::input(format!("has the unknown type {code}")).hint("the file is damaged: download it again")
    })
}
