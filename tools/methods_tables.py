"""What tools/methods.py measures and compares: runs, controls, the baselines of the papers, and figures of other programs."""

CLASSES = {
    "8": "8 bits",
    "5": "5 and 6 bits",
    "4": "4 bits",
    "3": "3 bits",
    "2": "2 bits",
    "below 2": "Below 2 bits",
    "activations": "Weights and activations",
}

# Recipes that exist only to be compared with: the format of a method without the method.
CONTROLS = {
    "rtn-w8a8": '[[pass]]\nuse = "grid.int"\nbits = 8\ngroup = "row"\nsymmetric = true\n[[pass]]\nuse = "solve.nearest"\n'
                '[[pass]]\nuse = "act.int"\nbits = 8\n',
    "rtn-w4a8": '[[pass]]\nuse = "grid.int"\nbits = 4\ngroup = "row"\nsymmetric = true\nclip = "mse"\n'
                '[[pass]]\nuse = "solve.nearest"\n[[pass]]\nuse = "act.int"\nbits = 8\n',
    "rtn-w4a4": '[[pass]]\nuse = "grid.int"\nbits = 4\ngroup = "row"\nsymmetric = true\nclip = "mse"\n'
                '[[pass]]\nuse = "solve.nearest"\n[[pass]]\nuse = "act.int"\nbits = 4\n',
    "gptq-w4a4": '[[pass]]\nuse = "grid.int"\nbits = 4\ngroup = "row"\nsymmetric = true\nclip = "mse"\n'
                 '[[pass]]\nuse = "solve.gptq"\n[[pass]]\nuse = "act.int"\nbits = 4\n',
    "rtn-lowrank": '[[pass]]\nuse = "grid.int"\n[[pass]]\nuse = "solve.nearest"\n'
                   '[[pass]]\nuse = "residual.lowrank"\nrank = 32\n',
    "gptq-sign": '[[pass]]\nuse = "grid.signs"\nbits = 1\noffset = true\ngroup = "row"\n[[pass]]\nuse = "solve.gptq"\n',
    "rtn-ternary": '[[pass]]\nuse = "grid.signs"\nlevels = "range"\ngroup = "row"\n[[pass]]\nuse = "solve.nearest"\n',
    "rtn-2:4": '[[pass]]\nuse = "grid.sparse"\n[[pass]]\nuse = "solve.nearest"\n',
    "rtn-mxfp4": '[[pass]]\nuse = "grid.float"\nelement = "e2m1"\ngroup = 32\nscale = "e8m0"\n'
                 '[[pass]]\nuse = "solve.nearest"\n',
    "rtn-nvfp4": '[[pass]]\nuse = "grid.float"\nelement = "e2m1"\ngroup = 16\nscale = "e4m3"\n'
                 '[[pass]]\nuse = "solve.nearest"\n',
}
CONTROLS = {name: f'name = "{name}"\ncite = "a control"\nsummary = "The format without the method"\ncost = "a pass"\n\n{toml}'
            for name, toml in CONTROLS.items()}

# What each method's paper compares itself with and beats; a recipe that is not here is a baseline or a format itself.
BASELINES = {
    "gptq": ["rtn"], "awq": ["rtn"], "hqq": ["rtn"], "nf4": ["rtn"], "nf4-double": ["rtn"], "quantease": ["gptq"],
    "rsq": ["quarot"], "quarot": ["gptq"], "spqr": ["gptq"], "gwq": ["rtn"], "squeezellm": ["rtn"], "easyquant": ["rtn"],
    "adaround": ["rtn"], "flexround": ["adaround"], "omniquant": ["rtn"], "autoround": ["gptq"], "lsq": ["rtn"],
    "cbq": ["omniquant"], "efficientqat": ["omniquant"], "lorc": ["gptq"], "lqer": ["rtn-lowrank"], "lq-lora": ["nf4"],
    "mxfp4": ["rtn-mxfp4"], "nvfp4": ["rtn-nvfp4"], "vptq": ["gptq"], "quip-sharp": ["omniquant"], "qtip": ["quip-sharp"],
    "bcq": ["rtn"], "pb-llm": ["gptq-sign"], "ternary": ["rtn-ternary"], "mixllm": ["gptq"], "mixed": ["gptq"],
    "sparsegpt-2:4": ["rtn-2:4"], "gguf-gptq": ["gguf"], "gguf-quantease": ["gguf-gptq"], "quantease-outliers": ["quantease"],
    "smoothquant-w8a8": ["rtn-w8a8"], "quarot-w4a4": ["gptq-w4a4"], "quarot-w4a8": ["rtn-w4a8"],
}

