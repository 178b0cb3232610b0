//! How quantized linears lie in checkpoints: functions between named tensors and [`Storage`].
//!
//! Reading goes by what lies in the file: a module is quantized where its packed tensors are there, and the
//! settings ([`Quantization`]) say what they mean. Where the two contradict, the sentence names both.

mod awq;
mod bitsandbytes;
mod compressed_tensors;
mod dense;
mod fewbit;
mod float8;
mod gptq;
mod hqq;
mod input;
mod integers;
mod mlx;
mod module;
mod quantization;
mod scheme;
mod torchao;
mod words;

#[cfg(test)]
mod round_trip;

use std::collections::BTreeMap;

use fewbit_format::{ActivationFormat, ActivationGrid, Band, Error, Online, Result, Sides, Storage, Tensor};
use serde_json::Value;

pub use awq::{Awq, AwqConfig};
pub use bitsandbytes::BitsAndBytesConfig;
pub use compressed_tensors::{CompressedTensors, CtConfig};
pub use fewbit::{Fewbit, FewbitConfig, is_tiles};
pub use float8::{Float8, Float8Config};
pub use gptq::{Gptq, GptqConfig};
pub use hqq::HqqConfig;
pub use mlx::MlxConfig;
pub use quantization::Quantization;
pub use scheme::{FloatScheme, IntScheme, ScaleKind, Scheme, SecondLevel, SignScheme};
pub use torchao::TorchAoConfig;

use module::Module;

/// Named tensors: a checkpoint, or a map in memory.
pub trait Tensors {
    /// Whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool;

    /// The tensor of this name.
    ///
    /// # Errors
    /// If there is none, or its bytes cannot be had.
    fn tensor(&self, name: &str) -> Result<Tensor>;
}

impl Tensors for BTreeMap<String, Tensor> {
    fn contains(&self, name: &str) -> bool {
        self.contains_key(name)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.get(name).cloned().ok_or_else(|| Error::input("is not in the checkpoint").tensor(name))
    }
}

/// Tensors by name, and how those of them that are modules are stored.
pub type SideTensors = (Vec<(String, Tensor)>, Vec<(String, Option<Scheme>)>);

/// A way to write quantized linears as named tensors and a `quantization_config`.
pub trait Layout {
    /// The name that `--format` takes.
    fn name(&self) -> &'static str;

    /// Whether one storage can be written; if not, why not.
    fn can_hold(&self, storage: &Storage) -> Result<(), String> {
        self.can_hold_rows(storage, storage.shape()[0])
    }

    /// The same of a matrix of so many rows, each stored like the storage's own.
    fn can_hold_rows(&self, storage: &Storage, rows: usize) -> Result<(), String>;

    /// Whether these linears can stand in one model; if not, why not. Each of them can be held.
    fn can_hold_together(&self, modules: &[(String, Option<Scheme>)]) -> Result<(), String> {
        let _ = modules;
        Ok(())
    }

    /// [`can_hold`](Self::can_hold) as an error about a module.
    ///
    /// # Errors
    /// If it cannot.
    fn refuse_what_it_cannot_hold(&self, module: &str, storage: &Storage) -> Result<()> {
        let say = |why: String| Error::input(format!("{} cannot hold it: {why}", self.name()));
        self.can_hold(storage)
            .map_err(|why| say(why).place(format!("`{module}`")).hint("write it with `--format fewbit`"))
    }

    /// The tensors of one module's weight, names included.
    ///
    /// # Errors
    /// If the storage cannot be held.
    fn tensors(&self, module: &str, storage: &Storage) -> Result<Vec<(String, Tensor)>>;

    /// The tensors of a weight in bands of rows; a single band is written as [`Layout::tensors`] does.
    ///
    /// # Errors
    /// If the layout has one storage for all rows of a matrix, or a band cannot be held.
    fn band_tensors(&self, module: &str, bands: &[Band]) -> Result<Vec<(String, Tensor)>> {
        match bands {
            [band] => self.tensors(module, &band.storage),
            _ => Err(Error::input(format!(
                "`{module}` has {} bands of rows, and {} stores all rows of a matrix alike",
                bands.len(),
                self.name()
            ))
            .hint("write it with `--format fewbit`")),
        }
    }

    /// The tensors of what stands beside the codes of a module's weight, and the schemes of those that are modules.
    ///
    /// # Errors
    /// If there is something, and the layout has no place for it.
    fn side_tensors(&self, module: &str, sides: &Sides) -> Result<SideTensors> {
        if sides.is_empty() {
            return Ok(SideTensors::default());
        }
        let reason = format!("`{module}` has something beside its codes, for which {} has no place", self.name());
        Err(Error::input(reason).hint("write it with `--format fewbit`"))
    }

