#!/usr/bin/env python3
"""Writes sound inputs for the fuzz targets, where a corpus begins: `python3 fuzz/seeds.py FOLDER`.

Configurations and tensor names come from tests/families, recipes from recipes/, the rest is small and written here.
The forms of the inputs are said in crates/fewbit-fuzz.
"""
import json
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = Path(sys.argv[1])


def put(target, name, *parts):
    folder = OUT / target
    folder.mkdir(parents=True, exist_ok=True)
    data = b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in parts)
    (folder / name).write_bytes(data)


def header(path):
    with open(path, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        return {k: v for k, v in json.loads(f.read(size)).items() if k != "__metadata__"}


def lines(tensors):
    return "".join(f"{n} {t['dtype']} {','.join(map(str, t['shape']))}\n" for n, t in tensors.items())


def plain(dtype, *shape):
    return {"dtype": dtype, "shape": list(shape)}


# Numbers that are sound as codes, as indices of few groups, and as halves.
BYTES = bytes(range(0, 64, 5)) * 2

for family in sorted((ROOT / "tests/families").iterdir()):
    for config in sorted(family.glob("config*.json")):
        text = json.dumps(json.loads(config.read_text()), separators=(",", ":"))
        tensors = {k: v for shard in sorted(family.glob("model*.safetensors")) for k, v in header(shard).items()}
        put("model", f"{family.name}-{config.stem}", text, "\0", lines(tensors), "\0", b"\x00\x3c\x3d\x3e")

# Adapters of a tiny Llama: queries [64, 32], embedding [96, 32].
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
pair = {f"{MODULE}.lora_A.weight": plain("BF16", 2, 32), f"{MODULE}.lora_B.weight": plain("BF16", 64, 2)}
embedding = {"model.embed_tokens.lora_embedding_A": plain("F32", 4, 96), "model.embed_tokens.lora_embedding_B": plain("F32", 32, 4)}
settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": True, "bias": "none", "modules_to_save": None,
            "rank_pattern": {"embed_.*": 4}, "alpha_pattern": {r"layers\.0\..*": 1.5}}
put("adapter", "linear", json.dumps(settings), "\0", lines(pair), "\0", b"\x00\x3c\x3d\x3e")
put("adapter", "embedding", json.dumps(settings), "\0", lines(pair | embedding), "\0", b"\x00\x00\x80\x3f")
for key, value in [("use_dora", True), ("modules_to_save", ["lm_head"]), ("peft_type", "IA3"), ("rank_pattern", {"(": 1})]:
    put("adapter", key, json.dumps(settings | {key: value}), "\0", lines(pair), "\0", b"\x00\x3c\x3d\x3e")
put("adapter", "gguf", (ROOT / "tests/adapters/llama-gguf/adapter.gguf").read_bytes())

for recipe in sorted((ROOT / "recipes").glob("*.toml")):
    put("recipe", recipe.stem, recipe.read_bytes())

# Blocks: the type, rows, blocks of a row.
BLOCK_BYTES = [18, 20, 22, 24, 34, 84, 110, 144, 176, 210]
for kind, size in enumerate(BLOCK_BYTES):
    put("blocks", f"{kind}", [kind, 2, 2], (bytes(range(7, 256, 11)) * 40)[: 4 * size])
    put("blocks", f"{kind}-tile", [kind, 16, 1], (bytes(range(3, 250, 13)) * 200)[: 16 * size])

# safetensors: index, header, data.
two = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
       "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]}}
put("safetensors", "one", "\0", json.dumps({"__metadata__": {"format": "pt"}, **two}), "\0", bytes(22))
put("safetensors", "index", json.dumps({"metadata": {"total_size": 22}, "weight_map": {"a": "a.safetensors", "b": "model.safetensors"}}),
    "\0", json.dumps(two), "\0", bytes(22))
for name in ["../a.safetensors", "/etc/hostname", ".", "config.json"]:
    put("safetensors", "place" + name.replace("/", "-"), json.dumps({"weight_map": {"a": name}}), "\0", json.dumps(two), "\0", bytes(22))
