use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result, hex};
use fewbit_runtime::{check_ids, language};
use fewbit_store::{Checkpoint, ModelFile};
use fewbit_text::{Special, Tokenizer};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Where calibration text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CalibrationSource {
    /// Files: plain text, or `.jsonl` with `text` or `messages` in each line.
    Files(Vec<PathBuf>),
    /// The text that comes with the program.
    Bundled(&'static str),
    /// Sampled from the model itself.
    Own,
}

impl CalibrationSource {
    /// Bytes of text that are read; a file that cannot be read counts when it is.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Files(files) => files.iter().filter_map(|f| f.metadata().ok()).map(|m| m.len()).sum(),
            Self::Bundled(text) => text.len() as u64,
            Self::Own => 0,
        }
    }
}

/// Token sequences, all of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calibration {
    /// `samples` sequences of `length` ids, one after the other.
    pub ids: Vec<u32>,
    /// Sequences.
    pub samples: usize,
    /// Ids of a sequence, BOS included.
    pub length: usize,
    /// SHA-256 of the ids.
    pub hash: String,
}

impl Calibration {
    /// Takes sequences of `length` ids.
    pub fn new(ids: Vec<u32>, length: usize) -> Self {
        let mut hash = Sha256::new();
        ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        let hash = hex(&hash.finalize());
        Self { samples: ids.len() / length, ids, length, hash }
    }

    /// Each sequence `times` times, its ids shifted cyclically by equal parts of its length.
    pub(crate) fn shifted(self, times: usize) -> Self {
        if times == 1 {
            return self;
        }
        let mut ids = Vec::with_capacity(self.ids.len() * times);
        for sequence in self.ids.chunks_exact(self.length) {
            for part in 0..times {
                let (head, tail) = sequence.split_at(part * self.length / times);
                ids.extend_from_slice(tail);
                ids.extend_from_slice(head);
            }
        }
        Self::new(ids, self.length)
    }

    /// The first `samples` consecutive blocks of a text: `length − 1` ids each behind BOS, or `length` ids where the
    /// model's own rule adds no BOS.
    ///
    /// # Errors
    /// If a file cannot be read, is empty or not UTF-8, there is not one whole sequence, or an id has no row in the
    /// embedding.
    pub fn of_text(
        source: &CalibrationSource,
        model: &ModelFile,
        tokenizer: &Tokenizer,
        samples: usize,
        length: usize,
    ) -> Result<Self> {
        let text = match source {
            CalibrationSource::Bundled(text) => tokenizer.encode(text, Special::Plain)?,
            CalibrationSource::Files(files) => {
                let mut ids = Vec::new();
                for file in files {
                    ids.extend(file_ids(file, model.checkpoint(), tokenizer)?);
                }
                ids
            }
            CalibrationSource::Own => return Err(Error::internal("text of the model's own is sampled, not read")),
        };
        let place = |e: Error| match source {
            CalibrationSource::Files(files) if files.len() == 1 => e.file(&files[0]),
            _ => e,
        };
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let per_sample = length - usize::from(bos.is_some());
        if per_sample == 0 || text.len() < per_sample {
            let fits = text.len() + usize::from(bos.is_some());
            return Err(place(
                Error::input(format!(
                    "the calibration text has {} tokens, fewer than one sequence of {length} needs",
                    text.len()
                ))
                .hint(if text.is_empty() {
                    "give a longer text".to_owned()
                } else {
                    format!("give a longer text, or `--length {fits}`")
                }),
            ));
        }
        let mut ids = Vec::new();
        for block in text.chunks_exact(per_sample).take(samples) {
            ids.extend(bos);
            ids.extend_from_slice(block);
        }
        check_ids(&ids, model.model().vocabulary).map_err(|e| place(e.place("the calibration text")))?;
        Ok(Self::new(ids, length))
    }
}

fn file_ids(file: &Path, checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let bytes = std::fs::read(file).map_err(|e| Error::io("reading", file, &e))?;
    ids_of(bytes, file.extension().is_some_and(|e| e == "jsonl"), checkpoint, tokenizer).map_err(|e| e.file(file))
}

/// What a line of a `.jsonl` file is.
const LINE: &str = "each line is an object with `text`, or with `messages`";

fn ids_of(bytes: Vec<u8>, is_lines: bool, checkpoint: &Checkpoint, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::input(format!("is not UTF-8: byte 0x{:02X} at offset {at}", e.as_bytes()[at]))
            .hint("convert it, for example with `iconv -f latin1 -t utf-8`")
    })?;
    if text.trim().is_empty() {
        return Err(Error::input("is empty: 0 tokens").hint("give a file with text"));
    }
    if !is_lines {
        return tokenizer.encode(&text, Special::Plain);
    }
    let mut ids = Vec::new();
    let mut template = None;
    for (n, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let place = |e: Error| e.place(format!("line {}", n + 1));
        let v: Value =
            serde_json::from_str(line).map_err(|e| place(Error::input(format!("is not JSON ({e})")).hint(LINE)))?;
        if let Some(text) = v.get("text").and_then(Value::as_str) {
            ids.extend(tokenizer.encode(text, Special::Plain)?);
        } else if let Some(messages) = v.get("messages").and_then(Value::as_array) {
            if template.is_none() {
                template = Some(language::chat_template_of(checkpoint, tokenizer)?);
            }
            if let Some(t) = &template {
                let text = t.render_messages(messages.clone().into(), false, serde_json::Map::new()).map_err(place)?;
                ids.extend(tokenizer.encode(&text, Special::Parsed)?);
            }
        } else {
            return Err(place(Error::input("has neither `text` nor `messages`").hint(LINE)));
        }
    }
    Ok(ids)
}
