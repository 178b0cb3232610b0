use fewbit_graph::{Config, Container, Residual, architecture_of, sites};
use fewbit_store::{Checkpoint, ModelFile};
use serde_json::{Map, Value};

use crate::Listing;

/// Blocks of a model that is built without tensors; with tensors the readers hold the number against theirs.
const MOST_LAYERS: usize = 16;

/// A folder: the text of `config.json`, a listing of tensors, their bytes.
pub fn model(data: &[u8]) {
    let Some(([config, lines], data)) = crate::texts(data) else { return };
    if let Ok(map) = serde_json::from_str::<Map<String, Value>>(config) {
        graphs(&map);
    }
    let Some(listing) = Listing::read(lines.lines(), data) else { return };
    let file = listing.safetensors();
    let folder = crate::files::write(&[("config.json", config.as_bytes()), ("model.safetensors", &file)]);
    if let Ok(checkpoint) = Checkpoint::open(&folder) {
        open(checkpoint);
    }
}

/// The graphs that a configuration describes, and what is derived from them.
fn graphs(map: &Map<String, Value>) {
    let Ok(architecture) = architecture_of(map) else { return };
    let config = Config::new(map);
    if !config.layers().is_ok_and(|n| n <= MOST_LAYERS) {
        return;
    }
    let Ok(model) = architecture.model(&config) else { return };
    let _ = (model.parameters(), model.learned_positions());
    for (part, graph) in model.parts() {
        let names = graph.weights.iter().map(|w| &*w.name).chain(graph.vectors.iter().map(|v| v.name));
        for name in names {
            for container in [Container::HuggingFace, Container::Gguf] {
                let _ = architecture.source(container, &config, part, name);
            }
        }
        let _ = (sites(graph), Residual::of(graph, part), graph.cached());
    }
    let mut long = model.clone();
    long.reach(usize::MAX);
    for rope in model.ropes.iter().chain(&long.ropes) {
        let pairs = rope.inverse_frequency.len();
        rope.fill(1, &mut vec![0.0; pairs], &mut vec![0.0; pairs]);
    }
}

/// A checkpoint as a model: each linear is read, decoded and multiplied with.
pub(crate) fn open(checkpoint: Checkpoint) {
    let Ok(file) = ModelFile::of(checkpoint) else { return };
    let _ = (file.notes(), file.is_tied(), file.is_quantized(), file.dtype(), file.check_finite());
    for (part, graph) in file.model().parts() {
        for w in 0..graph.weights.len() {
            if let Ok(linear) = file.linear(part, w) {
                assert_eq!(linear.shape, graph.weights[w].shape);
                crate::run::run(linear);
            }
        }
        let _ = file.part(part);
        file.drop_pages(part);
    }
}
