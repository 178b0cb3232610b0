#!/usr/bin/env python3
"""Speed of llama.cpp through llama-cpp-python, measured as `fewbit bench` measures: random tokens, one sequence, no sampling.

Prints one JSON object: seconds of each prompt and of each generation. `compare.py` runs it.
"""
import argparse
import json
import resource
import time

import llama_cpp
import numpy

BATCH = 512


def arguments():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", help="GGUF file")
    p.add_argument("--prompt", type=int, default=512, help="tokens of the prompt; 0: none")
    p.add_argument("--generate", type=int, default=64, help="tokens to generate; 0: none")
    p.add_argument("--depth", type=int, default=0, help="positions in the cache before prompt and generation begin")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--no-flash-attention", action="store_true")
    return p.parse_args()


class Model:
    def __init__(self, o):
        begun = time.perf_counter()
        room = o.depth + max(o.prompt, o.generate) + 8
        self.llama = llama_cpp.Llama(
            o.model, n_ctx=room, n_batch=BATCH, n_ubatch=BATCH, n_threads=o.threads, n_threads_batch=o.threads,
            n_gpu_layers=0, flash_attn=not o.no_flash_attention, verbose=False)
        self.load_seconds = time.perf_counter() - begun
        self.memory = llama_cpp.llama_get_memory(self.llama.ctx)
        self.ids = [int(i) for i in numpy.random.RandomState(0).randint(0, self.llama.n_vocab(), room)]

    def read(self, start, count):
        """Runs the tokens from `start` on, a batch at a time."""
        for at in range(start, start + count, BATCH):
            some = self.ids[at:min(at + BATCH, start + count)]
            tokens = (llama_cpp.llama_token * len(some))(*some)  # the batch only points to it
            if code := llama_cpp.llama_decode(self.llama.ctx, llama_cpp.llama_batch_get_one(tokens, len(some))):
                raise SystemExit(f"llama_decode returned {code}")
        llama_cpp.llama_synchronize(self.llama.ctx)

    def forget(self, depth):
        llama_cpp.llama_memory_seq_rm(self.memory, 0, depth, -1)

    def prompt_seconds(self, depth, count):
        self.forget(depth)
        begun = time.perf_counter()
        self.read(depth, count)
        return time.perf_counter() - begun

    def generate_seconds(self, depth, count):
        self.forget(depth)
        begun = time.perf_counter()
        for i in range(count):
            self.read(depth + i, 1)
        return time.perf_counter() - begun


def main():
    o = arguments()
    model = Model(o)
    model.read(0, o.depth)
    prompts, generations = [], []
    for measured in [False] + [True] * o.rounds:  # the first round warms up
        for count, seconds, run in ((o.prompt, prompts, model.prompt_seconds),
                                    (o.generate, generations, model.generate_seconds)):
            if count > 0:
                took = run(o.depth, count)
                seconds.extend([took] if measured else [])
    print(json.dumps({
        "prompt_seconds": prompts, "generate_seconds": generations, "load_seconds": model.load_seconds,
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "version": llama_cpp.__version__}))


if __name__ == "__main__":
    main()
