"""Bytes of a quantized cache as a share of a dense one: needed by the tokens, and allocated after prefill.

python benchmarks/cache_bytes.py --head-dim 128 --tokens 4096 32768
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from innerq_compile import PRESETS, InnerQConfig
from innerq_compile.kernels import formats
from innerq_compile.storage import storage_bytes


def shares(preset: str, tokens: int, head_dim: int, dtype: torch.dtype) -> tuple[float, float]:
    """``(needed, allocated)`` of keys and values together, as shares of the dense cache."""
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
    return needed / dense, allocated / dense


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    args = parser.parse_args()
    table = Table("preset", "tokens", "needed", "allocated", title=f"share of a {args.dtype} cache")
    for preset in PRESETS:
        for tokens in args.tokens:
            needed, allocated = shares(preset, tokens, args.head_dim, getattr(torch, args.dtype))
            table.add_row(preset, f"{tokens:,}", f"{needed:.3f}", f"{allocated:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
