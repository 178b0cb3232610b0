#!/usr/bin/env python3
"""Makes the tiny random checkpoints of tests/families and the logits that transformers computes from them.

usage: make_family_goldens.py [--out FOLDER] [--sensitivity] [CASE ...]

  --out FOLDER    where the case folders go (default: tests/families)
  --sensitivity   also print by how much each likely mistake (a gain or bias left out, a key of config.json
                  ignored) moves the logits; fails where one would pass unseen

Each case is a folder with the tensor names and the keys of a real checkpoint of its family:

  config.json                 what a loader reads; in the style of transformers 4 except where CASES says otherwise
  config.transformers5.json   the same model as transformers 5 saves it (absent where config.json is in that style)
  model*.safetensors          random weights; norm gains are far from 1, biases far from 0, attention is sharp
  golden.safetensors          input_ids_0 [12], input_ids_1 [40] i32; logits_0, logits_1 f32 [ids, vocabulary]

Logits are computed in f32 from the stored values, with eager attention. The committed files were made by
Python 3.11, torch 2.10.0, transformers 5.17.0 (5.24.0 where a configuration says so), safetensors 0.8.0, numpy 2.4.6;
these versions give the same bytes again. Others give the same checkpoints, and logits that may differ in the last bits.
"""
import argparse
import copy
import json
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

IDS = (12, 40)  # the second is longer than every window
LEAST_SHIFT = 0.05  # a mistake must move some logit by this much; f32 and f64 differ by 2e-5 at most
LEAST_SHIFT_OF_GELU = 0.001  # the exact and the tanh form differ by less than 5e-4 before any weight

BUFFERS = ("masked_bias", "inv_freq", "attention.bias", ".attn.bias")  # that files carry and nothing needs
GEMMAS = ("gemma2", "gemma3_text")  # gains are stored less one

LLAMA = dict(bos_token_id=1, eos_token_id=2, hidden_act="silu", initializer_range=0.02, attention_dropout=0.0,
             max_position_embeddings=128, rms_norm_eps=1e-5, use_cache=True)

STABLELM = dict(architectures=["StableLmForCausalLM"], model_type="stablelm", vocab_size=64, hidden_size=32,
                intermediate_size=48, num_hidden_layers=2, bos_token_id=0, eos_token_id=0, hidden_act="silu",
                initializer_range=0.02, layer_norm_eps=1e-5, attention_dropout=0.0, max_position_embeddings=128,
                rope_theta=10000, qk_layernorm=False, use_cache=True, tie_word_embeddings=False)

COHERE = dict(LLAMA, architectures=["CohereForCausalLM"], model_type="cohere", vocab_size=64, hidden_size=32,
              intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              layer_norm_eps=1e-5, rope_theta=10000.0, attention_bias=False, logit_scale=0.25, pad_token_id=0,
              tie_word_embeddings=True)

FALCON = dict(architectures=["FalconForCausalLM"], model_type="falcon", vocab_size=64, hidden_size=32,
              num_hidden_layers=2, num_attention_heads=4, activation="gelu", alibi=False, layer_norm_epsilon=1e-5,
              initializer_range=0.02, bos_token_id=0, eos_token_id=0, attention_dropout=0.0, hidden_dropout=0.0,
              use_cache=True, max_position_embeddings=128, rope_theta=10000.0)

GPT2 = dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", vocab_size=64, n_embd=32, n_layer=2, n_head=4,
            n_positions=512, n_ctx=512, activation_function="gelu_new", layer_norm_epsilon=1e-5, initializer_range=0.02,
            attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0, use_cache=True)

QWEN2_MOE = dict(LLAMA, architectures=["Qwen2MoeForCausalLM"], model_type="qwen2_moe", vocab_size=40, hidden_size=24,
                 intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 rms_norm_eps=1e-6, rope_theta=1000000.0, use_sliding_window=False, sliding_window=8,
                 max_window_layers=1, moe_intermediate_size=12, shared_expert_intermediate_size=20, norm_topk_prob=False,
                 decoder_sparse_step=1, tie_word_embeddings=False)

QWEN3_MOE = dict(LLAMA, architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", vocab_size=40, hidden_size=24,
                 intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                 rms_norm_eps=1e-6, attention_bias=False, use_sliding_window=False, sliding_window=None,
                 moe_intermediate_size=16, num_local_experts=5, num_experts_per_tok=2, norm_topk_prob=True,
                 mlp_only_layers=[], tie_word_embeddings=False,
                 rope_parameters=dict(rope_theta=1000000.0, rope_type="default"))

GPT_OSS = dict(LLAMA, architectures=["GptOssForCausalLM"], model_type="gpt_oss", vocab_size=40, hidden_size=24,
               intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
               num_local_experts=4, num_experts_per_tok=2, attention_bias=True, sliding_window=8, swiglu_limit=7.0,
               rope_theta=1000.0, tie_word_embeddings=False, layer_types=["sliding_attention", "full_attention"])


def gpt_oss_yarn(beta_fast, beta_slow, truncate=False):
    return dict(beta_fast=beta_fast, beta_slow=beta_slow, factor=4.0, original_max_position_embeddings=32,
                rope_type="yarn", truncate=truncate)


