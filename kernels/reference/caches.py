"""Caches: made of a prompt, appended to, cut, and read back."""

from __future__ import annotations

import torch

from .. import layout
from ..formats import CacheFormat, blocks_for
from .groups import decode_blocks, encode_blocks
from .numbers import to_finite
from .statistics import held_query_profile, normalize_keys, set_query_profile_


def empty_cache(fmt, batch, heads, head_dim, capacity, dtype, device):
    """``(codes, scales, window, state)`` of a cache that holds no token yet."""
    cache = tuple(
        torch.zeros(shape, dtype=own or dtype, device=device)
        for shape, own in layout.shapes(fmt, batch, heads, head_dim, capacity).values()
    )
    set_query_profile_(cache[2], fmt)
    return cache


def quantized_blocks(state: torch.Tensor, fmt: CacheFormat) -> torch.Tensor:
    """Blocks of each sequence that are in the quantized region, ``[B, H]``."""
    return torch.div(state[..., layout.PEAK] - fmt.sink - fmt.recent, fmt.block, rounding_mode="floor").clamp(min=0)


def _profile(window: torch.Tensor, fmt: CacheFormat, dims: int = 0) -> torch.Tensor | None:
    """The query profile of a cache whose mode uses one, with ``dims`` dimensions of blocks behind its heads."""
    if not fmt.uses_queries:
        return None
    profile = held_query_profile(window, fmt)
    return profile[:, :, None] if dims else profile


def prefill(x, start, mean, norm, capacity: int, fmt: CacheFormat, query_profile=None):
    """A cache side made of ``x [B, H, S, D]``, whose sequence b begins at position ``start[b]``.

    ``query_profile``: that of the prompt, in modes that use one; None where it is not known. Returns
    ``(codes, scales, window, state)`` with room for ``capacity`` blocks.
    """
    batch, heads, tokens, head_dim = x.shape
    x = normalize_keys(x, mean, norm)
    # each sequence moved to begin at 0; what lies behind its end is never looked at
    index = (torch.arange(tokens, device=x.device) + start[:, None]).clamp(max=tokens - 1)
    x = x.gather(2, index[:, None, :, None].expand(batch, heads, tokens, head_dim))
    codes, scales, window, state = empty_cache(fmt, batch, heads, head_dim, capacity, x.dtype, x.device)
    length = (tokens - start).to(torch.int32)[:, None].expand(batch, heads)
    state[..., layout.START] = start[:, None]
    state[..., layout.LENGTH] = length
    state[..., layout.PEAK] = length
    set_query_profile_(window, fmt, query_profile, norm)
    blocks = blocks_for(fmt, tokens)
    if blocks:
        body = x[:, :, fmt.sink : fmt.sink + blocks * fmt.block]
        body = body.reshape(batch, heads, blocks, fmt.block, head_dim)
        encoded = encode_blocks(body, fmt, _profile(window, fmt, 1))
        codes[:, :, :blocks], scales[:, :, :blocks] = encoded
    window[:, :, : min(fmt.sink, tokens)] = x[:, :, : fmt.sink]
    if tokens > fmt.sink:
        first = fmt.sink + quantized_blocks(state, fmt) * fmt.block  # [B, H], first token of the recent window
        slots = torch.arange(fmt.ring, device=x.device)
        # the token of a slot is the one token of [first, first + ring) that falls on it
        token = first[..., None] + (slots - (first[..., None] - fmt.sink)) % fmt.ring
        held = token < length[..., None]
        gathered = x.gather(2, token.clamp(max=tokens - 1)[..., None].expand(-1, -1, -1, head_dim))
        window[:, :, fmt.sink : fmt.window] = torch.where(held[..., None], gathered, torch.zeros_like(gathered))
    return codes, scales, window, state


