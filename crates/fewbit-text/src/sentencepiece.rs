use fewbit_format::{Error, Result};

use crate::gguf::GgufVocabulary;
use crate::settings::Settings;

/// Most pieces that a file may hold.
const MAX_PIECES: usize = 1 << 22;

/// Reads a SentencePiece `tokenizer.model` into the vocabulary that a GGUF file would hold of it.
///
/// The file is a protobuf message `ModelProto`: pieces (1), trainer (2) and normalizer (3) settings.
///
/// # Errors
/// A file that is cut short, holds a model other than BPE, or normalizes text in ways that are not done here.
pub(crate) fn read(bytes: &[u8], settings: &Settings) -> Result<GgufVocabulary> {
    read_model(bytes, settings).map_err(|e| e.hint("save the tokenizer as `tokenizer.json` with its own library"))
}

fn read_model(bytes: &[u8], settings: &Settings) -> Result<GgufVocabulary> {
    let mut v = GgufVocabulary { model: "llama".to_owned(), ..GgufVocabulary::default() };
    let mut trainer = Trainer::default();
    let mut normalizer = Normalizer { adds_space_prefix: true, removes_spaces: true, has_table: false };
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(piece)) => read_piece(piece, &mut v)?,
            (2, Field::Bytes(spec)) => trainer.read(spec)?,
            (3, Field::Bytes(spec)) => normalizer.read(spec)?,
            _ => {}
        }
    }
    if v.tokens.is_empty() {
        return Err(Error::input("holds no pieces"));
    }
    if trainer.kind != BPE {
        return Err(Error::input(format!("holds a model of kind {}, and only BPE (2) is read", trainer.kind)));
    }
    if normalizer.has_table || normalizer.removes_spaces {
        return Err(Error::input(
            "normalizes the text (a table of characters, or runs of spaces), which is not done here",
        ));
    }
    v.add_space_prefix = Some(normalizer.adds_space_prefix);
    let id = |id: i64| u32::try_from(id).ok().filter(|&id| (id as usize) < v.tokens.len());
    (v.unk, v.bos, v.eos, v.pad) = (id(trainer.unk), id(trainer.bos), id(trainer.eos), id(trainer.pad));
    apply(settings, &mut v)?;
    Ok(v)
}

/// Adds the tokens of the settings and takes their word for BOS and EOS.
fn apply(settings: &Settings, v: &mut GgufVocabulary) -> Result<()> {
    let mut added = settings.added_tokens.clone();
    added.sort_unstable();
    for (id, text, special) in added {
        let kind = if special { 3 } else { 4 };
        match v.tokens.len().cmp(&(id as usize)) {
            std::cmp::Ordering::Equal => {
                v.tokens.push(text);
                v.scores.push(0.0);
                v.types.push(kind);
            }
            // The unknown token keeps its kind, which stands for more than "control".
            std::cmp::Ordering::Greater if v.tokens[id as usize] == text && v.types[id as usize] != 2 => {
                v.types[id as usize] = kind;
            }
            std::cmp::Ordering::Greater => {}
            std::cmp::Ordering::Less => {
                return Err(Error::input(format!(
                    "has {} pieces, but the added token `{text}` has the id {id}",
                    v.tokens.len()
                )));
            }
        }
    }
    let id =
        |token: &Option<String>| token.as_ref().and_then(|t| v.tokens.iter().position(|p| p == t)).map(|i| i as u32);
    v.bos = id(&settings.bos_token).or(v.bos);
    v.eos = id(&settings.eos_token).or(v.eos);
    (v.add_bos, v.add_eos) = (settings.add_bos, settings.add_eos);
    Ok(())
}

fn read_piece(bytes: &[u8], v: &mut GgufVocabulary) -> Result<()> {
    if v.tokens.len() == MAX_PIECES {
        return Err(Error::input(format!("holds more than {MAX_PIECES} pieces")));
    }
    let (mut text, mut score, mut kind) = ("", 0.0, 1);
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(b)) => {
                text = std::str::from_utf8(b)
                    .map_err(|_| Error::input(format!("piece {} is not UTF-8", v.tokens.len())))?;
            }
            (2, Field::Fixed32(bits)) => score = f32::from_bits(bits),
            (3, Field::Varint(n)) => kind = i32::try_from(n).unwrap_or(0),
            _ => {}
        }
    }
    v.tokens.push(text.to_owned());
    v.scores.push(score);
    v.types.push(kind);
    Ok(())
}

