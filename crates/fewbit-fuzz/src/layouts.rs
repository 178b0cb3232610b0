use fewbit_format::QuantizedLinear;
use fewbit_store::layout::{
    Quantization, is_quantized, read_activation, read_bands, read_cache, read_online, read_sides, tensor_names,
};
use serde_json::json;

use crate::Listing;

/// The module that the tensors belong to.
const MODULE: &str = "m";

/// Settings of a `quantization_config` (JSON, with the files' metadata as `__metadata__`), a listing whose first line is `ROWS COLS` of the module `m`, the
/// tensors' bytes.
pub fn layouts(data: &[u8]) {
    let Some(([settings, lines], data)) = crate::texts(data) else { return };
    let Ok(settings) = serde_json::from_str::<serde_json::Value>(settings) else { return };
    let mut lines = lines.lines();
    let Some(shape) = lines.next().and_then(shape) else { return };
    let Some(listing) = Listing::read(lines, data) else { return };
    let tensors = listing.tensors();
    let Ok(q) = Quantization::parse(&json!({ "quantization_config": settings }), None) else { return };
    let text = |(k, v): (&String, &serde_json::Value)| Some((k.clone(), v.as_str()?.to_owned()));
    let metadata = settings["__metadata__"].as_object().into_iter().flatten().filter_map(text).collect();
    let Ok(q) = q.with_files(tensors, tensors.keys().map(String::as_str), &metadata) else { return };
    let _ = (q.describe(), q.runtime_rounding(), q.check(false), q.check(true), q.scheme_of(MODULE));
    let _ = (is_quantized(&q, tensors, MODULE), tensor_names(&q, MODULE));
    let _ = read_cache(&q, tensors, MODULE, "k_scale");
    let Ok(bands) = read_bands(&q, tensors, MODULE, shape) else { return };
    let Ok(sides) = read_sides(&q, tensors, MODULE, shape) else { return };
    let Ok([input, output]) = read_online(&q, tensors, MODULE, shape) else { return };
    let Ok(activation) = read_activation(&q, tensors, MODULE, shape) else { return };
    crate::run::run(QuantizedLinear {
        sides,
        input,
        output,
        activation,
        ..QuantizedLinear::of_bands(shape, bands, None)
    });
}

fn shape(line: &str) -> Option<[usize; 2]> {
    let (rows, cols) = line.split_once(' ')?;
    Some([rows.parse().ok()?, cols.parse().ok()?])
}
