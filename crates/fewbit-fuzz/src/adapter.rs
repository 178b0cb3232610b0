use std::path::Path;

use fewbit_graph::Part;
use fewbit_store::{LoraAdapter, ModelFile};

use crate::Listing;

/// An adapter beside the tiny Llama of `tests/families`: a GGUF file, or the text of `adapter_config.json`, a listing of tensors,
/// their bytes.
pub fn adapter(data: &[u8]) {
    let folder = if data.starts_with(b"GGUF") {
        crate::files::write(&[("a.gguf", data)])
    } else {
        let Some(([config, lines], data)) = crate::texts(data) else { return };
        let Some(listing) = Listing::read(lines.lines(), data) else { return };
        let weights = listing.safetensors();
        crate::files::write(&[("adapter_config.json", config.as_bytes()), ("adapter_model.safetensors", &weights)])
    };
    let Ok(adapter) = LoraAdapter::open(&folder) else { return };
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/families/llama");
    let mut file = ModelFile::open(&model).expect("the model is part of the repository");
    if file.attach(&adapter, 1.0).is_err() {
        return;
    }
    for part in [Part::Embed, Part::Block(0), Part::Head] {
        for weight in 0..file.model().part(part).weights.len() {
            crate::run::run(file.linear(part, weight).expect("the model is sound"));
        }
    }
}
