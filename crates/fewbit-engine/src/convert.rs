//! From one format to another: the same numbers in other tensors, or a refusal.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use fewbit_export::{check_source, config, sidecars, verify_folder, write_gguf};
use fewbit_format::{Band, Error, Kind, QuantizedLinear, Result, Storage};
use fewbit_graph::Part;
use fewbit_kernel::Team;
use fewbit_store::ModelFile;
use fewbit_store::layout::Layout;
use serde_json::{Value, json};

use crate::finish::{pretty, write_index};
use crate::outputs::{Format, Schemes, Shard, exact_values, rename, shard_name, write_file, write_shard};
use crate::places::{Claim, Places};
use crate::report::Progress;
use crate::stop::check_stop;

/// What a conversion makes from what.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// The model.
    pub model: PathBuf,
    /// How it is called in the manifest.
    pub model_name: String,
    /// The folder (or `.gguf` file) that is made.
    pub out: PathBuf,
    /// What is written; `None`: plain floats.
    pub format: Option<Format>,
    /// Whether numbers that the format rounds are written all the same.
    pub rounds: bool,
    /// Whether to replace `OUT` and `OUT.partial`.
    pub force: bool,
}

/// How far the weights of two models lie apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// Largest `|a − b|`.
    pub max: f32,
    /// `√(Σ (a − b)² / Σ a²)`, over all matrices.
    pub relative_rms: f64,
}

/// What became of a conversion.
#[derive(Debug)]
pub enum Converted {
    /// It is written, so far from the source.
    Written(Difference),
    /// The format cannot hold the source's numbers; rounded anew it may.
    CannotHold(Error),
}

/// Writes a model in another format, each weight with the very numbers that it has.
///
/// Integer codes stay codes, blocks of ggml become codes where these stand for the same numbers, and plain floats stay as
/// they are. The result is read again, and its weights are held against the source's.
///
/// A number that is not finite is copied with a note; where numbers may be rounded it is refused.
///
/// # Errors
/// If the model cannot be written whatever its numbers are: its vocabulary, `OUT`, the disk; if a number is not finite and
/// may be rounded; if `stop` was set. Nothing is left behind.
pub fn convert(job: &Conversion, team: &Team, progress: &mut dyn Progress, stop: &AtomicBool) -> Result<Converted> {
    let file = ModelFile::open(&job.model)?;
    file.notes().iter().for_each(|n| progress.note(n));
    file.quantization().check(true).map_err(|e| e.file(&job.model))?;
    check_source(&file, job.format == Some(Format::Gguf))?;
    match file.check_finite() {
        Err(e) if job.rounds => return Err(e),
        Err(e) => progress.note(&e.to_string()),
        Ok(()) => {}
    }
    let places = Places::claim(Claim { out: &job.out, model: &job.model, resume: None, force: job.force })?;
    // The sum of the source bounds what is written, but for codes that become floats.
    let room = if job.format.is_some() { file.checkpoint().size_bytes() } else { 4 * file.model().parameters() };
    places.check_space(room).inspect_err(|_| places.abandon())?;
    match made(job, &file, &places, team, progress, stop) {
        Ok((path, difference)) => {
            rename(&path, &places.ready())?;
            places.deliver()?;
            Ok(Converted::Written(difference))
        }
        Err(e) => {
            places.abandon();
            match e.kind() {
                Kind::Input => Ok(Converted::CannotHold(e)),
                Kind::Interrupted => Err(Error::interrupted("stopped").hint("nothing was written").file(&job.out)),
                Kind::Internal => Err(e),
            }
        }
    }
}

