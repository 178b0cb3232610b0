//! Text to token ids and back: tokenizers, streaming detokenisation, stop strings, chat templates.
//!
//! A [`Tokenizer`] is read from a `tokenizer.json`, from the vocabulary of a GGUF file, or from a SentencePiece
//! `tokenizer.model`; whatever the source, it gives the ids that the source's own runtime gives, and can be written
//! as a `tokenizer.json` that gives them too.

mod clock;
mod doubts;
mod gguf;
mod growth;
mod pieces;
mod pre;
mod python;
mod round_trip;
mod scores;
mod sentencepiece;
mod settings;
mod stop;
mod stream;
mod template;
mod to_gguf;
mod tokenizer;

pub use gguf::GgufVocabulary;
pub use round_trip::check_round_trip;
pub use settings::Settings;
pub use stop::{StopStrings, Stopped};
pub use stream::Stream;
pub use template::{ChatTemplate, Message};
pub use tokenizer::{Special, Tokenizer};
