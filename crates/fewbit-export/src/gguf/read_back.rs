//! The written file, read again.

use std::path::Path;

use fewbit_format::{Error, QuantizedLinear, Result};
use fewbit_graph::{Part, WeightId};
use fewbit_runtime::language;
use fewbit_store::ModelFile;
use fewbit_text::{Tokenizer, check_round_trip};
use half::f16;

use super::vocabulary::differs;

/// Opens the file and holds it against the model: every shape, the ids of sample texts, rows of every matrix.
///
/// # Errors
/// Says what differs.
pub(super) fn check(source: &ModelFile, path: &Path, reference: &Tokenizer) -> Result<()> {
    let written = ModelFile::open(path)?;
    if let Some(text) = check_round_trip(reference, &language::tokenizer_of(written.checkpoint())?) {
        return Err(differs(&text).file(source.checkpoint().path()));
    }
    if written.model().ropes.len() != source.model().ropes.len() || !same_rotation(source, &written) {
        return Err(Error::internal("the rotation of the written file is not the model's").file(path));
    }
    for (part, graph) in source.model().parts() {
        for w in 0..graph.weights.len() {
            check_rows(&source.linear(part, w)?, &written.linear(part, w)?).map_err(|e| at(e, &written, part, w))?;
        }
        for v in 0..graph.vectors.len() {
            if source.vector(part, v)? != written.vector(part, v)? {
                return Err(Error::internal("is not the model's").tensor(graph.vectors[v].name).file(path));
            }
        }
        source.drop_pages(part);
        written.drop_pages(part);
    }
    Ok(())
}

fn same_rotation(a: &ModelFile, b: &ModelFile) -> bool {
    let close = |(x, y): (&f64, &f64)| (x / y - 1.0).abs() < 1e-5;
    a.model().ropes.iter().zip(&b.model().ropes).all(|(a, b)| {
        (a.scale / b.scale - 1.0).abs() < 1e-5 && a.inverse_frequency.iter().zip(&b.inverse_frequency).all(close)
    })
}

fn at(e: Error, file: &ModelFile, part: Part, w: WeightId) -> Error {
    e.tensor(&file.weight_tensor(part, w)).file(file.checkpoint().path())
}

/// Some rows of a matrix, the first and the last among them, are equal up to the rounding of F32 to F16.
fn check_rows(source: &QuantizedLinear, written: &QuantizedLinear) -> Result<()> {
    const ROWS: usize = 9;
    let [rows, cols] = source.shape;
    let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
    for i in 0..ROWS.min(rows) {
        // Neighbours too, since permuted rows differ in their neighbours first.
        let r = if i < 2 { i } else { rows - 1 - (i - 2) * (rows - 1) / ROWS };
        let r = r.min(rows - 1);
        source.decode_rows(r..r + 1, &mut a);
        written.decode_rows(r..r + 1, &mut b);
        if let Some(c) = a.iter().zip(&b).position(|(x, y)| x != y && f16::from_f32(*x).to_f32() != *y) {
            return Err(Error::internal(format!("holds {} at [{r}, {c}], where the model has {}", b[c], a[c])));
        }
    }
    if source.bias != written.bias {
        return Err(Error::internal("has another bias than the model"));
    }
    Ok(())
}
