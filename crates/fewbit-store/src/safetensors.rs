use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use fewbit_format::{Dtype, Error, Result, Tensor};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::Elements;
use crate::layout::is_tiles;
use crate::mapped::Mapped;

/// The bound of the format's reference implementation.
const LONGEST_HEADER_BYTES: u64 = 100_000_000;
const MOST_DIMENSIONS: usize = 16;

/// One safetensors file: mapped, its whole header checked.
///
/// The header is parsed here and not by the format's crate, because that keeps the last of two equal names, and
/// because its errors do not name the tensor.
#[derive(Debug)]
pub struct Safetensors {
    pub(crate) file: Mapped,
    pub(crate) tensors: Vec<Entry>,
    /// What its writer said of it, as far as this is text.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Where a tensor lies in the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) range: Range<usize>,
}

impl Safetensors {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// If the file cannot be read, is truncated or too long, or its header is not that of a sound file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Mapped::open(path)?;
        let (tensors, metadata) =
            parse(file.bytes()).map_err(|e| e.or_hint("the file is damaged: download it again").file(path))?;
        if tensors.iter().any(|t| is_tiles(&t.name)) {
            file.ask_for_huge_pages();
        }
        Ok(Self { file, tensors, metadata })
    }

    /// The names, in the order of the data.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// A tensor, its bytes mapped.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let entry = self.tensors.iter().find(|t| t.name == name);
        let entry = entry.ok_or_else(|| Error::input("is not there").tensor(name).file(self.file.path()))?;
        Ok(self.mapped(entry))
    }

    /// All tensors by name, in the order of the data.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, Tensor)> {
        self.tensors.iter().map(|entry| (entry.name.as_str(), self.mapped(entry)))
    }

    fn mapped(&self, entry: &Entry) -> Tensor {
        let bytes = self.file.bytes().slice(entry.range.clone());
        Tensor { dtype: entry.dtype, shape: entry.shape.clone(), bytes }
    }
}

/// Checks a whole file; the entries come in the order of the data, their ranges count from the file's beginning.
fn parse(bytes: &[u8]) -> Result<(Vec<Entry>, BTreeMap<String, String>)> {
    let length = bytes.len() as u64;
    let Some((prefix, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(
            Error::input(format!("is {length} bytes long, too short for a safetensors file")).hint("download it again")
        );
    };
    let header_length = u64::from_le_bytes(*prefix);
    if header_length > LONGEST_HEADER_BYTES {
        return Err(Error::input(format!(
            "says that its header takes {header_length} bytes, where at most {LONGEST_HEADER_BYTES} are read"
        ))
        .hint("this is no safetensors file, or it is damaged: download it again"));
    }
    let header = rest.get(..header_length as usize).ok_or_else(|| {
        Error::input(format!("is {length} bytes long, but its header alone takes {header_length}"))
            .hint("download it again")
    })?;
    let header: Header = crate::json::parse(header).map_err(|e| e.place("header"))?;
    let data_start = 8 + header_length as usize;
    let mut entries =
        header.tensors.into_iter().map(|(name, raw)| check(name, &raw, data_start)).collect::<Result<Vec<_>>>()?;
    entries.sort_by(|a, b| (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name)));
    check_names(&entries)?;
    check_places(&entries, data_start, bytes.len())?;
    Ok((entries, header.metadata))
}

