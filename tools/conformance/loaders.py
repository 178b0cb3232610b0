#!/usr/bin/env python3
"""The logits that programs compute from folders and files; run by formats.py in an environment that has them.

usage: loaders.py JOBS      (JSON: `ids`, and `jobs` of [LOADER, MODEL, ANSWER.json])

An answer says `program` (names and versions), with the logits, f32 [ids, vocabulary], in ANSWER.logits; or `error`, its last words.
"""
import json
import sys
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path


def named(*packages):
    return ", ".join(f"{p} {version(p)}" for p in packages)


def torch_logits(model, ids):
    import torch

    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def transformers(path, ids, **more):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **more).eval()
    try:
        return torch_logits(model, ids)
    except RuntimeError:
        # compressed-tensors makes BF16 of weights that are FP4 or have scales of 8 bits, whatever the model computes in.
        return torch_logits(torch.nn.Module.float(model), ids)


def compressed_tensors(path, ids):
    return transformers(path, ids), named("transformers", "compressed-tensors")


def widened(path, ids):
    """With the weights of PATH-plain: compressed-tensors rounds NVFP4's, a product of two scales, to BF16 as it decompresses them."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    try:
        torch_logits(model, ids)
    except RuntimeError:
        pass  # The first call decompresses; then types differ.
    plain = {name: t for file in Path(f"{path}-plain").glob("*.safetensors") for name, t in load_file(file).items()}
    for name, module in torch.nn.Module.float(model).named_modules():
        if name.startswith("model.layers.") and isinstance(module, torch.nn.Linear):
            module.weight.data = plain[f"{name}.weight"].float()
    return torch_logits(model, ids), named("transformers", "compressed-tensors")


def decompressed(path, ids):
    from transformers import CompressedTensorsConfig

    config = CompressedTensorsConfig(dequantize=True)
    return transformers(path, ids, quantization_config=config), named("transformers", "compressed-tensors")


def transformers_gptq(path, ids):
    return transformers(path, ids), named("transformers", "gptqmodel", "optimum")


def transformers_awq(path, ids):
    return transformers(path, ids), named("transformers", "gptqmodel")


def transformers_fp8(path, ids):
    from transformers import FineGrainedFP8Config

    config = FineGrainedFP8Config(dequantize=True)
    return transformers(path, ids, quantization_config=config), named("transformers")


def transformers_gguf(path, ids):
    path = Path(path)
    return transformers(path.parent, ids, gguf_file=path.name), named("transformers", "gguf")


def transformers_plain(path, ids):
    return transformers(path, ids), named("transformers")


def gptqmodel(path, ids):
    import torch
    from gptqmodel import BACKEND, GPTQModel

    # Its kernel for CPUs computes in no wider type.
    model = GPTQModel.load(path, device="cpu", backend=BACKEND.TORCH, dtype=torch.float16)
    return torch_logits(model.model, ids), named("gptqmodel")


def llama_cpp(path, ids):
    import llama_cpp

    model = llama_cpp.Llama(path, n_ctx=len(ids), n_batch=len(ids), n_threads=1, n_threads_batch=1, logits_all=True,
                            verbose=False, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
    model.eval(ids)
    return model.scores[:len(ids)], named("llama-cpp-python")


def main():
    warnings.simplefilter("ignore")
    asked = json.loads(Path(sys.argv[1]).read_text())
    for loader, model, answer in asked["jobs"]:
        try:
            logits, program = globals()[loader](model, asked["ids"])
            Path(answer).with_suffix(".logits").write_bytes(logits.astype("float32").tobytes())
            said = {"program": program}
        except Exception as e:
            traceback.print_exc()
            said = {"error": f"{type(e).__name__}: {e}".strip().splitlines()[0]}
        Path(answer).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
