#!/usr/bin/env python3
"""Speed of fewbit beside llama.cpp and ik_llama.cpp, on the same weights, in turn (Python standard library only).

Makes what is not there yet in the working folder: a model of the shape of TinyLlama-1.1B with random weights, its files, an environment with
llama-cpp-python built from source, and llama-bench of ik_llama.cpp. Then every program runs every file that it reads, one
after the other, round after round; medians and ratios are printed. See README.md.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# File, who writes it, and how: options of `fewbit quantize`, or llama.cpp's number of the type (llama_ftype).
FILES = {
    "fewbit-w4-g128": ("fewbit", ["--bits", "4", "--group", "128", "--format", "fewbit"]),
    "fewbit-q4_0.gguf": ("fewbit", ["--bits", "4", "--group", "32", "--symmetric", "--format", "gguf"]),
    "fewbit-q8_0.gguf": ("fewbit", ["--bits", "8", "--group", "32", "--symmetric", "--format", "gguf"]),
    "llama-q4_0.gguf": ("llama.cpp", 2),
    "llama-q4_k_m.gguf": ("llama.cpp", 15),
    "llama-q8_0.gguf": ("llama.cpp", 7),
}
QUANTIZE = """
import ctypes, sys, llama_cpp
p = llama_cpp.llama_model_quantize_default_params()
p.ftype, p.nthread = int(sys.argv[3]), int(sys.argv[4])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(p)))
"""


def numbers(text):
    return [int(n) for n in text.split(",")]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--fewbit", default=str(ROOT / "target/release/fewbit"), help="the program (default: target/release/fewbit)")
    p.add_argument("--work", required=True, type=Path, help="folder for models and programs; what is there is used again")
    p.add_argument("--model", help="Hugging Face folder to quantize (default: make one of the shape of TinyLlama-1.1B)")
    p.add_argument("--llama-python", default=os.environ.get("FEWBIT_LLAMA_PYTHON"), metavar="PYTHON",
                   help="a Python that has llama-cpp-python (also: FEWBIT_LLAMA_PYTHON; default: build one)")
    p.add_argument("--ik", type=Path, metavar="SOURCE", help="source folder of ik_llama.cpp, to be built")
    p.add_argument("--ik-bench", type=Path, metavar="PROGRAM", help="its llama-bench, where it is built already")
    p.add_argument("--files", nargs="+", choices=FILES, default=list(FILES), metavar="FILE", help=f"of {', '.join(FILES)}")
    p.add_argument("--file", dest="others", action="append", default=[], metavar="PATH", help="another GGUF file, as it is")
    p.add_argument("--threads", type=numbers, default=[1, 2], metavar="T,…")
    p.add_argument("--prompt", type=int, default=512, help="tokens of the prompt; 0: none")
    p.add_argument("--generate", type=int, default=64, help="tokens to generate")
    p.add_argument("--depth", type=numbers, default=[], metavar="D,…", help="generate behind so many positions too")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--cpu", help="instruction set of fewbit, and of llama.cpp if it is avx2 (else the others are built for this machine)")
    p.add_argument("--out", type=Path, help="write everything there as JSON")
    p.add_argument("--prepare", action="store_true", help="make what is lacking, measure nothing")
    return p.parse_args()


def note(text):
    print(text, file=sys.stderr, flush=True)


def run(command, **options):
    """Runs a command; what it prints."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


# Settings of llama.cpp's build.
LLAMA_LEVELS = {
    "native": "-DGGML_NATIVE=ON",
    "avx2": "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON",
}


def llama_python(o):
    """A Python with llama-cpp-python, built here for this machine where none was named."""
    if o.llama_python:
        return o.llama_python
    level = o.cpu if o.cpu in LLAMA_LEVELS else "native"
    folder = o.work / f"llama-cpp-python-{level}"
    python = folder / "bin/python"
    if not (folder / "built").exists():
        note("building llama-cpp-python (minutes) …")
        venv.create(folder, with_pip=True, clear=True)
        # Without the cache: it does not ask with which settings a package was built.
        run([python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-binary", "llama-cpp-python",
             "llama-cpp-python", "numpy"], env=os.environ | {"CMAKE_ARGS": LLAMA_LEVELS[level]})
        (folder / "built").touch()
    return str(python)


