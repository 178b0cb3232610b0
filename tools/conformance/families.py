#!/usr/bin/env python3
"""Holds GGUF files of every family that fewbit writes against llama.cpp: the tiny models of tests/families, written by
`fewbit quantize --keep '*' --format gguf`, must give the logits that transformers computed from the originals.

usage: families.py FEWBIT [CASE ...]      (a Python with llama-cpp-python and safetensors)

llama.cpp rounds activations to the type of the weights, so logits agree to some percent of their spread; a wrong
name, key or order of rows moves them by as much as they are.
"""
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np
from safetensors.numpy import load_file

from stand_in import tokenizer

FAMILIES = Path(__file__).resolve().parents[2] / "tests" / "families"
CASES = ["llama", "llama-bias", "mistral", "qwen2", "qwen3", "gemma2", "gemma3-six", "olmo2", "granite", "stablelm",
         "stablelm-parallel", "cohere", "cohere2", "glm4", "falcon", "falcon-new", "gpt2", "gpt_neox",
         "gpt_neox-sequential", "phi3-longrope-wide", "mixtral-fused", "qwen2_moe-every", "qwen3_moe-every", "gpt_oss-whole",
         "deepseek_v2-greedy", "deepseek_v2-lite-deep", "deepseek_v3"]
MOST = 0.05  # of the logits' standard deviation, root mean square


def written(fewbit, case, work):
    folder, out = work / "model", work / "out"
    shutil.copytree(FAMILIES / case, folder, ignore=shutil.ignore_patterns("golden*", "*5.json"))
    tokenizer(folder)
    subprocess.run([fewbit, "quantize", folder, "--recipe", "rtn", "--keep", "*", "--format", "gguf", "--out", out,
                    "--quiet"], check=True, capture_output=True, text=True)
    return next(out.glob("*.gguf"))


def betas(case):
    """llama.cpp reads YaRN's betas from files of none of these families; they are options of its programs."""
    config = json.loads((FAMILIES / case / "config.json").read_text())
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return dict(yarn_beta_fast=float(scaling.get("beta_fast", 32)), yarn_beta_slow=float(scaling.get("beta_slow", 1)))


def logits(path, ids, yarn):
    model = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False,
                            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, **yarn)
    model.eval(ids.tolist())
    return model.scores[:len(ids)].astype(np.float64)


def main():
    fewbit, cases = sys.argv[1], sys.argv[2:] or CASES
    failed = []
    print(f"llama-cpp-python {llama_cpp.__version__}, f32 cache:\n\n| model | difference |\n|---|---|")
    for case in cases:
        golden = load_file(FAMILIES / case / "golden.safetensors")
        with tempfile.TemporaryDirectory() as work:
            try:
                path = written(fewbit, case, Path(work))
            except subprocess.CalledProcessError as e:
                print(f"| {case} | {e.stderr.strip()} |")
                failed.append(case)
                continue
            worst = 0.0
            for i in range(2):
                want = golden[f"logits_{i}"].astype(np.float64)
                found = logits(path, golden[f"input_ids_{i}"], betas(case))
                worst = max(worst, np.sqrt(((found - want) ** 2).mean()) / want.std())
        print(f"| {case} | {worst:.4f} |", flush=True)
        if worst > MOST:
            failed.append(case)
    if failed:
        sys.exit(f"not as transformers: {', '.join(failed)}")


if __name__ == "__main__":
    main()
