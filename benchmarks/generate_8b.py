"""ms a decode step and peak memory at the shape of an 8B Llama, random weights: eager, StaticCache + Inductor, innerq.

python benchmarks/generate_8b.py --rows 1x4096 1x32768 --layers 32
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from innerq_compile import innerq


def model_8b(layers: int, device: str = "cuda", dtype: torch.dtype = torch.float16, **changes: int) -> LlamaForCausalLM:
    """Random weights, made on the device. ``changes`` are fields of the config, for smaller shapes."""
    shape = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    config = LlamaConfig(
        **(shape | changes),
        num_hidden_layers=layers,
        max_position_embeddings=1 << 20,
        attn_implementation="sdpa",
    )
    default = torch.get_default_dtype()
    with torch.device(device):
        torch.set_default_dtype(dtype)
        try:
            model = LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(default)
    return model


@torch.no_grad()
def steps(model, cache, batch: int, context: int, count: int, warmup: int) -> tuple[float, float]:
    """Median ms a step over ``count`` steps behind a prompt of ``context`` tokens, and peak GiB while decoding."""
    device = "cuda"
    position = 0
    while position < context:  # prefill in pieces: the figures are those of decoding
        size = min(4096, context - position)
        ids = torch.randint(0, 1000, (batch, size), device=device)
        places = torch.arange(position, position + size, device=device).expand(batch, -1)
        model(ids, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
        position += size
    times = []
    torch.cuda.reset_peak_memory_stats()
    for index in range(warmup + count):
        ids = torch.randint(0, 1000, (batch, 1), device=device)
        mask = torch.ones(batch, position + 1, dtype=torch.long, device=device)
        places = torch.full((batch, 1), position, device=device)
        torch.cuda.synchronize()
        start = time.perf_counter()
        model(ids, position_ids=places, attention_mask=mask, past_key_values=cache, use_cache=True)
        torch.cuda.synchronize()
        if index >= warmup:
            times.append(1e3 * (time.perf_counter() - start))
        position += 1
    return statistics.median(times), torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", default=["1x4096", "1x32768"], help="batch x context")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=6)
    parser.add_argument("--sides", nargs="+", default=["innerq", "static"], choices=["eager", "static", "innerq"])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--json")
    args = parser.parse_args()
    model = model_8b(args.layers)
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
            ms, peak = steps(model, cache, batch, context, args.steps, args.warmup)
            held = None
            if side == "innerq":
                held = sum(layer.keys.nbytes_held + layer.values.nbytes_held for layer in cache.layers) / 2**30
            result = {"row": row, "side": side, "ms": ms, "peak_gib": peak, "cache_gib": held}
            result["total_s"] = time.perf_counter() - start
            results.append(result)
            print(result, flush=True)
            del cache
            if args.json:
                with open(args.json, "w") as file:
                    json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
