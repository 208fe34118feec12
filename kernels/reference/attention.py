"""Attention of queries to a cache."""

from __future__ import annotations

import torch

from .. import layout
from .caches import real_tokens


def decode_attention(
    query, key_cache, value_cache, mask, scale, causal, softcap, sink_logits, k_fmt, v_fmt, dtype=torch.float32
):
    """Attention of ``query [B, Hq, N, D]`` to all tokens of a cache; ``[B, Hq, N, Dv]`` in ``dtype``.

    The query carries the key normalization already. ``mask`` broadcasts to ``[B, Hq, N, S]`` with S counted from the
    first padding position; ``causal`` lets query i see all but the last ``N - 1 - i`` tokens. Rows that see nothing
    give zero.
    """
    batch, q_heads, rows, head_dim = query.shape
    state = key_cache[3]
    heads = state.shape[1]
    length = state[:, 0, layout.LENGTH]
    tokens = int(length.max())
    keys = real_tokens(*key_cache, tokens, k_fmt, dtype)
    values = real_tokens(*value_cache, tokens, v_fmt, dtype)
    q = query.to(dtype).reshape(batch, heads, q_heads // heads, rows, head_dim)
    scores = torch.einsum("bhgnd,bhsd->bhgns", q, keys) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.reshape(batch, q_heads, rows, tokens)
    position = torch.arange(tokens, device=query.device)
    visible = (position < length[:, None])[:, None, None, :]
    if causal:
        last = length[:, None] - rows + torch.arange(rows, device=query.device)  # [B, N]
        visible = visible & (position <= last[..., None])[:, None]
    if mask is not None:
        start = state[:, 0, layout.START]
        mask = mask.expand(batch, q_heads, rows, mask.shape[-1])
        index = (position + start[:, None]).clamp(max=mask.shape[-1] - 1)[:, None, None, :]
        moved = mask.gather(-1, index.expand(batch, q_heads, rows, tokens))
        if mask.dtype == torch.bool:
            visible = visible & moved
        else:
            scores = scores + moved.to(dtype)
            visible = visible & (moved != float("-inf"))
    scores = scores.masked_fill(~visible, float("-inf"))
    if sink_logits is not None:
        extra = sink_logits.to(dtype)[None, :, None, None].expand(batch, q_heads, rows, 1)
        weights = torch.cat((scores, extra), -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
        weights = torch.where(visible.any(-1, keepdim=True), weights, torch.zeros_like(weights))
    weights = weights.reshape(batch, heads, q_heads // heads, rows, tokens)
    out = torch.einsum("bhgns,bhsd->bhgnd", weights, values)
    return out.reshape(batch, q_heads, rows, values.shape[-1])
