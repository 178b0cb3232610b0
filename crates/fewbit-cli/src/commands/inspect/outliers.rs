//! How heavy the tails of each matrix are.

use std::fmt::Write;

use fewbit_format::{QuantizedLinear, Result};
use fewbit_graph::Part;
use fewbit_store::ModelFile;
use serde_json::{Value, json};

use crate::progress::Progress;
use crate::session::Session;

/// Weights that are decoded at a time.
const CHUNK: usize = 1 << 16;
/// A weight beyond so many times the root mean square is an outlier.
const BEYOND: f64 = 6.0;

/// The tails of one matrix's weights.
#[derive(Debug)]
pub(super) struct Tails {
    name: String,
    /// Largest magnitude ÷ root mean square.
    max_over_rms: f64,
    /// Share of weights beyond six times the root mean square.
    share_beyond_6_rms: f64,
    /// `mean((w − mean)⁴) ÷ variance²`: 3 for a normal distribution.
    kurtosis: f64,
    /// NaN and infinities, and where the first stands; the figures are of the others.
    not_finite: u64,
    first_not_finite: Option<[usize; 2]>,
}

/// The tails of every matrix, a part of the model in memory at a time.
pub(super) fn of(session: &Session, file: &ModelFile) -> Result<Vec<Tails>> {
    let model = file.model();
    let progress = Progress::new(&session.output, "reading", model.blocks.len() as u64 + 2);
    let mut all = Vec::new();
    for (done, (part, graph)) in model.parts().enumerate() {
        progress.set(done as u64, "");
        if part == Part::Head && file.is_tied() {
            continue;
        }
        for (w, weight) in graph.weights.iter().enumerate() {
            session.check_stop()?;
            // Several weights may be views of one stored matrix.
            let module = file.module(part, w);
            let is_whole = module.ends_with(&*weight.name) || part == Part::Embed || part == Part::Head;
            let name = if is_whole { module } else { format!("{module} ({})", weight.name) };
            all.push(tails(name, &file.linear(part, w)?));
        }
        file.drop_pages(part);
    }
    Ok(all)
}

/// A stored tensor with a NaN or an infinity, whatever the model does with it.
#[derive(Debug)]
pub(super) struct Damage {
    tensor: String,
    first: Vec<usize>,
    value: f32,
}

/// The tensors of the model, norms and biases among them, that hold a number that is not finite.
pub(super) fn damaged(session: &Session, file: &ModelFile) -> Result<Vec<Damage>> {
    let mut found = Vec::new();
    for tensor in file.used_tensors() {
        session.check_stop()?;
        if let Some((first, value)) = file.checkpoint().non_finite(&tensor)? {
            found.push(Damage { tensor: tensor.clone(), first, value });
        }
        file.checkpoint().drop_pages(&tensor);
    }
    Ok(found)
}

fn tails(name: String, linear: &QuantizedLinear) -> Tails {
    let (mut count, mut not_finite, mut largest) = (0_u64, 0_u64, 0.0_f64);
    let (mut s1, mut s2) = (0.0, 0.0);
    let mut first_not_finite = None;
    each(linear, |v| {
        if v.is_finite() {
            count += 1;
            largest = largest.max(v.abs());
            s1 += v;
            s2 += v * v;
        } else {
            let at = (count + not_finite) as usize;
            first_not_finite.get_or_insert([at / linear.shape[1], at % linear.shape[1]]);
            not_finite += 1;
        }
    });
    let n = count.max(1) as f64;
    let (mean, rms) = (s1 / n, (s2 / n).sqrt());
    let variance = s2 / n - mean * mean;
    let (mut beyond, mut fourth) = (0_u64, 0.0);
    each(linear, |v| {
        if v.is_finite() {
            beyond += u64::from(v.abs() > BEYOND * rms);
            fourth += (v - mean).powi(4);
        }
    });
    let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
    Tails {
        name,
        max_over_rms: ratio(largest, rms),
        share_beyond_6_rms: beyond as f64 / n,
        kurtosis: ratio(fourth / n, variance * variance),
        not_finite,
        first_not_finite,
    }
}

fn each(linear: &QuantizedLinear, mut look: impl FnMut(f64)) {
    let [rows, cols] = linear.shape;
    let step = (CHUNK / cols.max(1)).max(1);
    let mut values = vec![0.0; step.min(rows) * cols];
    for start in (0..rows).step_by(step) {
        let end = (start + step).min(rows);
        let values = &mut values[..(end - start) * cols];
        linear.decode_rows(start..end, values);
        for v in values.iter() {
            look(f64::from(*v));
        }
    }
}

impl Tails {
    pub(super) fn object(&self) -> Value {
        json!({
            "name": self.name,
            "max_over_rms": self.max_over_rms,
            "share_beyond_6_rms": self.share_beyond_6_rms,
            "kurtosis": self.kurtosis,
            "not_finite": self.not_finite,
            "first_not_finite": self.first_not_finite,
        })
    }
}

impl Damage {
    pub(super) fn object(&self) -> Value {
        json!({ "tensor": self.tensor, "first": self.first, "value": self.value.to_string() })
    }

    pub(super) fn line(&self) -> String {
        format!("not finite: tensor `{}` holds {} at {:?}", self.tensor, self.value, self.first)
    }
}

pub(super) fn table(all: &[Tails]) -> String {
    let width = all.iter().map(|t| t.name.len()).max().unwrap_or(0).max(6);
    let mut out = format!("{:<width$}{:>10}{:>14}{:>11}\n", "matrix", "max/rms", "beyond 6 rms", "kurtosis");
    for t in all {
        let share = format!("{:.1e}", t.share_beyond_6_rms);
        let _ = write!(out, "{:<width$}{:>10.2}{share:>14}{:>11.2}", t.name, t.max_over_rms, t.kurtosis);
        let _ = match t.first_not_finite {
            None => writeln!(out),
            Some(at) => writeln!(out, "  {} weights are not finite, the first at {at:?}", t.not_finite),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use fewbit_format::{Dtype, Storage, Tensor};

    use super::*;

    #[test]
    fn one_large_weight_among_many() {
        let mut values: Vec<f32> = (0..100).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        values[7] = 30.0;
        values[8] = f32::NAN;
        let tensor = Tensor::from_f32(Dtype::F32, &[10, 10], &values).unwrap();
        let t = tails("w".to_owned(), &QuantizedLinear::uniform(Storage::Dense(tensor), None));
        let rms = ((98.0 + 900.0) / 99.0_f64).sqrt();
        assert!((t.max_over_rms - 30.0 / rms).abs() < 1e-9);
        assert_eq!(t.share_beyond_6_rms, 1.0 / 99.0);
        assert_eq!((t.not_finite, t.first_not_finite), (1, Some([0, 8])));
        assert!(t.kurtosis > 50.0);
    }
}