h = json.dumps(two).encode()
put("safetensors", "raw", "\0\0", struct.pack("<Q", len(h)), h, bytes(22))
every = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"]
put("safetensors", "types", "\0", json.dumps({t: {"dtype": t, "shape": [0, 7], "data_offsets": [0, 0]} for t in every}), "\0")


# Layouts: settings, the module's shape, its tensors.
def layout(name, settings, shape, tensors, data=BYTES):
    listing = f"{shape[0]} {shape[1]}\n" + lines({f"m.{k}": plain(*t) for k, t in tensors.items()})
    put("layouts", name, json.dumps(settings, separators=(",", ":")), "\0", listing, "\0", data)


def gptq(name, bits, group, index=False, **more):
    rows, cols = 32, 64
    groups = cols // group if group > 0 else 1
    t = {"qweight": ("I32", cols * bits // 32, rows), "qzeros": ("I32", groups, rows * bits // 32), "scales": ("F16", groups, rows)}
    if index:
        t["g_idx"] = ("I32", cols)
    layout(name, {"quant_method": "gptq", "bits": bits, "group_size": group, **more}, (rows, cols), t, bytes(8) if index else BYTES)


gptq("gptq-4", 4, 32, sym=True)
gptq("gptq-3", 3, -1)
gptq("gptq-2-v2", 2, 16, checkpoint_format="gptq_v2")
gptq("gptq-8-act-order", 8, 32, index=True, desc_act=True)
gptq("gptq-dynamic", 4, 32, dynamic={"+:.*": {"bits": 4}})
layout("awq", {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, (16, 64),
       {"qweight": ("I32", 64, 2), "qzeros": ("I32", 2, 2), "scales": ("F16", 2, 16)})
layout("bnb-8", {"quant_method": "bitsandbytes", "load_in_8bit": True}, (4, 8), {"weight": ("I8", 4, 8), "SCB": ("F32", 4)}, bytes(4))
state = json.dumps({"quant_type": "nf4", "blocksize": 8, "shape": [4, 8]}).encode()
layout("bnb-4", {"quant_method": "bitsandbytes", "load_in_4bit": True}, (4, 8),
       {"weight.quant_state.bitsandbytes__nf4": ("U8", len(state)), "weight": ("U8", 16, 1), "weight.absmax": ("F32", 4), "weight.quant_map": ("F32", 16)}, state)


def hqq(name, packing, bits, size, axis, words):
    rows, cols = 8, 16
    groups = rows * cols // size
    numbers = ("F16", *((groups, 1) if axis else (1, groups)))
    width = size if axis else groups
    tensors = {"packing": ("U8", len(packing)), "nbits": ("I32",), "group_size": ("I32",), "axis": ("I32",), "shape": ("I32", 2),
               "W_q": ("U8", words, width), "scale": numbers, "zero": numbers}
    data = packing.encode() + struct.pack("<5i", bits, size, axis, rows, cols) + bytes(range(words * width)) + b"\x00\x3c" * 2 * groups
    settings = {"weight_quant_params": {"nbits": bits, "group_size": size, "axis": axis}}
    layout(name, {"quant_method": "hqq", "quant_config": settings, "skip_modules": ["lm_head"]}, (rows, cols), tensors, data)


hqq("hqq-4", "4bit_u8", 4, 8, 1, 8)
hqq("hqq-1-columns", "1bit_u8", 1, 16, 0, 2)
hqq("hqq-over-rows", "8bit_u8", 8, 32, 1, 4)


def torchao(name, kind, data, tensors, shape=(4, 32), values=BYTES):
    meta = {"m.weight": json.dumps({"_type": kind, "_data": data}), "tensor_names": "[\"m.weight\"]"}
    layout(name, {"quant_method": "torchao", "quant_type": {"default": {"_type": "X", "_data": {}}}, "__metadata__": meta}, shape,
           {f"_weight_{k}": v for k, v in tensors.items()}, values)


per_row = {"_type": "PerRow", "_data": {"dim": -1}}
torchao("torchao-int8", "Int8Tensor", {"block_size": [1, 32], "act_quant_kwargs": {"_type": "QuantizeTensorToInt8Kwargs", "_data": {
    "granularity": per_row, "mapping_type": {"_type": "MappingType", "_data": "ASYMMETRIC"}}}},
    {"qdata": ("I8", 4, 32), "scale": ("F16", 4, 1), "zero_point": ("I8", 4, 1), "act_pre_scale": ("F16", 32)})
torchao("torchao-intx", "IntxUnpackedToInt8Tensor", {"block_size": [1, 16], "target_dtype": {"_type": "torch.dtype", "_data": "int4"},
    "activation_quantization": "int8_asym_per_token"}, {"qdata": ("I8", 4, 32), "scale": ("F16", 4, 2), "zero_point": ("F16", 4, 2)}, values=b"\x01\x02")
torchao("torchao-int4", "Int4Tensor", {"block_size": [1, 16], "shape": [4, 32], "activation_dtype": {"_type": "torch.dtype", "_data": "bfloat16"}},
        {"qdata": ("I8", 4, 16), "scale": ("F16", 2, 4), "zero_point": ("F16", 2, 4)})
torchao("torchao-fp8", "Float8Tensor", {"block_size": [4, 32], "act_quant_kwargs": {"_type": "QuantizeTensorToFloat8Kwargs", "_data": {
    "granularity": per_row, "float8_dtype": {"_type": "torch.dtype", "_data": "float8_e4m3fn"}}}}, {"qdata": ("F8_E4M3", 4, 32), "scale": ("F32", 1, 1)})
layout("fp8-block", {"quant_method": "fp8", "weight_block_size": [4, 8], "activation_scheme": "dynamic"}, (8, 16),
       {"weight": ("F8_E4M3", 8, 16), "weight_scale_inv": ("F32", 2, 2)})
layout("fp8-static", {"quant_method": "fp8", "activation_scheme": "static"}, (8, 16),
       {"weight": ("F8_E4M3", 8, 16), "weight_scale": ("F32", 1), "input_scale": ("F32", 1)}, b"\x00\x00\x80\x3f")


def ct(name, form, weights, tensors, inputs=None, cache=None, targets=("Linear",)):
    group = {"targets": list(targets), "weights": weights, "input_activations": inputs}
    layout(name, {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"], "kv_cache_scheme": cache,
                  "config_groups": {"group_0": group}}, (16, 32), tensors)


int4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": False}
ct("ct-int4", "pack-quantized", int4,
   {"weight_packed": ("I32", 16, 4), "weight_scale": ("BF16", 16, 2), "weight_zero_point": ("I32", 2, 2), "weight_shape": ("I64", 2)})
ct("ct-int4-order", "pack-quantized", {**int4, "symmetric": True, "actorder": "group"},
   {"weight_packed": ("I32", 16, 4), "weight_scale": ("BF16", 16, 2), "weight_g_idx": ("I32", 32)})
ct("ct-int8", "int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
   {"weight": ("I8", 16, 32), "weight_scale": ("F32", 16, 1)}, {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True},
   targets=(r"re:m$",))
ct("ct-fp8", "float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True},
   {"weight": ("F8_E4M3", 16, 32), "weight_scale": ("F32", 1), "input_scale": ("F32", 1), "k_scale": ("F32", 1)},
   {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True},
   {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True})
ct("ct-mxfp4", "mxfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True},
   {"weight_packed": ("U8", 16, 16), "weight_scale": ("U8", 16, 1)})
ct("ct-nvfp4", "nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True},
   {"weight_packed": ("U8", 16, 16), "weight_scale": ("F8_E4M3", 16, 2), "weight_global_scale": ("F32", 1), "input_global_scale": ("F32", 1)},
   {"num_bits": 4, "type": "float", "strategy": "tensor_group", "dynamic": "local", "group_size": 16, "symmetric": True})


def own(name, scheme, shape, tensors, **more):
    layout(f"own-{name}", {"quant_method": "fewbit", "version": 2, "default": scheme, **more}, shape, tensors)


own("int", {"bits": 3, "group": 16, "symmetric": False}, (5, 32),
    {"weight.codes": ("U8", 5, 12), "weight.scales": ("F16", 5, 2), "weight.zeros": ("U8", 4)})
own("int-offsets", {"bits": 4, "group": "row", "symmetric": False}, (5, 32),
    {"weight.codes": ("U8", 5, 16), "weight.scales": ("F16", 5, 1), "weight.offsets": ("F16", 5, 1), "weight.group_index": ("I32", 32)})
own("tiles", {"bits": 4, "group": 32, "symmetric": True}, (32, 64),
    {"weight.tiles": ("U8", 2, 512), "weight.scales": ("F16", 2, 2, 16)})
own("tiles-3", {"bits": 3, "group": 32, "symmetric": True}, (20, 64),
    {"weight.tiles": ("U8", 2, 384), "weight.scales": ("F16", 2, 2, 16)})
own("second", {"bits": 2, "group": 16, "symmetric": True, "second": {"bits": 6, "rows": 16}}, (4, 32),
    {"weight.codes": ("U8", 4, 8), "weight.scales.codes": ("U8", 6), "weight.scales.scales": ("F16", 2)})
own("table", {"bits": 4, "group": "row", "table": True}, (6, 16),
    {"weight.codes": ("U8", 6, 8), "weight.scales": ("F16", 6, 1), "weight.table": ("I8", 6, 16)})
own("signs", {"signs": 2, "offset": True, "group": 8}, (4, 16), {"weight.codes": ("U8", 4, 4), "weight.numbers": ("F16", 4, 2, 3)})
own("ternary", {"signs": "ternary", "group": 8}, (4, 16), {"weight.codes": ("U8", 4, 4), "weight.numbers": ("F16", 4, 2, 1)})
own("lattice", {"lattice": "e8p", "second": "e8", "group": "row"}, (4, 32),
    {"weight.codes": ("U8", 4, 8), "weight.residual": ("U8", 4, 4), "weight.scales": ("F16", 4, 1)})
own("vector", {"vector": 2, "bits": 5, "residual_bits": 2, "columns": True}, (6, 16),
    {"weight.codes": ("U8", 3, 10), "weight.residual": ("U8", 3, 4), "weight.codebook": ("F16", 36, 2), "weight.columns": ("F16", 2, 16)})
own("trellis", {"trellis": "1mad", "state_bits": 12, "tile_bits": 512, "group": "row"}, (16, 32),
    {"weight.codes": ("U8", 1, 2, 64), "weight.scales": ("F16", 16, 1)})
own("float", {"element": "e2m1", "group": 16, "scale": "e4m3"}, (4, 32),
    {"weight.codes": ("U8", 4, 16), "weight.scales": ("F8_E4M3", 4, 2), "weight.global_scale": ("F32", 1)})
own("two-of-four", {"two_of_four": {"bits": 4, "group": "row", "symmetric": True}}, (2, 16),
    {"weight.mask": ("U8", 2, 2), "weight.codes": ("U8", 2, 4), "weight.scales": ("F16", 2, 1)})
layout("own-two-of-four-sound", {"quant_method": "fewbit", "version": 2, "default": {"two_of_four": "float"}}, (2, 16),
       {"weight.mask": ("U8", 2, 2), "weight.kept": ("BF16", 2, 8)}, b"\x33")
own("bands", [{"rows": 3, "bits": 2, "group": "row", "symmetric": True}, {"rows": 2, "bits": 4, "group": 8, "symmetric": True}], (5, 16),
    {"weight.codes.0": ("U8", 3, 4), "weight.scales.0": ("F16", 3, 1), "weight.codes.1": ("U8", 2, 8), "weight.scales.1": ("F16", 2, 2)})
layout("own-maps", {"quant_method": "fewbit", "version": 2, "default": {"weights": {"bits": 4, "group": "row", "symmetric": True}, "input": {"number": "int8", "symmetric": True, "group": "token"}},
                    "cache": {"number": "int8", "symmetric": True, "group": 16}}, (4, 4),
       {"weight.codes": ("U8", 4, 2), "weight.scales": ("F16", 4, 1), "input.0.hadamard": ("I32", 2), "input.0.flips": ("U8", 1), "input.1.factors": ("F32", 4),
        "weight.sparse.gaps": ("U8", 4), "weight.sparse.values": ("F16", 2), "left.weight": ("F16", 4, 1), "right.weight": ("F16", 1, 4)},
       b"\x04\x00\x00\x00\x00\x00\x00\x00")

# Maps at both ends.
layout("ct-transform", {"quant_method": "compressed-tensors", "format": "naive-quantized", "config_groups": {"g": {"targets": ["Linear"], "weights": {
    "num_bits": 4, "type": "int", "strategy": "channel", "symmetric": False}}}, "transform_config": {"config_groups": {
        "v": {"type": "hadamard", "head_dim": 2, "apply": [{"targets": ["Linear"], "location": "input"}]},
        "u": {"type": "hadamard", "head_dim": 4, "apply": [{"targets": ["m"], "location": "output", "inverse": True}]}}}}, (4, 16),
    {"v_input.weight": ("F16", 2, 2), "weight_scale": ("F16", 4, 1), "weight_zero_point": ("I8", 4, 1), "weight": ("I8", 4, 16)},
    struct.pack("<4e", 1, 1, -1, 1) + struct.pack("<4e", 1, 2, 3, 4) + bytes(4) + bytes(range(8)) * 8)


# GGUF: the target adds the data.
def text(s):
    return struct.pack("<Q", len(s.encode())) + s.encode()


def value(v):
    if isinstance(v, bool):
        return struct.pack("<IB", 7, v)
    if isinstance(v, int):
        return struct.pack("<II", 4, v)
    if isinstance(v, float):
        return struct.pack("<If", 6, v)
    if isinstance(v, str):
        return struct.pack("<I", 8) + text(v)
    if v and isinstance(v[0], str):
        return struct.pack("<IIQ", 9, 8, len(v)) + b"".join(map(text, v))
    if v and isinstance(v[0], int):
        return struct.pack("<IIQ", 9, 5, len(v)) + struct.pack(f"<{len(v)}i", *v)
    return struct.pack("<IIQ", 9, 6, len(v)) + struct.pack(f"<{len(v)}f", *v)


TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}


def gguf(name, keys, tensors):
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    out += b"".join(text(k) + value(v) for k, v in keys.items())
    at = 0
    for n, (kind, *shape) in tensors.items():
        number, block, size = TYPES[kind]
        out += text(n) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", number, at)
        count = 1
        for s in shape:
            count *= s
        at = (at + count // block * size + 31) // 32 * 32
    put("gguf", name, out)


LLAMA = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "t", "h", "e", "th", "▁th", "▁the"],
         "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -0.5, -0.4, -0.3],
         "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 1], "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
         "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_bos_token": True}
GPT2 = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": ["<|endoftext|>", "t", "h", "e", "Ġ", "th", "Ġth", "Ġthe", "a", "b", "c", "!"],
        "tokenizer.ggml.token_type": [3] + [1] * 11, "tokenizer.ggml.merges": ["t h", "Ġ th", "Ġth e"], "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
for i, family in enumerate(["llama", "qwen2", "qwen3", "gemma2", "gemma3", "falcon", "olmo2", "granite", "stablelm", "command-r", "cohere2", "glm4", "phi3"]):
    norm = {"falcon": "layer_norm_epsilon", "stablelm": "layer_norm_epsilon", "command-r": "layer_norm_epsilon", "cohere2": "layer_norm_epsilon"}.get(family, "layer_norm_rms_epsilon")
    keys = {"general.architecture": family, **{f"{family}.{k}": v for k, v in {
        "context_length": 64, "embedding_length": 32, "block_count": 1, "feed_forward_length": 64, "attention.head_count": 2,
        "attention.head_count_kv": 1, "attention.key_length": 16, "attention.value_length": 16, f"attention.{norm}": 1e-5,
        "rope.dimension_count": 16, "rope.freq_base": 1e4, "attention.sliding_window": 16, "logit_scale": 1.0,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "embedding_scale": 1.0, "residual_scale": 1.0, "attention.scale": 0.25}.items()},
        **(LLAMA if i % 2 == 0 else GPT2)}
    if family == "llama":
        keys |= {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.original_context_length": 16}
    kind = ["F32", "F16", "Q8_0", "Q4_0"][i % 4]
    b = "blk.0."
    tensors = {"token_embd.weight": ("F16", 12, 32), "output_norm.weight": ("F32", 32), "output_norm.bias": ("F32", 32), b + "attn_norm.weight": ("F32", 32),
               b + "attn_norm.bias": ("F32", 32), b + "attn_norm_2.weight": ("F32", 32), b + "attn_norm_2.bias": ("F32", 32),
               b + "attn_q.weight": (kind, 32, 32), b + "attn_k.weight": (kind, 16, 32), b + "attn_v.weight": (kind, 16, 32),
               b + "attn_qkv.weight": (kind, 64, 32), b + "attn_output.weight": (kind, 32, 32), b + "ffn_norm.weight": ("F32", 32), b + "ffn_norm.bias": ("F32", 32),
               b + "ffn_gate.weight": (kind, 64, 32), b + "ffn_up.weight": (kind, 128 if family in ("phi3", "glm4") else 64, 32), b + "ffn_down.weight": (kind, 32, 64),
               b + "attn_q_norm.weight": ("F32", 16), b + "attn_k_norm.weight": ("F32", 16), b + "post_attention_norm.weight": ("F32", 32),
               b + "post_ffw_norm.weight": ("F32", 32)}
    if family == "qwen2":
        tensors |= {b + "attn_q.bias": ("F32", 32), b + "attn_k.bias": ("F32", 16), b + "attn_v.bias": ("F32", 16)}
    gguf(family, keys, tensors)
gguf("freqs", {"general.architecture": "llama", "llama.embedding_length": 32, "llama.block_count": 1}, {"rope_freqs.weight": ("F32", 8), "x": ("Q4_K", 2, 256), "y": ("Q6_K", 1, 256)})

# Vocabularies and tokenizers.
llama = {"model": "llama", "tokens": LLAMA["tokenizer.ggml.tokens"], "scores": LLAMA["tokenizer.ggml.scores"], "types": LLAMA["tokenizer.ggml.token_type"], "bos": 1, "eos": 2, "unk": 0, "add_bos": True}
put("vocabulary", "llama", "\0", json.dumps(llama, ensure_ascii=False))
put("vocabulary", "llama-plain", "\0", json.dumps({**llama, "types": [], "add_space_prefix": False, "add_eos": True}, ensure_ascii=False))
gpt2 = {"model": "gpt2", "pre": "gpt-2", "tokens": GPT2["tokenizer.ggml.tokens"], "types": [3] + [1] * 11, "merges": ["t h", "Ġ th", "Ġth e"], "bos": 0, "eos": 0}
for pre in ["gpt-2", "llama-bpe", "qwen2", "smollm", "default"]:
    put("vocabulary", pre, "\0", json.dumps({**gpt2, "pre": pre}, ensure_ascii=False))


def field(number, data):
    return bytes([number << 3 | 2, len(data)]) + data


def piece(t, score, kind):
    return field(1, field(1, t.encode()) + b"\x15" + struct.pack("<f", score) + bytes([3 << 3, kind]))


pieces = b"".join(piece(t, s, k) for t, s, k in zip(llama["tokens"], llama["scores"], llama["types"]))
model = pieces + field(2, bytes([3 << 3, 2])) + field(3, bytes([3 << 3, 1, 4 << 3, 0]))
put("vocabulary", "sentencepiece", "\0", model)
put("vocabulary", "sentencepiece-added", json.dumps({"bos_token": "<s>", "added_tokens_decoder": {"12": {"content": "<pad>", "special": True}}}), "\0", model)

added = [{"id": 0, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}]
vocab = {t: i for i, t in enumerate(gpt2["tokens"])}
byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
bpe = {"type": "BPE", "vocab": vocab, "merges": gpt2["merges"], "byte_fallback": False, "fuse_unk": False, "unk_token": None}
base = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None, "pre_tokenizer": byte_level,
        "post_processor": byte_level, "decoder": byte_level, "model": bpe}
settings = json.dumps({"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}, "add_bos_token": True, "chat_template": "{{ messages }}"})


def tokenizer(name, first=settings, **changes):
    put("tokenizer", name, first, "\0", json.dumps({**base, **changes}, ensure_ascii=False, separators=(",", ":")))


special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
tokenizer("byte-level")
tokenizer("template", "", post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
          "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": special},
          normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}, {"type": "Prepend", "prepend": "a"}, {"type": "StripAccents"}]})