/// One tensor by itself.
fn check(name: String, raw: &RawEntry, data_start: usize) -> Result<Entry> {
    let entry = || -> Result<Entry> {
        let known = Dtype::ALL.into_iter().find(|d| d.name() == raw.dtype);
        let dtype = known.ok_or_else(|| {
            Error::input(format!("has the unknown type `{}`", raw.dtype)).hint("save the model as F32, F16 or BF16")
        })?;
        let shape = raw.shape.sizes()?;
        let [start, end] = raw.data_offsets.map(usize::try_from);
        let place = |offset: std::result::Result<usize, _>| offset.ok().and_then(|o| o.checked_add(data_start));
        let (Some(start), Some(end)) = (place(start), place(end)) else {
            return Err(Error::input(format!("lies at {:?}, beyond any file", raw.data_offsets)));
        };
        let needed = Elements::Plain(dtype).tensor_bytes(&shape);
        if start > end || needed != Some(end - start) {
            let needed = needed.map_or_else(|| "more bytes than can be counted".into(), |n| format!("{n} bytes"));
            let [from, to] = raw.data_offsets;
            return Err(Error::input(format!(
                "has shape {shape:?} of {}, which takes {needed}, but lies at bytes {from} to {to}",
                dtype.name()
            )));
        }
        Ok(Entry { name: String::new(), dtype, shape, range: start..end })
    };
    match entry() {
        Ok(entry) => Ok(Entry { name, ..entry }),
        Err(e) => Err(e.tensor(&name)),
    }
}

fn check_names(entries: &[Entry]) -> Result<()> {
    let mut names: Vec<&str> = entries.iter().map(|e| e.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::input("the name occurs twice in the header")
            .hint("write the file again with one tensor of each name")
            .tensor(pair[0])),
        None => Ok(()),
    }
}

/// The data must be tiled: no overlap, no hole, and exactly as long as the file.
fn check_places(entries: &[Entry], data_start: usize, file_length: usize) -> Result<()> {
    let described = entries.iter().map(|e| e.range.end).max().unwrap_or(data_start);
    if described > file_length {
        return Err(Error::input(format!("is {file_length} bytes long, but its header describes {described}"))
            .hint("the file is truncated: download it again"));
    }
    let (mut end, mut before) = (data_start, None::<&Entry>);
    for entry in entries {
        let start = entry.range.start;
        if start < end {
            let other = before.map_or("the header", |b| &b.name);
            return Err(Error::input(format!("overlaps `{other}`"))
                .hint("the file is damaged: download it again")
                .tensor(&entry.name));
        }
        if start > end {
            return Err(Error::input(format!("the {} bytes in front of it belong to no tensor", start - end))
                .hint("the file is damaged: download it again")
                .tensor(&entry.name));
        }
        (end, before) = (entry.range.end, Some(entry));
    }
    if described < file_length {
        return Err(Error::input(format!("is {file_length} bytes long, but its header describes {described}"))
            .hint("bytes were appended: download it again"));
    }
    Ok(())
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: RawShape,
    data_offsets: [u64; 2],
}

