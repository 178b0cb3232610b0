use std::collections::BTreeSet;
use std::fmt::Write;

use clap::Args;
use fewbit_eval::{Bits, stored_tensors};
use fewbit_format::Result;
use fewbit_graph::{Container, Part, WeightId};
use fewbit_store::{Checkpoint, ModelFile, layout};
use serde_json::{Value, json};

use crate::loading;
use crate::session::Session;

mod outliers;

/// Show what a model consists of, without loading its weights
///
/// JSON: architecture, parameters, tensors (name, shape, dtype, bits), bits_per_weight (everything stored for the
/// linears of the blocks ÷ their weights), bits_per_weight_model, size_bytes, quantization, is_tied, layers, notes, unused
/// (tensors that the architecture does not know); with --outliers: outliers, not_finite (tensor, first, value: every
/// tensor that holds a NaN or an infinity).
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  fewbit inspect demo --outliers")]
pub(crate) struct Inspect {
    /// Folder, GGUF file, `owner/name` of the Hugging Face hub, or `demo`
    model: String,
    /// Read the weights, and show how heavy the tails of each matrix are, and which tensors hold numbers that are not finite
    #[arg(long)]
    outliers: bool,
}

/// A linear of a block, as it is stored.
struct Linear {
    name: String,
    shape: [usize; 2],
    format: String,
}

/// One block's linears.
struct Layer {
    linears: Vec<Linear>,
    stored_bits: u64,
    weights: u64,
}

impl Inspect {
    pub(crate) fn run(&self, session: &Session) -> Result<()> {
        let file = ModelFile::of(loading::checkpoint(session, &self.model)?)?;
        let layers = layers(&file);
        let damaged = if self.outliers { outliers::damaged(session, &file)? } else { Vec::new() };
        let outliers = if self.outliers { Some(outliers::of(session, &file)?) } else { None };
        let bits = fewbit_eval::bits_per_weight(&file)?;
        session.output.text(&text(&file, &layers, &bits))?;
        let mut object = object(&file, &layers, &bits);
        if let Some(outliers) = outliers {
            session.output.text(&outliers::table(&outliers))?;
            damaged.iter().try_for_each(|d| session.output.line(&d.line()))?;
            object["outliers"] = outliers.iter().map(outliers::Tails::object).collect();
            object["not_finite"] = damaged.iter().map(outliers::Damage::object).collect();
        }
        session.output.object(&object)
    }
}

fn layers(file: &ModelFile) -> Vec<Layer> {
    let blocks = file.model().parts().filter(|(part, _)| matches!(part, Part::Block(_)));
    blocks
        .map(|(part, graph)| {
            let linears: Vec<Linear> = (0..graph.weights.len())
                .map(|w| {
                    let format = format(file, part, w);
                    Linear { name: graph.weights[w].name.to_string(), shape: graph.weights[w].shape, format }
                })
                .collect();
            // Several weights may be views of one stored tensor.
            let names: BTreeSet<String> =
                (0..graph.weights.len()).flat_map(|w| stored_tensors(file, part, w)).collect();
            let stored_bits = names.into_iter().map(|name| 8 * bytes(file.checkpoint(), &name)).sum();
            let weights = linears.iter().map(|l| (l.shape[0] * l.shape[1]) as u64).sum();
            Layer { linears, stored_bits, weights }
        })
        .collect()
}

/// How a weight is stored, in a few words.
fn format(file: &ModelFile, part: Part, weight: WeightId) -> String {
    let (checkpoint, module) = (file.checkpoint(), &file.module(part, weight));
    if let Some(fused) = file.fused(part, weight) {
        return format!("{}, with all experts in one tensor", dtype(checkpoint, &fused.tensor));
    }
    let is_packed = checkpoint.container() == Container::HuggingFace
        && layout::is_quantized(file.quantization(), checkpoint, module);
    if is_packed {
        return file.quantization().words_of(module).unwrap_or_else(|| "quantized".to_owned());
    }
    dtype(checkpoint, &format!("{module}.weight")).to_owned()
}

fn dtype(checkpoint: &Checkpoint, tensor: &str) -> &'static str {
    checkpoint.elements(tensor).map_or("", fewbit_store::Elements::name)
}

fn bytes(checkpoint: &Checkpoint, tensor: &str) -> u64 {
    let shape = checkpoint.shape(tensor).unwrap_or_default();
    checkpoint.elements(tensor).ok().and_then(|e| e.tensor_bytes(&shape)).unwrap_or(0) as u64
}

fn architecture(checkpoint: &Checkpoint) -> &str {
    let config = checkpoint.config();
    let listed = config.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
    listed.or_else(|| config.get("model_type").and_then(Value::as_str)).unwrap_or("unknown")
}

/// `stored_bits ÷ weights` over layers.
fn bits_per_weight<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> f64 {
    let (bits, weights) = layers.into_iter().fold((0, 0), |(b, w), l| (b + l.stored_bits, w + l.weights));
    bits as f64 / weights.max(1) as f64
}

