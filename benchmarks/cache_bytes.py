"""Size of a quantized cache relative to a dense one: what the tokens need, and what is allocated after prefill.

python benchmarks/cache_bytes.py --head-dim 128 --tokens 4096 32768
python benchmarks/cache_bytes.py --ranks 1 2 4 8 16 --layers 80 --batch 4 --tokens 131072     # GiB a rank
"""

from __future__ import annotations

import argparse

import torch

from innerq_compile import PRESETS, InnerQConfig
from innerq_compile.cache.quantizing import storage_bytes
from innerq_compile.kernels import formats


def layer_bytes(preset: str, tokens: int, head_dim: int, dtype: torch.dtype, heads: int = 1) -> tuple[int, int]:
    """Bytes ``(needed, allocated)`` of the keys and values of one layer and one sequence with ``heads`` KV heads."""
    config = InnerQConfig.preset(preset)
    needed = allocated = 0
    for role in ("key", "value"):
        fmt = config.format_for(role, head_dim, dtype)
        blocks = formats.blocks_for(fmt, tokens)
        recent = max(0, tokens - fmt.sink - blocks * fmt.block)
        unused_slots = (fmt.ring - recent) * heads * head_dim * dtype.itemsize
        needed += storage_bytes(fmt, 1, heads, head_dim, dtype, blocks, config) - unused_slots
        capacity = formats.grown_capacity(fmt, tokens)
        allocated += storage_bytes(fmt, 1, heads, head_dim, dtype, capacity, config)
    return needed, allocated


def dense_bytes(tokens: int, head_dim: int, dtype: torch.dtype, heads: int = 1) -> int:
    """Bytes of the same layer in a dense cache."""
    return 2 * tokens * heads * head_dim * dtype.itemsize


def shares(preset: str, tokens: int, head_dim: int, dtype: torch.dtype) -> tuple[float, float]:
    """The same for one KV head, relative to the dense cache."""
    dense = dense_bytes(tokens, head_dim, dtype)
    needed, allocated = layer_bytes(preset, tokens, head_dim, dtype)
    return needed / dense, allocated / dense


def heads_on_rank(kv_heads: int, ranks: int) -> int:
    """Number of KV heads that a rank holds, at least one: with more ranks than heads several ranks hold a copy."""
    return max(1, -(-kv_heads // ranks))


def rank_rows(args: argparse.Namespace) -> list[list[str]]:
    """Rows of the table for ``--ranks``: KV heads a rank, then GiB a rank of a dense cache and of each preset."""
    dtype, rows = getattr(torch, args.dtype), []
    for ranks in args.ranks:
        for tokens in args.tokens:
            heads = heads_on_rank(args.kv_heads, ranks)
            held = [dense_bytes(tokens, args.head_dim, dtype, heads)]
            held += [layer_bytes(preset, tokens, args.head_dim, dtype, heads)[0] for preset in args.presets]
            sizes = [f"{args.batch * args.layers * size / 2**30:.2f}" for size in held]
            rows.append([str(ranks), f"{args.batch} x {tokens:,}", str(heads), *sizes])
    return rows


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], default="float16")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--ranks", type=int, nargs="+", help="numbers of ranks: show GiB a rank of a whole model")
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    return parser.parse_args(arguments)


def main() -> None:
    import tables

    args = parsed()
    if args.ranks:
        columns = ["ranks", "batch x tokens", "KV heads a rank", args.dtype, *args.presets]
        title = f"GiB a rank, {args.layers} layers, {args.kv_heads} KV heads"
        tables.show(columns, rank_rows(args), title=title, words=2)
        return
    rows = []
    for preset in args.presets:
        for tokens in args.tokens:
            needed, allocated = shares(preset, tokens, args.head_dim, getattr(torch, args.dtype))
            rows.append((preset, f"{tokens:,}", f"{needed:.3f}", f"{allocated:.3f}"))
    tables.show(("preset", "tokens", "needed", "allocated"), rows, title=f"share of a {args.dtype} cache")


if __name__ == "__main__":
    main()
