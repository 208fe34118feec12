"""Host time of a decode step: innerq, and plain Inductor with a StaticCache.

    python benchmarks/host_cost.py                                    # this CPU, a small model of 32 layers
    python benchmarks/host_cost.py --device cuda --hidden 4096        # a GPU, with CUDA graphs on all sides

On a CPU this is the time of a step outside of the code that Inductor generated: Dynamo's guards, AOTAutograd's wrappers
and innerq's runtime. On a GPU it is the time of a step less that of its kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import gc
import json
import pstats
import statistics
import time
from collections.abc import Callable, Iterator

import tables
import torch
from llama import model_8b
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

from innerq_compile import innerq

SIDES = ("static", "innerq", "innerq-static")


def make_model(args: argparse.Namespace) -> LlamaForCausalLM:
    """A model with random weights, of the size given by ``--layers``, ``--hidden`` and ``--head-dim``."""
    return model_8b(
        args.layers,
        args.device,
        torch.float16 if args.device == "cuda" else torch.float32,
        hidden_size=args.hidden,
        intermediate_size=2 * args.hidden,
        num_attention_heads=max(1, args.hidden // args.head_dim),
        num_key_value_heads=max(1, args.hidden // args.head_dim // 4),
        head_dim=args.head_dim,
        vocab_size=1000,
    )


class Inside:
    """Seconds spent in the code that Inductor generated."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        from torch._inductor.output_code import CompiledFxGraph

        original = CompiledFxGraph.__call__

        def call(graph, inputs):
            start = time.perf_counter()
            try:
                return original(graph, inputs)
            finally:
                self.seconds += time.perf_counter() - start

        CompiledFxGraph.__call__ = call
        try:
            yield
        finally:
            CompiledFxGraph.__call__ = original


@torch.no_grad()
def stepper(model: LlamaForCausalLM, cache, args: argparse.Namespace) -> Callable[[], None]:
    """A function that runs one decode step behind a prompt."""
    device, position = args.device, args.context
    ids = torch.randint(0, 1000, (args.batch, args.context), device=device)
    model(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, use_cache=True, logits_to_keep=1)
    token = ids[:, :1].clone()

    @torch.no_grad()
    def step() -> None:
        nonlocal position
        mask = torch.ones(args.batch, position + 1, dtype=torch.long, device=device)
        places = torch.full((args.batch, 1), position, device=device)
        model(token, position_ids=places, attention_mask=mask, past_key_values=cache, use_cache=True)
        position += 1

    return step


def on_cpu(step: Callable[[], None], inside: Inside, count: int) -> dict[str, float]:
    """Median milliseconds of a step, and of what is not compiled code in it."""
    walls, hosts = [], []
    for _ in range(count):
        inside.seconds, start = 0.0, time.perf_counter()
        step()
        walls.append(time.perf_counter() - start)
        hosts.append(walls[-1] - inside.seconds)
    return {"ms": 1e3 * statistics.median(walls), "host_ms": 1e3 * statistics.median(hosts)}


def on_cuda(step: Callable[[], None], count: int) -> dict[str, float]:
    """Milliseconds of a step by the wall clock, and the same less the time of its kernels."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    walls = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        walls.append(time.perf_counter() - start)
    profiled = min(count, 10)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        for _ in range(profiled):
            step()
        torch.cuda.synchronize()
    events = [event for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.time_range.elapsed_us() for event in events) / profiled / 1e3
    wall = 1e3 * statistics.median(walls)
    return {"ms": wall, "host_ms": wall - busy, "kernels": len(events) / profiled}


def measure(side: str, args: argparse.Namespace) -> dict[str, float]:
    torch._dynamo.reset()
    gc.collect()
    torch.manual_seed(0)
    model = make_model(args)
    if side == "static":
        model.compile(mode="reduce-overhead" if args.device == "cuda" else None)
    else:
        innerq(model, preset=args.preset)
    tokens = args.context + args.warmup + args.steps + 20
    cache = DynamicCache() if side == "innerq" else StaticCache(model.config, max_cache_len=tokens)
    inside = Inside()
    with inside.watched():
        step = stepper(model, cache, args)
        for _ in range(args.warmup):
            step()
        gc.collect()
        result = on_cuda(step, args.steps) if args.device == "cuda" else on_cpu(step, inside, args.steps)
        if args.profile:
            profile = cProfile.Profile()
            with profile:
                for _ in range(10):
                    step()
            pstats.Stats(profile).sort_stats("tottime").print_stats(args.profile)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--head-dim", type=int, default=16, help="of a model with hidden/head_dim query heads")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=8)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--sides", nargs="+", default=["static", "innerq"], choices=SIDES)
    parser.add_argument("--profile", type=int, default=0, metavar="LINES", help="print this many lines of a profile")
    parser.add_argument("--json", help="file for the figures")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    results = {side: measure(side, args) for side in args.sides}
    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU, one thread"
    rows = []
    for side, result in results.items():
        more = result["host_ms"] - results["static"]["host_ms"] if "static" in results else float("nan")
        kernels = f"{result['kernels']:.0f}" if "kernels" in result else "-"
        rows.append((side, f"{result['ms']:.2f}", f"{result['host_ms']:.2f}", f"{more:+.2f}", kernels))
    title = f"a decode step of {args.layers} layers, hidden size {args.hidden}, {where}"
    tables.show(("side", "ms a step", "ms outside of kernels", "more than static", "kernels"), rows, title=title)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"arguments": vars(args), "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