fn quantization(file: &ModelFile) -> Option<String> {
    if !file.is_quantized() {
        return None;
    }
    file.quantization().describe().or_else(|| {
        let names: BTreeSet<&str> = (file.checkpoint().names())
            .filter(|n| !matches!(file.checkpoint().elements(n), Ok(fewbit_store::Elements::Plain(_)) | Err(_)))
            .map(|n| dtype(file.checkpoint(), n))
            .collect();
        Some(format!("GGUF {}", names.into_iter().collect::<Vec<_>>().join(", ")))
    })
}

fn object(file: &ModelFile, layers: &[Layer], bits: &Bits) -> Value {
    let (checkpoint, model) = (file.checkpoint(), file.model());
    let tensor = |name: &str| {
        let elements = checkpoint.elements(name).ok()?;
        let bits = 8.0 * elements.block_bytes() as f64 / elements.block_len() as f64;
        Some(json!({ "name": name, "shape": checkpoint.shape(name).ok()?, "dtype": elements.name(), "bits": bits }))
    };
    let layer = |(i, layer): (usize, &Layer)| {
        let linear = |l: &Linear| json!({ "name": l.name, "shape": l.shape, "format": l.format });
        json!({
            "layer": i,
            "bits_per_weight": bits_per_weight([layer]),
            "linears": layer.linears.iter().map(linear).collect::<Vec<_>>(),
        })
    };
    json!({
        "architecture": architecture(checkpoint),
        "parameters": model.parameters(),
        "context": model.longest,
        "vocabulary": model.vocabulary,
        "hidden": model.hidden,
        "is_tied": file.is_tied(),
        "size_bytes": bits.size_bytes,
        "bits_per_weight": bits_per_weight(layers),
        "bits_per_weight_model": bits.model,
        "quantization": quantization(file),
        "layers": layers.iter().enumerate().map(layer).collect::<Vec<_>>(),
        "tensors": checkpoint.names().filter_map(tensor).collect::<Vec<_>>(),
        "notes": file.notes(),
        "unused": file.unused(),
    })
}

/// A name for each line of a block's linears: experts that are stored alike are one line, `experts.0-127.up_proj`.
fn rows(linears: &[Linear]) -> Vec<(String, &Linear)> {
    /// What stands around an expert's number, and the number.
    fn expert(name: &str) -> Option<(&str, usize, &str)> {
        let (before, rest) = name.split_once(".experts.")?;
        let (number, after) = rest.split_once('.')?;
        Some((before, number.parse().ok()?, after))
    }
    let is_alike = |a: &Linear, b: &Linear| {
        let around = |l: &'_ Linear| expert(&l.name).map(|(before, _, after)| format!("{before} {after}"));
        around(a).is_some() && around(a) == around(b) && a.shape == b.shape && a.format == b.format
    };
    let row = |alike: &'_ [Linear]| match (expert(&alike[0].name), expert(&alike[alike.len() - 1].name)) {
        (Some((before, first, after)), Some((_, last, _))) if first < last => {
            format!("{before}.experts.{first}-{last}.{after}")
        }
        _ => alike[0].name.clone(),
    };
    linears.chunk_by(is_alike).map(|alike| (row(alike), &alike[0])).collect()
}

fn text(file: &ModelFile, layers: &[Layer], bits: &Bits) -> String {
    let (checkpoint, model) = (file.checkpoint(), file.model());
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<16}{value}");
    };
    row("architecture", architecture(checkpoint).to_owned());
    row("parameters", model.parameters().to_string());
    row("blocks", format!("{} of width {}", model.blocks.len(), model.hidden));
    row(
        "vocabulary",
        format!(
            "{}, {}",
            model.vocabulary,
            if file.is_tied() { "one matrix for embedding and head" } else { "a head of its own" }
        ),
    );
    row("context", model.longest.to_string());
    row("quantization", quantization(file).unwrap_or_else(|| "none".to_owned()));
    row("size", format!("{:.1} MB, {:.3} bits per parameter", bits.size_bytes as f64 / 1e6, bits.model));
    row("linears", format!("{:.3} bits per weight, all that is stored for them", bits_per_weight(layers)));
    for note in file.notes() {
        row("note", note.clone());
    }
    // The note names the first.
    for tensor in file.unused().iter().skip(1) {
        row("not used", tensor.clone());
    }
    // Blocks that are stored alike are shown once.
    let kind = |l: &Layer| l.linears.iter().map(|l| (l.name.clone(), l.shape, l.format.clone())).collect::<Vec<_>>();
    let mut start = 0;
    while start < layers.len() {
        let alike = layers[start..].iter().take_while(|l| kind(l) == kind(&layers[start])).count();
        let name =
            if alike > 1 { format!("blocks {start} to {}", start + alike - 1) } else { format!("block {start}") };
        let _ = writeln!(out, "{name}: {:.3} bits per weight", bits_per_weight(&layers[start..start + alike]));
        let rows = rows(&layers[start].linears);
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(22) + 2;
        for (name, l) in rows {
            let _ = writeln!(out, "  {name:<width$}{:>13}  {}", format!("{} × {}", l.shape[0], l.shape[1]), l.format);
        }
        start += alike;
    }
    out
}
