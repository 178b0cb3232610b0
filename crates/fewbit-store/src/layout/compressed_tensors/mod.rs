//! compressed-tensors: integers (`pack-quantized`; `int-quantized` is read) and small floats (FP8, MXFP8, MXFP4, NVFP4).

mod config;
mod read;
mod settings;
mod target;
mod transform;
mod write;

pub use config::CtConfig;
pub(super) use read::read;
pub use write::CompressedTensors;

/// The tensors beside `weight` that belong to a quantized weight and to the rounding of its input and output.
pub(super) const PARTS: &[&str] = &[
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "weight_global_scale",
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
];
