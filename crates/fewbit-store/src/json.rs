use std::path::Path;

use fewbit_format::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// More than any configuration needs; an index of a model of a trillion weights takes a tenth of it.
const LONGEST_BYTES: u64 = 100 << 20;

const WAY_OUT: &str = "download it again, or undo what was changed";

/// Reads a JSON file whose content is an object.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    match read(path)? {
        Value::Object(map) => Ok(map),
        _ => Err(Error::input("holds no JSON object").hint(WAY_OUT).file(path)),
    }
}

pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = crate::read_file(path, LONGEST_BYTES)?;
    parse(&bytes).map_err(|e| e.file(path))
}

/// Parses JSON. Nesting beyond 128 levels is refused by the parser.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| Error::input(format!("is not UTF-8 at byte {}", e.valid_up_to())).hint("save it as UTF-8"))?;
    // Some editors of Windows put a byte-order mark in front.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_json::from_str(text).map_err(|e| {
        let what = if e.is_data() { "does not hold what is needed" } else { "is not valid JSON" };
        Error::input(format!("{what}: {e}")).hint(WAY_OUT)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, bytes).unwrap();
        let sentence = read_object(&path).unwrap_err().to_string();
        sentence.split_once(": ").unwrap().1.to_owned()
    }

    #[test]
    fn each_fault_is_one_sentence() {
        assert_eq!(refusal(b"[1]"), format!("holds no JSON object; {WAY_OUT}"));
        assert_eq!(refusal(b"{\"a\": \xff}"), "is not UTF-8 at byte 6; save it as UTF-8");
        assert_eq!(refusal(b"{\"a\": }"), format!("is not valid JSON: expected value at line 1 column 7; {WAY_OUT}"));
        assert_eq!(refusal(b""), format!("is not valid JSON: EOF while parsing a value at line 1 column 0; {WAY_OUT}"));
        let deep = [b"{\"a\":".repeat(200_000), b"1".to_vec(), b"}".repeat(200_000)].concat();
        assert!(refusal(&deep).starts_with("is not valid JSON: recursion limit exceeded"));
    }
}
