#!/usr/bin/env python3
"""Has the files that fewbit writes loaded by the programs they are for, and compares logits (Python standard library only).

usage: run.py FEWBIT [CHECK ...] --work DIR [--write]

    formats       every format: read from files of others, written, loaded by the tools on a CPU
    blocks        ggml's block types: decoded, and encoded beside ggml's encoder
    conversions   what `fewbit convert` says of files of others
    families      GGUF files of every family in llama.cpp
    transformers  the same in transformers, and what `fewbit check` says of them

Makes an environment for each program under DIR (gigabytes, once); those named by --torch-python and --llama-python are taken
as they are. `--write` puts the tables into docs/conformance.md. Exits with 1 where something is not as it has to be; a
program that cannot be installed or does not run without a GPU is said to be so in the table.
"""
import argparse
import re
import subprocess
import sys
import venv
from pathlib import Path

import conversions
import formats

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHECKS = ["formats", "blocks", "conversions", "families", "transformers"]
PACKAGES = {
    "torch": ["torch==2.14.1", "transformers==5.20.2", "compressed-tensors==0.19.0", "gptqmodel==7.7.0", "optimum==2.3.0",
              "accelerate==1.15.0", "gguf==0.19.0"],
    "llama": ["llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.4.6", "safetensors==0.8.0"],
}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("fewbit", type=Path, help="the program")
    p.add_argument("checks", nargs="*", choices=[*CHECKS, []], metavar="CHECK", help="of " + ", ".join(CHECKS))
    p.add_argument("--work", type=Path, required=True, help="folder for environments, and for models and logits, which are used again")
    p.add_argument("--torch-python", help="a Python with " + " ".join(PACKAGES["torch"]))
    p.add_argument("--llama-python", help="a Python with " + " ".join(PACKAGES["llama"]))
    p.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with files of other programs")
    p.add_argument("--write", action="store_true", help="put the tables into docs/conformance.md")
    return p.parse_args()


def environment(o, name):
    """The Python of an environment, made where it was not named."""
    if given := getattr(o, f"{name}_python"):
        return given
    folder = o.work / name
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing {' '.join(PACKAGES[name])} …", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES[name]], check=True)
        (folder / "installed").touch()
    return str(python)


def worker(o, python, script, *options):
    """What a script of this folder prints, and whether it found everything as it has to be."""
    done = subprocess.run([python, HERE / script, o.fewbit, *options], stdout=subprocess.PIPE, text=True)
    return done.stdout, [] if done.returncode == 0 else [" ".join([script, *options])]


def write(name, text):
    """Puts a table between its marks."""
    path = ROOT / "docs" / "conformance.md"
    marked = re.compile(rf"(<!-- run.py {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    old = path.read_text()
    if not marked.search(old):
        sys.exit(f"{path} has no place for {name}")
    path.write_text(marked.sub(lambda m: f"{m[1]}{text.strip()}\n{m[2]}", old))


def main():
    o = arguments()
    o.fewbit = o.fewbit.resolve()
    failed = []
    for check in o.checks or CHECKS:
        if check == "formats":
            text, bad = formats.report(o.fewbit, o.shared, {n: environment(o, n) for n in PACKAGES}, o.work)
        elif check == "conversions":
            text, bad = conversions.report(o.fewbit, o.shared), []
        elif check == "transformers":
            text, bad = worker(o, environment(o, "torch"), "families.py", "--transformers")
        else:
            text, bad = worker(o, environment(o, "llama"), f"{check}.py")
        print(text)
        failed += bad
        if o.write:
            write(check, text)
    if failed:
        sys.exit("not as it has to be:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