/// The header's members in order, equal names included.
#[derive(Default)]
struct Header {
    tensors: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a member for each tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        let Value::Object(members) = map.next_value()? else { continue };
                        let texts = members.into_iter().filter_map(|(k, v)| Some((k, v.as_str()?.to_owned())));
                        header.metadata.extend(texts);
                    } else {
                        let entry = map.next_value();
                        let entry = entry.map_err(|e| serde::de::Error::custom(format!("tensor `{name}`: {e}")))?;
                        header.tensors.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// Sizes as they were written: any number, at most [`MOST_DIMENSIONS`] of them.
struct RawShape(Vec<serde_json::Number>);

impl RawShape {
    fn sizes(&self) -> Result<Vec<usize>> {
        let size = |n: &serde_json::Number| {
            let size = n.as_u64().and_then(|n| usize::try_from(n).ok());
            size.ok_or_else(|| Error::input(format!("has the size {n} in its shape, which is no size")))
        };
        self.0.iter().map(size).collect()
    }
}

impl<'de> Deserialize<'de> for RawShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = RawShape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of sizes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawShape, A::Error> {
                let mut sizes = Vec::new();
                while let Some(size) = seq.next_element()? {
                    if sizes.len() == MOST_DIMENSIONS {
                        return Err(serde::de::Error::custom(format!("more than {MOST_DIMENSIONS} dimensions")));
                    }
                    sizes.push(size);
                }
                Ok(RawShape(sizes))
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file with this header and `data` zero bytes.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn refusal(header: &str, data: usize) -> String {
        parse(&file(header, data)).unwrap_err().to_string()
    }

    const SOUND: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]},"none":{"dtype":"F32","shape":[0,4],"data_offsets":[8,8]}}"#;

    #[test]
    fn a_sound_file_is_read_in_the_order_of_its_data() {
        let (tensors, metadata) = parse(&file(SOUND, 20)).unwrap();
        assert_eq!(metadata, BTreeMap::from([("format".to_owned(), "pt".to_owned())]));
        let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "none", "b"]);
        assert_eq!((tensors[2].dtype, &tensors[2].shape[..]), (Dtype::BF16, &[2, 3][..]));
        assert_eq!(tensors[2].range, SOUND.len() + 16..SOUND.len() + 28);
        assert!(parse(&file("{}   ", 0)).unwrap().0.is_empty());
    }

    #[test]
    fn lengths_are_said_both() {
        let header = SOUND.len();
        assert_eq!(
            refusal(SOUND, 19),
            format!(
                "is {} bytes long, but its header describes {}; the file is truncated: download it again",
                header + 27,
                header + 28
            )
        );
        assert!(refusal(SOUND, 21).contains("bytes were appended"));
        assert_eq!(
            parse(&[0; 7]).unwrap_err().to_string(),
            "is 7 bytes long, too short for a safetensors file; download it again"
        );
        let e = parse(&file(SOUND, 0)[..100]).unwrap_err().to_string();
        assert_eq!(e, format!("is 100 bytes long, but its header alone takes {header}; download it again"));
        let e = parse(&u64::MAX.to_le_bytes()).unwrap_err().to_string();
        assert!(e.contains("18446744073709551615") && e.contains("100000000"), "{e}");
    }

    #[test]
    fn each_fault_names_the_tensor() {
        let one = |dtype, shape, offsets| {
            format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        assert_eq!(
            refusal(&one("F5", "[2]", "[0,8]"), 8),
            "tensor `w`: has the unknown type `F5`; save the model as F32, F16 or BF16"
        );
        assert_eq!(
            refusal(&one("F32", "[-2]", "[0,8]"), 8),
            "tensor `w`: has the size -2 in its shape, which is no size"
        );
        assert!(refusal(&one("F32", "[1e40]", "[0,8]"), 8).contains("1e+40"));
        assert_eq!(
            refusal(&one("F32", "[3]", "[0,8]"), 8),
            "tensor `w`: has shape [3] of F32, which takes 12 bytes, but lies at bytes 0 to 8"
        );
        let huge = refusal(&one("F32", "[9223372036854775808,9223372036854775808]", "[0,8]"), 8);
        assert!(huge.contains("more bytes than can be counted"), "{huge}");
        assert!(refusal(&one("F32", "[2]", "[8,0]"), 8).contains("lies at bytes 8 to 0"));
        assert!(
            refusal(&one("F32", "[2]", "[18446744073709551608,18446744073709551615]"), 8).contains("beyond any file")
        );
        assert!(refusal(&one("F32", "[2]", "[-1,8]"), 8).contains("tensor `w`: invalid value: integer `-1`"));
        let seventeen = "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]";
        assert!(refusal(&one("F32", seventeen, "[0,4]"), 4).contains("more than 16 dimensions"));
        assert_eq!(
            refusal(&one("F32", "[2]", "[4,12]"), 12),
            "tensor `w`: the 4 bytes in front of it belong to no tensor; the file is damaged: download it again"
        );
        let pair = |second| format!(r#"{{"w":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},{second}}}"#);
        let overlap = pair(r#""v":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#);
        assert_eq!(refusal(&overlap, 12), "tensor `v`: overlaps `w`; the file is damaged: download it again");
        let twice = pair(r#""w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}"#);
        assert!(refusal(&twice, 16).starts_with("tensor `w`: the name occurs twice in the header"));
        assert!(refusal("[]", 0).starts_with("header: does not hold what is needed: invalid type: sequence"));
    }

    proptest! {
        #[test]
        fn mutations_never_panic(at in 0..SOUND.len() + 28, byte: u8, cut in 0..SOUND.len() + 28) {
            let mut bytes = file(SOUND, 20);
            bytes[at] = byte;
            let _ = parse(&bytes);
            let _ = parse(&bytes[..cut]);
        }
    }
}
