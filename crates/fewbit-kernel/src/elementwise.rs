//! What happens between matrix products: norms, activations, softmax, rotary positions.
//!
//! Every function works on slices, row after row, on one thread; a row's result depends on that row alone. Sums run in
//! an order that the row's width fixes. Shapes are promises of the caller: a slice of another length is a panic.

pub(crate) mod activation;
mod arithmetic;
mod derivative;
mod norm;
mod norm_backward;
mod rotary;
mod softmax;
pub(crate) mod transcendental;

pub use activation::{clamped_glu, gelu_erf, gelu_tanh, relu, sigmoid, silu, softcap};
pub use arithmetic::{add, add_bias, mul, round_to_f16, scale};
pub use derivative::{
    clamped_glu_backward, gelu_erf_backward, gelu_tanh_backward, relu_backward, silu_backward, softcap_backward,
};
pub use norm::{layer_norm, rms_norm};
pub use norm_backward::{layer_norm_backward, rms_norm_backward};
pub use rotary::{rope, rope_backward};
pub use softmax::{argmax, block_maxima, exp_sums, log_softmax_stats, softmax_in_place};
pub use transcendental::exp;
