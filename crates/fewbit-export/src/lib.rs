//! What a finished model is written as, beside the tensors of its linears: GGUF files, and the configuration, the
//! tokenizer's files and the card of a Hugging Face folder.

mod card;
mod config;
mod facts;
mod gguf;
mod runtimes;
mod sidecars;
mod source;
mod table;
mod verify;

pub use card::{CardInfo, card};
pub use config::config;
pub use gguf::{GgufMix, GgufReport, MixModel, MixTensor, can_hold_gguf, write_gguf};
pub use runtimes::{LoadedBy, Obstacle, obstacles};
pub use sidecars::sidecars;
pub use source::check_source;
pub use table::{EvalRow, add_row};
pub use verify::{mixed_schemes, verify_folder};