    /// The tensors of maps that run on a module's input and output.
    ///
    /// # Errors
    /// If there is one, and the layout has no place for it.
    fn online_tensors(&self, module: &str, ends: [&[Online]; 2]) -> Result<Vec<(String, Tensor)>> {
        if ends.iter().all(|maps| maps.is_empty()) {
            return Ok(Vec::new());
        }
        let reason = format!("`{module}` has maps that run with the model, for which {} has no place", self.name());
        Err(Error::input(reason).hint("write it with `--format fewbit`"))
    }

    /// Whether a weight of this storage can be written with an input that is rounded so; if not, why not.
    fn can_hold_input(&self, storage: &Storage, input: ActivationGrid, clip: f32) -> Result<(), String> {
        let _ = (storage, input, clip);
        Err("it has no place for inputs that are rounded while the model runs".to_owned())
    }

    /// Whether there is a place for scales of keys and values.
    fn has_caches(&self) -> bool {
        false
    }

    /// The tensors of a module's weight in bands of rows and of the rounding of its input.
    ///
    /// # Errors
    /// If one of them cannot be held.
    fn rounded_tensors(&self, module: &str, bands: &[Band], input: &ActivationFormat) -> Result<Vec<(String, Tensor)>> {
        let mut tensors = self.band_tensors(module, bands)?;
        tensors.extend(input::tensors(module, input)?);
        Ok(tensors)
    }

    /// The `quantization_config` for config.json, from every linear of the model: its scheme, or `None` where it
    /// stays plain. A head that shares the embedding's matrix belongs in the list, as plain.
    /// `cache` says how keys and values are rounded.
    fn quantization_config(&self, modules: &[(String, Option<Scheme>)], cache: Option<ActivationGrid>) -> Value;
}

/// Reads one linear's weight `[out, in]`: quantized as the settings say, plain floats where `MODULE.weight` is plain.
///
/// Only the weight: what the checkpoint asks of activations is [`Quantization::check`]'s business.
///
/// # Errors
/// If a tensor is missing, has another type or shape than the settings and `shape` imply, holds a scale that is not
/// finite, or is in a form that is not read; if it lies in several bands (see [`read_bands`]).
pub fn read_linear(q: &Quantization, tensors: &dyn Tensors, module: &str, shape: [usize; 2]) -> Result<Storage> {
    let mut bands = read_bands(q, tensors, module, shape)?;
    match (bands.pop(), bands.len()) {
        (Some(band), 0) => Ok(band.storage),
        (_, more) => Err(Error::input(format!("`{module}` lies in {} bands of rows, where one is needed", more + 1))),
    }
}

/// Reads one linear's weight `[out, in]` as bands of rows (one, except in the `fewbit` layout).
///
/// # Errors
/// As [`read_linear`].
pub fn read_bands(q: &Quantization, tensors: &dyn Tensors, module: &str, shape: [usize; 2]) -> Result<Vec<Band>> {
    let is_countable = shape[0].checked_mul(shape[1]).and_then(|n| n.checked_mul(8)).is_some_and(|bits| bits > 0);
    if !is_countable {
        return Err(
            Error::input(format!("has no shape that can be read: {shape:?}")).tensor(&format!("{module}.weight"))
        );
    }
    let m = Module { tensors, name: module, shape };
    let storage = match q {
        Quantization::Fewbit(config) if is_quantized(q, tensors, module) => return fewbit::read(config, m),
        Quantization::CompressedTensors(config) if is_quantized(q, tensors, module) => {
            compressed_tensors::read(config, m)
        }
        Quantization::Gptq(config) if is_quantized(q, tensors, module) => gptq::read(config, m),
        Quantization::Awq(config) if is_quantized(q, tensors, module) => awq::read(config, m),
        Quantization::Mlx(config) if is_quantized(q, tensors, module) => mlx::read(config, m),
        Quantization::BitsAndBytes(_) if is_quantized(q, tensors, module) => bitsandbytes::read(m),
        Quantization::Hqq(_) if is_quantized(q, tensors, module) => hqq::read(m),
        Quantization::TorchAo(config) if is_quantized(q, tensors, module) => torchao::read(config, m),
        Quantization::Float8(config) if is_quantized(q, tensors, module) => float8::read(config, m),
        Quantization::Other(method) if is_quantized(q, tensors, module) => {
            Err(Error::input(format!("`{module}` is quantized with `{method}`, which is not read yet"))
                .hint("use the original checkpoint, or a GPTQ, AWQ, compressed-tensors or GGUF version of it"))
        }
        _ => dense::read(m),
    }?;
    Ok(vec![Band { rows: 0..shape[0], storage }])
}

/// What stands beside the codes of one linear's weight `[out, in]`: something in the `fewbit` layout alone.
///
/// # Errors
/// As [`read_linear`].
pub fn read_sides(q: &Quantization, tensors: &dyn Tensors, module: &str, shape: [usize; 2]) -> Result<Sides> {
    match q {
        Quantization::Fewbit(_) => fewbit::read_sides(q, Module { tensors, name: module, shape }),
        _ => Ok(Sides::default()),
    }
}

