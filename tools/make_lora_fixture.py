#!/usr/bin/env python3
"""Makes the tiny random LoRA adapters of tests/adapters for models of tests/families, and the logits that PEFT computes.

usage: make_lora_fixture.py [CASE ...]      (a Python with torch, transformers, peft, safetensors and gguf)

Each case is a folder as PEFT saves it, or one GGUF file with the names, the order of rows and the keys of llama.cpp's
convert_lora_to_gguf.py, and golden.safetensors: input_ids i32 [24], logits f32 [24, vocabulary], computed in f32 from the
stored values. Fails where a pair of factors could be left out unseen. The committed files were made by Python 3.11,
torch 2.14.0, transformers 5.17.0, peft 0.21.2, gguf 0.19.0.
"""
import json
import shutil
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

TESTS = Path(__file__).resolve().parent.parent / "tests"
IDS = 24
LEAST_SHIFT = 0.01  # each pair of factors must move some logit by this much; f32 and f64 differ by 2e-5 at most

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    # Ranks and alphas by pattern, an embedding and a head, whose matrices PEFT saves too.
    "llama": dict(model="llama", dtype=torch.bfloat16, config=dict(
        r=4, lora_alpha=6, target_modules=[*LINEARS, "embed_tokens", "lm_head"],
        rank_pattern={"k_proj": 2, r"layers\.1\.mlp\..*_proj": 3},
        alpha_pattern={"model.layers.0.self_attn.q_proj": 1.5, "v_proj": 10})),
    # Matrices [in, out], q, k and v in one.
    "gpt2": dict(model="gpt2", dtype=torch.float32, config=dict(
        r=3, lora_alpha=4, use_rslora=True, fan_in_fan_out=True, target_modules=["c_attn", "c_proj", "c_fc"])),
    # q, k and v in one, and gate and up.
    "phi3": dict(model="phi3", dtype=torch.float16, config=dict(
        r=2, lora_alpha=3, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"])),
    # The rows of q and k in the order that llama.cpp gives them.
    "llama-gguf": dict(model="llama", dtype=torch.float32, config=dict(
        r=3, lora_alpha=4.5, target_modules=[*LINEARS, "embed_tokens", "lm_head"])),
}

GGUF_NAMES = dict(q_proj="attn_q", k_proj="attn_k", v_proj="attn_v", o_proj="attn_output", gate_proj="ffn_gate",
                  up_proj="ffn_up", down_proj="ffn_down")


def gguf_name(module):
    if module.endswith("embed_tokens"):
        return "token_embd"
    return "output" if module.endswith("lm_head") else f"blk.{module.split('.')[4]}.{GGUF_NAMES[module.split('.')[-1]]}"


def permuted(b, heads):
    """Half-split rotary pairs as adjacent ones."""
    return b.reshape(heads, 2, b.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(b.shape)


def write_gguf(path, state, config, alpha):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, tensor in state.items():
        module, _, end = name.partition(".lora_")
        if "base_layer" in name:
            continue
        is_a, values = end.startswith(("A", "embedding_A")), tensor.float().numpy()
        if module.endswith(("q_proj", "k_proj")) and not is_a:
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            values = permuted(values, heads)
        if is_a and end.startswith("embedding"):
            values = values.T
        writer.add_tensor(f"{gguf_name(module)}.weight.lora_{'a' if is_a else 'b'}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids[None], use_cache=False).logits[0].float()


def make(case, spec):
    torch.manual_seed(sum(map(ord, case)))
    folder = TESTS / "families" / spec["model"]
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.randint(0, base.config.vocab_size, (IDS,))
    without = logits(base, ids)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **spec["config"])).eval()
    factors = {n: p for n, p in model.named_parameters() if "lora_" in n}
    for name, p in factors.items():
        is_a = "lora_A" in name or "lora_embedding_A" in name
        scale = 0.5 if is_a else 0.2
        # As the file will hold it.
        p.data = (torch.randn_like(p) * scale).to(spec["dtype"]).float()
    golden = logits(model, ids)
    print(f"{case}: logits to {golden.abs().max():.2f}, moved by {(golden - without).abs().max():.2f}")
    for name, p in factors.items():
        if "lora_B" in name or "lora_embedding_B" in name:
            kept, p.data = p.data, torch.zeros_like(p)
            shift = (logits(model, ids) - golden).abs().max().item()
            p.data = kept
            if shift < LEAST_SHIFT:
                raise SystemExit(f"{case}: {name} moves logits by {shift} alone")
    out = TESTS / "adapters" / case
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as saved:
        saved = Path(saved)
        model.save_pretrained(saved)
        state = {n: t.to(spec["dtype"]) for n, t in load_file(saved / "adapter_model.safetensors").items()}
        if case.endswith("-gguf"):
            write_gguf(out / "adapter.gguf", state, base.config, spec["config"]["lora_alpha"])
        else:
            config = json.loads((saved / "adapter_config.json").read_text())
            # A path of this machine, and sets, whose order differs from run to run.
            config["base_model_name_or_path"] = spec["model"]
            config["target_modules"] = sorted(config["target_modules"])
            (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
            save_file(state, out / "adapter_model.safetensors")
    save_file({"input_ids": ids.int(), "logits": golden.contiguous()}, out / "golden.safetensors")


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for case in sys.argv[1:] or CASES:
        make(case, CASES[case])


if __name__ == "__main__":
    main()
