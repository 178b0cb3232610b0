use std::sync::Arc;

use crate::pieces::Pieces;

/// Turns ids into text one at a time and never delivers half a character.
///
/// The chunks joined are the text of all ids: the bytes of a token are kept until their character is whole, and bytes
/// that can no longer become one turn into U+FFFD, as in [`crate::Tokenizer::decode`]. Every token costs the same
/// however long the text has grown.
#[derive(Clone, Debug)]
pub struct Stream {
    pieces: Arc<Pieces>,
    pending: Vec<u8>,
    at_start_of_text: bool,
}

impl Stream {
    pub(crate) fn new(pieces: Arc<Pieces>, at_start_of_text: bool) -> Self {
        Self { pieces, pending: Vec::new(), at_start_of_text }
    }

    /// Takes the next id and returns the characters that it completes, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let mut bytes = self.pieces.bytes(id);
        if self.at_start_of_text && !bytes.is_empty() {
            bytes = self.pieces.without_prefix_space(bytes);
            self.at_start_of_text = false;
        }
        if bytes.is_empty() {
            return None;
        }
        self.pending.extend_from_slice(bytes);
        let whole = self.pending.len() - unfinished(&self.pending);
        let rest = self.pending.split_off(whole);
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending = rest;
        Some(text).filter(|t| !t.is_empty())
    }

    /// What is left when the answer ends in the middle of a character.
    pub fn finish(&mut self) -> Option<String> {
        let text = String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned();
        Some(text).filter(|t| !t.is_empty())
    }
}

/// Bytes at the end that begin a character which later bytes may complete.
fn unfinished(bytes: &[u8]) -> usize {
    match bytes.utf8_chunks().last() {
        Some(last) if matches!(std::str::from_utf8(last.invalid()), Err(e) if e.error_len().is_none()) => {
            last.invalid().len()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_character_that_can_be_completed_waits() {
        assert_eq!(unfinished("a😀".as_bytes()), 0);
        assert_eq!(unfinished(b"a\xf0\x9f\x98"), 3);
        assert_eq!(unfinished(b"\xf0\x9f\x98a"), 0);
        assert_eq!(unfinished(b"\xff"), 0);
        assert_eq!(unfinished(b"\xe2\x82"), 2);
        assert_eq!(unfinished(b"\xe2\x28"), 0);
        assert_eq!(unfinished(b""), 0);
    }
}