PHI3_LONGROPE = dict(
    LLAMA, architectures=["Phi3ForCausalLM"], model_type="phi3", vocab_size=64, hidden_size=32, intermediate_size=48,
    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, partial_rotary_factor=0.75, rope_theta=10000.0,
    sliding_window=None, attention_bias=False, pad_token_id=0, tie_word_embeddings=True,
    rope_scaling=dict(type="longrope", long_factor=[4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
                      short_factor=[1.0, 1.2, 1.4, 2.0, 3.0, 4.0]))

DEEPSEEK = {k: v for k, v in LLAMA.items() if k != "rms_norm_eps"} | dict(
    vocab_size=40, hidden_size=24, intermediate_size=32, moe_intermediate_size=12, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, attention_bias=False, rms_norm_eps=1e-6, rope_theta=10000.0,
    tie_word_embeddings=False)

# `store`: type of the stored weights. `mistakes`: edits of config.json that a wrong loader would amount to; a value
# of None removes the key. `unseen`: ends of names of tensors of which an edit cannot show.
CASES = {
    # Three pairs fall on the three branches of the llama3 rule: wavelengths 6.3 (kept), 20 (mixed), 63 and more (÷ 8).
    "llama": dict(
        store="bfloat16",
        config=dict(
            LLAMA, architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=96, hidden_size=32,
            intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            rope_theta=10000.0, attention_bias=False, mlp_bias=False, tie_word_embeddings=False, pretraining_tp=1,
            rope_scaling=dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                              original_max_position_embeddings=32, rope_type="llama3")),
        mistakes=[dict(rope_scaling=None), dict(rope_theta=500000.0), dict(rms_norm_eps=1e-2),
                  dict(rope_scaling=dict(factor=8.0, rope_type="linear"))],
    ),
    # No head_dim; `type` is the oldest spelling of `rope_type`.
    "llama-bias": dict(
        store="float16",
        config=dict(
            LLAMA, architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=64, hidden_size=48,
            intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
            rope_theta=10000.0, attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
            rope_scaling=dict(type="linear", factor=4.0)),
        mistakes=[dict(rope_scaling=None)],
    ),
    # One key-value head, a null window, two shards.
    "mistral": dict(
        store="bfloat16", shards=2,
        config=dict(
            LLAMA, architectures=["MistralForCausalLM"], model_type="mistral", vocab_size=80, hidden_size=48,
            intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
            rope_theta=1000000.0, sliding_window=None, tie_word_embeddings=False),
        mistakes=[dict(rope_theta=10000.0), dict(sliding_window=8)],
    ),
    # `sliding_window` holds a number that `use_sliding_window` turns off, as in the released files.
    "qwen2": dict(
        store="bfloat16",
        config=dict(
            LLAMA, architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=64, hidden_size=32,
            intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            rms_norm_eps=1e-6, rope_theta=1000000.0, use_sliding_window=False, sliding_window=8, max_window_layers=1,
            tie_word_embeddings=True),
        mistakes=[dict(use_sliding_window=True), dict(rope_theta=10000.0)],
    ),
    "qwen3": dict(
        store="float32", style=5,
        config=dict(
            LLAMA, architectures=["Qwen3ForCausalLM"], model_type="qwen3", vocab_size=64, hidden_size=32,
            intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            rms_norm_eps=1e-6, attention_bias=False, use_sliding_window=False, sliding_window=None,
            max_window_layers=2, layer_types=["full_attention"] * 2, tie_word_embeddings=False,
            rope_parameters=dict(rope_theta=1000000.0, rope_type="default")),
        mistakes=[dict(rope_parameters=dict(rope_theta=10000.0, rope_type="default"))],
    ),
    # rope_scaling belongs to the full layers only (the 4B and larger models have it).
    "gemma3": dict(
        store="bfloat16",
        config=dict(
            architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", vocab_size=64, hidden_size=32,
            intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
            bos_token_id=2, eos_token_id=1, pad_token_id=0, hidden_activation="gelu_pytorch_tanh",
            initializer_range=0.02, attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=None,
            final_logit_softcapping=None, max_position_embeddings=128, query_pre_attn_scalar=24, rms_norm_eps=1e-6,
            sliding_window=8, use_cache=True, rope_theta=1000000.0, rope_local_base_freq=10000.0,
            rope_scaling=dict(factor=8.0, rope_type="linear"),
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]),
        mistakes=[dict(query_pre_attn_scalar=16), dict(sliding_window=128), dict(sliding_window=9),
                  dict(sliding_window=7), dict(rope_local_base_freq=1000000.0), dict(rope_theta=10000.0),
                  dict(rope_scaling=None), dict(layer_types=["sliding_attention"] * 4),
                  dict(layer_types=["full_attention"] * 4), dict(hidden_activation="silu")],
    ),
    # With the buffers `bias`, `masked_bias` and `rotary_emb.inv_freq` that files of Pythia carry and nothing needs.
    "gpt_neox": dict(
        store="float16", buffers=True,
        config=dict(
            architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox", vocab_size=96, hidden_size=48,
            intermediate_size=96, num_hidden_layers=2, num_attention_heads=3, bos_token_id=0, eos_token_id=0,
            hidden_act="gelu", initializer_range=0.02, layer_norm_eps=1e-5, max_position_embeddings=64,
            rotary_emb_base=10000, rotary_pct=0.25, use_parallel_residual=True, use_cache=True,
            tie_word_embeddings=False),
        mistakes=[dict(rotary_pct=1.0), dict(rotary_pct=0.5), dict(use_parallel_residual=False),
                  dict(rotary_emb_base=100), dict(hidden_act="gelu_fast")],
    ),
    # The tanh form of GELU under the name that GPT-NeoX-20B uses; the whole head is rotated, as in RedPajama-INCITE.
    "gpt_neox-sequential": dict(
        store="bfloat16",
        config=dict(
            architectures=["GPTNeoXForCausalLM"], model_type="gpt_neox", vocab_size=64, hidden_size=32,
            intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, bos_token_id=0, eos_token_id=0,
            hidden_act="gelu_fast", initializer_range=0.02, layer_norm_eps=1e-5, max_position_embeddings=64,
            rotary_emb_base=10000, rotary_pct=1.0, use_parallel_residual=False, use_cache=True,
            tie_word_embeddings=False),
        mistakes=[dict(rotary_pct=0.25), dict(use_parallel_residual=True), dict(hidden_act="gelu")],
    ),
    # Experts with a window; transformers writes each expert's matrices by themselves.
    "mixtral": dict(
        store="bfloat16",
        config=dict(
            LLAMA, architectures=["MixtralForCausalLM"], model_type="mixtral", vocab_size=40, hidden_size=24,
            intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            rope_theta=1000000.0, sliding_window=8, num_local_experts=4, num_experts_per_tok=2,
            output_router_logits=False, router_aux_loss_coef=0.02, tie_word_embeddings=False),
        mistakes=[dict(num_experts_per_tok=1), dict(num_experts_per_tok=3), dict(rope_theta=10000.0),
                  dict(sliding_window=None)],
    ),
    # As transformers 5 holds it in memory: the matrices of all experts in one tensor.
    "mixtral-fused": dict(
        store="bfloat16", is_fused=True, style=5,
        config=dict(
            LLAMA, architectures=["MixtralForCausalLM"], model_type="mixtral", vocab_size=40, hidden_size=24,
            intermediate_size=16, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            rope_parameters=dict(rope_theta=1000000.0, rope_type="default"), sliding_window=None,
            num_local_experts=3, num_experts_per_tok=2, tie_word_embeddings=True),
        mistakes=[dict(num_experts_per_tok=1)],
    ),
    # A shared expert, weights that do not sum to one, a dense layer before.
    "qwen2_moe": dict(
        store="bfloat16", config=dict(QWEN2_MOE, num_experts=5, num_experts_per_tok=3, mlp_only_layers=[0]),
        mistakes=[dict(norm_topk_prob=True), dict(num_experts_per_tok=2)],
    ),
    # Experts in every layer, as llama.cpp has them.
    "qwen2_moe-every": dict(
        store="bfloat16", config=dict(QWEN2_MOE, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[]),
        mistakes=[dict(norm_topk_prob=True), dict(num_experts_per_tok=1)],
    ),
    "qwen3_moe-every": dict(
        store="float16", is_fused=True, style=5, config=dict(QWEN3_MOE, decoder_sparse_step=1),
        mistakes=[dict(norm_topk_prob=False), dict(num_experts_per_tok=1)],
    ),
    # The matrices of all experts in one tensor; weights that sum to one; a dense layer by `decoder_sparse_step`.
    "qwen3_moe": dict(
        store="bfloat16", is_fused=True, style=5, config=dict(QWEN3_MOE, decoder_sparse_step=2),
        mistakes=[dict(norm_topk_prob=False), dict(num_experts_per_tok=1)],
    ),
    # Sinks, biases, windows on every second layer, yarn without rounding, transposed experts with alternating rows.
    "gpt_oss": dict(
        store="bfloat16", config=dict(GPT_OSS, rope_scaling=gpt_oss_yarn(4.0, 1.0)),
        mistakes=[dict(sliding_window=128), dict(layer_types=["full_attention", "sliding_attention"]),
                  dict(num_experts_per_tok=3), dict(rope_scaling=None),
                  dict(rope_scaling=gpt_oss_yarn(4.0, 1.0, truncate=True))],
    ),
    # Limits of yarn within a thousandth of whole pairs, to which llama.cpp rounds them.
    "gpt_oss-whole": dict(
        store="bfloat16", config=dict(GPT_OSS, rope_scaling=gpt_oss_yarn(2.146, 0.3821)),
        mistakes=[dict(sliding_window=128), dict(num_experts_per_tok=3), dict(rope_scaling=None)],
    ),
    # As the released sizes below 27B: every sixth layer sees everything, queries are divided by a head's size.
    "gemma3-six": dict(
        store="bfloat16",
        config=dict(
            architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", vocab_size=64, hidden_size=32,
            intermediate_size=32, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=1, head_dim=16,
            bos_token_id=2, eos_token_id=1, pad_token_id=0, hidden_activation="gelu_pytorch_tanh",
            initializer_range=0.02, attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=None,
            final_logit_softcapping=None, max_position_embeddings=128, query_pre_attn_scalar=16, rms_norm_eps=1e-6,
            sliding_window=8, sliding_window_pattern=6, use_cache=True, rope_theta=1000000.0,
            rope_local_base_freq=10000.0),
        mistakes=[dict(query_pre_attn_scalar=8), dict(sliding_window=128), dict(sliding_window_pattern=3),
                  dict(rope_local_base_freq=1000000.0), dict(rope_theta=10000.0)],
    ),
    # Both caps, a window on every second layer.
    "gemma2": dict(
        store="bfloat16",
        config=dict(
            architectures=["Gemma2ForCausalLM"], model_type="gemma2", vocab_size=64, hidden_size=32,
            intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            bos_token_id=2, eos_token_id=1, pad_token_id=0, hidden_activation="gelu_pytorch_tanh",
            initializer_range=0.02, attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=5.0,
            final_logit_softcapping=20.0, max_position_embeddings=128, query_pre_attn_scalar=16, rms_norm_eps=1e-6,
            sliding_window=8, use_cache=True, rope_theta=10000.0),
        mistakes=[dict(query_pre_attn_scalar=24), dict(sliding_window=128), dict(sliding_window=7),
                  dict(attn_logit_softcapping=None), dict(final_logit_softcapping=None), dict(rope_theta=1000000.0)],
    ),
    # Fused matrices with fewer key-value heads, a window.
    "phi3": dict(
        store="bfloat16",
        config=dict(
            LLAMA, architectures=["Phi3ForCausalLM"], model_type="phi3", vocab_size=64, hidden_size=32,
            intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            original_max_position_embeddings=128, rope_theta=10000.0, rope_scaling=None, sliding_window=8,
            attention_bias=False, pad_token_id=0, tie_word_embeddings=False),
        mistakes=[dict(sliding_window=None), dict(rope_theta=100.0)],
    ),
    # Phi-4-mini: longrope on three quarters of each head, a tied matrix.
    "phi3-longrope": dict(
        store="float16",
        config=dict(PHI3_LONGROPE, max_position_embeddings=1024, original_max_position_embeddings=64),
        mistakes=[dict(rope_theta=100.0), dict(original_max_position_embeddings=256),
                  dict(rope_scaling=dict(type="longrope", long_factor=[4.0] * 6, short_factor=[1.0] * 6))],
    ),
    # The longer of the two sequences is beyond the length of training, and has the other table.
    "phi3-longrope-beyond": dict(
        store="float16",
        config=dict(PHI3_LONGROPE, max_position_embeddings=96, original_max_position_embeddings=24),
        mistakes=[dict(rope_theta=100.0), dict(original_max_position_embeddings=48),
                  dict(rope_scaling=dict(type="longrope", long_factor=[4.0] * 6,
                                         short_factor=PHI3_LONGROPE["rope_scaling"]["short_factor"]))],
    ),
    # Trained at more positions than llama.cpp's least context, so that it takes the short table too.
    "phi3-longrope-wide": dict(
        store="float16",
        config=dict(PHI3_LONGROPE, max_position_embeddings=4096, original_max_position_embeddings=512),
        mistakes=[dict(rope_theta=100.0),
                  dict(rope_scaling=dict(type="longrope", long_factor=[4.0] * 6, short_factor=[1.0] * 6))],
    ),
    "olmo2": dict(
        store="bfloat16",
        config=dict(
            LLAMA, architectures=["Olmo2ForCausalLM"], model_type="olmo2", vocab_size=64, hidden_size=32,
            intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            rope_theta=500000.0, attention_bias=False, pad_token_id=0, tie_word_embeddings=False),
        mistakes=[dict(rope_theta=100.0), dict(rms_norm_eps=1e-1)],
    ),
    "granite": dict(
        store="bfloat16",
        config=dict(
            LLAMA, architectures=["GraniteForCausalLM"], model_type="granite", vocab_size=64, hidden_size=32,
            intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            rope_theta=10000.0, rope_scaling=None, attention_bias=False, mlp_bias=False, embedding_multiplier=3.0,
            attention_multiplier=0.3, residual_multiplier=0.4, logits_scaling=0.5, tie_word_embeddings=True),
        mistakes=[dict(embedding_multiplier=1.0), dict(attention_multiplier=0.35), dict(residual_multiplier=1.0),
                  dict(logits_scaling=1.0), dict(rope_theta=100.0)],
    ),
    # Biases of q, k and v alone, a quarter of each head turned, attention before the MLP.
    "stablelm": dict(
        store="bfloat16",
        config=dict(STABLELM, num_attention_heads=2, num_key_value_heads=1, partial_rotary_factor=0.25,
                    use_qkv_bias=True, use_parallel_residual=False),
        mistakes=[dict(partial_rotary_factor=0.5), dict(rope_theta=10)],
    ),
    "stablelm-parallel": dict(
        store="float16",
        config=dict(STABLELM, num_attention_heads=4, num_key_value_heads=4, partial_rotary_factor=0.5,
                    use_qkv_bias=False, use_parallel_residual=True),
        mistakes=[dict(partial_rotary_factor=0.25)],
    ),
    # The 12B: a norm for each head of queries and keys, each a tensor of its own.
    "stablelm-norms": dict(
        store="bfloat16",
        config=dict(STABLELM, num_attention_heads=4, num_key_value_heads=2, partial_rotary_factor=0.5,
                    use_qkv_bias=False, use_parallel_residual=True, qk_layernorm=True),
        mistakes=[dict(partial_rotary_factor=0.25), dict(layer_norm_eps=1e-1)],
    ),
    "cohere": dict(
        store="bfloat16",
        config=dict(COHERE, use_qk_norm=False),
        mistakes=[dict(logit_scale=0.0625), dict(rope_theta=100.0), dict(layer_norm_eps=1e-1)],
    ),
    # Command R+: norms of queries and keys, each head with gains of its own.
    "cohere-plus": dict(
        store="bfloat16",
        config=dict(COHERE, use_qk_norm=True),
        mistakes=[dict(logit_scale=0.0625), dict(rope_theta=100.0), dict(layer_norm_eps=1e-1)],
    ),
    # Its depth, by which llama.cpp tells that there are such norms.
    "cohere-plus-deep": dict(
        store="float16", least_shift=0.01,  # each layer is one of many
        config=dict(COHERE, vocab_size=40, hidden_size=16, intermediate_size=8, num_hidden_layers=64,
                    num_attention_heads=2, num_key_value_heads=1, use_qk_norm=True),
        mistakes=[dict(logit_scale=0.0625)],
    ),
    # No positions in every fourth layer, which sees everything.
    "cohere2": dict(
        store="bfloat16",
        config=dict(
            LLAMA, architectures=["Cohere2ForCausalLM"], model_type="cohere2", vocab_size=64, hidden_size=32,
            intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            layer_norm_eps=1e-5, rope_theta=10000.0, attention_bias=False, logit_scale=0.25, sliding_window=8,
            sliding_window_pattern=4, pad_token_id=0, tie_word_embeddings=True),
        mistakes=[dict(sliding_window=128), dict(sliding_window_pattern=2), dict(rope_theta=100.0)],
    ),
    # GLM-4 as first released: no norms behind attention and MLP.
    "glm": dict(
        store="bfloat16",
        config=dict(
            LLAMA, architectures=["GlmForCausalLM"], model_type="glm", vocab_size=64, hidden_size=32,
            intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            rope_theta=10000.0, partial_rotary_factor=0.5, attention_bias=True, pad_token_id=0,
            tie_word_embeddings=False),
        mistakes=[dict(partial_rotary_factor=1.0), dict(rope_theta=100.0)],
    ),
    "glm4": dict(
        store="bfloat16",
        config=dict(
            LLAMA, architectures=["Glm4ForCausalLM"], model_type="glm4", vocab_size=64, hidden_size=32,
            intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            rope_theta=10000.0, partial_rotary_factor=0.5, attention_bias=True, pad_token_id=0,
            tie_word_embeddings=False),
        mistakes=[dict(partial_rotary_factor=1.0), dict(rope_theta=100.0)],
    ),
    # As Falcon 7B: one key-value head, one norm for attention and MLP.
    "falcon": dict(
        store="bfloat16",
        config=dict(FALCON, bias=False, multi_query=True, new_decoder_architecture=False, parallel_attn=True,
                    tie_word_embeddings=True),
        mistakes=[dict(rope_theta=100.0)],
    ),
    # As Falcon 40B: rows by key-value head, two norms.
    "falcon-new": dict(
        store="bfloat16",
        config=dict(FALCON, bias=False, multi_query=True, new_decoder_architecture=True, num_kv_heads=2,
                    parallel_attn=True, tie_word_embeddings=False),
        mistakes=[dict(rope_theta=100.0)],
    ),
    # As Falcon RW without ALiBi: rows by head, biases, attention before the MLP.
    "falcon-sequential": dict(
        store="float16",
        config=dict(FALCON, bias=True, multi_query=False, new_decoder_architecture=False, parallel_attn=False,
                    tie_word_embeddings=True),
        mistakes=[dict(rope_theta=100.0)],
    ),
    # Learned positions, whose first two rows belong to none; the table's last row is beyond the ids, and without
    # rotation a bias of the keys moves all scores of a query alike.
    "opt": dict(
        store="float16", unseen=("embed_positions.weight", "k_proj.bias"),
        config=dict(
            architectures=["OPTForCausalLM"], model_type="opt", vocab_size=64, hidden_size=32, ffn_dim=64,
            num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32, activation_function="relu",
            do_layer_norm_before=True, enable_bias=True, layer_norm_elementwise_affine=True, bos_token_id=2,
            eos_token_id=2, pad_token_id=1, attention_dropout=0.0, dropout=0.0, layerdrop=0.0, init_std=0.02,
            max_position_embeddings=512, use_cache=True, tie_word_embeddings=True),
        mistakes=[dict(activation_function="gelu")],
    ),
    # Queries from a latent, keys wider than values, the best groups' experts with weights that do not sum to one, two
    # shared experts in one, a dense layer; yarn with its two scales.
    "deepseek_v2": dict(
        store="bfloat16",
        config=dict(
            DEEPSEEK, architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", q_lora_rank=12,
            kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=6, v_head_dim=8, n_routed_experts=6,
            n_shared_experts=2, num_experts_per_tok=3, first_k_dense_replace=1, topk_method="group_limited_greedy",
            n_group=3, topk_group=2, norm_topk_prob=False, routed_scaling_factor=1.7, scoring_func="softmax",
            rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=4, beta_slow=1,
                              mscale=0.5, mscale_all_dim=1.5)),
        mistakes=[dict(topk_method="greedy"), dict(topk_group=1), dict(n_group=2), dict(routed_scaling_factor=1.0),
                  dict(num_experts_per_tok=2), dict(rope_theta=100.0), dict(rope_scaling=None),
                  dict(rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=4,
                                         beta_slow=1, mscale=1.5, mscale_all_dim=1.5)),
                  dict(rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=4,
                                         beta_slow=1))],
    ),
    # As V2-Lite: queries without a latent, no groups. Values as wide as keys, experts in one tensor, biases.
    "deepseek_v2-lite": dict(
        store="bfloat16", is_fused=True, style=5,
        config=dict(
            {k: v for k, v in DEEPSEEK.items() if k != "rope_theta"}, architectures=["DeepseekV2ForCausalLM"],
            model_type="deepseek_v2", q_lora_rank=None, kv_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=4,
            v_head_dim=8, n_routed_experts=5, n_shared_experts=1, num_experts_per_tok=2, first_k_dense_replace=0,
            topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0, attention_bias=True,
            rope_parameters=dict(rope_theta=10000.0, rope_type="default")),
        mistakes=[dict(num_experts_per_tok=1), dict(rope_parameters=dict(rope_theta=100.0, rope_type="default"))],
    ),
    # Experts without groups, yarn with one weight for both of its scales: as llama.cpp computes them.
    "deepseek_v2-greedy": dict(
        store="bfloat16",
        config=dict(
            DEEPSEEK, architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", q_lora_rank=12,
            kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=6, v_head_dim=8, n_routed_experts=6,
            n_shared_experts=2, num_experts_per_tok=3, first_k_dense_replace=1, topk_method="greedy", n_group=1,
            topk_group=1, norm_topk_prob=False, routed_scaling_factor=1.7, scoring_func="softmax",
            rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=4, beta_slow=1,
                              mscale=0.707, mscale_all_dim=0.707)),
        mistakes=[dict(routed_scaling_factor=1.0), dict(num_experts_per_tok=2), dict(rope_scaling=None)],
    ),
    # V2-Lite's depth, by which llama.cpp tells that there is no latent for queries.
    "deepseek_v2-lite-deep": dict(
        store="float16", is_fused=True, style=5,
        config=dict(
            {k: v for k, v in DEEPSEEK.items() if k != "rope_theta"} | dict(
                vocab_size=40, hidden_size=8, intermediate_size=8, moe_intermediate_size=4, num_hidden_layers=26,
                num_attention_heads=2, num_key_value_heads=2),
            architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", q_lora_rank=None, kv_lora_rank=4,
            qk_rope_head_dim=2, qk_nope_head_dim=2, v_head_dim=4, n_routed_experts=2, n_shared_experts=1,
            num_experts_per_tok=1, first_k_dense_replace=1, topk_method="greedy", norm_topk_prob=False,
            routed_scaling_factor=1.0,
            rope_parameters=dict(rope_theta=10000.0, rope_type="default")),
        mistakes=[dict(num_experts_per_tok=2)],
    ),
    # Sigmoids, a bias where experts are chosen, groups by their two best, weights that sum to the factor.
    "deepseek_v3": dict(
        store="bfloat16",
        config=dict(
            DEEPSEEK, architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", q_lora_rank=16,
            kv_lora_rank=12, qk_rope_head_dim=6, qk_nope_head_dim=8, v_head_dim=8, n_routed_experts=8,
            n_shared_experts=1, num_experts_per_tok=3, first_k_dense_replace=1, topk_method="noaux_tc", n_group=4,
            topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5, scoring_func="sigmoid", moe_layer_freq=1,
            num_nextn_predict_layers=0,
            rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=4, beta_slow=1,
                              mscale=1.0, mscale_all_dim=1.0)),
        mistakes=[dict(topk_group=1), dict(topk_group=4), dict(n_group=2), dict(routed_scaling_factor=1.0),
                  dict(norm_topk_prob=False), dict(num_experts_per_tok=2), dict(rope_theta=100.0),
                  dict(rope_scaling=None)],
    ),
    # As the first release: no prefix, no `n_inner`, masks beside the weights, a head that no key speaks of.
    "gpt2": dict(
        store="bfloat16", buffers=True, unseen=("wpe.weight",),
        config=GPT2,
        mistakes=[dict(activation_function="gelu"), dict(layer_norm_epsilon=1e-1)],
    ),
    # Scores that fall with the depth, as Mistral's (Stanford's) GPT-2 has them.
    "gpt2-inner": dict(
        store="float16", unseen=("wpe.weight",),
        config=dict(GPT2, n_inner=48, scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=True),
        mistakes=[dict(scale_attn_by_inverse_layer_idx=False), dict(scale_attn_weights=False)],
    ),
}


