//! Models of the Hugging Face hub: what a name means, which files are needed, downloads that go on where they ended,
//! and the cache that they lie in.
//!
//! The cache has the layout, and the variables have the meaning, that other programs give them: what one of them has
//! downloaded is not downloaded again. Names that a repository or an index gives are never trusted.

mod cache;
mod choice;
mod client;
mod download;
mod fetch;
mod name;
mod patience;
mod refusal;
mod settings;
mod stored;
mod untrusted;

pub use fetch::fetch;
pub use name::ModelName;
pub use settings::{Settings, Token};
pub use stored::{Stored, disk_bytes, list, remove};

/// What a download says while it goes on.
pub trait Listener {
    /// Files of so many bytes are to come.
    fn begin(&mut self, bytes: u64);
    /// So many of them are there; `file` is coming now.
    fn at(&mut self, bytes: u64, file: &str);
    /// Something that people should know.
    fn note(&mut self, text: &str);
}

/// A number of bytes for people, such as `1.3 GB`.
pub fn size_text(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}