const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

struct Trainer {
    kind: u64,
    unk: i64,
    bos: i64,
    eos: i64,
    pad: i64,
}

impl Default for Trainer {
    fn default() -> Self {
        Self { kind: UNIGRAM, unk: 0, bos: 1, eos: 2, pad: -1 }
    }
}

impl Trainer {
    fn read(&mut self, bytes: &[u8]) -> Result<()> {
        for field in Fields(bytes) {
            match field? {
                (3, Field::Varint(n)) => self.kind = n,
                (40, Field::Varint(n)) => self.unk = n as i64,
                (41, Field::Varint(n)) => self.bos = n as i64,
                (42, Field::Varint(n)) => self.eos = n as i64,
                (43, Field::Varint(n)) => self.pad = n as i64,
                _ => {}
            }
        }
        Ok(())
    }
}

struct Normalizer {
    adds_space_prefix: bool,
    removes_spaces: bool,
    has_table: bool,
}

impl Normalizer {
    fn read(&mut self, bytes: &[u8]) -> Result<()> {
        for field in Fields(bytes) {
            match field? {
                (2, Field::Bytes(table)) => self.has_table = !table.is_empty(),
                (3, Field::Varint(n)) => self.adds_space_prefix = n != 0,
                (4, Field::Varint(n)) => self.removes_spaces = n != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

/// One field of a protobuf message.
enum Field<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
    Fixed64,
}

/// The fields of a protobuf message with their numbers, in file order; ends after the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for i in 0..10 {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7F).checked_shl(7 * i)?;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, len: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => self.take(8).map(|_| Field::Fixed64)?,
            2 => {
                let len = self.varint()?;
                Field::Bytes(self.take(len)?)
            }
            5 => Field::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| Error::input("is cut short or is no SentencePiece model")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
    }

    fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
        let inner =
            [bytes_field(1, text.as_bytes()), vec![2 << 3 | 5], score.to_le_bytes().to_vec(), vec![3 << 3, kind]];
        bytes_field(1, &inner.concat())
    }

    fn model() -> Vec<u8> {
        let pieces =
            [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("▁", -1.0, 1), ("a", -2.0, 1), ("▁a", -0.5, 1)];
        let mut out: Vec<u8> = pieces.iter().flat_map(|(t, s, k)| piece(t, *s, *k)).collect();
        // BPE; no padding token: -1 takes ten bytes.
        out.extend(bytes_field(2, &[3 << 3, 2, 0xD8, 2, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1]));
        out.extend(bytes_field(3, &[3 << 3, 1, 4 << 3, 0]));
        out
    }

    #[test]
    fn pieces_and_settings_are_read() {
        let settings = Settings { added_tokens: vec![(6, "<pad>".to_owned(), true)], ..Settings::default() };
        let v = read(&model(), &settings).unwrap();
        assert_eq!(v.tokens, ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "<pad>"]);
        assert_eq!((v.scores[5], v.types[2], v.types[6]), (-0.5, 3, 3));
        assert_eq!((v.unk, v.bos, v.eos, v.pad), (Some(0), Some(1), Some(2), None));
        assert_eq!(v.add_space_prefix, Some(true));
        let t = v.into_tokenizer().unwrap();
        assert_eq!(t.encode("a a", crate::Special::PlainWithBos).unwrap(), [1, 5, 5]);
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_an_error_or_a_vocabulary() {
        let whole = model();
        for n in 0..whole.len() {
            let _ = read(&whole[..n], &Settings::default()).and_then(GgufVocabulary::into_tokenizer);
            for byte in [0, 0x7F, 0x80, 0xFF] {
                let mut changed = whole.clone();
                changed[n] = byte;
                let _ = read(&changed, &Settings::default()).and_then(GgufVocabulary::into_tokenizer);
            }
        }
        let e = read(&whole[..whole.len() - 1], &Settings::default()).unwrap_err().to_string();
        assert!(e.starts_with("is cut short"), "{e}");
    }

    #[test]
    fn a_gap_before_an_added_token_is_refused() {
        let settings = Settings { added_tokens: vec![(9, "<x>".to_owned(), true)], ..Settings::default() };
        assert!(read(&model(), &settings).unwrap_err().to_string().contains("`<x>` has the id 9"));
    }
}
