use fewbit_format::{Error, Result, Storage};

use super::module::Module;

/// Reads `NAME.weight` as plain floats.
pub(super) fn read(m: Module<'_>) -> Result<Storage> {
    let quantized =
        ["qweight", "weight_packed", "weight.codes", "weight.tiles", "weight.mask"].into_iter().find(|s| m.has(s));
    if let (false, Some(suffix)) = (m.has("weight"), quantized) {
        return Err(Error::input(format!("`{suffix}` tensors, but no quantization settings that explain them"))
            .hint("add `quantization_config` to config.json, or the `quantize_config.json` that belongs to the checkpoint")
            .tensor(&m.full_name(suffix)));
    }
    let tensor = m.part("weight")?;
    let fail = |reason: String, way_out: &str| Err(Error::input(reason).hint(way_out).tensor(&m.full_name("weight")));
    if !tensor.dtype.is_float() {
        return fail(
            format!("has type {}, but no quantization settings that explain it", tensor.dtype.name()),
            "add `quantization_config` to config.json, or use a checkpoint in F32, F16 or BF16",
        );
    }
    if tensor.shape != m.shape {
        return fail(
            format!("has shape {:?}, where the config asks for {:?}", tensor.shape, m.shape),
            "the config.json of another model lies beside it, or the file is damaged: download it again",
        );
    }
    Ok(Storage::Dense(tensor))
}
