"""Bytes of a quantized cache as a share of a dense one: needed by the tokens, and allocated after prefill.

python benchmarks/cache_bytes.py --head-dim 128 --tokens 4096 32768
python benchmarks/cache_bytes.py --layers 80 --kv-heads 8 --tokens 131072 --ranks 1 2 4 8 16   # bytes on one rank
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from innerq_compile import PRESETS, InnerQConfig
from innerq_compile.kernels import formats
from innerq_compile.storage import storage_bytes


def cache_bytes(preset: str, tokens: int, head_dim: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """``(dense, needed, allocated)`` bytes of keys and values together, of one layer, sequence and KV head."""
    config = InnerQConfig.preset(preset)
    dense, needed, allocated = 2 * tokens * head_dim * dtype.itemsize, 0, 0
    for role in ("key", "value"):
        fmt = config.format_for(role, head_dim, dtype)
        blocks = formats.blocks_for(fmt, tokens)
        recent = max(0, tokens - fmt.sink - blocks * fmt.block)
        unused_slots = (fmt.ring - recent) * head_dim * dtype.itemsize
        needed += storage_bytes(fmt, 1, 1, head_dim, dtype, blocks, config) - unused_slots
        capacity = formats.grown_capacity(tokens // fmt.block)
        allocated += storage_bytes(fmt, 1, 1, head_dim, dtype, capacity, config)
    return dense, needed, allocated


def shares(preset: str, tokens: int, head_dim: int, dtype: torch.dtype) -> tuple[float, float]:
    """``(needed, allocated)`` of keys and values together, as shares of the dense cache."""
    dense, needed, allocated = cache_bytes(preset, tokens, head_dim, dtype)
    return needed / dense, allocated / dense


def heads_of_rank(kv_heads: int, ranks: int) -> int:
    """KV heads that one rank holds; more ranks than heads hold copies, one head each.

    Raises:
        ValueError: where neither number divides the other.
    """
    if ranks < 1 or max(kv_heads, ranks) % min(kv_heads, ranks):
        raise ValueError(
            f"{kv_heads} KV heads cannot be shared by ranks={ranks}: one number has to divide the other; take another "
            "number of ranks"
        )
    return max(1, kv_heads // ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--ranks", type=int, nargs="+", help="GiB on one rank of so many, for --layers and --kv-heads")
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    if args.ranks:
        table = Table(
            "ranks", "KV heads of one", "tokens", "preset", "dense", "needed", "allocated", title="GiB a rank"
        )
        for ranks in args.ranks:
            heads = heads_of_rank(args.kv_heads, ranks)
            for tokens in args.tokens:
                for preset in PRESETS:
                    sizes = cache_bytes(preset, tokens, args.head_dim, dtype)
                    gib = [f"{size * heads * args.layers * args.batch / 2**30:.2f}" for size in sizes]
                    table.add_row(str(ranks), str(heads), f"{tokens:,}", preset, *gib)
        Console().print(table)
        return
    table = Table("preset", "tokens", "needed", "allocated", title=f"share of a {args.dtype} cache")
    for preset in PRESETS:
        for tokens in args.tokens:
            needed, allocated = shares(preset, tokens, args.head_dim, dtype)
            table.add_row(preset, f"{tokens:,}", f"{needed:.3f}", f"{allocated:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
