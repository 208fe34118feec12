"""Caches: made from a prompt, appended to, truncated, and read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from .. import layout
from ..cache import Cache, CacheTensors
from ..formats import CacheFormat, blocks_for
from ..internals.tensors import assert_async
from .groups import decode_blocks, encode_blocks
from .numbers import to_finite
from .statistics import default_profile, normalize_keys

#: Error message for a write to a static cache that would leave a gap.
MISSED = "a static cache was written behind the tokens that it holds"


def empty_cache(
    fmt: CacheFormat,
    batch: int,
    heads: int,
    head_dim: int,
    capacity: int,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Cache:
    """A cache side without tokens, mean and norm, with room for ``capacity`` blocks.

    In modes that use queries, its query profile is the default one, for queries that are not known.
    """
    shapes = layout.shapes(fmt, batch, heads, head_dim, capacity)
    tensors = {name: torch.zeros(s, dtype=own or dtype, device=device) for name, (s, own) in shapes.items()}
    cache = CacheTensors.of(fmt, tensors)
    return dataclasses.replace(cache, query_profile=default_profile(fmt, cache.window))


def quantized_blocks(state: torch.Tensor, fmt: CacheFormat) -> torch.Tensor:
    """Number of quantized blocks of each sequence, ``[B, H]``."""
    return torch.div(state[..., layout.PEAK] - fmt.sink - fmt.recent, fmt.block, rounding_mode="floor").clamp(min=0)


def prefill(
    x: torch.Tensor,
    start: torch.Tensor,
    mean: torch.Tensor | None,
    norm: torch.Tensor | None,
    capacity: int,
    fmt: CacheFormat,
    query_profile: torch.Tensor | None = None,
) -> Cache:
    """Make a cache side from a prompt.

    Args:
        x: keys or values, ``[B, H, S, D]``, float16, bfloat16 or float32.
        start: ``[B]`` integers: the number of padding tokens at the beginning of each sequence.
        mean, norm: ``[B, H, D]`` of :func:`key_statistics`, or None. Keys are held as ``(x - mean) / norm``.
        capacity: blocks of the result, at least ``blocks_for(fmt, S)``.
        fmt: the format.
        query_profile: the prompt's, in modes that use one; None if its queries are not known.
    """
    batch, heads, tokens, head_dim = x.shape
    x = normalize_keys(x, mean, norm)
    # move each sequence to position 0; what is past its end is never read
    index = (torch.arange(tokens, device=x.device) + start[:, None]).clamp(max=tokens - 1)
    x = x.gather(2, index[:, None, :, None].expand(batch, heads, tokens, head_dim))
    cache = empty_cache(fmt, batch, heads, head_dim, capacity, x.dtype, x.device)
    if query_profile is None:
        query_profile = default_profile(fmt, x, norm)
    cache = dataclasses.replace(cache, query_profile=query_profile, mean=mean, norm=norm)
    window, state = cache.window, cache.state
    length = (tokens - start).to(torch.int32)[:, None].expand(batch, heads)
    state[..., layout.START] = start[:, None]
    state[..., layout.LENGTH] = length
    state[..., layout.PEAK] = length
    blocks = blocks_for(fmt, tokens)
    if blocks:
        body = x[:, :, fmt.sink : fmt.sink + blocks * fmt.block]
        body = body.reshape(batch, heads, blocks, fmt.block, head_dim)
        profile = None if query_profile is None else query_profile[:, :, None]
        cache.codes[:, :, :blocks], cache.scales[:, :, :blocks] = encode_blocks(body, fmt, profile)
    window[:, :, : min(fmt.sink, tokens)] = x[:, :, : fmt.sink]
    if tokens > fmt.sink:
        first = fmt.sink + quantized_blocks(state, fmt) * fmt.block  # [B, H], first token of the recent window
        slots = torch.arange(fmt.ring, device=x.device)
        # the token of a slot is the one of [first, first + ring) that maps to it
        token = first[..., None] + (slots - (first[..., None] - fmt.sink)) % fmt.ring
        held = token < length[..., None]
        gathered = x.gather(2, token.clamp(max=tokens - 1)[..., None].expand(-1, -1, -1, head_dim))
        window[:, :, fmt.sink : fmt.window] = torch.where(held[..., None], gathered, torch.zeros_like(gathered))
    return cache


def real_tokens(cache: Cache, tokens: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The first ``tokens`` real tokens of a cache, ``[B, H, tokens, D]`` in ``dtype``.

    Keys are returned as they are held: mean and norm are not applied. Positions past the end of a sequence are zero.
    """
    fmt, window, state = cache.format, cache.window, cache.state
    batch, heads, _, head_dim = window.shape
    blocks = quantized_blocks(state, fmt)
    out = torch.zeros((batch, heads, tokens, head_dim), dtype=dtype, device=window.device)
    out[:, :, : min(fmt.sink, tokens)] = window[:, :, : min(fmt.sink, tokens)].to(dtype)
    if tokens > fmt.sink:
        position = torch.arange(fmt.sink, tokens, device=window.device)
        slot = fmt.sink + (position - fmt.sink) % fmt.ring
        recent = window[:, :, slot].to(dtype)
        count = min(-(-(tokens - fmt.sink) // fmt.block), cache.codes.shape[2])
        body = decode_blocks(cache.codes[:, :, :count], cache.scales[:, :, :count], fmt, head_dim, dtype)
        body = body.reshape(batch, heads, count * fmt.block, head_dim)
        body = torch.nn.functional.pad(body, (0, 0, 0, max(0, tokens - fmt.sink - count * fmt.block)))
        quantized = position < (fmt.sink + blocks * fmt.block)[..., None]
        out[:, :, fmt.sink :] = torch.where(quantized[..., None], body[:, :, : tokens - fmt.sink], recent)
    held = torch.arange(tokens, device=window.device) < state[..., layout.LENGTH, None]
    return torch.where(held[..., None], out, torch.zeros_like(out))


def dequantize(cache: Cache, length: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The first ``length`` tokens of a cache, padding included, as a dense tensor ``[B, H, length, D]``.

    Padding positions are zero. ``dtype`` is by default that of the cache.
    """
    dtype = dtype or cache.window.dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x = real_tokens(cache, length, compute)
    if cache.norm is not None:
        x = x * cache.norm.to(compute).unsqueeze(-2)
    if cache.mean is not None:
        x = x + cache.mean.to(compute).unsqueeze(-2)
    source = torch.arange(length, device=x.device) - cache.state[:, 0, layout.START, None]  # [B, length]
    real = (source >= 0) & (source < cache.state[:, 0, layout.LENGTH, None])
    x = x.gather(2, source.clamp(min=0)[:, None, :, None].expand_as(x))
    return to_finite(torch.where(real[:, None, :, None], x, torch.zeros_like(x)), dtype)


def append_(cache: Cache, new: torch.Tensor) -> None:
    """Append ``new [B, H, N, D]`` (keys already normalized) to a cache side, in place.

    Tokens enter the recent window. When it holds ``recent + block`` tokens, its oldest block is quantized.

    Raises:
        IndexError: if the cache has no room for a block.
        ValueError: if its mode uses queries and it has no query profile.
    """
    fmt, window, state = cache.format, cache.window, cache.state
    if fmt.uses_queries and cache.query_profile is None:
        raise ValueError(f"a cache of mode {fmt.mode} is written to without its query profile")
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
            new_codes, new_scales = encode_blocks(oldest, fmt, cache.query_profile)
            rows, cols = due.nonzero(as_tuple=True)
            cache.codes[rows, cols, before[due]] = new_codes[due]
            cache.scales[rows, cols, before[due]] = new_scales[due]


def truncate_(cache: Cache, length: int | torch.Tensor) -> None:
    """Truncate a cache side to ``length`` tokens, padding included, in place.

    If the new end is within a quantized block, the remaining tokens of that block are dequantized into the recent
    window. ``length`` may be a tensor without dimensions on the cache's device.
    """
    fmt, codes, scales, window, state = cache.format, *cache.encoded
    head_dim = window.shape[-1]
    old_blocks = quantized_blocks(state, fmt).long()
    # truncating within the padding of a sequence leaves less padding
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


def rewind_(sides: Sequence[Cache], position: torch.Tensor) -> None:
    """:func:`truncate_` for cache sides to a length on the device, the one element of ``position``.

    Raises:
        RuntimeError: (on a GPU a device-side assertion) where a cache is shorter already, and so has missed tokens.
    """
    position = position.reshape(())
    for cache in sides:
        reached = layout.ends(cache.state)
        if position.device.type == "cpu":
            if bool((reached == position).all()):
                continue
            if int(position) < 0:
                raise RuntimeError(f"innerq: a static cache was written at {int(position)}, which is before its start")
            if bool((reached < position).any()):
                raise RuntimeError(f"innerq: {MISSED} (position {int(position)}, length {int(reached.min())})")
        else:
            assert_async(((reached >= position) & (position >= 0)).all(), f"innerq: {MISSED}")
        truncate_(cache, position)
