"""Milliseconds a decode step, memory and tokens a second of a model with the shape of an 8B Llama and random weights.

    python benchmarks/generate_8b.py --rows 1x4096 1x32768 4x32768 1x122880 --sides eager static innerq --json out.json
    python benchmarks/generate_8b.py --rows 16x32768 --sides innerq --chunk 2048
    python benchmarks/generate_8b.py --rows 1x32768 --sides eager innerq --generate
    torchrun --nproc-per-node 2 benchmarks/generate_8b.py --rows 1x32768 4x32768 1x122880
    torchrun --nproc-per-node 2 benchmarks/generate_8b.py --tiny --device cpu --rows 1x300      # a smoke test
    python benchmarks/generate_8b.py --from-json out.json --plot docs/performance.png           # plot earlier results

Under torchrun the model is sharded by transformers (``tp_plan="auto"``): its weights are written to a folder first.
Figures are those of rank 0.

Sides: ``eager`` is transformers without compilation and with a DynamicCache; ``static`` a StaticCache under
``torch.compile(mode="reduce-overhead")``; ``innerq`` our backend with a DynamicCache, which records decode steps by
itself, and under torchrun, where it has to be asked to, in the same mode. Prompts are random tokens, prefilled at once
(with ``--chunk`` in pieces). The cache of ``static``, and with ``--fill`` those of all sides, is filled with random
numbers instead. Times are wall-clock, from the call to the end of the GPU's work.
``--generate`` also measures ``model.generate``: ``static`` is ``cache_implementation="static"`` there, whose steps
generate compiles itself, and ``eager`` finds cuDNN's plans for the lengths that were measured before.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time

import tables
import torch
import torch._inductor.config
import torch.distributed as dist
import transformers
from llama import TINY, Clock, model_8b
from transformers import Cache, DynamicCache, DynamicLayer, LlamaForCausalLM, StaticCache

from innerq_compile import InnerQTensor, innerq

RANKS = int(os.environ.get("WORLD_SIZE", 1))
GIB = 2**30


def sharded(layers: int, device: str, dtype: torch.dtype, **changes: int) -> LlamaForCausalLM:
    """:func:`model_8b` of rank 0 as transformers shards it over all ranks."""
    folder = [None]
    if dist.get_rank() == 0:
        folder = [tempfile.mkdtemp()]
        model_8b(layers, device, dtype, **changes).save_pretrained(folder[0])
    dist.broadcast_object_list(folder)
    model = LlamaForCausalLM.from_pretrained(folder[0], tp_plan="auto", dtype=dtype).eval()
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder[0])
    torch.manual_seed(0)  # rank 0 has drawn the weights; from here on all ranks draw the same tokens
    return model


def random_ids(model, *shape: int) -> torch.Tensor:
    return torch.randint(0, 1000, shape, device=model.device)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fill(cache: Cache, model: LlamaForCausalLM, batch: int, context: int, preset: str | None = None) -> None:
    """``context`` random tokens in every layer of a cache, for this rank's heads; quantized if a preset is given."""
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    heads, query_heads = (count // RANKS for count in (config.num_key_value_heads, config.num_attention_heads))
    for index in range(config.num_hidden_layers):
        shape = (batch, heads, context, head_dim)
        keys, values = (torch.randn(shape, dtype=model.dtype, device=model.device) for _ in range(2))
        if isinstance(cache, StaticCache):
            cache.update(keys, values, index, {"cache_position": torch.arange(context, device=model.device)})
            continue
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        if preset is not None:
            queries = torch.randn(batch, query_heads, 128, head_dim, dtype=model.dtype, device=model.device)
            norm = f"half{head_dim}"  # as the backend has it for a Llama's prompt
            keys = InnerQTensor.from_dense(keys, preset, role="key", norm=norm, queries=queries)
            values = InnerQTensor.from_dense(values, preset, role="value")
        layer.keys, layer.values = keys, values
        cache.layers[index:] = [layer]


@torch.no_grad()
def prefill(model, cache, batch: int, context: int, chunk: int) -> None:
    for position in range(0, context, chunk):
        size = min(chunk, context - position)
        places = torch.arange(position, position + size, device=model.device).expand(batch, -1)
        # As generate does it: a mask that only decode steps have looks static at first, and compiles twice.
        mask = torch.ones(batch, position + size, dtype=torch.long, device=model.device)
        inputs = {"position_ids": places, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
        model(random_ids(model, batch, size), **inputs, logits_to_keep=1)


@torch.no_grad()
def decode(
    model, cache, batch: int, context: int, count: int, warmup: int, prompted: bool = True
) -> tuple[list[float], float]:
    """Milliseconds of each of ``count`` steps behind ``context`` tokens, and the seconds of ``warmup`` steps before.

    The mask grows by a column a step; without a prompt before, its length is marked as dynamic, to compile once. A
    StaticCache gets no mask, because Inductor would record a graph for each length; transformers makes one of the
    cache's own length inside the graph.
    """
    grows = not isinstance(cache, StaticCache)
    times = []
    begin = warm = time.perf_counter()
    for position in range(context, context + warmup + count):
        ids = random_ids(model, batch, 1)
        mask = torch.ones(batch, position + 1, dtype=torch.long, device=model.device) if grows else None
        if mask is not None and not prompted:
            torch._dynamo.maybe_mark_dynamic(mask, 1)
        places = torch.full((batch, 1), position, device=model.device)
        synchronize()
        start = time.perf_counter()
        model(ids, position_ids=places, attention_mask=mask, past_key_values=cache, use_cache=True)
        synchronize()
        times.append(1e3 * (time.perf_counter() - start))
        if position == context + warmup - 1:
            warm = time.perf_counter()
    return times[warmup:], warm - begin


def tensors_of(cache) -> list[torch.Tensor]:
    """Keys and values of all layers."""
    return [side for layer in cache.layers for side in (layer.keys, layer.values)]


def held_gib(cache) -> float:
    """GiB of keys and values that a cache holds."""
    return (
        sum(getattr(side, "nbytes_held", None) or side.numel() * side.element_size() for side in tensors_of(cache))
        / GIB
    )


def room_of(cache) -> int:
    """Tokens that a cache can hold before it grows."""
    return min(getattr(side, "room", side.shape[2]) for side in tensors_of(cache))


def peak_gib() -> float | None:
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    return peak


def measure(model, side: str, batch: int, context: int, options: argparse.Namespace) -> dict:
    cache = DynamicCache()
    result: dict = {"row": f"{batch}x{context}", "side": side}
    if side == "static":
        room = -(-(context + options.steps + options.warmup + 1) // 64) * 64
        cache = StaticCache(model.config, max_cache_len=room)
        fill(cache, model, batch, context)
    elif options.fill:
        fill(cache, model, batch, context, options.preset if side == "innerq" else None)
    else:
        peak_gib()
        begin = time.perf_counter()
        prefill(model, cache, batch, context, options.chunk or context)
        synchronize()
        result["prefill_s"] = time.perf_counter() - begin  # the first of a shape includes compiling
        result["prefill_peak_gib"] = peak_gib()
    prompted = not options.fill
    times, result["warmup_s"] = decode(model, cache, batch, context, options.steps, options.warmup, prompted)
    result |= {"ms": statistics.median(times), "ms_least": min(times), "ms_most": max(times)}
    result |= {"decode_peak_gib": peak_gib(), "cache_gib": held_gib(cache), "room": room_of(cache)}
    return result


@torch.no_grad()
def generated(model, side: str, batch: int, context: int, first: int = 16, tokens: int = 80) -> dict:
    """Tokens a second of ``model.generate`` from token ``first`` on, after compilation."""
    ids = random_ids(model, batch, context)
    compiled, clock = model._compiled_call_impl, Clock()
    arguments = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "streamer": clock}
    if side == "static":
        arguments["cache_implementation"] = "static"
        model._compiled_call_impl = None  # on a GPU generate compiles the steps over a static cache itself
    peak_gib()
    try:
        model.generate(ids, attention_mask=torch.ones_like(ids), **arguments)
    finally:  # the next rows are compiled even if this one runs out of memory
        model._compiled_call_impl = compiled
    clock.at.pop(0)  # the prompt's tokens
    steps = [after - before for before, after in itertools.pairwise(clock.at[first:])]
    found = {"tokens_per_s": batch / statistics.fmean(steps), "tokens_per_s_median": batch / statistics.median(steps)}
    return found | {"generate_peak_gib": peak_gib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", default=["1x4096", "1x32768"], help="batch x context")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=6)
    parser.add_argument("--chunk", type=int, default=0, help="prefill this many tokens at a time (0: all)")
    parser.add_argument("--fill", action="store_true", help="no prompts: fill every cache with random numbers")
    parser.add_argument("--sides", nargs="+", default=["static", "innerq"], choices=["eager", "static", "innerq"])
    parser.add_argument("--generate", action="store_true", help="also measure model.generate")
    parser.add_argument(
        "--inductor", nargs="+", default=[], metavar="NAME", help="switches of Inductor to turn on, for both sides"
    )
    parser.add_argument("--preset", default="base")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="two small layers in float32, as a smoke test")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--from-json", metavar="FILE", help="show results that --json wrote, instead of measuring")
    parser.add_argument("--plot", metavar="FILE", help="file for ms a step by context and by batch (needs matplotlib)")
    options = parser.parse_args()
    if options.from_json:
        with open(options.from_json) as file:
            found = json.load(file)
        show(found["results"], found["ranks"])
        if options.plot:
            plot(found, options.plot)
        return
    if RANKS > 1:
        if options.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    for name in options.inductor:  # with coordinate_descent_tuning it writes matrix-vector products itself
        setattr(torch._inductor.config, name, True)
    torch.manual_seed(0)
    made = sharded if RANKS > 1 else model_8b
    if options.tiny:
        model = made(2, options.device, torch.float32, **TINY)
    else:
        model = made(options.layers, options.device, torch.float16)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    head = {"device": device, "ranks": RANKS, "preset": options.preset, "inductor": options.inductor}
    head |= {"torch": torch.__version__, "transformers": transformers.__version__}
    results = []
    for side in options.sides:
        torch._dynamo.reset()
        model._compiled_call_impl = None
        if side == "static":
            model.compile(mode="reduce-overhead")
        elif side == "innerq":
            innerq(model, preset=options.preset, mode="reduce-overhead" if RANKS > 1 else None)
        for row in options.rows:
            batch, context = map(int, row.split("x"))
            gc.collect()
            torch.cuda.empty_cache()
            try:
                result = measure(model, side, batch, context, options)
                if options.generate:
                    result |= generated(model, side, batch, context)
            except torch.OutOfMemoryError as failure:
                result = {"row": row, "side": side, "failed": str(failure).splitlines()[0]}
            results.append(result)
            if RANKS > 1 and dist.get_rank() > 0:
                continue
            tables.console.print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}))
            if options.json:
                with open(options.json, "w") as file:
                    json.dump({**head, "results": results}, file, indent=1)
    if RANKS == 1 or dist.get_rank() == 0:
        show(results, RANKS)
        if options.plot:
            plot({**head, "results": results}, options.plot)
    if RANKS > 1:
        torch.compiler.reset()  # NCCL waits for the CUDA graphs that recorded its collectives
        dist.destroy_process_group()


