"""Memory and speed of decoding as the context grows: the quantized cache against a 16-bit one.

    python examples/long_context.py --context 1024 4096 8000 --plot long_context.png
    python examples/long_context.py --model meta-llama/Llama-3.1-8B --device cuda --context 8192 32768 131072

Each point is a prompt of random tokens and a few decode steps behind it, of which the median counts. Both sides are
compiled; the plain one by Inductor, with transformers' DynamicCache.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from transformers import AutoModelForCausalLM

from innerq_compile import PRESETS, InnerQTensor, innerq

PIECE = 4096  # tokens of a prompt that are fed at once


@torch.no_grad()
def measure(model, context: int, steps: int) -> tuple[float, int]:
    """Milliseconds a decode step, and bytes of the cache, behind ``context`` random tokens."""
    device, vocabulary = model.device, model.config.vocab_size
    torch.manual_seed(0)
    cache, position, times = None, 0, []
    while position < context:
        size = min(PIECE, context - position)
        ids = torch.randint(0, vocabulary, (1, size), device=device)
        places = torch.arange(position, position + size, device=device)[None]
        out = model(ids, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, position = out.past_key_values, position + size
    for _ in range(steps + 4):  # the first ones compile
        token = torch.randint(0, vocabulary, (1, 1), device=device)
        began = time.perf_counter()
        out = model(token, position_ids=torch.tensor([[position]], device=device), past_key_values=cache)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - began))
        cache, position = out.past_key_values, position + 1
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    held = sum(t.nbytes_held if isinstance(t, InnerQTensor) else t.nbytes for t in tensors)
    return statistics.median(times[4:]), held


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a folder or a name on the Hugging Face hub (default: the demo model)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--preset", choices=list(PRESETS), default="base")
    parser.add_argument("--context", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--plot", help="write a chart to this file (needs matplotlib)")
    args = parser.parse_args(arguments)

    dtype = getattr(torch, args.dtype)
    if args.model is None:
        from smollm2 import load

        model = load(dtype)[0]
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
    plain = model.to(args.device)
    ours = copy.deepcopy(plain)
    plain.compile(dynamic=True)
    innerq(ours, preset=args.preset)

    rows = []
    print(f"{'tokens':>8} {'16-bit ms':>10} {'innerq ms':>10} {'16-bit bytes':>16} {'innerq bytes':>16}")
    for context in args.context:
        plain_ms, plain_bytes = measure(plain, context, args.steps)
        ours_ms, ours_bytes = measure(ours, context, args.steps)
        rows.append({"context": context, "plain": (plain_ms, plain_bytes), "innerq": (ours_ms, ours_bytes)})
        print(f"{context:>8} {plain_ms:>10.2f} {ours_ms:>10.2f} {plain_bytes:>16,} {ours_bytes:>16,}")
    if args.plot:
        chart(rows, args.plot, f"{args.dtype} cache")
    return rows


def chart(rows: list[dict], path: str, plain_label: str) -> None:
    """Two panels: ms a step, and MB of cache."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    contexts = [row["context"] for row in rows]
    for axis, index, unit, title in ((axes[0], 0, 1, "ms a decode step"), (axes[1], 1, 1e6, "MB of cache")):
        for side, label in (("plain", plain_label), ("innerq", "innerq")):
            axis.plot(contexts, [row[side][index] / unit for row in rows], marker="o", label=label)
        axis.set(title=title, xlabel="tokens in the cache")
        axis.set_ylim(bottom=0)
        axis.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
