#!/usr/bin/env python3
"""Holds GGUF files of every family that fewbit writes against the programs that read them: the tiny models of
tests/families, written by `fewbit quantize --keep '*' --format gguf`, must give the logits that transformers computed
from the originals.

usage: families.py FEWBIT [--transformers] [CASE ...]

llama.cpp (a Python with llama-cpp-python and safetensors) rounds activations to the type of the weights, so logits agree
to some percent of their spread; a wrong name, key or order of rows moves them by as much as they are. transformers
(`--transformers`, a Python with transformers, torch and gguf) makes another model of many files, without a word:
`fewbit check` has to say of which.
"""
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from stand_in import tokenizer

FAMILIES = Path(__file__).resolve().parents[2] / "tests" / "families"
CASES = ["llama", "llama-bias", "mistral", "qwen2", "qwen3", "gemma2", "gemma3-six", "olmo2", "granite", "stablelm",
         "stablelm-parallel", "stablelm-norms", "cohere", "cohere-plus-deep", "cohere2", "glm4", "falcon",
         "falcon-new", "gpt2", "gpt_neox", "gpt_neox-sequential", "phi3-longrope-wide", "mixtral-fused",
         "qwen2_moe-every", "qwen3_moe-every", "gpt_oss-whole", "deepseek_v2-greedy", "deepseek_v2-lite-deep",
         "deepseek_v3"]
MOST = 0.05  # of the logits' standard deviation, root mean square
SAME = 1e-3  # where nothing is rounded but the weights, to F16


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


class LlamaCpp:
    def __init__(self):
        import llama_cpp

        self.module, self.title = llama_cpp, f"llama-cpp-python {llama_cpp.__version__}, f32 cache"

    def reader(self, case, path):
        f32 = self.module.GGML_TYPE_F32
        model = self.module.Llama(str(path), n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False,
                                  type_k=f32, type_v=f32, **betas(case))

        def logits(ids):
            model.reset()
            model.eval(ids.tolist())
            return model.scores[:len(ids)]

        return logits


class Transformers:
    def __init__(self):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.torch, self.auto = torch, transformers.AutoModelForCausalLM
        self.title = f"transformers {transformers.__version__}"

    def reader(self, _, path):
        model = self.auto.from_pretrained(path.parent, dtype=self.torch.float32, gguf_file=path.name).eval()

        def logits(ids):
            with self.torch.no_grad():
                return model(self.torch.tensor(ids[None])).logits[0].numpy()

        return logits


def difference(logits, case):
    golden = load_file(FAMILIES / case / "golden.safetensors")
    worst = 0.0
    for i in range(2):
        want = golden[f"logits_{i}"].astype(np.float64)
        found = logits(golden[f"input_ids_{i}"]).astype(np.float64)
        worst = max(worst, np.sqrt(((found - want) ** 2).mean()) / want.std())
    return worst


def said(fewbit, path):
    """What keeps transformers from a file, as `fewbit check` says."""
    done = subprocess.run([fewbit, "check", path, "--for", "transformers", "--json"], capture_output=True, text=True)
    obstacles = json.loads(done.stdout)["checks"][0]["obstacles"]
    if not obstacles:
        return ""
    module, why = obstacles[0]["module"], obstacles[0]["why"]
    return f"`{module}`: {why}" if module else why


def main():
    fewbit, *cases = sys.argv[1:]
    is_transformers = "--transformers" in cases
    cases = [case for case in cases if case != "--transformers"] or CASES
    program = Transformers() if is_transformers else LlamaCpp()
    print(f"{program.title}:\n\n| model | difference |{' `fewbit check` |' if is_transformers else ''}\n|{'---|' * (2 + is_transformers)}")
    failed = []
    for case in cases:
        with tempfile.TemporaryDirectory() as work:
            try:
                path = written(fewbit, case, Path(work))
                found = difference(program.reader(case, path), case)
                shown, is_good = f"{found:.4f}", found <= (SAME if is_transformers else MOST)
            except subprocess.CalledProcessError as e:
                shown, is_good = e.stderr.strip(), False
            except Exception as e:
                if not is_transformers:
                    raise
                shown, is_good = "not loaded", False
            why = said(fewbit, path) if is_transformers else ""
        print(f"| {case} | {shown} |{f' {why} |' if is_transformers else ''}", flush=True)
        if is_good == bool(why):
            failed.append(case)
    if failed:
        sys.exit(f"not as it has to be: {', '.join(failed)}")


if __name__ == "__main__":
    main()