# The peers in the formats of our own compositions, where the best peer of the class has another.
BARS = {"fewbit-nvfp4": "llm-compressor NVFP4 (W4A4)", "fewbit-mxfp4": "llm-compressor MXFP4 (W4A4)"}

BOTH, ALL, STORIES = ("stories", "demo"), ("stories", "demo", "smollm2"), ("stories",)


def g128(bits, *recipes):
    return [("5" if bits == 6 else str(bits), recipe, f"--bits {bits} --group 128", BOTH) for recipe in recipes]


def ggml(bits, *types):
    """Mixes of GGUF, with the importances that GPTQ's scales are searched with and, where ggml can do without, without."""
    plain = [(bits, "gguf", f"--set grid.type={t}", ("demo",)) for t in types if t not in ("IQ3_XXS", "IQ2_XS")]
    weighted = [(bits, "gguf", f"--set grid.type={t} --set grid.importance=input", ("demo",)) for t in types]
    solved = [(bits, recipe, f"--set grid.type={t}", ("demo",)) for recipe in ("gguf-gptq", "gguf-quantease") for t in types]
    return plain + weighted + solved


# (class, recipe, settings, models); what costs least is first.
RUNS = [
    *g128(8, "rtn", "gptq", "hqq"),
    ("8", "rtn", "--bits 8 --group row --symmetric", BOTH),
    ("8", "hqq", "--bits 8 --group 64", BOTH),
    ("8", "fewbit-8", "", BOTH),
    *ggml("5", "Q5_K_M", "Q6_K"),
    *g128(6, "rtn", "gptq"),
    *g128(5, "rtn", "gptq", "awq", "hqq"),
    *ggml("4", "Q4_K_M", "IQ4_XS"),
    *g128(4, "rtn", "gptq", "awq", "hqq", "quantease", "quarot", "rsq", "lorc", "lqer", "rtn-lowrank"),
    *[("4", recipe, "--bits 4 --group 128 --symmetric", BOTH) for recipe in ("rtn", "gptq")],
    *[("4", recipe, "--bits 4 --group 32", BOTH) for recipe in ("rtn", "gptq", "awq", "hqq", "quantease", "autoround")],
    *[("4", recipe, "--bits 4 --group 16", BOTH) for recipe in ("rtn", "gptq")],
    ("4", "hqq", "", BOTH),
    ("4", "nf4", "", BOTH),
    ("4", "nf4", "--group 32", BOTH),
    ("4", "nf4", "--group 16", BOTH),
    ("4", "nf4-double", "", BOTH),
    ("4", "easyquant", "", BOTH),
    ("4", "rtn", "--bits 4 --group row --symmetric", BOTH),
    *[("4", recipe, "", BOTH) for recipe in ("rtn-mxfp4", "mxfp4", "rtn-nvfp4", "nvfp4")],
    ("4", "spqr", "--bits 4", BOTH),
    ("4", "gwq", "--bits 4", BOTH),
    ("4", "squeezellm", "--bits 4", BOTH),
    ("4", "lq-lora", "--set residual.rank=8", BOTH),
    ("4", "bcq", "--bits 4", BOTH),
    ("4", "mixllm", "", BOTH),
    ("4", "quip-sharp", "--bits 4", BOTH),
    ("4", "qtip", "--bits 4", BOTH),
    *g128(4, "omniquant", "autoround", "adaround", "flexround", "lsq", "cbq", "efficientqat"),
    ("4", "fewbit-4", "", BOTH),
    ("4", "fewbit-4-g32", "", BOTH),
    *ggml("3", "Q3_K_M", "IQ3_XXS"),
    *g128(3, "rtn", "gptq", "awq", "hqq", "quantease", "quarot", "rsq", "lorc", "lqer", "rtn-lowrank"),
    *[("3", recipe, "--bits 3 --group 64", ("smollm2",)) for recipe in ("rtn", "gptq", "awq", "hqq", "quantease", "quarot")],
    *[("3", recipe, "--bits 3 --group 32", BOTH) for recipe in ("rtn", "gptq", "awq", "hqq", "quantease")],
    *[("3", recipe, "--bits 3 --group 16", BOTH) for recipe in ("rtn", "gptq")],
    ("3", "spqr", "--bits 3", ALL),
    ("3", "gwq", "--bits 3", BOTH),
    ("3", "squeezellm", "--bits 3", ALL),
    ("3", "bcq", "--bits 3", BOTH),
    ("3", "mixed", "", BOTH),
    ("3", "quantease", "--bits 3 --group row", BOTH),
    *[("3", recipe, "", BOTH) for recipe in ("rtn-2:4", "sparsegpt-2:4", "quantease-outliers")],
    ("3", "quip-sharp", "--bits 3", BOTH),
    ("3", "qtip", "--bits 3", BOTH),
    *g128(3, "omniquant", "autoround", "adaround", "flexround", "lsq", "cbq", "efficientqat"),
    ("3", "fewbit-3", "", BOTH),
    *ggml("2", "Q2_K", "IQ2_XS"),
    *g128(2, "rtn", "gptq", "awq", "hqq", "quantease", "quarot", "rsq"),
    *[("2", recipe, "--bits 2 --group 32", ALL) for recipe in ("rtn", "gptq")],
    *[("2", recipe, "--bits 2 --group 32", BOTH) for recipe in ("awq", "hqq", "quantease")],
    ("2", "spqr", "--bits 2", BOTH),
    ("2", "bcq", "--bits 2", BOTH),
    ("2", "quip-sharp", "--bits 2", ALL),
    ("2", "vptq", "", ALL),
    ("2", "qtip", "--bits 2", ALL),
    *g128(2, "omniquant", "autoround", "adaround", "flexround", "lsq", "cbq", "efficientqat"),
    *[("2", recipe, "--bits 2 --group 32", BOTH) for recipe in ("omniquant", "autoround")],
    ("2", "efficientqat", "--bits 2 --group 64", BOTH),
    ("2", "fewbit-2.5", "", BOTH),
    ("2", "fewbit-2", "", BOTH),
    *[("below 2", recipe, "--bits 1 --group 128", BOTH) for recipe in ("rtn", "gptq", "hqq", "quantease", "autoround")],
    *[("below 2", recipe, "", BOTH) for recipe in ("rtn-ternary", "ternary", "gptq-sign", "pb-llm")],
    ("below 2", "bcq", "--bits 1", BOTH),
    *[("activations", recipe, "", BOTH) for recipe in (
        "rtn-w8a8", "smoothquant-w8a8", "fp8-dynamic", "fp8-static", "fp8-block", "rtn-w4a8", "rtn-w4a4", "gptq-w4a4", "quarot-w4a8",
        "quarot-w4a4", "mxfp4-w4a4", "nvfp4-w4a4", "fewbit-w8a8", "fewbit-fp8", "fewbit-nvfp4", "fewbit-mxfp4")],
    *[("activations", recipe, "--set act.static=true", BOTH) for recipe in ("rtn-w8a8", "smoothquant-w8a8")],
]

