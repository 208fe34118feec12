"""Attention of a prompt that is causal, but for a window and padding: ``innerq::causal_attention``.

A mask costs a fused attention kernel more than the half of the products that it hides: on an H200, 4 times the time at
32,768 tokens. Whether one is needed is known when the graph runs, by a flag that all layers share. Where one is needed,
queries attend in blocks, each to the keys that it may see: neither time nor memory grow with the square of the length
because of a window, and no mask is larger than a block of rows.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

#: Query tokens that attend at once where a mask is needed; with a larger window, as many as that.
ROWS = 1024
#: Key tokens before a block are a multiple of this: kernels read masks in vectors.
_ALIGNED = 16


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    shown: torch.Tensor | None,
    all_shown: torch.Tensor | None,
    window: int | None,
    scale: float,
) -> torch.Tensor:
    """Attention of a prompt to itself: a query sees the keys up to its own position that are shown.

    Args:
        query: ``[B, Hq, S, D]``.
        key, value: ``[B, H, S, D]`` and ``[B, H, S, Dv]``.
        shown: ``[B or 1, S]`` bool, False for keys that no query sees; None if all are seen.
        all_shown: ``[]`` bool on the CPU: whether ``shown`` is True everywhere; None without ``shown``.
        window: how many keys a query sees at most, itself included; None for all.
        scale: of the scores.

    Returns:
        ``[B, Hq, S, Dv]``, with the heads of a token side by side in memory.
    """
    length, groups = key.shape[2], query.shape[1] // key.shape[1]
    window = None if window is not None and length <= window else window
    shown = None if all_shown is not None and bool(all_shown) else shown
    if shown is None and window is None:
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=groups > 1)
        return out.transpose(1, 2).contiguous().transpose(1, 2)
    # as programs do: with a mask, fused kernels of some devices need as many keys as queries have heads
    key, value = (side.repeat_interleave(groups, 1) if groups > 1 else side for side in (key, value))
    rows = max(ROWS, window or 0)
    rows = length if length <= 2 * rows else rows
    parts = []
    for first in range(0, length, rows):
        end = min(first + rows, length)
        begin = 0 if window is None else max(first - window + 1, 0) // _ALIGNED * _ALIGNED
        mask = mask_of(first, end, begin, shown, window, query.device)
        sides = (side[:, :, begin:end] for side in (key, value))
        part = scaled_dot_product_attention(query[:, :, first:end], *sides, attn_mask=mask, scale=scale)
        parts.append(part.transpose(1, 2))
    return (parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, 1)).transpose(1, 2)


def mask_of(
    first: int, end: int, begin: int, shown: torch.Tensor | None, window: int | None, device: torch.device
) -> torch.Tensor:
    """The mask ``[B or 1, 1, end - first, end - begin]`` of queries from ``first`` on and keys from ``begin`` on."""
    column = torch.arange(begin, end, device=device)
    row = torch.arange(first, end, device=device)[:, None]
    mask = (column <= row)[None, None]
    if window is not None:
        mask = mask & (column > row - window)
    return mask if shown is None else mask & shown[:, None, None, begin:end]