def ik_bench(o):
    """llama-bench of ik_llama.cpp, built where its source is at hand; None without."""
    if o.ik_bench or not o.ik:
        return o.ik_bench
    build = o.work / "ik_llama.cpp"
    program = build / "bin/llama-bench"
    if not program.exists():
        note("building ik_llama.cpp (many minutes) …")
        tools = o.work / "build-tools"
        if not (tools / "bin/ninja").exists():
            venv.create(tools, with_pip=True, clear=True)
            run([tools / "bin/python", "-m", "pip", "install", "--quiet", "cmake", "ninja"])
        path = {"PATH": f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        run([tools / "bin/cmake", "-G", "Ninja", "-S", o.ik, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
             "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_OPENMP=OFF"],
            env=os.environ | path)
        run([tools / "bin/ninja", "-C", build, "llama-bench"], env=os.environ | path)
    return program


def whole(path, make):
    """Calls `make` with another name, which becomes `path` once it is written."""
    if not path.exists():
        note(f"making {path} …")
        part = path.with_name(f"{path.name}.making")
        make(part)
        part.rename(path)
    return path


def made(o, python):
    """The files to measure, made of one model where they lack."""
    paths = [o.work / name for name in o.files]
    if all(p.exists() for p in paths):
        return paths
    model = o.model or whole(o.work / "model", lambda out: run([o.fewbit, "make-model", out, "--shape", "tinyllama-1.1b"]))
    for name, path in zip(o.files, paths):
        by, how = FILES[name]
        if by == "fewbit":
            quantize(o, model, path, how)
        else:
            plain = o.work / "plain.gguf"
            quantize(o, model, plain, ["--keep", "*", "--format", "gguf"])
            whole(path, lambda out: run([python, "-c", QUANTIZE, plain, out, how, os.cpu_count()]))
    (o.work / "plain.gguf").unlink(missing_ok=True)
    return paths


def quantize(o, model, path, options):
    """`fewbit quantize` into a folder; of a GGUF file only that is kept."""
    def make(out):
        run([o.fewbit, "quantize", model, "--recipe", "rtn", "--out", out, "--quiet", "--force", *options])
        if path.suffix == ".gguf":
            folder = out.rename(out.with_suffix(".folder"))
            (folder / "model.gguf").rename(out)
            for rest in folder.iterdir():
                rest.unlink()
            folder.rmdir()
    whole(path, make)


class Fewbit:
    name = "fewbit"

    def __init__(self, o):
        self.command = [o.fewbit, "bench", "--json", "--quiet", *(["--cpu", o.cpu] if o.cpu else [])]

    def reads(self, path):
        return True

    def measure(self, path, threads, prompt, generate, depth):
        """Tokens a second of prompt and generation."""
        said = json.loads(run([*self.command, path, "--threads", threads, "--rounds", 1, "--prompt", prompt, "--generate",
                               generate, "--depth", depth]))
        return said["prompt_tokens_per_second"], said["tokens_per_second"]


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, python):
        self.command = [python, HERE / "llama_cpp_speed.py"]

    def reads(self, path):
        return path.suffix == ".gguf"

    def measure(self, path, threads, prompt, generate, depth):
        said = json.loads(run([*self.command, path, "--threads", threads, "--prompt", prompt, "--generate", generate,
                               "--depth", depth]))
        speed = [count / took[0] if took else None
                 for count, took in ((prompt, said["prompt_seconds"]), (generate, said["generate_seconds"]))]
        return tuple(speed)


class IkLlamaCpp:
    """With flash attention, and the faster of both: rows as they are, or repacked when they are loaded."""
    name = "ik_llama.cpp"

    def __init__(self, program):
        self.command = [program, "-r", 1, "-fa", 1, "-o", "json"]

    def reads(self, path):
        return path.suffix == ".gguf"

    def measure(self, path, threads, prompt, generate, depth):
        tests = ["-p", 0, "-n", 0, "-gp", f"{depth},{generate}"] if depth else ["-p", prompt, "-n", generate]
        speed = {}
        for repack in (0, 1):
            for test in json.loads(run([*self.command, "-rtr", repack, "-m", path, "-t", threads, *tests])):
                generates = test["n_gen"] > 0
                speed[generates] = max(test["avg_ts"], speed.get(generates, 0))
        return speed.get(False), speed.get(True)


