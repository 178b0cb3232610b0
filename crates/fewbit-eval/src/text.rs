use std::path::Path;

use fewbit_format::{Error, Result};

/// Reads a text to evaluate on.
///
/// # Errors
/// If the file cannot be read, is empty, or is not UTF-8: then with the offset of the first bad byte.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("reading", path, &e))?;
    if bytes.is_empty() {
        return Err(Error::input("is empty: 0 tokens").hint("give a file with text").file(path));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::input(format!("is not UTF-8: byte 0x{:02X} at offset {at}", e.as_bytes()[at]))
            .hint("convert it, for example with `iconv -f latin1 -t utf-8`")
            .file(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_bad_byte() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            read_text(&path).map_err(|e| e.to_string())
        };
        let e = read("latin1.txt", b"Il \xe9tait une fois").unwrap_err();
        assert!(e.contains("latin1.txt`: is not UTF-8: byte 0xE9 at offset 3"), "{e}");
        assert!(read("cut.txt", "é".as_bytes().split_at(1).0).unwrap_err().contains("at offset 0"));
        assert!(read("empty.txt", b"").unwrap_err().contains("empty.txt`: is empty: 0 tokens"));
        assert_eq!(read("text.txt", "Il était".as_bytes()).unwrap(), "Il était");
    }
}
