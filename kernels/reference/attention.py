"""Decode attention: queries against all tokens of a cache."""

from __future__ import annotations

import torch

from .. import layout
from ..attention_call import AttentionCall, sinks_by_row
from .caches import real_tokens, visible_range


def decode_attention(call: AttentionCall[torch.Tensor], dtype: torch.dtype | None = None) -> torch.Tensor:
    """Attention to all tokens of a cache, ``[B, Hq, N, Dv]``.

    Computed in ``dtype``, which is that of the result. By default it is computed in ``call.compute_dtype``, and the
    result has the query's dtype. A row to which no token is visible gives zero.
    """
    if dtype is None:
        return decode_attention(call, call.compute_dtype).to(call.query.dtype)
    return decode_attention_lse(call, dtype)[0]


def decode_attention_lse(
    call: AttentionCall[torch.Tensor], dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as :func:`decode_attention`, and the logarithm of the sum of the exponentials of the scores.

    The latter is ``[B, Hq, N]`` in ``dtype``, by default ``call.compute_dtype``; minus infinity in a row to which no
    token is visible.
    """
    if dtype is None:
        out, sums = decode_attention_lse(call, call.compute_dtype)
        return out.to(call.query.dtype), sums
    query, mask, scale = call.query, call.mask, call.scale
    batch, q_heads, rows, head_dim = query.shape
    state = call.keys.state
    heads = state.shape[1]
    length = state[:, 0, layout.LENGTH]
    first, end = visible_range(state, int(layout.ends(state).max()) + call.dropped, call.dropped)
    tokens = end - first
    keys, values = real_tokens(call.keys, end, dtype, first), real_tokens(call.values, end, dtype, first)
    if call.value_heads is not None:
        first_head, count = call.value_heads
        values = values[:, first_head : first_head + count].repeat(1, heads // count, 1, 1)
    q = query.to(dtype).reshape(batch, heads, q_heads // heads, rows, head_dim)
    scores = torch.einsum("bhgnd,bhsd->bhgns", q, keys)
    if call.value_query is not None:
        other = call.value_query.to(dtype).reshape(batch, heads, q_heads // heads, rows, values.shape[-1])
        scores = scores + torch.einsum("bhgnd,bhsd->bhgns", other, values)
    scores = scores * scale
    if call.softcap:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    scores = scores.reshape(batch, q_heads, rows, tokens)
    position = torch.arange(first, end, device=query.device)
    # where the tensor that the program attends to has each token; below zero where it does not have it
    place = position + layout.shift(state[:, :1]) + call.dropped  # [B, tokens]
    visible = ((place >= 0) & (position < length[:, None]))[:, None, None, :]
    if call.causal:
        last = length[:, None] - rows + torch.arange(rows, device=query.device)  # [B, N]
        visible = visible & (position <= last[..., None])[:, None]
    if mask is not None:
        mask = mask.expand(batch, q_heads, rows, mask.shape[-1])
        index = place.clamp(0, mask.shape[-1] - 1)[:, None, None, :]
        moved = mask.gather(-1, index.expand(batch, q_heads, rows, tokens))
        if mask.dtype == torch.bool:
            visible = visible & moved
        else:
            scores = scores + moved.to(dtype)
            visible = visible & (moved != float("-inf"))
    scores = scores.masked_fill(~visible, float("-inf"))
    if call.sink_logits is not None:
        extra = sinks_by_row(call.sink_logits, call.query).to(dtype)[..., None]
        logits = torch.cat((scores, extra), -1)
        sums, weights = logits.logsumexp(-1), logits.softmax(-1)[..., :-1]
    else:
        sums = scores.logsumexp(-1)
        weights = scores.softmax(-1)
        weights = torch.where(visible.any(-1, keepdim=True), weights, torch.zeros_like(weights))
    weights = weights.reshape(batch, heads, q_heads // heads, rows, tokens)
    out = torch.einsum("bhgns,bhsd->bhgnd", weights, values)
    return out.reshape(batch, q_heads, rows, values.shape[-1]), sums