def show(results: list[dict], ranks: int) -> None:
    columns = ("row", "side", "ms", "cache_gib", "room", "prefill_peak_gib", "decode_peak_gib", "tokens_per_s")
    rows = [
        [f"{cell:.2f}" if isinstance(cell, float) else str(cell or "") for cell in map(result.get, columns)]
        for result in results
    ]
    tables.show(columns, rows, title=f"{ranks} devices", words=2)


def plot(found: dict, file: str) -> None:
    """Plot milliseconds a step by context at the smallest batch, and by batch at the most common context."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--plot needs matplotlib. Run: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = [(*map(int, r["row"].split("x")), r["side"], r["ms"]) for r in found["results"] if "ms" in r]
    batch = min(b for b, *_ in points)
    context = statistics.mode(c for c, _ in {(c, b) for b, c, *_ in points})
    sides = list(dict.fromkeys(side for *_, side, _ in points))
    times = [ms for *_, ms in points]
    ticks = [t * 10**n for n in range(-1, 4) for t in (1, 2, 5) if min(times) <= t * 10**n <= max(times)]
    by_context = [(c, side, ms) for b, c, side, ms in points if b == batch]
    by_batch = [(b, side, ms) for b, c, side, ms in points if c == context]
    shown = (
        (f"batch {batch}, by context", "tokens of context", by_context),
        (f"{context:,} tokens, by batch", "sequences", by_batch),
    )
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, (title, label, found_here) in zip(panels, shown, strict=True):
        for index, side in enumerate(sides):  # a side without a point here is in the legend all the same
            line = sorted((x, ms) for x, other, ms in found_here if other == side)
            panel.plot([x for x, _ in line], [ms for _, ms in line], marker="o", color=f"C{index}", label=side)
        panel.set(title=title, xlabel=label, ylabel="ms a decode step", xscale="log", yscale="log")
        panel.set_xticks(sorted({x for x, *_ in found_here}))
        panel.set_yticks(ticks)
        panel.minorticks_off()
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(True, alpha=0.3)
    panels[0].legend()
    figure.suptitle(f"8B Llama shape, {found['ranks']} x {found['device']}")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
