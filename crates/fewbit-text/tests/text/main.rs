//! Tokenizers against the ids and texts of other programs.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its material fails")]
#![expect(clippy::print_stdout, reason = "tests say what they skip and how long they take")]

mod folders;
mod gguf_vocabularies;
mod material;
