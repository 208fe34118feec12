"""Caches: made from a prompt, appended to, truncated, and read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from .. import layout
from ..cache import Cache, CacheTensors
from ..formats import CacheFormat, blocks_for, compute_dtype
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
        x: keys or values, ``[B, H, S, D]``, of a dtype in ``formats.DTYPES``.
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
    state[..., layout.PEAK] = 0 if fmt.rolls else length
    blocks = blocks_for(fmt, tokens)
    if blocks:
        body = x[:, :, fmt.sink : fmt.sink + blocks * fmt.block]
        body = body.reshape(batch, heads, blocks, fmt.block, head_dim)
        profile = None if query_profile is None else query_profile[:, :, None]
        cache.codes[:, :, :blocks], cache.scales[:, :, :blocks] = encode_blocks(body, fmt, profile)
    window[:, :, : min(fmt.sink, tokens)] = x[:, :, : fmt.sink]
    if tokens > fmt.sink:
        first = fmt.sink + quantized_blocks(state, fmt) * fmt.block  # [B, H], first token of the recent window
        if fmt.rolls:
            first = (length - fmt.ring).clamp(min=0)
        slots = torch.arange(fmt.ring, device=x.device)
        # the token of a slot is the one of [first, first + ring) that maps to it
        token = first[..., None] + (slots - (first[..., None] - fmt.sink)) % fmt.ring
        held = token < length[..., None]
        gathered = x.gather(2, token.clamp(max=tokens - 1)[..., None].expand(-1, -1, -1, head_dim))
        window[:, :, fmt.sink : fmt.window] = torch.where(held[..., None], gathered, torch.zeros_like(gathered))
    return cache


def visible_range(state: torch.Tensor, length: int, dropped: int = 0) -> tuple[int, int]:
    """The least range of real tokens, ``(first, end)``, that has all of the program's first ``length`` ones."""
    if not state.numel():
        return 0, 0
    place = layout.shift(state) + dropped  # of the first that was appended
    first = int((-place).clamp(min=0).min())
    return first, max(first, int(torch.minimum(state[..., layout.LENGTH], length - place).max()))


