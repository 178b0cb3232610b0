//! Checkpoints on disk: safetensors folders and GGUF files, read through maps, written aside and renamed.

pub mod layout;