def measure_all(o, programs, paths):
    """Tokens a second of every round, by (threads, work), then file, then program."""
    cases = [(threads, depth) for threads in o.threads for depth in [0, *o.depth]]
    results = {}
    for round in range(1, o.rounds + 1):
        for threads, depth in cases:
            for path in paths:
                for program in (p for p in programs if p.reads(path)):
                    # Behind a depth only generation counts: a prompt there is measured by nobody.
                    speeds = program.measure(path, threads, 0 if depth else o.prompt, o.generate, depth)
                    works = (f"prompt {o.prompt}", f"generate {o.generate}" + (f" at {depth}" if depth else ""))
                    for work, speed in zip(works, speeds):
                        if speed is not None:
                            note(f"round {round}: {program.name}, {path.name}, {threads} threads, {work}: {speed:.2f} tokens/s")
                            of_work = results.setdefault((threads, work), {}).setdefault(path.name, {})
                            of_work.setdefault(program.name, []).append(speed)
    return results


def size(path):
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(f.stat().st_size for f in files)


def report(results, programs, sizes):
    """A table for each work; with every speed of a peer, what fewbit reaches on the same file over it."""
    peers = [p.name for p in programs if p.name != Fewbit.name]
    for (threads, work), files in results.items():
        print(f"\n{work}, {threads} thread{'s' if threads > 1 else ''} (tokens a second; how many times that fewbit reaches)\n")
        print("| file | MB | fewbit |" + "".join(f" {p} | ratio |" for p in peers))
        print("|---|---|---|" + "---|---|" * len(peers))
        for name, speeds in files.items():
            median = {program: statistics.median(all) for program, all in speeds.items()}
            row = f"| {name} | {sizes[name] / 1e6:.0f} | {median['fewbit']:.2f} |"
            for p in peers:
                row += f" {median[p]:.2f} | {median['fewbit'] / median[p]:.2f} |" if p in median else " | |"
            print(row)


def across(results):
    """Of each file that fewbit wrote, what it reaches over each peer on each file that the peer wrote."""
    ratios = []
    for (threads, work), files in results.items():
        for ours in (f for f in files if f.startswith("fewbit-")):
            for theirs in (f for f in files if not f.startswith("fewbit-")):
                for program, speeds in files[theirs].items():
                    if program != Fewbit.name:
                        ratio = statistics.median(files[ours][Fewbit.name]) / statistics.median(speeds)
                        ratios.append({"work": work, "threads": threads, "file": ours, "peer": program,
                                       "peer_file": theirs, "ratio": ratio})
    return ratios


def main():
    o = arguments()
    o.work.mkdir(parents=True, exist_ok=True)
    python, ik = llama_python(o), ik_bench(o)
    paths = made(o, python) + [Path(p) for p in o.others]
    if o.prepare:
        return
    programs = [Fewbit(o), LlamaCpp(python), *([IkLlamaCpp(ik)] if ik else [])]
    results = measure_all(o, programs, paths)
    sizes = {p.name: size(p) for p in paths}
    report(results, programs, sizes)
    ratios = across(results)
    if ratios:
        print("\nfiles of fewbit over files of the peers (by work and threads)\n\n| fewbit | peer | work | threads | ratio |\n|---|---|---|---|---|")
    for r in ratios:
        print(f"| {r['file']} | {r['peer']}, {r['peer_file']} | {r['work']} | {r['threads']} | {r['ratio']:.2f} |")
    if o.out:
        rows = [{"threads": threads, "work": work, "file": name, "file_bytes": sizes[name], "program": program,
                 "tokens_per_second": statistics.median(all), "all": all}
                for (threads, work), files in results.items()
                for name, speeds in files.items() for program, all in speeds.items()]
        cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
        load = os.getloadavg()[0]
        o.out.write_text(json.dumps({"cpu": cpu, "load_average": load, "rows": rows, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