# Our own compositions without some of their passes: (recipe, [(passes left out, counted from 1; what is there)]).
_LEARNED = [("3 4", "rounding by QuantEase"), ("4", "and blocks learned"), ("3", "or the model learned alone")]
ABLATIONS = [
    *[(recipe, _LEARNED) for recipe in ("fewbit-4", "fewbit-4-g32", "fewbit-3", "fewbit-2.5", "fewbit-2")],
    ("fewbit-w8a8", [("1", "rounding by GPTQ, inputs in 8 bits")]),
    ("fewbit-nvfp4", [("4", "rounding by GPTQ, scales of inputs searched")]),
    ("fewbit-mxfp4", [("1 5", "rounding by GPTQ"), ("5", "and Hadamard matrices before each linear"),
                      ("1", "or the model learned alone")]),
]

# (recipe, settings) of the section on the stress model.
STRESS = [
    ("rtn", "--bits 8 --group 128"), ("rtn", "--bits 4 --group 128"), ("gptq", "--bits 4 --group 128"),
    ("awq", "--bits 4 --group 128"), ("hqq", "--bits 4 --group 128"), ("nf4", ""), ("quantease", "--bits 4 --group 128"),
    ("quarot", "--bits 4 --group 128"), ("rsq", "--bits 4 --group 128"), ("spqr", "--bits 4"), ("squeezellm", "--bits 4"),
    ("easyquant", ""), ("lqer", "--bits 4 --group 128"), ("rtn-w8a8", ""), ("smoothquant-w8a8", ""), ("fp8-dynamic", ""),
    ("rtn-w4a4", ""), ("gptq-w4a4", ""), ("quarot-w4a4", ""), ("autoround", "--bits 4 --group 128"),
]