tokenizer("split", "", pre_tokenizer={"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|[^\s]+(?!\S)"}, "behavior": "Isolated", "invert": False}, {"type": "Digits", "individual_digits": True}, byte_level]})
pieces = {t: i for i, t in enumerate(llama["tokens"])}
tokenizer("metaspace", "", added_tokens=[], post_processor=None, pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False},
          decoder={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False},
          model={**bpe, "vocab": pieces, "merges": [["t", "h"], ["▁", "th"], ["▁th", "e"]], "byte_fallback": True, "unk_token": "<unk>"})
tokenizer("sentencepiece", "", added_tokens=[], post_processor=None, pre_tokenizer=None,
          normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
          decoder={"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                                                    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
          model={**bpe, "vocab": pieces, "merges": ["t h", "▁ th", "▁th e"], "byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"})
tokenizer("unigram", "", added_tokens=[], post_processor=None, pre_tokenizer=None, decoder=None,
          model={"type": "Unigram", "unk_id": 0, "vocab": [[t, s] for t, s in zip(llama["tokens"], llama["scores"])], "byte_fallback": False})
tokenizer("words", "", pre_tokenizer={"type": "Whitespace"}, decoder=None, post_processor=None, added_tokens=[],
          model={"type": "WordLevel", "vocab": {"the": 0, "<unk>": 1}, "unk_token": "<unk>"})

# Chat templates.
TEMPLATES = [
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "{%- macro f(x, y=1) -%}{{ x.upper() ~ y }}{%- endmacro -%}{%- set ns = namespace(n=0) -%}{% for m in messages %}{% if loop.index0 % 2 == 0 and loop.last %}{{ f(m.role) }}"
    "{% elif m.content is string %}{{ m.content.strip().split(' ')[-1] }}{% else %}{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endif %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ tools | tojson(indent=2, sort_keys=true) }}{{ strftime_now('%d %b %Y') }}{% generation %}x{% endgeneration %}{{ messages[1:] | map(attribute='role') | join(',') }}",
    "{{ raise_exception('no') }}",
    "{{ 'a-b'.partition('-') }}{{ 'a b c'.rsplit(' ', 1) }}{{ 'xa'.removeprefix('x') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ ('a' * 3) ~ [1, none] + [2.5] }}{{ {'a': 1}.items() }}",
    "{% for a in range(9) %}{% for b in range(9) %}{% if b > 3 %}{% break %}{% endif %}{{ a * b // 2 }}{% continue %}{% endfor %}{% endfor %}{% set x %}y{% endset %}{{ x | replace('y', 'z') | indent(4) | upper }}",
    "{% filter upper %}{{ '%s' | format('x') }}{% endfilter %}{% call f() %}{% endcall %}{{ [3, 1] | sort | first }}{{ 'abc' | batch(2) | list }}{{ dict(a=1) | dictsort }}{{ '{:>8}'.format('a') }}",
]
for i, t in enumerate(TEMPLATES):
    put("template", str(i), t)
