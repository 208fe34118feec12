"""ms a decode step and peak memory at the shape of an 8B Llama, random weights: eager, StaticCache + Inductor, innerq.

python benchmarks/generate_8b.py --rows 1x4096 1x32768 --layers 32
torchrun --nproc-per-node 2 benchmarks/generate_8b.py --rows 1x32768 4x32768 1x122880     # split among the ranks

Under torchrun the model is split by transformers' plan (`tp_plan`), ms are the slowest rank's and GiB those of a rank.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from innerq_compile import innerq

RANKS, RANK = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))


def config_8b(layers: int, tiny: bool) -> LlamaConfig:
    """The shape of an 8B Llama; ``tiny`` has narrow layers, to try the benchmark out on a CPU."""
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "vocab_size": 128256}
    if tiny:
        sizes = {
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_attention_heads": 16,
            "vocab_size": 1024,
            "head_dim": 32,
        }
    return LlamaConfig(
        **sizes,
        num_hidden_layers=layers,
        num_key_value_heads=8,
        max_position_embeddings=1 << 20,
        attn_implementation="sdpa",
    )


def model_8b(layers: int, device: str, dtype: torch.dtype, tiny: bool = False) -> LlamaForCausalLM:
    """Random weights; on several ranks each holds its part of them."""
    if RANKS > 1:
        return split_model(config_8b(layers, tiny), device, dtype)
    return whole_model(config_8b(layers, tiny), device, dtype)


def whole_model(config: LlamaConfig, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    with torch.device(device):
        torch.set_default_dtype(dtype)
        model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    return model


def split_model(config: LlamaConfig, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """The model by way of a checkpoint, which is what transformers splits; the first rank writes it."""
    folder = [None]
    if RANK == 0:
        folder = [tempfile.mkdtemp()]
        whole_model(config, device, dtype).save_pretrained(folder[0])
        gc.collect()
    dist.broadcast_object_list(folder, src=0)
    model = LlamaForCausalLM.from_pretrained(folder[0], tp_plan="auto", dtype=dtype, attn_implementation="sdpa").eval()
    dist.barrier()
    if RANK == 0:
        shutil.rmtree(folder[0])
    return model


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def slowest(number: float, device: str) -> float:
    """The largest of the ranks' numbers."""
    if RANKS == 1:
        return number
    value = torch.tensor(number, device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return float(value)


@torch.no_grad()
def steps(model, cache, batch: int, context: int, count: int, warmup: int, device: str) -> tuple[float, float]:
    """Median ms a step over ``count`` steps behind a prompt of ``context`` tokens, and peak GiB while decoding."""
    position = 0
    while position < context:  # prefill in pieces: the figures are those of decoding
        size = min(4096, context - position)
        ids = torch.randint(0, 1000, (batch, size), device=device)
        places = torch.arange(position, position + size, device=device).expand(batch, -1)
        model(ids, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
        position += size
    times = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for index in range(warmup + count):
        ids = torch.randint(0, 1000, (batch, 1), device=device)
        mask = torch.ones(batch, position + 1, dtype=torch.long, device=device)
        places = torch.full((batch, 1), position, device=device)
        synchronize(device)
        start = time.perf_counter()
        model(ids, position_ids=places, attention_mask=mask, past_key_values=cache, use_cache=True)
        synchronize(device)
        if index >= warmup:
            times.append(1e3 * (time.perf_counter() - start))
        position += 1
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return slowest(statistics.median(times), device), slowest(peak, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", default=["1x4096", "1x32768"], help="batch x context")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=6)
    parser.add_argument("--sides", nargs="+", default=["innerq", "static"], choices=["eager", "static", "innerq"])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--tiny", action="store_true", help="narrow layers in float32 on a CPU, to try this out")
    parser.add_argument("--json")
    args = parser.parse_args()
    device, dtype = ("cpu", torch.float32) if args.tiny else ("cuda", torch.float16)
    if RANKS > 1:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    torch.manual_seed(0)  # the same tokens on every rank
    model = model_8b(args.layers, device, dtype, args.tiny)
    results = []
    for row in args.rows:
        batch, context = map(int, row.split("x"))
        for side in args.sides:
            torch._dynamo.reset()
            gc.collect()
            torch.cuda.empty_cache()
            model._compiled_call_impl = None
            cache = DynamicCache()
            if side == "static":
                cache = StaticCache(model.config, max_cache_len=context + args.steps + args.warmup + 8)
                model.compile(mode="reduce-overhead")
            elif side == "innerq":
                innerq(model, preset=args.preset, mode="reduce-overhead")
            start = time.perf_counter()
            ms, peak = steps(model, cache, batch, context, args.steps, args.warmup, device)
            held = None
            if side == "innerq":
                held = sum(layer.keys.nbytes_held + layer.values.nbytes_held for layer in cache.layers) / 2**30
            result = {"row": row, "ranks": RANKS, "side": side, "ms": ms, "peak_gib": peak, "cache_gib": held}
            result["total_s"] = time.perf_counter() - start
            results.append(result)
            del cache
            if RANK:
                continue
            print(result, flush=True)
            if args.json:
                with open(args.json, "w") as file:
                    json.dump(results, file, indent=1)
    if RANKS > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
