//! Checkpoints on disk: safetensors folders and GGUF files, read through maps, written aside and renamed.

mod adapter;
mod checkpoint;
mod elements;
pub mod experts;
mod finite;
mod gguf;
mod gguf_config;
mod huge_pages;
mod imatrix;
mod json;
pub mod layout;
mod mapped;
mod model_file;
mod place;
mod reading;
mod safetensors;
mod shards;
mod transposed;

pub use adapter::LoraAdapter;
pub use checkpoint::Checkpoint;
pub use elements::Elements;
pub use gguf::{Gguf, GgufTensor, GgufWriter, NumberType, Numbers, TensorPlan, Value};
pub use gguf_config::GgufFamily;
pub use huge_pages::HugePageWriter;
pub use imatrix::{ImportanceMatrix, Importances};
pub use model_file::{ModelFile, PartWeights};
pub use reading::read_file;
pub use safetensors::Safetensors;
pub use transposed::transposed;
