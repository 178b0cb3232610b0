use std::collections::BTreeSet;
use std::path::Path;

use fewbit_format::{Error, Result};
use fewbit_graph::Part;
use fewbit_store::ModelFile;

/// What a checkpoint stores for its weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bits {
    /// Of the quantized linears, everything stored ÷ their weights; of a model without any, the same of all linears of
    /// the blocks.
    pub linears: f64,
    /// Of the whole model, the bits of all tensors ÷ parameters; a matrix that serves as embedding and head counts once.
    pub model: f64,
    /// Bytes of the files with the tensors.
    pub size_bytes: u64,
}

/// Counts what a checkpoint stores, from its layout.
///
/// # Errors
/// If a tensor cannot be read.
pub fn bits_per_weight(file: &ModelFile) -> Result<Bits> {
    let checkpoint = file.checkpoint();
    let files: BTreeSet<&Path> = checkpoint.names().filter_map(|n| checkpoint.file_of(n)).collect();
    let mut size_bytes = 0;
    for path in files {
        size_bytes += path.metadata().map_err(|e| Error::io("opening", path, &e))?.len();
    }
    let stored = 8 * (checkpoint.size_bytes() - copy_bytes(file)?);
    Ok(Bits { linears: linears(file)?, model: stored as f64 / file.model().parameters() as f64, size_bytes })
}

/// Bytes of a head that lies in the file although the embedding serves as head.
fn copy_bytes(file: &ModelFile) -> Result<u64> {
    let used = file.module(Part::Embed, 0);
    let others =
        [file.exported(Part::Embed, file.model().embed.weights[0].name)?, file.exported(Part::Head, "lm_head")?];
    let copy = others.into_iter().map(|s| s.name).find(|n| *n != used);
    match copy.map(|n| format!("{n}.weight")) {
        Some(name) if file.is_tied() && file.checkpoint().contains(&name) => {
            Ok(file.checkpoint().raw_bytes(&name)?.len() as u64)
        }
        _ => Ok(0),
    }
}

fn linears(file: &ModelFile) -> Result<f64> {
    let [mut quantized, mut plain] = [(0u64, 0u64); 2];
    for (part, graph) in file.model().parts() {
        // An embedding is no linear, nor is a head that is the embedding.
        if part == Part::Embed || (part == Part::Head && file.is_tied()) {
            continue;
        }
        for w in 0..graph.weights.len() {
            let linear = file.linear(part, w)?;
            let sum = if !linear.is_dense() {
                &mut quantized
            } else if part == Part::Head {
                continue;
            } else {
                &mut plain
            };
            sum.0 += linear.stored_bits();
            sum.1 += (linear.shape[0] * linear.shape[1]) as u64;
        }
        file.drop_pages(part);
    }
    let (bits, weights) = if quantized.1 > 0 { quantized } else { plain };
    Ok(bits as f64 / weights.max(1) as f64)
}