def real_tokens(cache: Cache, end: int, dtype: torch.dtype = torch.float32, first: int = 0) -> torch.Tensor:
    """The real tokens ``first`` to ``end`` of a cache, in the order of their appends: ``[B, H, end - first, D]``.

    Keys are returned as they are held: mean and norm are not applied. Positions past the end of a sequence are zero;
    those that a rolling cache has lost hold anything.
    """
    fmt, window, state = cache.format, cache.window, cache.state
    batch, heads, _, head_dim = window.shape
    position = torch.arange(first, max(first, end), device=window.device)
    slot = torch.where(position < fmt.sink, position, fmt.sink + (position - fmt.sink) % fmt.ring)
    out = window[:, :, slot].to(dtype)
    past = max(first, fmt.sink)  # the first that may be in a block
    if end > past and not fmt.rolls:
        b0 = (past - fmt.sink) // fmt.block
        b1 = min(-(-(end - fmt.sink) // fmt.block), cache.codes.shape[2])
        body = decode_blocks(cache.codes[:, :, b0:b1], cache.scales[:, :, b0:b1], fmt, head_dim, dtype)
        body = body.reshape(batch, heads, max(b1 - b0, 0) * fmt.block, head_dim)[
            :, :, past - fmt.sink - b0 * fmt.block :
        ]
        body = torch.nn.functional.pad(body, (0, 0, past - first, max(0, end - past - body.shape[2])))
        quantized_end = (fmt.sink + quantized_blocks(state, fmt) * fmt.block)[..., None]
        quantized = (position >= fmt.sink) & (position < quantized_end)
        out = torch.where(quantized[..., None], body[:, :, : end - first], out)
    held = position < state[..., layout.LENGTH, None]
    return torch.where(held[..., None], out, torch.zeros_like(out))


def dequantize(cache: Cache, length: int, dtype: torch.dtype | None = None, dropped: int = 0) -> torch.Tensor:
    """The first ``length`` tokens of a cache, padding included, as a dense tensor ``[B, H, length, D]``.

    Padding positions are zero. ``dtype`` is by default that of the cache, ``dropped`` as of ``AttentionCall``.
    """
    dtype = dtype or cache.window.dtype
    compute = compute_dtype(dtype)
    first, end = visible_range(cache.state, length, dropped)
    x = real_tokens(cache, end, compute, first)
    if cache.norm is not None:
        x = x * cache.norm.to(compute).unsqueeze(-2)
    if cache.mean is not None:
        x = x + cache.mean.to(compute).unsqueeze(-2)
    source = torch.arange(length, device=x.device) - (layout.shift(cache.state[:, :1]) + dropped)  # [B, length]
    real = (source >= 0) & (source < cache.state[:, 0, layout.LENGTH, None])
    index = (
        (source - first).clamp(0, max(end - first - 1, 0))[:, None, :, None].expand(*x.shape[:2], length, x.shape[3])
    )
    x = x.gather(2, index) if end > first else x.new_zeros(index.shape)
    return to_finite(torch.where(real[:, None, :, None], x, torch.zeros_like(x)), dtype)


def append_(cache: Cache, new: torch.Tensor, drop: int = 0) -> None:
    """Append ``new [B, H, N, D]`` (keys already normalized) to a cache side, in place.

    Tokens enter the recent window. When it holds ``recent + block`` tokens, its oldest block is quantized; in a rolling
    cache they take the places of the oldest ones.

    Args:
        cache: the side.
        new: the tokens.
        drop: how many more tokens at the front the program's tensor does not have any longer.

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
        if not fmt.rolls:
            state[..., layout.PEAK] = torch.maximum(state[..., layout.PEAK], state[..., layout.LENGTH])
        due = quantized_blocks(state, fmt) > before
        if bool(due.any()):
            slots = fmt.sink + (before[..., None] * fmt.block + torch.arange(fmt.block, device=new.device)) % fmt.ring
            oldest = window.gather(2, slots[..., None].expand(-1, -1, -1, head_dim))
            new_codes, new_scales = encode_blocks(oldest, fmt, cache.query_profile)
            rows, cols = due.nonzero(as_tuple=True)
            cache.codes[rows, cols, before[due]] = new_codes[due]
            cache.scales[rows, cols, before[due]] = new_scales[due]
    state[..., layout.HIDDEN] += drop


def truncate_(cache: Cache, length: int | torch.Tensor) -> None:
    """Truncate a cache side to ``length`` tokens of the program's tensor, padding included, in place.

    If the new end is within a quantized block, the remaining tokens of that block are dequantized into the recent
    window. ``length`` may be a tensor without dimensions on the cache's device.
    """
    fmt, codes, scales, window, state = cache.format, *cache.encoded
    head_dim = window.shape[-1]
    old_blocks = quantized_blocks(state, fmt).long()
    # truncating within the padding of a sequence leaves less padding
    hidden = state[..., layout.HIDDEN]
    state[..., layout.START] = torch.minimum(state[..., layout.START], length + hidden)
    kept = length + hidden - state[..., layout.START]
    kept = torch.minimum(kept, state[..., layout.LENGTH])
    state[..., layout.LENGTH] = kept
    state[..., layout.PEAK] = torch.minimum(state[..., layout.PEAK], kept + fmt.recent)
    if codes.shape[2] == 0 or fmt.rolls:
        return
    blocks = quantized_blocks(state, fmt).long()
    pick = blocks.clamp(max=codes.shape[2] - 1)[..., None, None]
    cut_codes = codes.gather(2, pick.expand(-1, -1, 1, codes.shape[-1]))
    cut_scales = scales.gather(2, pick.expand(-1, -1, 1, scales.shape[-1]))
    cut = decode_blocks(cut_codes, cut_scales, fmt, head_dim, compute_dtype(window.dtype))[:, :, 0]
    cut = to_finite(cut, window.dtype)
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
