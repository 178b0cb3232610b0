#!/usr/bin/env python3
"""Writes crates/fewbit-store/tests/data/mlx.safetensors: small matrices as MLX stores them in each mode, and what MLX decodes them to.

usage: make_mlx_fixture.py      (a Python with mlx; made with mlx[cpu] 0.32.4)
"""
from pathlib import Path

import mlx.core as mx

OUT = Path(__file__).resolve().parent.parent / "crates/fewbit-store/tests/data/mlx.safetensors"
MODES = [(f"affine{bits}", "affine", bits, 32) for bits in (2, 3, 4, 5, 6, 8)]
MODES += [("mxfp4", "mxfp4", 4, 32), ("mxfp8", "mxfp8", 8, 32)]

mx.random.seed(7)
tensors = {}
for name, mode, bits, group in MODES:
    weight = mx.random.normal((3, 64)).astype(mx.bfloat16)
    parts = mx.quantize(weight, group_size=group, bits=bits, mode=mode)
    for part, tensor in zip(("weight", "scales", "biases"), parts):
        tensors[f"{name}.{part}"] = tensor
    decoded = mx.dequantize(*(p if p.dtype in (mx.uint32, mx.uint8) else p.astype(mx.float32) for p in parts),
                            group_size=group, bits=bits, mode=mode)
    tensors[f"{name}.decoded"] = decoded.astype(mx.float32)
mx.save_safetensors(str(OUT), tensors)