def generator(case, name):
    """A stream of its own for each tensor; RandomState's streams never change between versions of numpy."""
    return np.random.RandomState(zlib.crc32(f"{case}/{name}".encode()))


def away_from_zero(rng, shape, least, most):
    return rng.uniform(least, most, shape) * rng.choice([-1.0, 1.0], shape)


def weight(case, name, shape, config):
    """Values of one tensor: every mistake with it should show in the logits."""
    rng = generator(case, name)
    is_gemma = config["model_type"] in GEMMAS
    if name.endswith("e_score_correction_bias"):
        return away_from_zero(rng, shape, 0.05, 0.2)  # beside sigmoids
    if name.endswith("bias"):
        return away_from_zero(rng, shape, 0.2, 0.8)
    if name.endswith("sinks"):
        return rng.uniform(2.0, 5.0, shape)
    if len(shape) == 3:  # all experts: the columns of gpt-oss are stored as rows
        values = rng.standard_normal(shape) / np.sqrt(shape[1 if config["model_type"] == "gpt_oss" else 2])
        return values * (6.0 if config["model_type"] == "gpt_oss" and "gate_up" in name else 2.0)
    if len(shape) == 1 or "_norm." in name:
        if is_gemma:  # stored as gain - 1
            gain = 1.0 + away_from_zero(rng, shape, 0.3, 0.7)
        else:
            gain = 1.0 + away_from_zero(rng, shape, 0.2, 0.6)
        if "q_norm" in name or "k_norm" in name:
            gain *= 1.6
        return gain - 1.0 if is_gemma else gain
    if "wte" in name or "wpe" in name or "embed" in name and "embed_out" not in name:
        return rng.standard_normal(shape) * (0.5 if is_gemma else 1.0)
    if config["model_type"] == "gpt2":  # stored `[in, out]`
        values = rng.standard_normal(shape) / np.sqrt(shape[0])
        if "c_attn" in name:
            values[:, :2 * shape[0]] *= 1.7
        return values * 3.0 if "mlp.c_proj" in name else values
    values = rng.standard_normal(shape) / np.sqrt(shape[1])
    if "q_proj" in name or "k_proj" in name or "q_b_proj" in name or "kv_a_proj" in name:
        values *= 1.7  # scores of standard deviation near 3: attention is sharp
    if "query_key_value" in name and config["model_type"] == "gpt_neox":  # per head: query rows, key rows, value rows
        per_head = values.reshape(config["num_attention_heads"], 3, -1, shape[1])
        per_head[:, :2] *= 1.7
    if "qkv_proj" in name:
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        values[:-config["num_key_value_heads"] * head_dim] *= 1.7
    if "self_attention.query_key_value" in name:
        values *= 1.7
    if "dense_4h_to_h" in name:
        values *= 3.0  # lets the two forms of GELU be told apart
    if "lm_head" in name or "embed_out" in name or ".experts." in name or "shared_expert" in name:
        values *= 2.0
    return values


