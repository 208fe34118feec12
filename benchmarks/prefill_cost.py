"""What quantizing the cache adds to a prefill: torch.compile with Inductor and a DynamicCache, and innerq.

    python benchmarks/prefill_cost.py --json prefill.json                 # 8B Llama shape, 8,192 tokens, CUDA
    python benchmarks/prefill_cost.py --tiny --device cpu                 # a smoke test

Random weights. Both sides are compiled from one model and take turns, so that clock changes affect both. Each prefill
fills a cache of its own, and only the last position's logits are computed, as in ``generate``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import tables
import torch
from llama import TINY, model_8b
from transformers import DynamicCache

from innerq_compile import PRESETS, InnerQTensor

#: Parts of the names of kernels (CUDA) or operators (CPU) that only quantization runs.
QUANTIZATION = {
    "cuda": ("prefill_fwd_kernel", "key_moments_kernel", "key_statistics_kernel"),
    "cpu": ("innerq::prefill", "innerq::key_statistics"),
}


class Side:
    """A compiled model and the times of its prefills."""

    def __init__(self, name: str, model, ids: torch.Tensor, quantized: bool) -> None:
        self.name, self.model, self.ids, self.quantized = name, model, ids, quantized
        self.ms: list[float] = []
        self.peak = 0
        began = time.perf_counter()
        self.logits = self.check(*self.prefill())
        self.first_call_s = time.perf_counter() - began

    @torch.no_grad()
    def prefill(self) -> tuple[torch.Tensor, DynamicCache]:
        out = self.model(self.ids, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1)
        return out.logits, out.past_key_values

    def check(self, logits: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """Exit if the caches are not of the kind that is to be measured."""
        kinds = {isinstance(t, InnerQTensor) for layer in cache.layers for t in (layer.keys, layer.values)}
        if kinds != {self.quantized}:
            raise SystemExit(f"side {self.name}: quantized caches {sorted(kinds)}, expected only {self.quantized}")
        return logits.float()

    def timed(self) -> None:
        """One repetition: milliseconds on the device's own clock, and peak bytes of the device."""
        if self.ids.device.type != "cuda":
            began = time.perf_counter()
            self.prefill()
            self.ms.append(1e3 * (time.perf_counter() - began))
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        begin.record()
        held = self.prefill()
        end.record()
        torch.cuda.synchronize()
        del held
        self.peak = max(self.peak, torch.cuda.max_memory_allocated())
        self.ms.append(begin.elapsed_time(end))


def profile(side: Side) -> dict:
    """Milliseconds of one prefill by torch.profiler: of quantization, of all kernels, and of each kernel."""
    from torch.profiler import ProfilerActivity

    device = side.ids.device.type
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as found:
        side.prefill()
        if device == "cuda":
            torch.cuda.synchronize()
    total, ours = 0.0, {}
    for event in found.key_averages():
        # on a CPU an operator's time contains that of what it calls: the sum takes own times, named operators the whole
        own = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        total += own / 1e3
        if any(name in event.key for name in QUANTIZATION[device]):
            whole = own if device == "cuda" else event.cpu_time_total
            ours[event.key] = {"ms": whole / 1e3, "calls": event.count}
    return {"total_ms": total, "quantization_ms": sum(row["ms"] for row in ours.values()), "kernels": ours}


def summary(side: Side) -> dict:
    low, middle, high = statistics.quantiles(side.ms, n=4)
    return {
        "name": side.name,
        "median_ms": middle,
        "quartiles_ms": [low, high],
        "ms": side.ms,
        "peak_bytes": side.peak,
        "first_call_s": side.first_call_s,
        "profile": profile(side),
    }


def show(result: dict) -> None:
    title = (
        f"prefill of {result['batch']} x {result['tokens']:,} tokens, {result['layers']} layers, {result['dtype']}, "
        f"{result['device']}, torch {result['torch']}"
    )
    rows = [
        (
            row["name"],
            f"{row['median_ms']:.2f}",
            "{:.2f} to {:.2f}".format(*row["quartiles_ms"]),
            f"{row['peak_bytes'] / 2**30:.2f}" if row["peak_bytes"] else "-",
            f"{row['profile']['quantization_ms']:.3f}",
            f"{row['profile']['total_ms']:.2f}",
            f"{row['first_call_s']:.0f}",
        )
        for row in result["sides"]
    ]
    columns = ("side", "ms", "quartiles", "peak GiB", "quantization, ms", "all kernels, ms", "first call, s")
    tables.show(columns, rows, title=title, caption=f"medians of {result['repetitions']} interleaved repetitions")
    for name, kernel in result["sides"][1]["profile"]["kernels"].items():
        tables.console.print(f"  {name[:90]}: {kernel['ms']:.3f} ms in {kernel['calls']} calls")
    tables.console.print(
        f"prefill with quantization takes {result['ratio']:.4f} times as long ({100 * (result['ratio'] - 1):+.2f}%); "
        f"largest difference of the logits {result['logit_difference']:.2e} of {result['logit_size']:.2e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--preset", choices=list(PRESETS), default="base")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--tiny", action="store_true", help="hidden size 128 in place of 4,096")
    parser.add_argument("--warmup", type=int, default=3, help="repetitions of each side that are not measured")
    parser.add_argument("--repetitions", type=int, default=15, help="of each side")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.repetitions < 2:
        parser.error(f"--repetitions {args.repetitions}: medians and quartiles need at least 2")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: no CUDA device here; --tiny --device cpu is a smoke test")
    dtype = getattr(torch, args.dtype)
    model = model_8b(args.layers, args.device, dtype, **(TINY if args.tiny else {}))
    ids = torch.randint(0, 1000, (args.batch, args.tokens), device=args.device)
    ours = torch.compile(model, backend="innerq", options={"preset": args.preset})
    sides = [Side("Inductor", torch.compile(model), ids, False), Side(f"innerq {args.preset}", ours, ids, True)]
    for index in range(args.warmup + args.repetitions):
        for side in sides if index % 2 else sides[::-1]:
            side.timed()
    for side in sides:
        side.ms = side.ms[args.warmup :]
    plain, quantized = (side.logits for side in sides)
    result = {
        "batch": args.batch,
        "tokens": args.tokens,
        "layers": args.layers,
        "tiny": args.tiny,
        "preset": args.preset,
        "dtype": args.dtype,
        "device": torch.cuda.get_device_name() if ids.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "repetitions": args.repetitions,
        "ratio": statistics.median(sides[1].ms) / statistics.median(sides[0].ms),
        "logit_difference": float((plain - quantized).abs().max()),
        "logit_size": float(plain.abs().max()),
        "sides": [summary(side) for side in sides],
    }
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
