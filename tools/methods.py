#!/usr/bin/env python3
"""Measures the recipes and writes docs/methods.md (Python standard library only).

Each run is a `fewbit quantize` and a `fewbit eval` against the original. Results are kept in docs/methods.jsonl as they
come; what is there is not measured again, so that a call that was ended goes on. Recipes that the program lacks are left
out. What runs there are, what is compared with what, and the figures of other programs: methods_tables.py.
"""
import argparse
import datetime
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from methods_tables import ABLATIONS, BARS, BASELINES, CLASSES, CONTROLS, COST, COST_STEPS, FLOORS, PEERS, RUNS, STRESS

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "docs/methods.jsonl", ROOT / "docs/methods.md"
NAMES = {"stories": "TinyStories-656K", "demo": "The bundled model", "smollm2": "SmolLM2-135M",
         "demo-stress": "the stress model"}
EQUAL_BITS = 0.02  # true bits that count as the same
# Blocks, weights of a block, Σ in² over its inputs, Σ out·in² over its linears: by these the kinds of work grow.
SHAPES = {"tinyllama-1.1b": (22, 2048, 256, 5632), "7B": (32, 4096, 4096, 11008)}
TOKENS_OF_7B = 128 * 2048


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--fewbit", default=str(ROOT / "target/release/fewbit"), help="the program (default: target/release/fewbit)")
    p.add_argument("--models", default=str(ROOT / "../shared/models"), help="folder of TinyStories-656K")
    p.add_argument("--data", default=str(ROOT / "../shared/data"), help="folder of tinystories/, calibration/, wikitext-2/")
    p.add_argument("--smollm2", help="a file or folder of SmolLM2-135M; quantized files are decoded first")
    p.add_argument("--only", nargs="+", metavar="RECIPE", help="these recipes")
    p.add_argument("--class", dest="classes", nargs="+", choices=CLASSES, help="these classes of bits")
    p.add_argument("--model", nargs="+", choices=("stories", "demo", "smollm2"), help="these models")
    p.add_argument("--again", action="store_true", help="measure again what has been measured")
    p.add_argument("--minutes", type=float, default=math.inf, help="begin no run after this time")
    p.add_argument("--ablation", action="store_true", help="measure what the parts of our own compositions add instead")
    p.add_argument("--stress", action="store_true", help="measure the section on the stress model instead")
    p.add_argument("--cost", action="store_true", help="measure the section on cost instead")
    p.add_argument("--layers", type=int, default=2, help="blocks of the model of --cost")
    p.add_argument("--tokens", type=int, default=8192, help="calibration tokens of --cost")
    p.add_argument("--peak", type=float, default=None, metavar="GFLOPS",
                   help="f32 peak of one thread, as `cargo bench -p fewbit-kernel --bench product` prints it, for --cost")
    p.add_argument("--page", action="store_true", help="measure nothing, only write the page")
    return p.parse_args()


