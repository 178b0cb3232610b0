#!/usr/bin/env python3
"""Makes tiny random Llamas quantized by other tools, and the logits that belong to them: tests/layouts.

usage: make_layout_goldens.py [--out FOLDER] [CASE ...]

Each case is a folder as the tool itself writes it (config.json, model.safetensors) with golden.safetensors beside it:

  input_ids_0 [12], input_ids_1 [40]   i32
  logits_0, logits_1                   f32 [ids, vocabulary]: the weights as the tool dequantizes them in f32, inputs rounded
                                       as the tool rounds them
  weights_0, weights_1                 where inputs are rounded: the same without that

Made by Python 3.11, torch 2.15.0, safetensors 0.8.0, hqq 0.2.8.post1, torchao 0.18.0, compressed-tensors 0.20.0 and transformers
5.24.0; the case `hqq-transformers` by transformers 4.57.6, since transformers 5 does not quantize with HQQ.
"""
import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

IDS = (12, 40)
CONFIG = dict(vocab_size=48, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)


def model(dtype=torch.float32):
    """A model whose attention is sharp and whose norms are far from 1, so that a mistake anywhere shows."""
    torch.manual_seed(5)
    made = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.copy_(1 + 0.3 * torch.randn(p.shape) if p.dim() == 1 else torch.randn(p.shape) * (0.2 if "proj" in name else 0.5))
    return made.to(dtype).requires_grad_(False)


def ids():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, CONFIG["vocab_size"], (n,), generator=generator) for n in IDS]


@torch.no_grad()
def logits(of):
    return [of(i[None]).logits[0].float().contiguous() for i in ids()]


def keep(folder, exact, weights=None):
    golden = {f"input_ids_{i}": v.to(torch.int32) for i, v in enumerate(ids())}
    golden |= {f"logits_{i}": v for i, v in enumerate(exact)}
    golden |= {f"weights_{i}": v for i, v in enumerate(weights or [])}
    save_file(golden, folder / "golden.safetensors")


def linears(of):
    return {name: m for name, m in of.named_modules() if name.endswith("_proj")}


def plain(of, weights):
    """A model in f32 with these weights, and all else from `of`."""
    made = model()
    state = {k: v.float() for k, v in of.state_dict().items() if k in made.state_dict() and type(v) in (torch.Tensor, torch.nn.Parameter)}
    made.load_state_dict(state | {f"{name}.weight": w for name, w in weights.items()})
    return made


# HQQ.

def hqq_weights(of):
    from hqq.core.quantize import Quantizer

    def wide(m):
        numbers = {k: v.float() if torch.is_tensor(v) else v for k, v in m.meta.items()}
        return Quantizer.dequantize(m.W_q.data, numbers | {"compute_dtype": torch.float32})

    return {name: wide(m) for name, m in linears(of).items()}


def hqq(folder, dtype, settings):
    """By hqq itself, which writes no settings: the tensors say all."""
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    of = model(dtype)
    tags = {tag: BaseQuantizeConfig(**s) for tag, s in settings.items()}
    AutoHQQHFModel.quantize_model(of, quant_config=tags, compute_dtype=dtype, device="cpu")
    of.config.architectures = ["LlamaForCausalLM"]
    AutoHQQHFModel.save_to_safetensors(of, str(folder), num_blocks_per_file=1, verbose=False)
    keep(folder, logits(plain(of, hqq_weights(of))))


def hqq_widths(folder):
    hqq(folder, torch.float16, {
        "self_attn.q_proj": dict(nbits=8, group_size=64, axis=1), "self_attn.k_proj": dict(nbits=4, group_size=32, axis=1),
        "self_attn.v_proj": dict(nbits=3, group_size=16, axis=1), "self_attn.o_proj": dict(nbits=2, group_size=16, axis=1),
        "mlp.gate_proj": dict(nbits=1, group_size=8, axis=1), "mlp.up_proj": dict(nbits=1.58, group_size=16, axis=1),
        "mlp.down_proj": dict(nbits=5, group_size=None, axis=1)})


