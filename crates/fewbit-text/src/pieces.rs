use std::collections::HashMap;
use std::sync::LazyLock;

use fewbit_format::{Error, Result};
use serde_json::Value;

/// Highest id that a vocabulary may hold; beyond it a table by id would not be sensible.
const MAX_ID: u32 = 1 << 24;
/// Bytes that one token may stand for, and all of them: replacements one after another can make gigabytes of one letter.
const MAX_TOKEN_BYTES: usize = 1 << 20;
const MAX_BYTES: usize = 256 << 20;

/// The bytes that each token stands for in decoded text.
///
/// Text is decoded from bytes and not from strings: a character may be spread over several tokens.
#[derive(Debug)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// End of each id's bytes; its start is the end of the id before it.
    ends: Vec<u32>,
    /// Spaces at the start of a text that stand for the prefix which the tokenizer put there.
    prefix_spaces: usize,
}

/// How the tokens of a vocabulary spell bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spelling {
    /// Every byte is written as one printable character (GPT-2).
    byte_level: bool,
    /// `<0xXX>` is the byte XX.
    byte_tokens: bool,
    /// Strings and what they stand for, usually `▁` and a space.
    replace: Vec<(String, String)>,
    /// Spaces at the start of a text that are not part of it.
    prefix_spaces: usize,
}

impl Spelling {
    /// SentencePiece: `▁` is a space, `<0xXX>` a byte.
    pub(crate) fn sentencepiece(space_prefix: bool) -> Self {
        let replace = vec![("▁".to_owned(), " ".to_owned())];
        Self { byte_level: false, byte_tokens: true, replace, prefix_spaces: usize::from(space_prefix) }
    }

    /// Reads the `decoder` of a `tokenizer.json`.
    ///
    /// # Errors
    /// A decoder whose tokens do not stand for bytes by themselves, such as `WordPiece`, is refused.
    pub(crate) fn from_decoder(decoder: &Value) -> Result<Self> {
        let mut spelling = Self::default();
        spelling.add(decoder)?;
        Ok(spelling)
    }

    fn add(&mut self, decoder: &Value) -> Result<()> {
        let kind = decoder.get("type").and_then(Value::as_str).unwrap_or_default();
        match kind {
            "" | "Fuse" => {}
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_tokens = true,
            "Metaspace" => {
                let from = decoder.get("replacement").and_then(Value::as_str).unwrap_or("▁");
                self.replace.push((from.to_owned(), " ".to_owned()));
                let never = decoder.get("prepend_scheme").and_then(Value::as_str) == Some("never");
                self.prefix_spaces = usize::from(!never);
            }
            "Replace" => {
                let from = decoder.pointer("/pattern/String").and_then(Value::as_str);
                let to = decoder.get("content").and_then(Value::as_str);
                let (Some(from), Some(to)) = (from, to) else {
                    return Err(unknown("Replace with a regular expression"));
                };
                self.replace.push((from.to_owned(), to.to_owned()));
            }
            "Strip" if decoder.get("content").and_then(Value::as_str) == Some(" ") => {
                self.prefix_spaces = decoder.get("start").and_then(Value::as_u64).unwrap_or(0) as usize;
            }
            "Sequence" => {
                for d in decoder.get("decoders").and_then(Value::as_array).into_iter().flatten() {
                    self.add(d)?;
                }
            }
            other => return Err(unknown(other)),
        }
        Ok(())
    }

    fn write(&self, piece: &str, out: &mut Vec<u8>) -> Result<()> {
        if self.byte_level {
            let start = out.len();
            for c in piece.chars() {
                if let Some(&byte) = CHAR_BYTES.get(&c) {
                    out.push(byte);
                } else {
                    out.truncate(start);
                    out.extend_from_slice(piece.as_bytes());
                    return Ok(());
                }
            }
        } else if let Some(byte) = self.byte_tokens.then(|| byte_of(piece)).flatten() {
            out.push(byte);
        } else {
            let mut text = std::borrow::Cow::Borrowed(piece);
            for (from, to) in &self.replace {
                let places = text.matches(from.as_str()).count();
                if text.len().saturating_add(places.saturating_mul(to.len())) > MAX_TOKEN_BYTES {
                    return Err(Error::input(format!("a token stands for more than {MAX_TOKEN_BYTES} bytes of text")));
                }
                if places > 0 {
                    text = text.replace(from.as_str(), to).into();
                }
            }
            out.extend_from_slice(text.as_bytes());
        }
        Ok(())
    }
}

fn unknown(decoder: &str) -> Error {
    Error::input(format!("the decoder `{decoder}` is not known"))
        .hint("known are ByteLevel, ByteFallback, Metaspace, Replace, Strip, Fuse and Sequence")
}

/// The byte that a token `<0xXX>` stands for.
pub(crate) fn byte_of(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = Some(hex).filter(|h| h.len() == 2 && h.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u8::from_str_radix(hex, 16).ok()
}

/// GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for U+0100 and up, in order.
static CHAR_BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let shifted = (0..=255u8).filter(|&b| !printable(b)).zip('\u{100}'..).map(|(b, c)| (c, b));
    (0..=255u8).filter(|&b| printable(b)).map(|b| (char::from(b), b)).chain(shifted).collect()
});

/// What a token is, as far as decoding cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A piece of the model's vocabulary.
    Piece(String),
    /// A token added beside the model, written as it reads.
    Added(String),
    /// A control token: no text.
    Control,
}

