"""What `fewbit convert` makes of checkpoints that other programs wrote: exact, or refused with a reason."""
import shutil
import subprocess
import tempfile
from pathlib import Path

from stand_in import tokenizer

CASES = {
    "gguf": ["gptq-w4-g128-sym", "gptq-w8-g128-sym", "gptq-w4-g128-sym-descact", "gptq-w4-g32-asym", "gptq-w3-g128-sym",
             "ct-w4a16-g128-sym-gptq-actstatic"],
    "compressed-tensors": ["awq-gemm-w4-g128-autoawq", "awq-gemm-w4-g128-gptqmodel", "gptq-w4-g128-sym", "gptqv2-w4-g64-asym",
                           "gptq-w4-g128-sym-descact", "bnb-nf4-doublequant"],
    "gptq": ["ct-w4a16-g128-sym-gptq-actstatic", "ct-w8a16-channel-sym-rtn", "ct-mixed-w4-w8", "ct-w4a16-g32-asym-rtn",
             "ct-nvfp4a16", "gptq-w4-g128-sym-descact"],
    "gptq_v2": ["ct-w4a16-g32-asym-rtn", "awq-gemm-w4-g128-autoawq"],
    "awq": ["ct-w4a16-g128-asym-awq", "gptqv2-w4-g64-asym", "ct-mixed-w4-w8", "gptq-w4-g128-sym-descact"],
    "fewbit": ["gptq-w4-g128-sym-descact", "bnb-nf4-doublequant"],
}


def convert(fewbit, shared, name, target, work):
    """What is said of one conversion. Sources come without a tokenizer, and their base model's is none that GGUF can hold."""
    source = work / name
    if not source.exists():
        shutil.copytree(shared / "conformance" / "quantized" / name, source)
        tokenizer(source)
    out = work / f"{name}-{target}"
    done = subprocess.run([fewbit, "convert", source, out, "--format", target, "--quiet"], capture_output=True, text=True)
    if done.returncode == 0:
        return done.stdout.splitlines()[0].removeprefix(f"{out}: ")
    if done.returncode != 2:
        raise SystemExit(f"{name} to {target}: exit code {done.returncode}\n{done.stderr}")
    return "refused: " + done.stderr.strip().removeprefix("error: ").removeprefix(f"`{source}`: ")


def report(fewbit, shared):
    """A table in Markdown."""
    lines = ["| from | to | |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as work:
        for target, names in CASES.items():
            lines += [f"| {name} | {target} | {convert(fewbit, shared, name, target, Path(work))} |" for name in names]
    return "\n".join(lines)
