#!/usr/bin/env python3
"""Holds GGUF adapters against llama.cpp: the tiny Llama of tests/families, written as a GGUF file by fewbit, with the adapter of
tests/adapters/llama-gguf, must give the logits that PEFT computed.

usage: adapters.py FEWBIT      (a Python with llama-cpp-python and safetensors)

llama.cpp rounds activations to the type of the weights, so logits agree to some percent of their spread.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
from families import MOST, written
from safetensors.numpy import load_file

ADAPTER = Path(__file__).resolve().parents[2] / "tests" / "adapters" / "llama-gguf"


def of_llama_cpp(path, ids, **adapter):
    model = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False,
                            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, **adapter)
    model.eval(ids)
    return model.scores[:len(ids)].astype(np.float64)


def of_fewbit(fewbit, path, ids, *more):
    args = [fewbit, "logits", path, "--ids", ",".join(map(str, ids)), "--arithmetic", "exact", "--json", *more]
    return np.array(json.loads(subprocess.run(args, check=True, capture_output=True, text=True).stdout)["logits"])


def main():
    fewbit = sys.argv[1]
    golden = load_file(ADAPTER / "golden.safetensors")
    ids, want = golden["input_ids"].tolist(), golden["logits"].astype(np.float64)
    apart = lambda found: np.sqrt(((found - want) ** 2).mean()) / want.std()
    file = str(ADAPTER / "adapter.gguf")
    with tempfile.TemporaryDirectory() as work:
        path = written(fewbit, "llama", Path(work))
        rows = {
            "without": of_llama_cpp(path, ids),
            "llama.cpp": of_llama_cpp(path, ids, lora_path=file),
            "llama.cpp, half": of_llama_cpp(path, ids, lora_path=file, lora_scale=0.5),
            "fewbit": of_fewbit(fewbit, path, ids, "--lora", file),
            "fewbit, half": of_fewbit(fewbit, path, ids, "--lora", f"{file}:0.5"),
        }
    for name, found in rows.items():
        print(f"{name}: {apart(found):.4f} of the logits' spread from PEFT's")
    halves = np.sqrt(((rows["fewbit, half"] - rows["llama.cpp, half"]) ** 2).mean()) / want.std()
    print(f"halves: {halves:.4f} apart; llama-cpp-python {llama_cpp.__version__}")
    if max(apart(rows["llama.cpp"]), apart(rows["fewbit"]), halves) > MOST:
        sys.exit("not as PEFT")


if __name__ == "__main__":
    main()
