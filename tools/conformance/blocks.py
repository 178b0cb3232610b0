#!/usr/bin/env python3
"""Holds our blocks of every type of ggml against ggml's own: what they decode to, and what our encoder makes of the bundled
model beside ggml's, without importances and with those of `fewbit calibrate`. Prints a table in Markdown.

usage: blocks.py FEWBIT [TYPE ...]      (a Python with llama-cpp-python, gguf and numpy)

Errors are Σ h (w − ŵ)² / Σ h w² over all linears, h the importance of the weight's column (1 without). Fails where a type
decodes otherwise, or has more error than ggml's.
"""
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from multiprocessing.pool import ThreadPool
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

# ggml's numbers of the types that files may hold.
TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
         "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19, "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23,
         "IQ1_M": 29, "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39, "NVFP4": 40, "Q1_0": 41, "Q2_0": 42}
NAMES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
         "up_proj": "ffn_up", "down_proj": "ffn_down"}
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "U8": np.uint8}


class Traits(ctypes.Structure):
    """ggml_type_traits, as far as it is asked here."""
    _fields_ = [("name", ctypes.c_char_p), ("block_len", ctypes.c_int64), ("interleave", ctypes.c_int64),
                ("block_bytes", ctypes.c_size_t), ("is_quantized", ctypes.c_bool), ("to_float", ctypes.c_void_p)]


class Ggml:
    def __init__(self):
        self.lib = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
        self.lib.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_version.restype = ctypes.c_char_p
        self.version = self.lib.ggml_version().decode()

    def encode(self, kind, weights, importances):
        rows, cols = weights.shape
        traits = self.lib.ggml_get_type_traits(kind).contents
        out = np.empty((rows, cols // traits.block_len * traits.block_bytes), np.uint8)
        pointer = lambda a: None if a is None else a.ctypes.data_as(ctypes.c_void_p)
        self.lib.ggml_quantize_init(kind)
        written = self.lib.ggml_quantize_chunk(kind, pointer(weights), pointer(out), ctypes.c_int64(0), ctypes.c_int64(rows),
                                               ctypes.c_int64(cols), pointer(importances))
        assert written == out.nbytes
        return out

    def decode(self, kind, blocks, shape):
        out = np.empty(shape, np.float32)
        to_float = self.lib.ggml_get_type_traits(kind).contents.to_float
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(to_float)
        call(blocks.ctypes.data, out.ctypes.data, out.size)
        return out


def tensors(folder):
    """All tensors of a folder's safetensors files, floats as f32."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, t in json.loads(data[8:start]).items():
            if t.get("dtype") in DTYPES:
                begin, end = (start + at for at in t["data_offsets"])
                values = np.frombuffer(data[begin:end], DTYPES[t["dtype"]]).reshape(t["shape"])
                if t["dtype"] == "BF16":
                    values = (values.astype(np.uint32) << 16).view(np.float32)
                found[name] = values if t["dtype"] == "U8" else values.astype(np.float32)
    return found


def importances(path):
    """What ggml weighs columns with, by tensor: mean squares."""
    read = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    names = [name.removesuffix(".in_sum2") for name in read if name.endswith(".in_sum2")]
    return {n: np.ascontiguousarray((read[f"{n}.in_sum2"] / read[f"{n}.counts"].reshape(-1, 1)).reshape(-1), np.float32)
            for n in names}


def gguf_name(module):
    _, _, layer, _, linear = module.split(".")
    return f"blk.{layer}.{NAMES[linear]}.weight"


class Bench:
    def __init__(self, fewbit, work):
        self.fewbit, self.work, self.ggml = fewbit, work, Ggml()
        self.run("convert", "demo", work / "plain", "--format", "plain")
        self.run("calibrate", "demo", "--out", work / "m.gguf", "--samples", "32", "--length", "256")
        modules = [name.removesuffix(".weight") for name in tensors(work / "plain") if "_proj." in name]
        self.weights = {m: tensors(work / "plain")[f"{m}.weight"] for m in modules}
        matrix = importances(work / "m.gguf")
        self.importances = {m: matrix[gguf_name(m)] for m in modules}

    def run(self, *command):
        subprocess.run([self.fewbit, *map(str, command), "--quiet"], check=True, capture_output=True, text=True)

    def compare(self, name, weighs):
        """Whether our blocks decode as ggml's, ours beside ggml's error, and how many tensors have equal bytes."""
        kind, out, plain = TYPES[name], self.work / f"{name}-{weighs}", self.work / f"{name}-{weighs}-plain"
        matrix = ["--stats", self.work / "m.gguf"] if weighs else []
        self.run("quantize", "demo", "--recipe", "gguf", "--set", f"grid.type={name}", "--set", "grid.pure=true", *matrix,
                 "--format", "fewbit", "--out", out)
        self.run("convert", out, plain, "--format", "plain")
        blocks, decoded = tensors(out), tensors(plain)

        def one(module):
            weights, ours = self.weights[module], blocks[f"{module}.weight.codes"]
            columns = self.importances[module] if weighs else None
            theirs = self.ggml.encode(kind, weights, columns)
            values = self.ggml.decode(kind, ours, weights.shape)
            is_same = values.tobytes() == decoded[f"{module}.weight"].tobytes()
            h = 1.0 if columns is None else columns.astype(np.float64)
            error = lambda a: float((h * (weights.astype(np.float64) - a) ** 2).sum())
            return is_same, error(values), error(self.ggml.decode(kind, theirs, weights.shape)), \
                float((h * weights.astype(np.float64) ** 2).sum()), ours.tobytes() == theirs.tobytes()

        with ThreadPool(os.cpu_count()) as pool:
            all_same, ours, theirs, power, equal = zip(*pool.map(one, self.weights))
        return all(all_same), sum(ours) / sum(theirs), sum(theirs) / sum(power), sum(equal)

    def cells(self, name, weighs):
        """Two cells of the table, and whether all is well."""
        try:
            decodes, share, error, equal = self.compare(name, weighs)
        except subprocess.CalledProcessError as e:
            # Types of two bits and less make no sense without importances.
            return "", "refused", not weighs and "importances" in e.stderr
        same = "bytes equal" if equal == len(self.weights) else f"{share:.4f}"
        return f"{error:.3e}", same if decodes else "decoded otherwise", decodes and share <= 1.0


def main():
    fewbit, names = sys.argv[1], sys.argv[2:] or list(TYPES)
    failed = []
    print(f"ggml {Ggml().version} of llama-cpp-python {llama_cpp.__version__}\n")
    print("| type | ggml's error | ours / ggml's | ggml's error, importances | ours / ggml's |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(fewbit, Path(work))
        for name in names:
            plain, weighed = bench.cells(name, False), bench.cells(name, True)
            print(f"| {name} | {plain[0]} | {plain[1]} | {weighed[0]} | {weighed[1]} |", flush=True)
            if not (plain[2] and weighed[2]):
                failed.append(name)
    if failed:
        sys.exit(f"decoded otherwise, or with more error than ggml's: {', '.join(failed)}")


if __name__ == "__main__":
    main()