class Bench:
    """The program, the texts of each model, and the results so far."""

    def __init__(self, options):
        self.options = options
        self.began = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="fewbit-methods-"))
        self.results = read_results()
        if not options.page:
            self.version = self.run("--version").strip().split()[-1]
            self.known = {r["name"] for r in self.json("recipes")["recipes"]}
        self.controls = CONTROLS | {ablation(r, out): without(r, out) for r, parts in ABLATIONS for out, _ in parts}
        for name, toml in self.controls.items():
            (self.folder / f"{name}.toml").write_text(toml)

    def run(self, *args):
        done = subprocess.run([self.options.fewbit, *map(str, args)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
        return done.stdout

    def json(self, *args):
        return json.loads(self.run(*args, "--json", "--quiet"))

    def tinystories(self, name):
        """A text of protocol P1: without the mark between stories and without six characters that the peers dropped."""
        path = self.folder / name
        if not path.exists():
            text = Path(self.options.data, "tinystories", name).read_text(encoding="utf-8").replace("<|endoftext|>", "")
            path.write_text(text.translate({ord(c): None for c in "é–—’“”"}), encoding="utf-8")
        return path

    def model(self, key):
        """Where a model is, how it is calibrated and how it is measured; none where something is missing."""
        data = Path(self.options.data)
        calibrate = ["--length", 512, "--samples", 64]
        if key == "stories":
            path = Path(self.options.models, "TinyStories-656K")
            if not path.exists():
                return None
            calibration = self.tinystories("sample.txt")
            return path, [*calibrate, "--calibration", calibration], ["--text", self.tinystories("valid.txt"), "--blocks", 64]
        if key == "smollm2":
            if not self.options.smollm2:
                return None
            more = ["--requantize", "--samples", 32, "--length", 512, "--calibration", data / "calibration/wiki.utf8"]
            return Path(self.options.smollm2), more, ["--text", data / "wikitext-2/wiki.test.raw", "--blocks", 16]
        path = "demo"
        if key == "demo-stress":
            path = self.folder / "demo-stress"
            if not path.exists():
                self.run("make-stress", "demo", path, "--quiet")
        return path, [*calibrate, "--calibration", "bundled"], ["--text", ROOT / "assets/evaluation.txt"]

    def quantize(self, path, recipe, settings, more):
        out = self.folder / "quantized"
        for old in (out, Path(f"{out}.partial")):
            shutil.rmtree(old, ignore_errors=True)
        named = self.folder / f"{recipe}.toml" if recipe in self.controls else recipe
        done = self.json("quantize", path, "--recipe", named, *settings.split(), "--out", out, *more)
        manifest = json.loads((out / "fewbit.json").read_text(encoding="utf-8")) if (out / "fewbit.json").exists() else {}
        common = {"cpu_seconds": done["cpu_seconds"], "peak_mib": done["peak_rss_bytes"] / 2**20, "version": self.version,
                  "commit": commit(), "instructions": manifest.get("arithmetic_profile"),
                  "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat()}
        return out, done, common

    def evaluate(self, path, against, measure):
        return self.json("eval", path, "--against", against, "--length", 512, "--arithmetic", "exact", *measure)

    def measure(self, model, recipe, settings):
        """One row of the tables."""
        path, calibrate, measure = self.model(model)
        out, done, common = self.quantize(path, recipe, settings, calibrate)
        kept = self.evaluate(out, path, measure)
        keys = ("kl_mean", "kl_mean_ci95", "kl_p99", "perplexity", "perplexity_ci95", "original_perplexity", "top1_agreement")
        return {"model": model, "recipe": recipe, "settings": settings, "bits_per_weight": done["bits_per_weight"],
                "bits_per_weight_model": done["bits_per_weight_model"], **{k: kept[k] for k in keys}, **common}

    def cost(self, recipe, settings):
        """One row of the table of costs."""
        layers, length = self.options.layers, 512
        path = self.folder / f"tinyllama-{layers}"
        if not path.exists():
            self.run("make-model", path, "--shape", "tinyllama-1.1b", "--layers", layers, "--quiet")
        samples = max(1, self.options.tokens // length)
        _, done, common = self.quantize(path, recipe, settings, ["--samples", samples, "--length", length])
        return {"model": "tinyllama-1.1b", "recipe": recipe, "settings": settings, "blocks": layers, "tokens": samples * length,
                "bits_per_weight": done["bits_per_weight"], "seconds": done["seconds"],
                "seconds_by_work": done["seconds_by_work"], "peak_gflops": self.options.peak, **common}

    def all(self, jobs):
        """Measures what is asked for and not known yet; says in one line what each run brought."""
        only, models = self.options.only, self.options.model
        for model, recipe, settings, how in jobs:
            key = (model, recipe, settings)
            if recipe not in self.known | set(self.controls) or (only and recipe not in only) or (models and model not in models):
                continue
            if (key in self.results and not self.options.again) or time.monotonic() - self.began > 60 * self.options.minutes:
                continue
            try:
                row = how()
            except (RuntimeError, OSError) as e:
                print(f"{model} {recipe} {settings}: {e}", file=sys.stderr)
                continue
            self.results[key] = row
            with RESULTS.open("a", encoding="utf-8") as f:
                f.write(json.dumps(row) + "\n")
            kept = f"KL {row['kl_mean']:.5f}, " if "kl_mean" in row else ""
            spent = f"{row['bits_per_weight']:.3f} bits, {row['cpu_seconds']:.1f} CPU-s"
            print(f"{model} {recipe} {settings}: {kept}{spent}", flush=True)


def ablation(recipe, left_out):
    return f"{recipe} without {left_out.replace(' ', ' and ')}"


def without(recipe, left_out):
    """The text of a recipe without some of its passes, counted from 1."""
    head, *passes = (ROOT / f"recipes/{recipe}.toml").read_text(encoding="utf-8").split("[[pass]]")
    return "[[pass]]".join([head, *(p for i, p in enumerate(passes, 1) if str(i) not in left_out.split())])


def commit():
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def read_results():
    """By model, recipe and settings; a later line replaces an earlier one."""
    if not RESULTS.exists():
        return {}
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {(r["model"], r["recipe"], r["settings"]): r for r in rows}


def tidy_results(results):
    """One line for each run, in a fixed order, put in place at once."""
    new = RESULTS.with_suffix(".new")
    new.write_text("".join(json.dumps(results[k]) + "\n" for k in sorted(results)), encoding="utf-8")
    os.replace(new, RESULTS)


# ---- the page -------------------------------------------------------------------------------------------------------


def figures(x, digits):
    """A number with so many significant digits, never as a power."""
    if x == 0 or not math.isfinite(x):
        return f"{x:g}"
    return f"{x:.{max(0, digits - 1 - math.floor(math.log10(abs(x))))}f}"


def interval(pair, digits):
    return f" [{figures(pair[0], digits)}, {figures(pair[1], digits)}]" if pair else ""


def at_equal_bits(runs, bits):
    """KL of a baseline with so many true bits: its best run there, else straight in the logarithm between the next ones
    below and above of those that no run with fewer bits beats. With the mark of how it was found; none without such runs."""
    runs = [r for r in runs if not any(o["bits_per_weight"] < r["bits_per_weight"] and o["kl_mean"] < r["kl_mean"] for o in runs)]
    same = [r["kl_mean"] for r in runs if abs(r["bits_per_weight"] - bits) <= EQUAL_BITS]
    if same:
        return min(same), ""
    below = max((r for r in runs if r["bits_per_weight"] < bits), key=lambda r: r["bits_per_weight"], default=None)
    above = min((r for r in runs if r["bits_per_weight"] > bits), key=lambda r: r["bits_per_weight"], default=None)
    if not below or not above:
        return None
    low, high = below["bits_per_weight"], above["bits_per_weight"]
    share = (bits - low) / (high - low)
    return math.exp((1 - share) * math.log(below["kl_mean"]) + share * math.log(above["kl_mean"])), "≈ "


def beats(row, name, runs):
    """Whether a row beats a baseline: at the same settings, and at the same true bits where settings leave them apart."""
    words = []
    say = lambda other, mark, where: words.append(
        f"{'yes' if row['kl_mean'] < other else '**no**'}: {name} {mark}{figures(other, 3)}{where}")
    same = [r for r in runs if row["settings"] and r["settings"] == row["settings"]]
    apart = row["bits_per_weight"] - same[0]["bits_per_weight"] if same else 0.0
    if same:
        fewer = f" at {abs(apart):.2f} bits {'fewer' if apart > 0 else 'more'}" if abs(apart) > EQUAL_BITS else ""
        say(same[0]["kl_mean"], "", fewer)
    if not same or abs(apart) > EQUAL_BITS:
        other = at_equal_bits(runs, row["bits_per_weight"])
        if other:
            say(*other, " at equal bits" if same else "")
        elif not same:
            words.append(f"{name} not measured at these bits")
    return words


def peer_rows():
    rows = []
    for line in PEERS.strip().splitlines():
        of, name, bits, perplexity, kl, p99, top1, seconds, peak = (cell.strip() for cell in line.split("|"))
        rows.append({"class": of, "name": name, "bits_per_weight": float(bits), "kl_mean": float(kl), "kl_p99": p99,
                     "perplexity": perplexity, "top1": top1, "seconds": seconds or "–", "peak": peak or "–"})
    return rows


def verdict(rows, row, of, peers):
    """Whether a method beats what its paper beat; the composed recipes have the best peer as their bar."""
    if row["recipe"].startswith("fewbit-"):
        best = [p for p in peers if p["class"] == of and p["bits_per_weight"] <= row["bits_per_weight"] + EQUAL_BITS
                and p["name"] == BARS.get(row["recipe"], p["name"])]
        if not best:
            return ""
        bar = min(best, key=lambda p: p["kl_mean"])
        return f"{'yes' if row['kl_mean'] <= bar['kl_mean'] else '**no**'}: peer {bar['name']} {bar['kl_mean']:.4f}"
    runs = {name: [r for r in rows if r["recipe"] == name] for name in BASELINES.get(row["recipe"], [])}
    return "; ".join(word for name, found in runs.items() for word in beats(row, name, found))


def table(rows, of, mine, peers):
    """One class of one model: our runs and the peers', by KL."""
    lines = []
    for r in mine:
        ppl = f"{figures(r['perplexity'], 4)}{interval(r['perplexity_ci95'], 4)}"
        kl = f"{figures(r['kl_mean'], 3)}{interval(r['kl_mean_ci95'], 3)}"
        name = f"`{r['recipe']}` {r['settings']}".strip()
        lines.append((r["kl_mean"], f"| {name} | {r['bits_per_weight']:.3f} | {kl} | {figures(r['kl_p99'], 3)} | {ppl} "
                      f"| {100 * r['top1_agreement']:.1f} | {figures(r['cpu_seconds'], 2)} | {r['peak_mib']:.0f} | {verdict(rows, r, of, peers)} |"))
    for p in (p for p in peers if p["class"] == of):
        lines.append((p["kl_mean"], f"| *peer: {p['name']}* | {p['bits_per_weight']:.3f} | {p['kl_mean']:.4f} | {p['kl_p99']} "
                      f"| {p['perplexity']} | {p['top1']} | {p['seconds']} | {p['peak']} | |"))
    head = ("| method | true bits | mean KL [95 %] | KL p99 | perplexity [95 %] | top-1 % | CPU-s | peak MiB | beats its paper's baseline |\n"
            "|---|---|---|---|---|---|---|---|---|\n")
    return head + "\n".join(line for _, line in sorted(lines)) + "\n"


def models_page(results):
    parts = []
    for model in ("stories", "demo", "smollm2"):
        rows = [r for (m, _, _), r in results.items() if m == model]
        peers = peer_rows() if model == "stories" else []
        if not rows:
            continue
        parts.append(f"## {NAMES[model]}\n\nThe original's perplexity here: {figures(rows[0]['original_perplexity'], 6)}.\n")
        for of, title in CLASSES.items():
            wanted = {(recipe, settings) for c, recipe, settings, models in RUNS if c == of and model in models}
            mine = [r for r in rows if (r["recipe"], r["settings"]) in wanted]
            if not mine and not any(p["class"] == of for p in peers):
                continue
            parts.append(f"### {title}\n\n{table(rows, of, mine, peers)}")
            if of == "activations" and peers:
                floors = "; ".join(f"{what} {kl:g}" for what, kl in FLOORS)
                parts.append(f"The floor, mean KL with activations alone rounded and weights in f32: {floors}.\n")
    return "\n".join(parts)


def ablation_page(results):
    lines = []
    for recipe, parts in ABLATIONS:
        rows = [(what, results.get(("stories", ablation(recipe, out), ""))) for out, what in parts]
        rows.append(("all of it", results.get(("stories", recipe, ""))))
        lines += [f"| `{recipe}` | {what} | {r['bits_per_weight']:.3f} | {figures(r['kl_mean'], 3)}{interval(r['kl_mean_ci95'], 3)} "
                  f"| {figures(r['cpu_seconds'], 2)} |" for what, r in rows if r]
    if not lines:
        return ""
    return ("## What the parts of our own compositions add\n\nOn TinyStories-656K, by P1.\n\n"
            "| recipe | parts | true bits | mean KL [95 %] | CPU-s |\n|---|---|---|---|---|\n" + "\n".join(lines) + "\n")


def stress_page(results):
    both = [(results.get(("demo", *run)), results.get(("demo-stress", *run))) for run in STRESS]
    both = sorted((b["kl_mean"], a, b) for a, b in both if a and b)
    if not both:
        return ""
    lines = [f"| `{b['recipe']}` {b['settings']} | {b['bits_per_weight']:.3f} | {figures(a['kl_mean'], 3)} "
             f"| {figures(kl, 3)}{interval(b['kl_mean_ci95'], 3)} | {figures(kl / a['kl_mean'], 2)} "
             f"| {figures(b['perplexity'], 4)} | {100 * b['top1_agreement']:.1f} |" for kl, a, b in both]
    original = both[0][2]["original_perplexity"]
    return (
        "## A model with outliers\n\n"
        "`fewbit make-stress demo` makes a model that computes what the bundled one does and has what large models have and\n"
        "small ones lack: channels of inputs that are 20 to 100 times as large, massive activations at the first token,\n"
        f"attention values with constant offsets. Its perplexity before rounding: {figures(original, 6)}\n"
        f"(the bundled model's: {figures(both[0][1]['original_perplexity'], 6)}).\n\n"
        "| method | true bits | mean KL, bundled model | mean KL, stress model [95 %] | times | perplexity | top-1 % |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n")


def sizes(shape):
    """Blocks; weights of a block, Σ in² over inputs, Σ out·in² over linears."""
    blocks, h, kv, m = SHAPES[shape]
    linears = [(h, h), (kv, h), (kv, h), (h, h), (m, h), (m, h), (h, m)]
    return blocks, sum(o * i for o, i in linears), 3 * h * h + m * m, sum(o * i * i for o, i in linears)


def cost_page(results):
    rows = [r for (m, _, _), r in results.items() if m == "tinyllama-1.1b"]
    if not rows:
        return ""
    (_, weights, squares, cubes), (blocks, *large) = sizes("tinyllama-1.1b"), sizes("7B")
    lines = []
    for r in sorted(rows, key=lambda r: r["cpu_seconds"]):
        by_work, total = r["seconds_by_work"], sum(r["seconds_by_work"].values()) or 1.0
        cpu = {kind: r["cpu_seconds"] * s / total / r["blocks"] for kind, s in by_work.items()}
        measured, steps, batch = COST_STEPS.get(r["recipe"], (1, 1, 0))
        cpu["learn"] = cpu.get("learn", 0.0) * steps / measured
        more = r["tokens"] and TOKENS_OF_7B / r["tokens"]
        rounding = large[2] / cubes if cpu.get("gram", 0) > 0 else large[0] / weights
        growth = {"forward": large[0] / weights * more, "gram": large[1] / squares * more, "transform": rounding, "solve": rounding}
        projected = blocks * sum(s * growth.get(kind, large[0] / weights) for kind, s in cpu.items())
        share = "–"
        products = cpu.get("forward", 0) + cpu.get("gram", 0)
        if r["peak_gflops"] and products > 0.01:
            flop = r["tokens"] * (2 * weights + (squares if cpu.get("gram", 0) > 0 else 0))
            if batch:
                flop, products = 6 * weights * batch * steps, cpu["learn"]
            share = f"{100 * flop / products / 1e9 / r['peak_gflops']:.0f} %"
        parts = ", ".join(f"{kind} {figures(s, 2)}" for kind, s in cpu.items() if s > 0.005)
        lines.append(f"| `{r['recipe']}` {r['settings']} | {r['blocks']} | {r['tokens']} | {figures(sum(cpu.values()), 3)} ({parts}) "
                     f"| {r['peak_mib']:.0f} | {share} | {projected / 3600:.2f} |")
    return (
        "## What it costs\n\n"
        "The shape of TinyLlama-1.1B with random weights. A kind of work is projected to 7B (32 blocks of 4096 and 11008,\n"
        f"{TOKENS_OF_7B} calibration tokens) by what it grows with: forwards with weights × tokens, XᵀX with Σ in² × tokens,\n"
        "search and rounding by XᵀX with Σ out·in², all else with the weights. The share of the f32 peak counts one forward through\n"
        "the linears and half of each XᵀX, without attention, against the processor time of both; of learning, the three products\n"
        "with each linear of each step against all its time. Learning is measured on fewer steps and counted for all.\n"
        "`vptq` is measured, and counted, with vectors of four, as it chooses here; for the largest matrices of 7B it would choose\n"
        "vectors of eight, whose codebooks are 256 times as long to search, unless `vector.len = 4` is set.\n\n"
        "| method | blocks | tokens | CPU-s a block | peak MiB | share of f32 peak in products | 7B, CPU-h |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n")


def page(results):
    measured = list(results.values())
    dates = sorted(r["date"] for r in measured)
    versions = ", ".join(sorted({f"{r['version']} on {r['instructions']}" for r in measured if r["instructions"]}))
    return f"""# What the methods reach

Written by `tools/methods.py` from `docs/methods.jsonl`; do not edit. fewbit {versions}; {len(measured)} runs,
{' to '.join(sorted({dates[0], dates[-1]}))}. To measure what is missing, or again: `tools/methods.py --help`.

**How.** Each row is one `fewbit quantize` and one `fewbit eval --against` the original, weights of all linears, embedding and
head as they are (the mixes of `gguf` and `gguf-gptq` round these too). True bits: everything that is stored for the quantized
linears, per weight. KL: of the original's distribution to the model's, in nats, mean over all tokens; p99: its 99th percentile;
top-1: how often both put the same token first. Intervals are bootstrapped over blocks. CPU-s and peak MiB (resident) are those of
`quantize`. A row without settings has the recipe's defaults. Sorted by mean KL.

- **TinyStories-656K** by protocol P1: the first 64 blocks of BOS and 511 ids of the validation stories, all 511 predicted;
  calibration on the first 64 such blocks of another part, `<|endoftext|>` and é – — ’ “ ” deleted from both.
- **The bundled model**: `assets/evaluation.txt` in blocks of 511 ids behind BOS, calibration on 64 sequences of 512 of
  `assets/calibration.txt`.
- **SmolLM2-135M**, decoded from a Q4_1 file: 16 blocks of wikitext-2's test text, calibration on 32 sequences of Wikipedia; without
  the methods that learn by gradients, which take hours there on two cores.

*Peers* are other programs, measured with the packages' own programs under the same protocol; their seconds are those of one
thread, their memory includes that of Python.

**Beats its paper's baseline**: mean KL against the method that its paper compares with at the same settings, and at the same
true bits (within {EQUAL_BITS}) where settings leave these apart; ≈ where no run of the baseline has them, and the value lies
between those with fewer and with more bits, straight in the logarithm. Our own compositions have the best peer as their bar.

{models_page(results)}
{ablation_page(results)}
{stress_page(results)}
{cost_page(results)}""".rstrip() + "\n"


def main():
    options = arguments()
    bench = Bench(options)
    try:
        if options.page:
            jobs = []
        elif options.cost:
            jobs = [("tinyllama-1.1b", r, s, lambda r=r, s=s: bench.cost(r, s)) for r, s in COST]
        else:
            ablations = [("stories", ablation(r, out), "") for r, parts in ABLATIONS for out, _ in parts]
            stress = [(m, r, s) for r, s in STRESS for m in ("demo", "demo-stress")]
            runs = ablations if options.ablation else stress if options.stress else [
                (m, r, s) for m in ("stories", "demo", "smollm2") for c, r, s, models in RUNS
                if m in models and (not options.classes or c in options.classes) and bench.model(m)]
            jobs = [(m, r, s, lambda m=m, r=r, s=s: bench.measure(m, r, s)) for m, r, s in runs]
        bench.all(jobs)
        if not bench.results:
            sys.exit("nothing was measured")
        tidy_results(bench.results)
        PAGE.write_text(page(bench.results), encoding="utf-8")
    finally:
        shutil.rmtree(bench.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
