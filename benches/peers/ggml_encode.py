#!/usr/bin/env python3
"""Speed of ggml's encoders on one thread, as `cargo bench -p fewbit-format --bench encode` prints that of ours.

usage: ggml_encode.py [TYPE ...]      (a Python with llama-cpp-python, gguf and numpy)
"""
import ctypes
import sys
import time
from pathlib import Path

import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType

ROWS, COLS = 4, 4096
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S",
         "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4"]

library = next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so*"))
ggml = ctypes.CDLL(str(library))
floats = ctypes.POINTER(ctypes.c_float)
ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, floats, ctypes.c_void_p, *[ctypes.c_int64] * 3, floats]
ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
ggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool


def speed(kind, values, importance):
    """Of the fastest of twenty runs, in millions of weights a second."""
    out = np.empty(values.size * 4, np.uint8)
    weights = importance.ctypes.data_as(floats) if importance is not None else None
    seconds = []
    for _ in range(20):
        begun = time.perf_counter()
        ggml.ggml_quantize_chunk(kind, values.ctypes.data_as(floats), out.ctypes.data, 0, ROWS, COLS, weights)
        seconds.append(time.perf_counter() - begun)
    return values.size / min(seconds) / 1e6


rng = np.random.default_rng(0)
values = rng.uniform(-1, 1, (3, ROWS * COLS)).sum(0).astype(np.float32)
importance = (np.abs(rng.uniform(-1, 1, COLS)) + 0.1).astype(np.float32)
print(f"{'type':<8} {'plain':>12} {'importances':>12}   Mweights/s")
for name in sys.argv[1:] or TYPES:
    kind = GGMLQuantizationType[name].value
    ggml.ggml_quantize_init(kind)
    plain = "-" if ggml.ggml_quantize_requires_imatrix(kind) else f"{speed(kind, values, None):.2f}"
    print(f"{name:<8} {plain:>12} {speed(kind, values, importance):>12.2f}")
