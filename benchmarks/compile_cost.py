"""Time to compile a model, with empty caches on disk (cold) and with full ones (warm); innerq and plain Inductor.

    python benchmarks/compile_cost.py --layers 4
    python benchmarks/compile_cost.py --layers 32 --hidden 4096 --device cuda

Each figure is measured in a process of its own. Both sides use a DynamicCache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import tables

SIDES = ("inductor", "innerq")


def run_once(args: argparse.Namespace) -> dict[str, float]:
    """What the measured process runs: seconds of a prompt and two steps, less those of the same calls a second time."""
    import torch
    from host_cost import make_model
    from torch._dynamo.utils import counters
    from transformers import DynamicCache

    from innerq_compile import innerq

    model = make_model(args)
    if args.once == "innerq":
        innerq(model, preset=args.preset)
    else:
        model.compile()

    @torch.no_grad()
    def generate() -> None:
        cache = DynamicCache()
        ids = torch.ones(1, 200, dtype=torch.long, device=args.device)
        for piece in (ids, ids[:, :1].clone(), ids[:, :1].clone()):
            logits = model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        logits.argmax(-1).tolist()

    start = time.perf_counter()
    generate()
    first = time.perf_counter() - start
    start = time.perf_counter()
    generate()
    again = time.perf_counter() - start
    found = counters["aot_autograd"]
    return {"seconds": first - again, "hits": found["autograd_cache_hit"], "misses": found["autograd_cache_miss"]}


def measure(side: str, folder: str) -> dict[str, float]:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": os.path.join(folder, "triton")}
    command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--once", side]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--preset", default="base")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--once", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(run_once(args)))
        return
    rows, results = [], {}
    for side in SIDES:
        with tempfile.TemporaryDirectory() as folder:
            cold, warm = measure(side, folder), measure(side, folder)
        results[side] = {"cold": cold, "warm": warm}
        rows.append((side, f"{cold['seconds']:.1f}", f"{warm['seconds']:.1f}", f"{warm['hits']}", f"{warm['misses']}"))
    title = f"seconds of compiling, {args.layers} layers, hidden size {args.hidden}, {args.device}"
    tables.show(("side", "cold", "warm", "graphs from the cache, warm", "compiled, warm"), rows, title=title)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"arguments": vars(args), "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
