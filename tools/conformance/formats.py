"""Every format that fewbit writes, loaded by the programs that run it on a CPU; and the files of other programs, read."""
import array
import hashlib
import json
import math
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

HERE = Path(__file__).resolve().parent
TEXT = "Once upon a time there was a little girl named Lily. One day she found a big red ball in the park, and her mother smiled."

# How far logits, which reach 20 on the bundled model, may be from ours. Programs that compute in f32 differ by the order of sums.
# That is enough to put a number onto the other side of a tie where inputs are rounded: all that follows then differs by more,
# and what comes before does not. The kernels that GPTQModel has for CPUs compute in f16, llama.cpp rounds inputs.
SUMS, ROUNDED = 1e-4, 1.0
BOUNDS = {"llama_cpp": 0.5, "gptqmodel": 0.2, "transformers_gptq": 0.1, "transformers_awq": 0.1}
OF_LLAMA = {"llama_cpp"}
WEIGHTS_ONLY = {"transformers_fp8"}  # makes plain weights of them, and rounds no inputs

CT, BOTH, WIDENED = ["compressed_tensors"], ["compressed_tensors", "decompressed"], ["widened"]
GPTQ = ["gptqmodel", "transformers_gptq"]
GGUF = ["llama_cpp", "transformers_gguf"]


def rtn(bits, group, *more):
    return ["--recipe", "rtn", "--bits", str(bits), "--group", str(group), *more]


def mx(element, act=False):
    settings = [f"grid.element={element}", "grid.group=32", "grid.scale=e8m0"]
    settings += [f"act.element={element}", "act.group=32", "act.scale=e8m0"] if act else []
    return ["--recipe", "fp8-dynamic", *[w for s in settings for w in ("--set", s)]]


# What is written and how, by which loaders it is read, how far logits may differ, and the files of others in the same format.
Case = namedtuple("Case", "title what options loaders bound theirs")
CASES = [Case(*case) for case in [
    ("compressed-tensors, pack-quantized", "4 bits, groups of 128, symmetric", rtn(4, 128, "--symmetric"), BOTH, SUMS,
     ["ct-w4a16-g128-sym-gptq-actstatic"]),
    ("", "4 bits, groups of 32, zero points", rtn(4, 32, "--asymmetric"), BOTH, SUMS,
     ["ct-w4a16-g32-asym-rtn", "ct-w4a16-g128-asym-awq"]),
    ("", "3 bits, groups of 128", rtn(3, 128, "--symmetric"), CT, SUMS, ["ct-w3a16-g128-sym-rtn"]),
    ("", "8 bits, rows", rtn(8, "row", "--symmetric"), CT, SUMS, ["ct-w8a16-channel-sym-rtn"]),
    ("", "4 and 8 bits", rtn(4, 64, "--symmetric", "--override", "self_attn:bits=8,group=row"), BOTH, SUMS, ["ct-mixed-w4-w8"]),
    ("compressed-tensors, int-quantized", "W8A8, inputs by token", ["--recipe", "smoothquant-w8a8"], BOTH, ROUNDED,
     ["ct-w8a8-int-dynamic-token"]),
    ("", "W8A8, inputs with one scale", ["--recipe", "smoothquant-w8a8", "--set", "act.static=true"], CT, ROUNDED,
     ["ct-w8a8-int-static-asym"]),
    ("compressed-tensors, float-quantized", "FP8, rows, inputs by token", ["--recipe", "fp8-dynamic"], BOTH, ROUNDED,
     ["ct-fp8-dynamic-token-channel"]),
    ("", "FP8, one scale, inputs and cache too", ["--recipe", "fp8-static"], CT, ROUNDED,
     ["ct-fp8-static-tensor", "ct-fp8-static-kvfp8"]),
    ("", "FP8, blocks of 128 × 128", ["--recipe", "fp8-block"], CT, ROUNDED, ["ct-fp8-block128"]),
    ("compressed-tensors, mxfp8", "inputs too", mx("e4m3", act=True), CT, ROUNDED, ["ct-mxfp8"]),
    ("compressed-tensors, mxfp4", "weights", ["--recipe", "mxfp4"], CT, SUMS, ["ct-mxfp4a16"]),
    ("", "inputs too", ["--recipe", "mxfp4-w4a4"], CT, ROUNDED, []),
    ("compressed-tensors, nvfp4", "weights", ["--recipe", "nvfp4"], WIDENED, SUMS, ["ct-nvfp4a16"]),
    ("", "inputs too", ["--recipe", "nvfp4-w4a4"], WIDENED, ROUNDED, ["ct-nvfp4-w4a4"]),
    *[("GPTQ version 1" if bits == 2 else "", f"{bits} bits, groups of {group}, symmetric",
       rtn(bits, group, "--symmetric", "--format", "gptq"), GPTQ, SUMS, theirs)
      for bits, group, theirs in [(2, 32, ["gptq-w2-g32-asym"]), (3, 128, ["gptq-w3-g128-sym"]),
                                  (4, 128, ["gptq-w4-g128-sym", "gptq-w4-g32-asym"]), (8, 128, ["gptq-w8-g128-sym"])]],
    *[("GPTQ version 2" if bits == 2 else "", f"{bits} bits, groups of 64, zero points",
       rtn(bits, 64, "--asymmetric", "--format", "gptq_v2"), GPTQ, SUMS, ["gptqv2-w4-g64-asym"] if bits == 4 else [])
      for bits in (2, 3, 4, 8)],
    ("AWQ", "4 bits, groups of 64, zero points", rtn(4, 64, "--asymmetric", "--format", "awq"),
     ["gptqmodel", "transformers_awq"], SUMS, ["awq-gemm-w4-g128-autoawq", "awq-gemm-w4-g128-gptqmodel"]),
    ("FP8 as DeepSeek stores it", "blocks of 128 × 128", ["--recipe", "fp8-block", "--format", "fp8"], ["transformers_fp8"],
     SUMS, []),
    ("GGUF", "BF16", ["--recipe", "rtn", "--keep", "*", "--format", "gguf"], GGUF, SUMS, []),
]]
MIXES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS",
         "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0"]

