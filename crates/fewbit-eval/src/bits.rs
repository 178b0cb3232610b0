use std::collections::BTreeSet;

use fewbit_format::Result;
use fewbit_graph::{Container, Part, WeightId};
use fewbit_store::{Elements, ModelFile, layout};

/// What a checkpoint stores for its weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bits {
    /// Of the quantized linears, everything stored ÷ their weights; of a model without any, the same of all linears of
    /// the blocks.
    pub linears: f64,
    /// Of the whole model, the bits of all tensors ÷ parameters; a matrix that serves as embedding and head counts once.
    pub model: f64,
    /// Bytes of all tensors.
    pub size_bytes: u64,
}

/// Counts what a checkpoint stores, from the tensors as they lie there; reads none of them.
///
/// # Errors
/// If a tensor of the model is not there.
pub fn bits_per_weight(file: &ModelFile) -> Result<Bits> {
    let size_bytes = file.checkpoint().size_bytes();
    let stored = 8 * (size_bytes - unused_head_bytes(file)?);
    let model = stored as f64 / file.model().parameters().max(1) as f64;
    Ok(Bits { linears: linears(file)?, model, size_bytes })
}

/// Bytes of a second matrix that lies in the file although one serves as embedding and head.
fn unused_head_bytes(file: &ModelFile) -> Result<u64> {
    let used = file.module(Part::Embed, 0);
    let container = file.checkpoint().container();
    let name_of = |part, name: &str| match container {
        Container::HuggingFace => file.exported(part, name).ok().map(|s| s.name),
        Container::Gguf => file.exported_gguf(part, name).map(|s| s.name),
    };
    let names = [name_of(Part::Embed, &file.model().embed.weights[0].name), name_of(Part::Head, "lm_head")];
    let other = names.into_iter().flatten().find(|n| *n != used).map(|n| format!("{n}.weight"));
    match other {
        Some(name) if file.is_tied() && file.checkpoint().contains(&name) => {
            Ok(file.checkpoint().raw_bytes(&name)?.len() as u64)
        }
        _ => Ok(0),
    }
}

/// Stored tensors of some linears, and their weights. Several linears may be views of one tensor.
#[derive(Default)]
struct Sum {
    tensors: BTreeSet<String>,
    weights: u64,
}

fn linears(file: &ModelFile) -> Result<f64> {
    let (mut quantized, mut plain) = (Sum::default(), Sum::default());
    for (part, graph) in file.model().parts() {
        // An embedding is no linear, nor is a head that is the embedding.
        if part == Part::Embed || (part == Part::Head && file.is_tied()) {
            continue;
        }
        for (w, weight) in graph.weights.iter().enumerate() {
            let (tensors, is_quantized) = stored(file, part, w);
            if !is_quantized && part == Part::Head {
                continue;
            }
            let sum = if is_quantized { &mut quantized } else { &mut plain };
            sum.tensors.extend(tensors);
            sum.weights += (weight.shape[0] * weight.shape[1]) as u64;
        }
    }
    let of = if quantized.weights > 0 { quantized } else { plain };
    let mut bytes = 0;
    for name in &of.tensors {
        bytes += file.checkpoint().raw_bytes(name)?.len();
    }
    Ok(8.0 * bytes as f64 / of.weights.max(1) as f64)
}

/// The tensors whose bytes are a linear's bits; several linears may lie in one.
pub fn stored_tensors(file: &ModelFile, part: Part, weight: WeightId) -> Vec<String> {
    stored(file, part, weight).0
}

/// The tensors that hold a weight, and whether it is quantized.
fn stored(file: &ModelFile, part: Part, weight: WeightId) -> (Vec<String>, bool) {
    if let Some(fused) = file.fused(part, weight) {
        return (vec![fused.tensor], file.is_weight_quantized(part, weight));
    }
    let (checkpoint, module) = (file.checkpoint(), &file.module(part, weight));
    let plain = format!("{module}.weight");
    match checkpoint.container() {
        Container::Gguf => {
            let is_plain = matches!(checkpoint.elements(&plain), Ok(Elements::Plain(_)));
            (vec![plain], !is_plain)
        }
        Container::HuggingFace if layout::is_quantized(file.quantization(), checkpoint, module) => {
            // The shape is no part of the weight, and known without.
            let is_part = |n: &String| checkpoint.contains(n) && !n.ends_with(".weight_shape");
            (layout::tensor_names(file.quantization(), module).into_iter().filter(is_part).collect(), true)
        }
        Container::HuggingFace => (vec![plain], false),
    }
}
