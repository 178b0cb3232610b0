//! The parsers of files that strangers make, as functions of bytes.
//!
//! `fuzz/` calls each function with what libFuzzer makes up; `tests/replay.rs` calls it with what is kept in
//! `fuzz/corpus`. A parser may refuse its bytes. It may not panic, run on, or take memory out of proportion to them.

#[cfg(feature = "models")]
mod adapter;
#[cfg(feature = "models")]
mod blocks;
#[cfg(feature = "models")]
mod files;
#[cfg(feature = "models")]
mod gguf;
#[cfg(feature = "models")]
mod imatrix;
#[cfg(feature = "models")]
mod layouts;
#[cfg(feature = "models")]
mod listing;
#[cfg(feature = "models")]
mod model;
#[cfg(feature = "recipes")]
mod recipe;
#[cfg(feature = "models")]
mod run;
#[cfg(feature = "models")]
mod safetensors;
mod template;
mod tokenizer;
mod vocabulary;

#[cfg(feature = "models")]
pub use adapter::adapter;
#[cfg(feature = "models")]
pub use blocks::blocks;
#[cfg(feature = "models")]
pub use gguf::gguf;
#[cfg(feature = "models")]
pub use imatrix::imatrix;
#[cfg(feature = "models")]
pub use layouts::layouts;
#[cfg(feature = "models")]
pub use listing::Listing;
#[cfg(feature = "models")]
pub use model::model;
#[cfg(feature = "recipes")]
pub use recipe::recipe;
#[cfg(feature = "models")]
pub use safetensors::safetensors;
pub use template::template;
pub use tokenizer::tokenizer;
pub use vocabulary::vocabulary;

/// A function that gives bytes to a parser.
pub type Target = fn(&[u8]);

/// All of them, by the names of their folders in `fuzz/corpus`.
pub const TARGETS: &[(&str, Target)] = &[
    #[cfg(feature = "models")]
    ("adapter", adapter),
    #[cfg(feature = "models")]
    ("blocks", blocks),
    #[cfg(feature = "models")]
    ("gguf", gguf),
    #[cfg(feature = "models")]
    ("imatrix", imatrix),
    #[cfg(feature = "models")]
    ("layouts", layouts),
    #[cfg(feature = "models")]
    ("model", model),
    #[cfg(feature = "recipes")]
    ("recipe", recipe),
    #[cfg(feature = "models")]
    ("safetensors", safetensors),
    ("template", template),
    ("tokenizer", tokenizer),
    ("vocabulary", vocabulary),
];

/// `N` texts, each ended by a zero byte, and the bytes behind them.
fn texts<const N: usize>(data: &[u8]) -> Option<([&str; N], &[u8])> {
    let mut rest = data;
    let mut texts = [""; N];
    for text in &mut texts {
        let end = rest.iter().position(|b| *b == 0)?;
        *text = std::str::from_utf8(&rest[..end]).ok()?;
        rest = &rest[end + 1..];
    }
    Some((texts, rest))
}