def real_tokens(codes, scales, window, state, tokens: int, fmt: CacheFormat, dtype=torch.float32):
    """What a cache holds at real positions ``0 .. tokens``, ``[B, H, tokens, D]``; positions it lacks are zero."""
    batch, heads, _, head_dim = window.shape
    blocks = quantized_blocks(state, fmt)
    out = torch.zeros((batch, heads, tokens, head_dim), dtype=dtype, device=window.device)
    out[:, :, : min(fmt.sink, tokens)] = window[:, :, : min(fmt.sink, tokens)].to(dtype)
    if tokens > fmt.sink:
        position = torch.arange(fmt.sink, tokens, device=window.device)
        slot = fmt.sink + (position - fmt.sink) % fmt.ring
        recent = window[:, :, slot].to(dtype)
        count = min(-(-(tokens - fmt.sink) // fmt.block), codes.shape[2])
        body = decode_blocks(codes[:, :, :count], scales[:, :, :count], fmt, head_dim, dtype)
        body = body.reshape(batch, heads, count * fmt.block, head_dim)
        body = torch.nn.functional.pad(body, (0, 0, 0, max(0, tokens - fmt.sink - count * fmt.block)))
        quantized = position < (fmt.sink + blocks * fmt.block)[..., None]
        out[:, :, fmt.sink :] = torch.where(quantized[..., None], body[:, :, : tokens - fmt.sink], recent)
    held = torch.arange(tokens, device=window.device) < state[..., layout.LENGTH, None]
    return torch.where(held[..., None], out, torch.zeros_like(out))


def dequantize(codes, scales, window, state, mean, norm, length: int, fmt: CacheFormat, dtype=None):
    """The logical tensor ``[B, H, length, D]`` of a cache; padding positions are zero."""
    dtype = dtype or window.dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x = real_tokens(codes, scales, window, state, length, fmt, compute)
    if norm is not None:
        x = x * norm.to(compute).unsqueeze(-2)
    if mean is not None:
        x = x + mean.to(compute).unsqueeze(-2)
    source = torch.arange(length, device=x.device) - state[:, 0, layout.START, None]  # [B, length]
    real = (source >= 0) & (source < state[:, 0, layout.LENGTH, None])
    x = x.gather(2, source.clamp(min=0)[:, None, :, None].expand_as(x))
    return to_finite(torch.where(real[:, None, :, None], x, torch.zeros_like(x)), dtype)


def append_(codes, scales, window, state, new: torch.Tensor, fmt: CacheFormat) -> None:
    """Write ``new [B, H, N, D]`` (keys normalized already) behind the end of a cache, in place.

    Tokens enter the recent window; whenever it holds ``recent + block`` of them its oldest block is quantized.
    """
    batch, heads, count, head_dim = new.shape
    b, h = torch.arange(batch, device=new.device)[:, None], torch.arange(heads, device=new.device)[None, :]
    for i in range(count):
        length = state[..., layout.LENGTH].long()
        slot = torch.where(length < fmt.sink, length, fmt.sink + (length - fmt.sink) % fmt.ring)
        window[b, h, slot] = new[:, :, i]
        before = quantized_blocks(state, fmt).long()
        state[..., layout.LENGTH] += 1
        state[..., layout.PEAK] = torch.maximum(state[..., layout.PEAK], state[..., layout.LENGTH])
        due = quantized_blocks(state, fmt) > before
        if bool(due.any()):
            slots = fmt.sink + (before[..., None] * fmt.block + torch.arange(fmt.block, device=new.device)) % fmt.ring
            oldest = window.gather(2, slots[..., None].expand(-1, -1, -1, head_dim))
            new_codes, new_scales = encode_blocks(oldest, fmt, _profile(window, fmt))
            rows, cols = due.nonzero(as_tuple=True)
            codes[rows, cols, before[due]] = new_codes[due]
            scales[rows, cols, before[due]] = new_scales[due]


def truncate_(codes, scales, window, state, length: int, fmt: CacheFormat) -> None:
    """Forget all tokens from logical position ``length`` on, in place.

    Where that cuts a quantized block, what is left of it moves back into the recent window.
    """
    head_dim = window.shape[-1]
    old_blocks = quantized_blocks(state, fmt).long()
    # a crop into the padding in front of a sequence leaves less of it
    state[..., layout.START] = state[..., layout.START].clamp(max=length)
    kept = length - state[..., layout.START]
    kept = torch.minimum(kept, state[..., layout.LENGTH])
    state[..., layout.LENGTH] = kept
    state[..., layout.PEAK] = torch.minimum(state[..., layout.PEAK], kept + fmt.recent)
    if codes.shape[2] == 0:
        return
    blocks = quantized_blocks(state, fmt).long()
    pick = blocks.clamp(max=codes.shape[2] - 1)[..., None, None]
    cut_codes = codes.gather(2, pick.expand(-1, -1, 1, codes.shape[-1]))
    cut_scales = scales.gather(2, pick.expand(-1, -1, 1, scales.shape[-1]))
    cut = to_finite(decode_blocks(cut_codes, cut_scales, fmt, head_dim)[:, :, 0], window.dtype)
    offset = torch.arange(fmt.block, device=window.device)
    token = fmt.sink + blocks[..., None] * fmt.block + offset
    moves = (blocks < old_blocks)[..., None] & (token < kept[..., None])
    slots = (fmt.sink + (token - fmt.sink) % fmt.ring)[..., None].expand(-1, -1, -1, head_dim)
    window.scatter_(2, slots, torch.where(moves[..., None], cut, window.gather(2, slots)))
