"""One layer of a decode step on a CPU: append a token, then attend to the whole cache.

Compares ``innerq::append_`` + ``innerq::decode_attention`` with what transformers' DynamicCache does: ``torch.cat`` of
keys and of values, then ``scaled_dot_product_attention`` on the dense cache. Shape of SmolLM2-135M: 9 query heads, 3 KV
heads, head_dim 64, batch 1. Calls go through the caches of several layers, as in a model, so that the CPU's caches do
not hold what the next call reads.

    python benchmarks/cpu_decode.py [--threads N] [--layers N] [--steps N] [--lowest]
"""

from __future__ import annotations

import argparse
import statistics
import time

import tables
import torch

from innerq_compile.kernels import layout, modes, ops, reference  # noqa: F401  (registers innerq::*)
from innerq_compile.kernels.formats import CacheFormat, blocks_for, default_scale_dtype

HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64


def formats(mode: str, bits: int, dtype: torch.dtype) -> tuple[CacheFormat, CacheFormat]:
    """Formats of keys and values. Values are anchored where ``mode`` is one of keys only, as in the presets."""
    v_mode = mode if mode in modes.names_of("value") else "anchored"
    scale, v_scale = default_scale_dtype(dtype, mode), default_scale_dtype(dtype, v_mode)
    return CacheFormat("key", bits, mode, 32, 32, 96, scale), CacheFormat("value", bits, v_mode, 32, 32, 96, v_scale)


def layer_ms(step, layers: int, steps: int, lowest: bool) -> float:
    """Milliseconds of ``step(layer)``. Each step calls it for every layer; the median, or minimum, over the steps."""
    times = []
    for i in range(steps + 3):
        begin = time.perf_counter()
        for layer in range(layers):
            step(layer)
        if i >= 3:
            times.append((time.perf_counter() - begin) / layers * 1e3)
    return min(times) if lowest else statistics.median(times)


def measure(
    tokens: int, dtype: torch.dtype, mode: str, bits: int, layers: int, steps: int, lowest: bool
) -> dict[str, float]:
    k_fmt, v_fmt = formats(mode, bits, dtype)
    start = torch.zeros(1, dtype=torch.int32)
    capacity = blocks_for(k_fmt, tokens + steps + 64)
    keys, values = (torch.randn(1, KV_HEADS, tokens, HEAD_DIM, dtype=dtype) for _ in range(2))
    query = torch.randn(1, HEADS, 1, HEAD_DIM, dtype=dtype)
    key, value = (torch.randn(1, KV_HEADS, 1, HEAD_DIM, dtype=dtype) for _ in range(2))
    profile = reference.default_profile(k_fmt, keys)
    k_caches = [torch.ops.innerq.prefill(keys, start, None, None, capacity, k_fmt.spec, profile) for _ in range(layers)]
    v_caches = [torch.ops.innerq.prefill(values, start, None, None, capacity, v_fmt.spec) for _ in range(layers)]
    dense = [(keys.clone(), values.clone()) for _ in range(layers)]

    def append(layer):
        torch.ops.innerq.append_(*k_caches[layer], profile, *v_caches[layer], key, value, k_fmt.spec, v_fmt.spec)

    def attend(layer):
        cache = (*k_caches[layer], *v_caches[layer])
        torch.ops.innerq.decode_attention(
            query, *cache, None, None, None, HEAD_DIM**-0.5, 0.0, False, k_fmt.spec, v_fmt.spec
        )

    def innerq(layer):
        append(layer)
        attend(layer)

    def cat_sdpa(layer):
        k, v = dense[layer]
        k, v = torch.cat((k, key), 2), torch.cat((v, value), 2)
        torch.nn.functional.scaled_dot_product_attention(query, k, v, enable_gqa=True)

    def sdpa(layer):
        torch.nn.functional.scaled_dot_product_attention(query, *dense[layer], enable_gqa=True)

    held = sum(layout.cache_bytes(fmt, 1, KV_HEADS, HEAD_DIM, dtype, blocks_for(fmt, tokens)) for fmt in (k_fmt, v_fmt))
    with torch.no_grad():
        result = {
            "innerq": layer_ms(innerq, layers, steps, lowest),
            "cat_sdpa": layer_ms(cat_sdpa, layers, steps, lowest),
            "sdpa": layer_ms(sdpa, layers, steps, lowest),
            "attend": layer_ms(attend, layers, steps, lowest),
            "append": layer_ms(append, layers, steps, lowest),
        }
    return result | {"bytes": held, "dense_bytes": 2 * KV_HEADS * tokens * HEAD_DIM * dtype.itemsize}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--mode", default="signed")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--lowest", action="store_true", help="report the minimum, not the median")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    for tokens in args.tokens:
        for dtype in (torch.float32, torch.bfloat16):
            r = measure(tokens, dtype, args.mode, args.bits, args.layers, args.steps, args.lowest)
            row = (
                f"{tokens:,}",
                str(dtype).removeprefix("torch."),
                f"{r['innerq']:.3f}",
                f"{r['attend']:.3f}",
                f"{r['append']:.4f}",
                f"{r['cat_sdpa']:.3f}",
                f"{r['sdpa']:.3f}",
                f"{r['cat_sdpa'] / r['innerq']:.1f}x",
                f"{r['bytes'] / r['innerq'] / 1e6:.2f}",
                f"{r['dense_bytes'] / r['cat_sdpa'] / 1e6:.2f}",
                f"{r['bytes'] / r['dense_bytes']:.3f}",
            )
            tables.console.print(*row)
            rows.append(row)
    columns = (
        "tokens",
        "dtype",
        "innerq",
        "attend",
        "append",
        "cat+sdpa",
        "sdpa",
        "speedup",
        "GB/s",
        "dense GB/s",
        "size",
    )
    title = f"torch {torch.__version__}, {args.threads} threads, {args.mode} {args.bits}/{args.bits}, ms a layer"
    tables.show(columns, rows, title=title, words=2)


if __name__ == "__main__":
    main()
