use fewbit_format::{Error, Result};
use fewbit_graph::Container;
use fewbit_store::ModelFile;
use serde_json::{Map, Value, json};

/// The `config.json` of a written folder: the source's, with what is stored now.
///
/// `quantization_config` is set or removed, `tie_word_embeddings` says whether one matrix serves as embedding and head.
///
/// # Errors
/// If a GGUF source has factors of the rotation's frequencies that transformers has no rule for.
pub fn config(file: &ModelFile, quantization_config: Option<Value>, is_tied: bool) -> Result<Map<String, Value>> {
    let mut config = file.checkpoint().config().clone();
    for key in ["quantization_config", "compression_config"] {
        config.shift_remove(key);
    }
    if let Some(quantization) = quantization_config {
        config.insert("quantization_config".into(), quantization);
    }
    config.insert("tie_word_embeddings".into(), json!(is_tied));
    // Blocks that predict further tokens are not written.
    if config.contains_key("num_nextn_predict_layers") {
        config.insert("num_nextn_predict_layers".into(), json!(0));
    }
    if file.checkpoint().container() == Container::Gguf {
        if config.contains_key("rope_freq_factors") {
            return Err(Error::input("the factors of its rotation's frequencies (`rope_freqs.weight`) are not those of the llama3 rule, and config.json can name no other")
                .hint("use the model's Hugging Face folder")
                .file(file.checkpoint().path()));
        }
        // Blocks of ggml decode to numbers that f16 and bf16 do not hold exactly.
        config.insert("torch_dtype".into(), json!("float32"));
    }
    Ok(config)
}