/// The maps that run on the input and the output of one linear `[out, in]`: those of the `fewbit` layout, transforms of
/// compressed-tensors, and torchao's factors of inputs.
///
/// # Errors
/// If a tensor has another type or shape, or asks for a Hadamard matrix that is not known.
pub fn read_online(
    q: &Quantization,
    tensors: &dyn Tensors,
    module: &str,
    shape: [usize; 2],
) -> Result<[Vec<Online>; 2]> {
    let m = Module { tensors, name: module, shape };
    match q {
        Quantization::Fewbit(_) => {
            Ok([fewbit::read_online(m, "input", shape[1])?, fewbit::read_online(m, "output", shape[0])?])
        }
        Quantization::CompressedTensors(config) => {
            Ok([config.online(m, "input", shape[1])?, config.online(m, "output", shape[0])?])
        }
        Quantization::TorchAo(_) => Ok([torchao::read_input(m)?, Vec::new()]),
        _ => Ok([Vec::new(), Vec::new()]),
    }
}

/// How the input of one linear `[out, in]` is rounded while the model runs, if it is.
///
/// # Errors
/// If a number that the settings imply is missing, or is none.
pub fn read_activation(
    q: &Quantization,
    tensors: &dyn Tensors,
    module: &str,
    shape: [usize; 2],
) -> Result<Option<ActivationFormat>> {
    if !is_quantized(q, tensors, module) {
        return Ok(None);
    }
    let m = Module { tensors, name: module, shape };
    let read = if let Quantization::TorchAo(_) = q { torchao::read_activation } else { input::read };
    q.input_of(module).map(|grid| read(grid, m)).transpose()
}

/// How keys (`part` is `k_scale`) or values (`v_scale`) of the attention `module` are rounded before they are remembered.
///
/// # Errors
/// As [`read_activation`].
pub fn read_cache(
    q: &Quantization,
    tensors: &dyn Tensors,
    module: &str,
    part: &str,
) -> Result<Option<ActivationFormat>> {
    let Some(grid) = q.cache() else { return Ok(None) };
    let mut format = grid.dynamic();
    if grid.has_stored_scale() {
        let m = Module { tensors, name: module, shape: [1, 1] };
        format.scale = input::positive(m, part)?;
    }
    Ok(Some(format))
}

/// Whether the module's weight lies quantized in the checkpoint.
pub fn is_quantized(q: &Quantization, tensors: &dyn Tensors, module: &str) -> bool {
    let has = |suffix: &str| tensors.contains(&format!("{module}.{suffix}"));
    match q {
        Quantization::None => false,
        Quantization::CompressedTensors(_) => has("weight_packed") || has("weight_scale"),
        Quantization::Gptq(_) | Quantization::Awq(_) => has("qweight"),
        Quantization::Mlx(_) => has("scales"),
        Quantization::BitsAndBytes(_) => bitsandbytes::is_quantized(&has),
        Quantization::Hqq(_) => has("W_q"),
        Quantization::TorchAo(_) => has("_weight_qdata"),
        Quantization::Fewbit(_) => {
            ["codes", "codes.0", "tiles", "tiles.0", "mask"].iter().any(|part| has(&format!("weight.{part}")))
        }
        Quantization::Float8(_) => has("weight_scale_inv") || has("weight_scale"),
        Quantization::Other(_) => {
            !has("weight") || tensors.tensor(&format!("{module}.weight")).is_ok_and(|t| !t.dtype.is_float())
        }
    }
}

/// The names of all tensors that may belong to the module's weight, whether the checkpoint has them or not: for
/// accounting for every tensor of a file.
pub fn tensor_names(q: &Quantization, module: &str) -> Vec<String> {
    let suffixes: &[&str] = match q {
        Quantization::None | Quantization::Other(_) => &[],
        Quantization::CompressedTensors(_) => compressed_tensors::PARTS,
        Quantization::Gptq(_) => gptq::PARTS,
        Quantization::Awq(_) => awq::PARTS,
        Quantization::Mlx(_) => mlx::PARTS,
        Quantization::BitsAndBytes(_) => bitsandbytes::PARTS,
        Quantization::Hqq(_) => hqq::PARTS,
        Quantization::TorchAo(_) => torchao::PARTS,
        Quantization::Float8(_) => float8::PARTS,
        Quantization::Fewbit(config) => return fewbit::names(config, module),
    };
    let names = std::iter::once("weight").chain(suffixes.iter().copied()).map(|s| format!("{module}.{s}"));
    match q {
        Quantization::CompressedTensors(config) => names.chain(config.transform_names(module)).collect(),
        _ => names.collect(),
    }
}