# Programs that were tried, or looked at, and do not run here.
NOT_RUN = """
Not run: AutoAWQ 0.2.9, which asks for intel_extension_for_pytorch on a CPU; vLLM, whose wheels are built for GPUs."""
PROGRAMS = {"compressed_tensors": "transformers", "decompressed": "transformers (decompressed)", "llama_cpp": "llama.cpp",
            "gptqmodel": "GPTQModel", "widened": "transformers (weights in f32)"}


class Bench:
    def __init__(self, fewbit, pythons, work):
        self.fewbit, self.pythons, self.work = fewbit, pythons, work
        self.ids = json.loads(self.run("tokenize", "demo", TEXT, "--json"))["ids"]
        self.versions = set()

    def run(self, *command):
        done = subprocess.run([self.fewbit, *map(str, command)], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
        return done.stdout

    def logits(self, model, ids, arithmetic="exact", *more):
        text = self.run("logits", model, "--ids", ",".join(map(str, ids)), "--arithmetic", arithmetic, *more, "--json")
        return array.array("f", (v for row in json.loads(text)["logits"] for v in row))

    def loaded(self, jobs):
        """What programs make of models: for each (loader, model) logits and None, or None and the program's last words."""
        answers = {job: self.work / f"{job[0]}-{job[1].name}.json" for job in jobs}
        for name, python in self.pythons.items():
            left = [job for job in jobs if (job[0] in OF_LLAMA) == (name == "llama") and not answers[job].exists()]
            while left:
                asked = [[loader, str(model), str(answers[loader, model])] for loader, model in left]
                (self.work / "jobs").write_text(json.dumps({"ids": self.ids, "jobs": asked}))
                done = subprocess.run([python, HERE / "loaders.py", self.work / "jobs"], stdout=sys.stderr)
                if done.returncode != 0:
                    # It ended with a job that has no answer.
                    first = next(job for job in left if not answers[job].exists())
                    answers[first].write_text(json.dumps({"error": f"ended with {done.returncode}"}))
                left = [job for job in left if not answers[job].exists()]
        return {job: self.answer(path) for job, path in answers.items()}

    def answer(self, path):
        said = json.loads(path.read_text())
        if "error" in said:
            path.unlink()  # Tried again the next time.
            return None, said["error"]
        self.versions.update(said["program"].split(", "))
        return floats(path.with_suffix(".logits").read_bytes()), None


def floats(data):
    found = array.array("f")
    found.frombytes(data)
    return found


def apart(a, b):
    """The largest difference."""
    return max(abs(x - y) for x, y in zip(a, b)) if len(a) == len(b) else math.inf


def tensors(path):
    """F32 and I32 tensors of a safetensors file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    kinds = {"F32": "f", "I32": "i"}
    header = json.loads(data[8:start])
    return {name: array.array(kinds[t["dtype"]], data[start + t["data_offsets"][0]:start + t["data_offsets"][1]])
            for name, t in header.items() if t.get("dtype") in kinds}


def read(bench, folder):
    """How far our logits of a folder that others wrote are from what its makers computed, weights alone."""
    golden = tensors(folder / "golden.safetensors")
    cases = [name.removeprefix("logits_weightonly_") for name in golden if name.startswith("logits_weightonly_")]
    ours = {i: bench.logits(folder, golden[f"input_ids_{i}"], "weights-only", "--last", "4") for i in cases}
    return max(apart(ours[i], golden[f"logits_weightonly_{i}"]) for i in cases)


def gguf_cases(matrix):
    """A case for each block type, with the importances that some need."""
    for kind in MIXES:
        stats = ["--stats", str(matrix)] if kind.startswith(("IQ1", "IQ2", "IQ3")) else []
        yield Case("", kind, ["--recipe", "gguf", "--set", f"grid.type={kind}", "--format", "gguf", *stats], GGUF, SUMS, [])


def number(difference):
    return f"{difference:.1e}"


def verdict(ours, theirs, why, said, loader, bound, positions):
    """A cell, and whether it is as it has to be: loaded, near enough, and `fewbit check` said so."""
    program = PROGRAMS.get(loader, "transformers")
    if why:
        return f"{program}: {why}", said is False
    difference = apart(ours, theirs)
    is_near = difference <= BOUNDS.get(loader, bound) and said is not False
    if bound == SUMS:
        return f"{program} {number(difference)}", is_near
    width = len(ours) // positions
    each = [apart(ours[at:at + width], theirs[at:at + width]) for at in range(0, len(ours), width)]
    alike = [d for d in each if d <= SUMS]
    what = f"{number(max(alike, default=math.inf))} at {len(alike)} of {positions} positions, {number(difference)} behind a tie"
    return f"{program} {what if len(alike) < positions else number(difference)}", is_near and len(alike) > 2


def report(fewbit, shared, pythons, work):
    """The table, and what is not as it has to be. Models and logits that are there already are used again."""
    work = work / f"formats-{hashlib.sha256(fewbit.read_bytes()).hexdigest()[:12]}"
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(fewbit, pythons, work)
    matrix = work / "matrix.gguf"
    if not matrix.exists():
        bench.run("calibrate", "demo", "--out", matrix, "--samples", "32", "--length", "256", "--quiet")
    cases = [*CASES, *gguf_cases(matrix)]
    models = [work / f"{i}{'.gguf' if case.loaders == GGUF else ''}" for i, case in enumerate(cases)]
    for case, model in zip(cases, models):
        if not model.exists():
            bench.run("quantize", "demo", *case.options, "--samples", "16", "--length", "128", "--out", model, "--quiet")
        plain = model.with_name(f"{model.name}-plain")
        if case.loaders == WIDENED and not plain.exists():
            bench.run("convert", model, plain, "--format", "plain", "--quiet")
    theirs = bench.loaded([(loader, model) for case, model in zip(cases, models) for loader in case.loaders])
    failed, lines = [], []
    for case, model in zip(cases, models):
        checks = {c["for"]: c["loads"] for c in json.loads(bench.run("check", model, "--json"))["checks"]}
        kinds = {loader: "weights-only" if loader in WEIGHTS_ONLY else "exact" for loader in case.loaders}
        ours = {kind: bench.logits(model, bench.ids, kind) for kind in set(kinds.values())}
        cells = []
        for loader in case.loaders:
            said = checks.get(PROGRAMS.get(loader, "transformers").split(" (")[0])
            cell, is_well = verdict(ours[kinds[loader]], *theirs[loader, model], said, loader, case.bound, len(bench.ids))
            cells.append(cell)
            if not is_well:
                failed.append(f"{case.title} {case.what}: {cell} (check says {said})")
        folders = [shared / "conformance" / "quantized" / name for name in case.theirs]
        found = [read(bench, f) for f in folders if f.exists()]
        lines.append(f"| {case.title} | {case.what} | {number(max(found)) if found else ''} | {'; '.join(cells)} |")
    head = "| format | | read | written and loaded by |\n|---|---|---|---|"
    return "\n".join([", ".join(sorted(bench.versions)) + "\n", head, *lines, NOT_RUN]), failed