def hqq_columns(folder):
    """Groups across rows, groups over the ends of rows, codes that are called floats, one scale for all."""
    hqq(folder, torch.float32, {
        "self_attn.q_proj": dict(nbits=4, group_size=64, axis=0), "self_attn.k_proj": dict(nbits=3, group_size=16, axis=0),
        "self_attn.v_proj": dict(nbits=8, group_size=None, axis=0), "self_attn.o_proj": dict(nbits=2, group_size=128, axis=0),
        "mlp.gate_proj": dict(nbits=1, group_size=32, axis=0), "mlp.up_proj": dict(nbits=4, group_size=32, axis=1, view_as_float=True),
        "mlp.down_proj": dict(nbits=4, group_size=64, axis=1)})


def hqq_transformers(folder):
    from transformers import HqqConfig

    with tempfile.TemporaryDirectory() as source:
        model(torch.bfloat16).save_pretrained(source)
        of = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, device_map="cpu",
                                                  quantization_config=HqqConfig(nbits=4, group_size=32))
    of.save_pretrained(folder)
    keep(folder, logits(plain(of, hqq_weights(of))))


# torchao.

def torchao(folder, kinds, rounding=None):
    """As transformers saves it: `kinds` has a configuration or a function of the weight for each linear, `rounding` of its input."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from transformers import TorchAoConfig

    of = model()
    for name, m in linears(of).items():
        kind = kinds[name.rsplit(".", 1)[-1]]
        if callable(kind):
            m.weight = torch.nn.Parameter(kind(m.weight.data), requires_grad=False)
        else:
            quantize_(m, kind)
    tensors, metadata = flatten_tensor_state_dict(of.state_dict())
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"} | metadata)
    config = of.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "quantization_config": TorchAoConfig(Int8WeightOnlyConfig()).to_dict()}
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")

    weights = {name: int4_weights(m.weight) if "Int4Tensor" in str(type(m.weight)) else m.weight.dequantize().float()
               for name, m in linears(of).items()}
    weights_only = plain(of, weights)
    if rounding is None:
        return keep(folder, logits(weights_only))
    exact = plain(of, weights)
    for name, m in linears(exact).items():
        m.register_forward_pre_hook(lambda _, args, r=rounding[name.rsplit(".", 1)[-1]]: (r(args[0]),))
    keep(folder, logits(exact), logits(weights_only))


def rounded_int8(x):
    from torchao.quantization import Int8Tensor, PerRow

    return Int8Tensor.from_hp(x[0], PerRow()).dequantize()[None]


def rounded_asymmetric(x):
    from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import _apply_int8_act_asym_per_token_quant_dequant

    return _apply_int8_act_asym_per_token_quant_dequant(x)


def rounded_float8(x):
    from torchao.quantization import Float8Tensor, PerRow

    return Float8Tensor.from_hp(x[0], granularity=PerRow()).dequantize()[None]


def int4(w):
    """Int4Tensor as its documentation has it: the package that packs it needs a GPU."""
    from torchao.quantization import Int4Tensor

    groups = w.reshape(w.shape[0], -1, 32)
    least, most = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (most - least) / 15
    q = ((groups - least) / scale).round().clamp(0, 15).to(torch.int8).sub(8).reshape(w.shape)
    packed = (q[:, ::2] & 15) | (q[:, 1::2] << 4)
    columns = lambda t: t[..., 0].t().contiguous()
    return Int4Tensor(packed, columns(scale), columns(least + 8 * scale), [1, 32], w.shape)


def int4_weights(t):
    low, high = (t.qdata << 4) >> 4, t.qdata >> 4
    q = torch.stack([low, high], -1).reshape(t.shape).float()
    each = lambda n: n.float().t().repeat_interleave(32, 1)
    return q * each(t.scale) + each(t.zero_point)


def torchao_weights(folder):
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup

    torchao(folder, {
        "q_proj": Int8WeightOnlyConfig(), "k_proj": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
        "v_proj": IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=PerAxis(0), mapping_type=MappingType.ASYMMETRIC),
        "o_proj": Float8WeightOnlyConfig(), "gate_proj": int4,
        "up_proj": IntxWeightOnlyConfig(weight_dtype=torch.int2, granularity=PerGroup(16), mapping_type=MappingType.ASYMMETRIC),
        "down_proj": Int8WeightOnlyConfig(granularity=PerGroup(32))})


def torchao_dynamic(folder):
    from torchao.float8.inference import Float8MMConfig
    from torchao.quantization import Float8Tensor, Int8DynamicActivationInt8WeightConfig, Int8DynamicActivationIntxWeightConfig, PerGroup, PerRow
    from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

    def float8(w):
        return Float8Tensor.from_hp(w, granularity=PerRow(), mm_config=Float8MMConfig(), act_quant_kwargs=QuantizeTensorToFloat8Kwargs())

    int8 = Int8DynamicActivationInt8WeightConfig()
    intx = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32))
    linear = dict(zip(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), (int8, int8, intx, intx, float8, float8, int8)))
    rounding = [(int8, rounded_int8), (intx, rounded_asymmetric), (float8, rounded_float8)]
    torchao(folder, linear, {name: next(r for k, r in rounding if k is kind) for name, kind in linear.items()})


# compressed-tensors.

def ct(folder, scheme, transform=None, dtype=torch.float32, form=None):
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
    from compressed_tensors.transform import TransformConfig, apply_transform_config

    of = model(dtype)
    if transform is not None:
        apply_transform_config(of, TransformConfig.model_validate({"config_groups": transform}))
    config = QuantizationConfig(config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=scheme, format=form)}, ignore=["lm_head"],
                                format=form or "pack-quantized")
    apply_quantization_config(of, config)
    calibrate(of)
    exact = logits(of)
    compressor = ModelCompressor.from_pretrained_model(of)
    compressor.compress_model(of)
    of.save_pretrained(folder)
    compressor.update_config(folder)
    if form == "naive-quantized":
        exact = logits(plain(of, naive_weights(folder, config.config_groups["group_0"])))
    keep(folder, exact)


def naive_weights(folder, scheme):
    from compressed_tensors.compressors.naive_quantized import NaiveQuantizationCompressor

    stored = load_file(folder / "model.safetensors")
    modules = [name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")]
    part = lambda m, p: stored[f"{m}.{p}"].float() if p == "weight_scale" else stored[f"{m}.{p}"]
    parts = ("weight", "weight_scale", "weight_zero_point")
    return {m: NaiveQuantizationCompressor.decompress({p: part(m, p) for p in parts if f"{m}.{p}" in stored}, scheme)["weight"] for m in modules}


def calibrate(of):
    """Scales to the extremes of each group."""
    from compressed_tensors.quantization.utils import calculate_qparams

    for m in linears(of).values():
        args = m.quantization_scheme.weights
        groups = m.weight.reshape(m.weight.shape[0], -1, args.group_size or m.weight.shape[1])
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        m.weight_scale.data.copy_(scale)
        if hasattr(m, "weight_zero_point"):
            m.weight_zero_point.data.copy_(zero)


def int_args(bits, group, symmetric=True):
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="group" if group else "channel", group_size=group)


def ct_naive(folder):
    ct(folder, int_args(4, 32, symmetric=False), dtype=torch.bfloat16, form="naive-quantized")


def rotated(block):
    both = lambda first, second, invert: [{"targets": ["Linear"], "ignore": ["lm_head"], "location": where, "inverse": i == invert}
                                          for i, where in enumerate((first, second))]
    return {"v": {"type": "hadamard", "head_dim": block, "apply": both("input", "weight_input", 1), "precision": "torch.float32"},
            "u": {"type": "hadamard", "head_dim": block, "apply": both("weight_output", "output", 1), "precision": "torch.float32"}}


def ct_hadamard(folder):
    ct(folder, int_args(4, 32), rotated(16))


CASES = {f.__name__.replace("_", "-"): f for f in (hqq_widths, hqq_columns, hqq_transformers, torchao_weights, torchao_dynamic, ct_naive,
                                                  ct_hadamard)}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "layouts")
    arguments.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all but hqq-transformers)")
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for case in arguments.cases or [c for c in CASES if c != "hqq-transformers"]:
        folder = arguments.out / case
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        CASES[case](folder)
        (folder / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
