"""Attention of a prompt that is causal, but for a window and padding: ``innerq::causal_attention``.

A mask costs a fused attention kernel more than the half of the products that it hides: on an H200, 4 times the time at
32,768 tokens. Whether one is needed is known when the graph runs, by a flag that all layers share. Where one is needed,
queries attend in blocks, each to the keys that it may see: neither time nor memory grow with the square of the length
because of a window, and no mask is larger than a block of rows.
"""

from __future__ import annotations

import math

import torch
from torch.backends import cuda
from torch.nn.functional import pad, scaled_dot_product_attention

from .reference.numbers import as_float

#: Query tokens that attend at once where a mask is needed; twice as many if these are all.
ROWS = 1024
#: Key tokens before a block are a multiple of this: kernels read masks in vectors.
_ALIGNED = 16
#: Channels of queries and keys are: fused kernels need it.
_CHANNELS = 8


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    shown: torch.Tensor | None,
    all_shown: torch.Tensor | None,
    window: int | None,
    sink_logits: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Attention of a prompt to itself: a query sees the keys up to its own position that are shown.

    Args:
        query: ``[B, Hq, S, D]``.
        key, value: ``[B, H, S, D]`` and ``[B, H, S, Dv]``.
        shown: ``[B or 1, S]`` bool, False for keys that no query sees; None if all are seen.
        all_shown: ``[]`` bool on the CPU: whether ``shown`` is True everywhere; None without ``shown``.
        window: how many keys a query sees at most, itself included; None for all.
        sink_logits: ``[Hq]``, logits that take part in the softmax without a value, or None.
        scale: of the scores.

    Returns:
        ``[B, Hq, S, Dv]``, with the heads of a token side by side in memory.
    """
    length, groups, channels = key.shape[2], query.shape[1] // key.shape[1], value.shape[3]
    window = None if window is not None and length <= window else window
    shown = None if all_shown is not None and bool(all_shown) else shown
    sinks = 0
    if sink_logits is not None:
        query, key, value = _with_sinks(query, key, value, sink_logits, scale)
        sinks = 1
    causal = shown is None and window is None
    if causal and sinks:
        query = pad(query, (0, 0, sinks, 0))  # is_causal lets the first query see the first key
    grouped = groups > 1 and causal and _reads_groups(query, key, value)
    if groups > 1 and not grouped:  # as programs do
        key, value = (side.repeat_interleave(groups, 1) for side in (key, value))
    if causal:
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
        return out[:, :, sinks:, :channels].transpose(1, 2).contiguous().transpose(1, 2)
    rows = length if length <= 2 * ROWS else ROWS
    parts, made, mask = [], None, None
    for first in range(0, length, rows):
        end = min(first + rows, length)
        begin = 0 if window is None else max(first - window + 1, 0) // _ALIGNED * _ALIGNED
        place = (end - first, first - begin) if shown is None else (first, end)  # equal masks have equal ones
        if place != made:
            made, mask = place, mask_of(first, end, begin, shown, window, query.device)
            mask = pad(mask, (sinks, 0), value=True) if sinks else mask
        sides = (_tokens(side, sinks, begin, end) for side in (key, value))
        part = scaled_dot_product_attention(query[:, :, first:end], *sides, attn_mask=mask, scale=scale)
        parts.append(part[..., :channels].transpose(1, 2))
    return (parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, 1)).transpose(1, 2)


def _reads_groups(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether a fused kernel reads keys with fewer heads than the query has. Without one, all scores are held."""
    if query.device.type != "cuda":
        return True
    params = cuda.SDPAParams(query, key, value, None, 0.0, True, True)
    return cuda.can_use_flash_attention(params) or cuda.can_use_cudnn_attention(params)


def _tokens(side: torch.Tensor, sinks: int, begin: int, end: int) -> torch.Tensor:
    """Tokens of keys or values, and the sinks in front of them."""
    tokens = side[:, :, sinks + begin : sinks + end]
    return torch.cat((side[:, :, :sinks], tokens), 2) if sinks else tokens


def _with_sinks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sink_logits: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value with a key in front whose score is the sink logit, and whose value is zero.

    A channel for each query head of a KV head holds it. Its factor in the query is a power of two, so that it is exact
    where ``scale`` is one.
    """
    batch, heads, _, channels = key.shape
    groups = query.shape[1] // heads
    factor = 2.0 ** round(math.log2(1 / scale))
    more = (channels + groups + _CHANNELS - 1) // _CHANNELS * _CHANNELS - channels
    own = pad(factor * torch.eye(groups, dtype=query.dtype, device=query.device), (channels, more - groups))
    query = pad(query, (0, more)) + own.repeat(heads, 1)[None, :, None]
    logits = (as_float(sink_logits) / (factor * scale)).to(key.dtype).reshape(heads, 1, groups)
    sink = pad(logits, (channels, more - groups)).expand(batch, -1, -1, -1)
    key = torch.cat((sink, pad(key, (0, more))), 2)
    return query, key, pad(value, (0, max(channels + more - value.shape[3], 0), 1, 0))


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
