"""Milliseconds per decode step on a CPU: torch.compile with Inductor and a DynamicCache, and innerq.

    python benchmarks/cpu_generate.py --context 4096 8192 --dtype float32 bfloat16 --json result.json

Both models are compiled, have the same prompt in their caches and are called as transformers' ``generate`` calls them.
They take turns, one step each, so that other load on the machine affects both. The caches are those of real text.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import tables  # noqa: E402
from smollm2 import load, prose  # noqa: E402

import innerq_compile  # noqa: E402
from innerq_compile import PRESETS, InnerQTensor, innerq  # noqa: E402


def machine() -> dict[str, Any]:
    """The machine and versions, for the results file."""
    import transformers

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "innerq_compile": innerq_compile.__version__,
    }


class Runner:
    """A model with a filled cache that takes one greedy decode step at a time."""

    def __init__(self, model: torch.nn.Module, prompt: torch.Tensor) -> None:
        self.model = model
        began = time.perf_counter()
        self.next = self._call(prompt, None, 0)
        self.first_call_s = time.perf_counter() - began
        self.position = prompt.shape[1]

    def _call(self, tokens: torch.Tensor, cache: Any, position: int) -> torch.Tensor:
        positions = torch.arange(position, position + tokens.shape[1])[None]
        out = self.model(
            input_ids=tokens,
            past_key_values=cache,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1].argmax(-1, keepdim=True)

    def step(self) -> float:
        """Run one step; returns its seconds."""
        began = time.perf_counter()
        self.next = self._call(self.next, self.cache, self.position)
        self.position += 1
        return time.perf_counter() - began

    @property
    def cache_bytes(self) -> int:
        tensors = [tensor for layer in self.cache.layers for tensor in (layer.keys, layer.values)]
        return sum(t.nbytes_held if isinstance(t, InnerQTensor) else t.nbytes for t in tensors)


def summary(runner: Runner, seconds: list[float]) -> dict[str, float]:
    tenths = statistics.quantiles(seconds, n=10)
    return {
        "median_ms": statistics.median(seconds) * 1e3,
        "p10_ms": tenths[0] * 1e3,
        "p90_ms": tenths[-1] * 1e3,
        "first_call_s": runner.first_call_s,
        "cache_bytes": runner.cache_bytes,
    }


@torch.no_grad()
def measure(
    make_model: Callable[[], torch.nn.Module], prompt: torch.Tensor, preset: str, warmup: int, steps: int
) -> dict[str, Any]:
    """Both sides at one context length and dtype."""
    torch._dynamo.reset()
    plain, ours = make_model(), make_model()
    plain.compile()
    innerq(ours, preset=preset)
    runners = {"inductor": Runner(plain, prompt), "innerq": Runner(ours, prompt)}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for index in range(warmup + steps):
        for name, runner in runners.items():
            seconds = runner.step()
            if index >= warmup:
                times[name].append(seconds)
    kinds = {type(layer.keys) for layer in runners["innerq"].cache.layers}
    if kinds != {InnerQTensor}:
        raise SystemExit(f"the innerq model holds caches of {kinds}: nothing was measured")
    result = {name: summary(runner, times[name]) for name, runner in runners.items()}
    result["ratio"] = result["innerq"]["median_ms"] / result["inductor"]["median_ms"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, nargs="+", default=[4096], help="tokens in the cache (default 4096)")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--preset", choices=list(PRESETS), default="base")
    parser.add_argument("--steps", type=int, default=64, help="measured steps (default 64)")
    parser.add_argument("--warmup", type=int, default=8, help="steps before them, which compile (default 8)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--limit", type=float, help="exit with 1 if innerq takes more than this many times as long")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)

    model, tokenizer = load(torch.float32)
    text = tokenizer(prose()[: 8 * max(args.context)], return_tensors="pt")["input_ids"]
    report: dict[str, Any] = {"machine": machine(), "preset": args.preset, "steps": args.steps, "results": []}
    rows = []
    for dtype in args.dtype:
        for context in args.context:
            if text.shape[1] < context:
                parser.error(f"--context {context}: the text has {text.shape[1]} tokens")
            result = measure(
                lambda dtype=dtype: copy.deepcopy(model).to(getattr(torch, dtype)),
                text[:, :context],
                args.preset,
                args.warmup,
                args.steps,
            )
            report["results"].append({"dtype": dtype, "context": context, **result})
            plain, ours = result["inductor"], result["innerq"]
            row = (dtype, f"{context:,}", f"{plain['median_ms']:.2f}", f"{ours['median_ms']:.2f}")
            row += (f"{result['ratio']:.2f}", f"{plain['cache_bytes'] / 1e6:.1f}", f"{ours['cache_bytes'] / 1e6:.1f}")
            tables.console.print(*row)
            rows.append(row)
    columns = ("dtype", "context", "Inductor, ms", "innerq, ms", "ratio", "cache of Inductor, MB", "of innerq, MB")
    tables.show(columns, rows)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    worst = max(result["ratio"] for result in report["results"])
    if args.limit is not None and worst > args.limit:
        raise SystemExit(f"innerq takes {worst:.2f} times as long as Inductor: more than {args.limit}")


if __name__ == "__main__":
    main()
