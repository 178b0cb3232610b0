use std::fs::File;

use fewbit_runtime::language;
use fewbit_store::Checkpoint;

use crate::{model, safetensors, tokenizer};

/// The longest file that is looked at.
const MOST_BYTES: usize = 1 << 20;
/// Zeros behind a header that describes tensors, so that inputs hold headers alone.
const MOST_TENSOR_BYTES: u64 = 1 << 20;

/// A GGUF file (zeros stand for tensors that it lacks): header, tensors, the configuration made of its keys, the model,
/// the tokenizer, the chat template.
pub fn gguf(data: &[u8]) {
    if data.len() > MOST_BYTES {
        return;
    }
    let path = crate::files::write(&[("m.gguf", data)]).join("m.gguf");
    let checkpoint = Checkpoint::open(&path).or_else(|_| {
        let file = File::options().write(true).open(&path).expect("the file is ours");
        file.set_len(data.len() as u64 + MOST_TENSOR_BYTES).expect("a temporary file can be written");
        Checkpoint::open(&path)
    });
    let Ok(checkpoint) = checkpoint else { return };
    safetensors::look(&checkpoint);
    if let Ok(tokenizer) = language::tokenizer_of(&checkpoint) {
        tokenizer::use_up(&tokenizer);
        let _ = language::chat_template_of(&checkpoint, &tokenizer);
        let _ = language::end_ids(&checkpoint, Some(&tokenizer));
    }
    let _ = language::sampling_of(&checkpoint);
    model::open(checkpoint);
}