def stored_shapes(config, is_fused):
    """Names and shapes in the file that transformers itself would write; with `is_fused`, as it holds them in memory."""
    model = AutoModelForCausalLM.from_config(parsed(config), dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_original_format=not is_fused)
        return {name: tuple(t.shape) for name, t in load_file(Path(folder) / "model.safetensors").items()}


def parsed(config):
    config = copy.deepcopy(config)
    return AutoConfig.for_model(config.pop("model_type"), **config)


def checkpoint(case, spec):
    config, dtype = spec["config"], getattr(torch, spec["store"])
    tensors = {}
    for name, shape in sorted(stored_shapes(config, spec.get("is_fused", False)).items()):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(weight(case, name, shape, config))).to(dtype)
    if spec.get("buffers") and config["model_type"] == "gpt2":
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        n = 16  # as many as there are positions in real files
        for layer in range(config["n_layer"]):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, n, n, dtype=torch.float32).tril()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    elif spec.get("buffers"):
        n, head_dim = config["max_position_embeddings"], config["hidden_size"] // config["num_attention_heads"]
        rotary = int(head_dim * config["rotary_pct"])
        for layer in range(config["num_hidden_layers"]):
            prefix = f"gpt_neox.layers.{layer}.attention."
            tensors[prefix + "bias"] = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
            tensors[prefix + "masked_bias"] = torch.tensor(-1e9)
            tensors[prefix + "rotary_emb.inv_freq"] = 1.0 / (
                config["rotary_emb_base"] ** (torch.arange(0, rotary, 2, dtype=torch.float32) / rotary))
    return tensors


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_checkpoint(folder, case, spec):
    tensors, metadata = checkpoint(case, spec), {"format": "pt"}
    shards = spec.get("shards", 1)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata)
    else:
        names = sorted(tensors)
        per_shard = -(-len(names) // shards)
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            part = names[i * per_shard:(i + 1) * per_shard]
            save_file({name: tensors[name] for name in part}, folder / file, metadata)
            weight_map.update(dict.fromkeys(part, file))
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        write_json(folder / "model.safetensors.index.json",
                   {"metadata": {"total_size": total}, "weight_map": weight_map})
    new_style = spec.get("style") == 5
    key = "dtype" if new_style else "torch_dtype"
    version = transformers.__version__ if new_style else "4.57.1"
    write_json(folder / "config.json", {**spec["config"], key: spec["store"], "transformers_version": version})
    if not new_style:
        saved = parsed({**spec["config"], "dtype": spec["store"]})
        saved.save_pretrained(folder / "saved")
        (folder / "saved" / "config.json").rename(folder / "config.transformers5.json")
        shutil.rmtree(folder / "saved")


def load(folder):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    unexpected = [k for k in info["unexpected_keys"] if not k.endswith(BUFFERS)]
    if info["missing_keys"] or unexpected or info["mismatched_keys"]:
        raise SystemExit(f"{folder}: transformers did not take every tensor: {info}")
    return model.eval()


def logits(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0].float().contiguous()


def input_ids(case, config):
    rng = generator(case, "input_ids")
    ids = [rng.randint(0, config["vocab_size"], n).astype(np.int32) for n in IDS]
    for some in ids:
        some[1] = config["vocab_size"] - 1  # the last row of the embedding takes part
    return ids


def make(case, spec, root):
    folder = root / case
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_checkpoint(folder, case, spec)
    model, golden = load(folder), {}
    for i, ids in enumerate(input_ids(case, spec["config"])):
        golden[f"input_ids_{i}"] = torch.from_numpy(ids)
        golden[f"logits_{i}"] = logits(model, ids)
    save_file(golden, folder / "golden.safetensors",
              {"made_by": f"torch {torch.__version__}, transformers {transformers.__version__}"})
    renamed = folder / "config.transformers5.json"
    if renamed.exists():  # both spellings must mean the same model
        same = shift(folder, golden, config=json.loads(renamed.read_text()))
        if same != 0.0:
            raise SystemExit(f"{case}: the two styles of config.json differ by {same}")
    size = sum(p.stat().st_size for p in folder.iterdir())
    spread = golden["logits_1"].std().item()
    print(f"{case}: {size / 1024:.0f} KiB, standard deviation of logits {spread:.2f}")
    return golden


def shift(folder, golden, config=None, edit=None):
    """Largest change of a logit when the folder's config.json is replaced, or its tensors are edited."""
    with tempfile.TemporaryDirectory() as copy_of:
        copy_of = Path(copy_of)
        for path in folder.iterdir():
            shutil.copy(path, copy_of)
        if config is not None:
            write_json(copy_of / "config.json", config)
        if edit is not None:
            for path in copy_of.glob("model*.safetensors"):
                tensors = load_file(path)
                edit(tensors)
                save_file(tensors, path, {"format": "pt"})
        model = load(copy_of)
        return max((logits(model, golden[f"input_ids_{i}"].numpy()) - golden[f"logits_{i}"]).abs().max().item()
                   for i in range(len(IDS)))


def sensitivity(case, spec, root, golden):
    folder, shifts = root / case, {}
    written = json.loads((folder / "config.json").read_text())
    for mistake in spec["mistakes"]:
        config = {k: v for k, v in {**written, **mistake}.items() if k not in mistake or v is not None}
        shifts[f"config {json.dumps(mistake)}"] = shift(folder, golden, config=config)
    names = sorted({n for path in folder.glob("model*.safetensors") for n in load_file(path)})
    for name in names:
        if name.endswith((*BUFFERS, *spec.get("unseen", ()))):
            continue
        neutral = 0.0 if name.endswith("bias") or spec["config"]["model_type"] in GEMMAS else 1.0

        def edit(tensors, name=name, neutral=neutral):
            if name in tensors and tensors[name].dim() == 1:
                tensors[name] = torch.full_like(tensors[name], neutral)
            elif name in tensors:  # the last element alone: shows a wrong transposition, slice or tail
                tensors[name].view(-1)[-1] += 8.0 if ".experts." in name else 1.0

        shifts[name] = shift(folder, golden, edit=edit)
    for name, value in sorted(shifts.items(), key=lambda item: item[1]):
        print(f"  {value:9.4f}  {name}")
    least = spec.get("least_shift", LEAST_SHIFT)
    unseen = [name for name, value in shifts.items()
              if value < (LEAST_SHIFT_OF_GELU if '"hidden_act"' in name or '"gelu"' in name else least)]
    if unseen:
        raise SystemExit(f"{case}: would pass unseen: {', '.join(unseen)}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "families")
    arguments.add_argument("--sensitivity", action="store_true")
    arguments.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for case in arguments.cases or CASES:
        if case not in CASES:
            sys.exit(f"unknown case `{case}`; there are {', '.join(CASES)}")
        golden = make(case, CASES[case], arguments.out)
        if arguments.sensitivity:
            sensitivity(case, CASES[case], arguments.out, golden)


if __name__ == "__main__":
    main()