# Learning is measured on fewer steps and counted as often as its steps go into the recipe's: (measured, all, tokens of one).
COST_STEPS = {"flexround": (25, 500, 8 * 512)}
COST = [
    ("rtn", "--bits 4 --group 128"), ("gptq", "--bits 4 --group 128"), ("awq", "--bits 4 --group 128"), ("spqr", "--bits 4"),
    ("vptq", ""), ("flexround", "--bits 4 --group 128 --set learn.rounding.steps=25"),
]

# Measured with the packages' own programs under the same protocol, on TinyStories-656K, in November 2026: llm-compressor
# 0.14.0.1, GPTQModel 7.7.0, AutoRound 0.16.1, AutoAWQ 0.2.9, quanto 0.2.7, torchao 0.18, HQQ 0.2.8, bitsandbytes 0.50.2.
# class | name | bits per weight | perplexity | mean KL | KL p99 | top-1 in % | seconds of one thread | peak MiB
PEERS = """
8 | HQQ 8-bit g64 | 8.50 | 35.02 | 0.0002 | 0.001 | 98.9 | 0.3 | 1045
8 | torchao int8 weight-only (channel) | 8.08 | 35.02 | 0.0003 | 0.002 | 98.5 | 0.03 | 1068
8 | bitsandbytes LLM.int8 | 8.08 | 35.02 | 0.0003 | 0.002 | 98.6 | 0.06 | 1002
8 | quanto qint8 | 8.08 | 35.02 | 0.0003 | 0.002 | 98.6 | 1.06 | 942
8 | llm-compressor RTN W8A16 g128 | 8.125 | 35.04 | 0.0003 | 0.001 | 98.5 | 0.15 | 570
8 | quanto float8 / torchao float8 weight-only | 8.08 | 35.09 | 0.0044 | 0.024 | 94.3 | 0.04 | 1003
activations | llm-compressor GPTQ W8A8 int8 dynamic token | 8.08 | 35.08 | 0.0014 | 0.007 | 96.8 | 11.81 | 681
activations | llm-compressor SmoothQuant+GPTQ W8A8 | 8.08 | 35.09 | 0.0014 | 0.007 | 97.0 | 23.06 | 681
activations | llm-compressor RTN W8A8 dynamic | 8.08 | 35.07 | 0.0016 | 0.008 | 96.7 | 0.16 | 569
activations | torchao int8 dynamic act + int8 | 8.08 | 35.10 | 0.0016 | 0.008 | 96.7 | 0.03 | 1020
activations | llm-compressor W8A8 static asym tensor | 8.08 | 35.32 | 0.0106 | 0.045 | 91.1 | 9.77 | 677
activations | quanto W8A8 static | 8.08 | 35.54 | 0.0161 | 0.067 | 89.4 | 10.45 | 1183
activations | llm-compressor FP8_BLOCK | 8.00 | 35.21 | 0.0089 | 0.047 | 92.3 | 0.13 | 569
activations | llm-compressor FP8_DYNAMIC | 8.08 | 35.23 | 0.0090 | 0.050 | 92.2 | 0.18 | 569
activations | llm-compressor FP8 static | 8.00 | 35.35 | 0.0109 | 0.058 | 91.5 | 11.07 | 707
activations | llm-compressor FP8 static + FP8 KV | 8.00 | 35.50 | 0.0157 | 0.090 | 90.0 | 9.89 | 678
activations | llm-compressor MXFP8 (W8A8) | 8.25 | 35.46 | 0.0113 | 0.060 | 91.5 |  |
4 | AutoRound asym (auto_awq), 200 it | 4.156 | 36.30 | 0.0334 | 0.172 | 85.5 | 214.99 | 839
4 | AutoRound sym (auto_gptq), 200 it | 4.156 | 36.27 | 0.0349 | 0.183 | 85.0 | 226.06 | 845
4 | llm-compressor GPTQ asym, actorder static | 4.156 | 36.33 | 0.0415 | 0.229 | 84.3 | 7.3 | 1030
4 | llm-compressor AWQ+GPTQ asym | 4.156 | 36.33 | 0.0461 | 0.256 | 83.1 | 181.9 | 1312
4 | GPTQModel GPTQ asym | 4.156 | 36.45 | 0.0467 | 0.252 | 83.0 | 19.11 | 750
4 | GPTQModel GPTAQ sym | 4.156 | 36.77 | 0.0511 | 0.276 | 82.5 |  |
4 | GPTQModel GPTQ sym desc_act | 4.156 | 36.77 | 0.0514 | 0.292 | 82.4 | 17.48 | 745
4 | llm-compressor GPTQ sym, actorder static | 4.125 | 36.88 | 0.0517 | 0.291 | 82.5 | 9.99 | 1032
4 | GPTQModel GPTQ+GAR sym | 4.156 | 36.84 | 0.0527 | 0.299 | 82.3 | 32.06 | 745
4 | GPTQModel GPTQ sym, no reorder | 4.156 | 36.73 | 0.0576 | 0.318 | 81.6 | 29.06 | 748
4 | llm-compressor GPTQ sym, no actorder | 4.125 | 36.69 | 0.0589 | 0.319 | 81.4 | 10.88 | 1022
4 | GPTQModel FOEM sym | 4.156 | 36.69 | 0.0615 | 0.329 | 80.8 |  |
4 | AutoRound opt-RTN sym (0 it) | 4.156 | 37.92 | 0.0715 | 0.345 | 78.8 | 13.79 | 762
4 | llm-compressor AWQ asym | 4.156 | 37.47 | 0.0745 | 0.377 | 78.5 | 142.12 | 1317
4 | quanto qint4 g128 | 4.25 | 37.51 | 0.0752 | 0.367 | 78.4 | 1.13 | 979
4 | llm-compressor SpinQuant R1R2+GPTQ sym | 4.125 | 38.09 | 0.0797 | 0.477 | 78.6 | 18.45 | 702
4 | HQQ 4-bit g128 | 4.25 | 37.94 | 0.0811 | 0.393 | 77.5 | 0.37 | 1013
4 | llm-compressor RTN sym, mse observer | 4.125 | 38.00 | 0.0823 | 0.400 | 77.5 | 0.63 | 931
4 | llm-compressor RTN asym | 4.156 | 38.22 | 0.0849 | 0.413 | 76.9 | 0.1 | 935
4 | llm-compressor RTN sym | 4.125 | 37.73 | 0.1040 | 0.477 | 74.7 | 0.11 | 925
4 | torchao IntxWeightOnly int4 g128 | 4.25 | 37.87 | 0.1042 | 0.488 | 74.7 | 0.04 | 1034
activations | torchao 8da4w g128 | 4.25 | 37.88 | 0.1052 | 0.499 | 74.6 | 0.03 | 1085
activations | llm-compressor W4AFP8 | 4.125 | 37.88 | 0.1080 | 0.501 | 74.3 | 0.14 | 569
4 | AutoAWQ 0.2.9 (a defect, it seems) | 4.156 | 48.86 | 0.2827 | 1.507 | 63.4 | 88.26 | 1221
4 | AutoRound asym g32 | 4.625 | 35.60 | 0.0228 | 0.121 | 87.9 | 366.54 | 855
4 | llm-compressor GPTQ asym g32 | 4.625 | 35.96 | 0.0270 | 0.152 | 86.9 | 12.01 | 682
4 | HQQ g32 | 5.0 | 36.12 | 0.0437 | 0.211 | 83.1 | 0.29 | 1013
4 | llm-compressor AWQ asym g32 | 4.625 | 36.24 | 0.0440 | 0.235 | 83.2 | 207.15 | 1315
4 | llm-compressor RTN asym g32 | 4.625 | 36.46 | 0.0486 | 0.247 | 82.3 | 0.15 | 570
4 | HQQ g64 | 4.5 | 36.43 | 0.0578 | 0.284 | 80.7 | 0.31 | 1013
4 | llm-compressor NVFP4A16 | 4.50 | 37.03 | 0.0628 | 0.304 | 79.9 |  |
4 | bitsandbytes NF4 b64 | 4.5 | 37.63 | 0.0628 | 0.312 | 80.2 | 0.12 | 979
4 | bitsandbytes NF4 b64 double quant | 4.13 | 37.63 | 0.0627 | 0.314 | 80.2 | 0.12 | 970
4 | llm-compressor MXFP4A16 | 4.25 | 38.37 | 0.0917 | 0.475 | 76.9 |  |
4 | bitsandbytes FP4 b64 | 4.5 | 38.92 | 0.1221 | 0.549 | 73.0 | 0.09 | 965
activations | llm-compressor NVFP4 (W4A4) | 4.50 | 39.61 | 0.1348 | 0.705 | 72.1 |  |
activations | llm-compressor MXFP4 (W4A4) | 4.25 | 44.07 | 0.2439 | 1.216 | 64.2 |  |
3 | AutoRound sym g128 | 3.148 | 39.68 | 0.1433 | 0.762 | 71.4 | 235.53 | 849
3 | llm-compressor GPTQ asym g32 | 3.594 | 39.99 | 0.1315 | 0.749 | 73.4 | 19.16 | 695
3 | HQQ g32 | 4.0 | 42.86 | 0.2080 | 0.958 | 65.8 | 0.62 | 1046
3 | llm-compressor GPTQ asym g128 | 3.148 | 43.68 | 0.2137 | 1.175 | 66.5 | 17.16 | 695
3 | llm-compressor GPTQ sym g128 | 3.125 | 45.38 | 0.2655 | 1.548 | 63.1 | 10.05 | 683
3 | GPTQModel GPTQ+GAR sym g128 | 3.148 | 44.83 | 0.2675 | 1.431 | 62.6 | 16.56 | 750
3 | HQQ g64 | 3.5 | 44.46 | 0.2725 | 1.307 | 62.1 | 0.39 | 1046
3 | llm-compressor AWQ asym g128 | 3.148 | 50.78 | 0.3703 | 1.833 | 56.4 | 245.32 | 1304
3 | HQQ g128 | 3.25 | 51.78 | 0.3896 | 1.834 | 56.0 | 1.69 | 1014
3 | torchao intx3 g128 | 3.25 | 56.49 | 0.5088 | 2.539 | 50.8 | 0.03 | 969
3 | llm-compressor RTN sym g128 | 3.125 | 56.59 | 0.5128 | 2.578 | 50.7 | 0.16 | 571
2 | AutoRound asym g32 | 2.563 | 53.72 | 0.4643 | 2.486 | 51.6 | 362.92 | 851
2 | AutoRound sym g128 + alg_ext | 2.141 | 55.79 | 0.5262 | 2.693 | 48.9 | 302.15 | 863
2 | AutoRound sym g128 | 2.141 | 67.10 | 0.7063 | 3.451 | 42.4 | 243.28 | 865
2 | llm-compressor GPTQ asym g32 | 2.563 | 95.11 | 1.0138 | 4.870 | 36.3 | 15.12 | 682
2 | HQQ g32 | 3.0 | 140.32 | 1.3973 | 5.835 | 26.7 | 0.64 | 1045
2 | llm-compressor GPTQ asym g128 | 2.141 | 199.15 | 1.7660 | 7.381 | 23.0 | 12.61 | 705
2 | HQQ g64 | 2.5 | 219.81 | 1.9820 | 7.273 | 18.8 | 0.97 | 1045
2 | GPTQModel GPTQ+GAR sym g128 | 2.141 | 251.08 | 2.0273 | 7.827 | 19.0 | 20.94 | 750
2 | HQQ g128 | 2.25 | 424.08 | 2.6241 | 8.465 | 12.5 | 0.76 | 1045
2 | quanto qint2 g128 | 2.25 | 451.91 | 2.6557 | 8.386 | 11.0 | 1.11 | 1015
2 | llm-compressor AWQ asym g128 | 2.141 | 556.36 | 2.8458 | 9.987 | 11.8 | 141.12 | 1318
2 | llm-compressor RTN asym g128 | 2.141 | 770.44 | 3.1652 | 10.054 | 10.8 | 0.17 | 570
2 | torchao intx2 g128 | 2.25 | 1260.91 | 3.7518 | 11.453 | 6.9 | 0.03 | 972
"""

# Rounding the activations alone, the weights in f32; same protocol. (what, mean KL)
FLOORS = [("int8 per token", 0.0012), ("FP8 E4M3 per token", 0.0045), ("NVFP4, best block scale", 0.0557),
          ("MXFP4, best scale", 0.150)]