/// The whole result within the working folder, and how far it is from the source.
fn made(
    job: &Conversion,
    file: &ModelFile,
    places: &Places,
    team: &Team,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<(PathBuf, Difference)> {
    let path = if job.format == Some(Format::Gguf) {
        check_stop(stop)?;
        gguf(job, file, places)?
    } else {
        folder(job, file, places, progress, stop)?
    };
    let written =
        if path.is_dir() && job.format == Some(Format::Gguf) { path.join("model.gguf") } else { path.clone() };
    let difference = difference(file, &ModelFile::open(&written)?, team, progress, stop)?;
    if difference.max > 0.0 && !job.rounds {
        return Err(Error::input(format!(
            "would be rounded: weights differ by up to {:e}, {:.2e} of their size",
            difference.max, difference.relative_rms
        ))
        .hint("allow it with `--requantize`, or choose another format")
        .file(&job.model));
    }
    Ok((path, difference))
}

/// One GGUF file, in a folder unless `OUT` is called one.
fn gguf(job: &Conversion, file: &ModelFile, places: &Places) -> Result<PathBuf> {
    let parts = places.parts();
    let path = parts.join("model.gguf");
    write_gguf(file, &path, None)?;
    if job.out.extension().is_some_and(|e| e == "gguf") {
        return Ok(path);
    }
    write_file(&parts.join("fewbit.json"), &manifest(job)?)?;
    Ok(parts)
}

fn folder(
    job: &Conversion,
    file: &ModelFile,
    places: &Places,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<PathBuf> {
    let parts = places.parts();
    let layout = job.format.unwrap_or(Format::Fewbit).layout();
    if file.quantization().cache().is_some() && !layout.has_caches() {
        let name = layout.name();
        return Err(Error::input(format!("rounds keys and values while it runs, for which {name} has no place"))
            .hint("write it with `--format compressed-tensors` or `--format fewbit`")
            .file(file.checkpoint().path()));
    }
    let all: Vec<Part> = file.model().parts().map(|(part, _)| part).collect();
    let mut schemes = Schemes::new();
    progress.begin("converting", all.len() as u64);
    for (i, part) in all.iter().enumerate() {
        check_stop(stop)?;
        let weights = file.part(*part)?;
        let mut shard = Shard::new(file, layout);
        let mut linears = Vec::with_capacity(weights.linears.len());
        for (w, linear) in weights.linears.iter().enumerate() {
            let place = |e: Error| e.tensor(&file.weight_tensor(*part, w)).file(file.checkpoint().path());
            linears.push(Arc::new(held(job.format, layout, *part, linear).map_err(place)?));
        }
        let is_shared = *part == Part::Head && file.is_tied();
        shard.add(*part, if is_shared { &[] } else { &linears }, &weights.vectors)?;
        if job.format.is_some() {
            let caches: Vec<_> = weights.caches.iter().flatten().copied().collect();
            shard.caches(*part, &caches)?;
        }
        write_shard(&parts.join(shard_name(i)), &shard.tensors)?;
        schemes.extend(shard.schemes);
        if is_shared {
            // Other programs have a module of that name.
            schemes.push((file.exported(Part::Head, "lm_head")?.name, None));
        }
        file.drop_pages(*part);
        progress.at(i as u64 + 1);
    }
    layout.can_hold_together(&schemes).map_err(|why| {
        Error::input(format!("{} cannot hold the model: {why}", layout.name())).file(file.checkpoint().path())
    })?;
    write_index(&parts, all.len())?;
    let is_quantized = schemes.iter().any(|(_, s)| s.is_some());
    let quantization = is_quantized.then(|| layout.quantization_config(&schemes, file.quantization().cache()));
    let config = config(file, quantization, file.is_tied())?;
    write_file(&parts.join("config.json"), &pretty(&Value::Object(config))?)?;
    for (name, bytes) in sidecars(file)? {
        write_file(&parts.join(name), &bytes)?;
    }
    write_file(&parts.join("fewbit.json"), &manifest(job)?)?;
    verify_folder(&parts)?;
    Ok(parts)
}

/// What the result depends on.
fn manifest(job: &Conversion) -> Result<Vec<u8>> {
    pretty(&json!({
        "fewbit": env!("CARGO_PKG_VERSION"),
        "base_model": job.model_name,
        "converted_to": job.format.map_or("plain", Format::name),
    }))
}

/// A linear as the format holds it.
fn held(format: Option<Format>, layout: &dyn Layout, part: Part, linear: &QuantizedLinear) -> Result<QuantizedLinear> {
    let is_plain = |b: &Band| matches!(b.storage, Storage::Dense(_));
    if linear.bands.iter().all(is_plain) && linear.sides.is_empty() {
        return Ok(linear.clone());
    }
    if format.is_none() {
        return plain(linear);
    }
    let bands = linear.bands.iter().map(|band| {
        let storage = as_codes(&band.storage).unwrap_or_else(|| band.storage.clone());
        layout
            .can_hold(&storage)
            .and_then(|()| match linear.activation {
                Some(input) => layout.can_hold_input(&storage, input.grid, input.clip),
                None => Ok(()),
            })
            .map(|()| Band { rows: band.rows.clone(), storage })
    });
    match bands.collect::<Result<Vec<_>, String>>() {
        Ok(bands) => Ok(QuantizedLinear { bands, ..linear.clone() }),
        // Runtimes take these plain.
        Err(_) if matches!(part, Part::Embed | Part::Head) => plain(linear),
        Err(why) => Err(Error::input(format!("{} cannot hold it: {why}", layout.name()))
            .hint("`--requantize` rounds it anew; `--format plain` writes its numbers as floats")),
    }
}

fn plain(linear: &QuantizedLinear) -> Result<QuantizedLinear> {
    if linear.input.iter().chain(&linear.output).next().is_some() {
        return Err(Error::input("has maps that run with the model, for which plain floats have no place"));
    }
    Ok(QuantizedLinear::uniform(Storage::Dense(exact_values(linear)?), linear.bias.clone()))
}

/// Integer codes that stand for the numbers of a storage, where there are some.
fn as_codes(storage: &Storage) -> Option<Storage> {
    match storage {
        Storage::Ggml(blocks) => blocks.to_codes().map(Storage::Int),
        Storage::Int(codes) => codes.with_narrow_scales().map(Storage::Int),
        _ => None,
    }
}

/// How far the weights of two models of one graph lie apart.
///
/// # Errors
/// If one cannot be read, their graphs differ, or `stop` was set.
pub fn difference(
    a: &ModelFile,
    b: &ModelFile,
    team: &Team,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Difference> {
    let parts: Vec<Part> = a.model().parts().map(|(part, _)| part).collect();
    let (mut max, mut errors, mut powers) = (0.0f32, 0.0, 0.0);
    progress.begin("comparing", parts.len() as u64);
    for (i, part) in parts.into_iter().enumerate() {
        check_stop(stop)?;
        let count = a.model().part(part).weights.len();
        let sums: Vec<Mutex<Result<[f64; 3]>>> = (0..count).map(|_| Mutex::new(Ok([0.0; 3]))).collect();
        team.run(count, &|w| {
            let found = a.linear(part, w).and_then(|x| apart(&x, &b.linear(part, w)?));
            if let Ok(mut slot) = sums[w].lock() {
                *slot = found;
            }
        });
        for sum in sums {
            let [most, error, power] = sum.into_inner().map_err(|_| Error::internal("a task that panicked"))??;
            max = max.max(most as f32);
            (errors, powers) = (errors + error, powers + power);
        }
        a.drop_pages(part);
        b.drop_pages(part);
        progress.at(i as u64 + 1);
    }
    Ok(Difference { max, relative_rms: if powers > 0.0 { (errors / powers).sqrt() } else { 0.0 } })
}

/// Largest difference, sum of squared differences, and sum of squares of the first.
fn apart(a: &QuantizedLinear, b: &QuantizedLinear) -> Result<[f64; 3]> {
    const ROWS: usize = 64;
    if a.shape != b.shape {
        return Err(Error::internal(format!("{:?} became {:?}", a.shape, b.shape)));
    }
    let [rows, cols] = a.shape;
    let (mut x, mut y) = (vec![0.0; ROWS * cols], vec![0.0; ROWS * cols]);
    let mut sums = [0.0f64; 3];
    for first in (0..rows).step_by(ROWS) {
        let piece = first..(first + ROWS).min(rows);
        let len = piece.len() * cols;
        a.decode_rows(piece.clone(), &mut x[..len]);
        b.decode_rows(piece, &mut y[..len]);
        for (x, y) in x[..len].iter().zip(&y[..len]) {
            let d = distance(*x, *y);
            sums[0] = sums[0].max(d);
            sums[1] += d * d;
            if x.is_finite() {
                sums[2] += f64::from(*x) * f64::from(*x);
            }
        }
    }
    Ok(sums)
}

/// `|x − y|`: 0 for the same infinity or two NaNs, infinite where one alone is finite. A NaN would hide what it is added to.
fn distance(x: f32, y: f32) -> f64 {
    if x == y || (x.is_nan() && y.is_nan()) {
        0.0
    } else if x.is_finite() && y.is_finite() {
        f64::from((x - y).abs())
    } else {
        f64::INFINITY
    }
}

#[cfg(test)]
mod tests {
    use fewbit_format::{Dtype, Tensor};

    use super::*;

    #[test]
    fn numbers_that_are_not_finite_hide_no_others() {
        let linear = |values: &[f32]| {
            QuantizedLinear::uniform(Storage::Dense(Tensor::from_f32(Dtype::F32, &[1, 4], values).unwrap()), None)
        };
        let source = linear(&[3.0, f32::NAN, f32::INFINITY, 4.0]);
        assert_eq!(apart(&source, &linear(&[3.0, f32::NAN, f32::INFINITY, 3.5])).unwrap(), [0.5, 0.25, 25.0]);
        assert_eq!(apart(&source, &linear(&[3.0, 0.0, f32::INFINITY, 4.0])).unwrap()[0], f64::INFINITY);
    }
}
