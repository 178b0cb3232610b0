//! How quantized linears lie in checkpoints.