impl Pieces {
    /// Lays out the bytes of every token; ids without a token have none.
    ///
    /// Of several tokens with one id the last counts.
    pub(crate) fn new(mut tokens: Vec<(u32, Token)>, spelling: &Spelling) -> Result<Self> {
        let count = tokens.iter().map(|(id, _)| *id as usize + 1).max().unwrap_or(0);
        if count > MAX_ID as usize {
            return Err(Error::input(format!("a token has the id {}, but ids go up to {MAX_ID}", count - 1)));
        }
        tokens.sort_by_key(|(id, _)| *id);
        let mut tokens = tokens.into_iter().peekable();
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(count);
        for id in 0..count as u32 {
            let mut token = None;
            while let Some((_, next)) = tokens.next_if(|(of, _)| *of == id) {
                token = Some(next);
            }
            match token {
                Some(Token::Piece(piece)) => spelling.write(&piece, &mut bytes)?,
                Some(Token::Added(text)) if spelling.byte_level => bytes.extend_from_slice(text.as_bytes()),
                Some(Token::Added(text)) => spelling.write(&text, &mut bytes)?,
                Some(Token::Control) | None => {}
            }
            if bytes.len() > MAX_BYTES {
                return Err(Error::input(format!(
                    "the tokens of the vocabulary are more than {MAX_BYTES} bytes of text"
                )));
            }
            ends.push(bytes.len() as u32);
        }
        Ok(Self { bytes, ends, prefix_spaces: spelling.prefix_spaces })
    }

    /// The bytes of a token; none for a control token or an id beyond the vocabulary.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        let Some(&end) = self.ends.get(id as usize) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id as usize - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// The first bytes of a text without the spaces that the tokenizer put before it.
    pub(crate) fn without_prefix_space<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let spaces = bytes.iter().take(self.prefix_spaces).take_while(|&&b| b == b' ').count();
        &bytes[spaces..]
    }

    /// One more than the highest id.
    pub(crate) fn count(&self) -> usize {
        self.ends.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_256_letters() {
        assert_eq!(CHAR_BYTES.len(), 256);
        for (c, b) in [('Ġ', b' '), ('Ċ', b'\n'), ('A', b'A'), ('é', 0xE9), ('Ń', 0xAD)] {
            assert_eq!(CHAR_BYTES[&c], b);
        }
    }

    #[test]
    fn byte_tokens_are_exact() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        for other in ["<0x0A", "<0x+A>", "<0xAAA>", "0x0A>", "<0x0g>"] {
            assert_eq!(byte_of(other), None);
        }
    }

    #[test]
    fn bytes_by_spelling() {
        let tokens = vec![
            (0, Token::Piece("Ġé".to_owned())),
            (2, Token::Added("a b".to_owned())),
            (3, Token::Control),
            (4, Token::Piece("▁x".to_owned())),
            (5, Token::Piece("<0x41>".to_owned())),
        ];
        let gpt2 = Spelling { byte_level: true, ..Spelling::default() };
        let p = Pieces::new(tokens.clone(), &gpt2).unwrap();
        let all: Vec<&[u8]> = (0..7).map(|id| p.bytes(id)).collect();
        assert_eq!(all, [&b" \xe9"[..], b"", b"a b", b"", "▁x".as_bytes(), b"<0x41>", b""]);
        let p = Pieces::new(tokens, &Spelling::sentencepiece(true)).unwrap();
        assert_eq!((p.bytes(4), p.bytes(5)), (&b" x"[..], &b"A"[..]));
        assert_eq!(p.without_prefix_space(b"  a"), b" a");
    }

    #[test]
    fn replacements_make_no_token_longer_than_a_bound() {
        let double = serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let decoder = serde_json::json!({"type": "Sequence", "decoders": vec![double; 60]});
        let spelling = Spelling::from_decoder(&decoder).unwrap();
        let e = Pieces::new(vec![(0, Token::Piece("a".to_owned()))], &spelling).unwrap_err().to_string();
        assert_eq!(e, "a token stands for more than 1048576 bytes of text");
        let long = serde_json::json!({"type": "Replace", "pattern": {"String": "a"}, "content": "b".repeat(1 << 19)});
        let spelling = Spelling::from_decoder(&long).unwrap();
        let tokens = |n: u32| (0..n).map(|id| (id, Token::Piece("a".to_owned()))).collect();
        assert_eq!(Pieces::new(tokens(3), &spelling).unwrap().bytes(2).len(), 1 << 19);
        let e = Pieces::new(tokens(1000), &spelling).unwrap_err().to_string();
        assert_eq!(e, "the tokens of the vocabulary are more than 268435456 bytes of text");
    }

    #[test]
    fn the_last_token_of_an_id_counts() {
        let tokens = vec![(1, Token::Piece("a".to_owned())), (0, Token::Control), (1, Token::Added("b".to_owned()))];
        assert_eq!(Pieces::new(tokens, &Spelling::default()).unwrap().bytes(1), b"b");
    }

    #[test]
    fn a_decoder_that_needs_neighbours_is_refused() {
        let e = Spelling::from_decoder(&serde_json::json!({"type": "WordPiece", "prefix": "##"})).unwrap_err();
        assert!(e.to_string().contains("`WordPiece`"));
        assert!(Pieces::new(vec![(u32::MAX, Token::Control)], &Spelling::default()).is_err());
    }
}
