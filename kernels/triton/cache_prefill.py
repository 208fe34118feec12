"""Prefill: a cache side made of a whole prompt, each key or value read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import layout
from ..formats import CacheFormat, blocks_for
from .casts import round_to
from .encode import block_params, block_words, encode_block
from .support import on_device, side_constants
from .unpack import tile_channels


@triton.jit
def _load_normalized(source, token, channel, real):
    """Elements of ``x`` as the cache holds them, ``(x - mean) / norm`` in the dtype of ``x``; what is not real is zero.

    ``source`` is ``(x, mean, 1 / norm, stride of tokens, stride of channels, HAS_MEAN, HAS_NORM)``.
    """
    x, mean, inverse, stride_s, stride_d, HAS_MEAN, HAS_NORM = source
    dtype: tl.constexpr = x.dtype.element_ty
    b_x = tl.load(x + token.to(tl.int64) * stride_s + channel * stride_d, mask=real, other=0.0).to(tl.float32)
    if HAS_MEAN:
        b_x -= tl.load(mean + channel, mask=real, other=0.0)
    if HAS_NORM:
        b_x *= tl.load(inverse + channel, mask=real, other=1.0)
    return round_to(tl.where(real, b_x, 0.0), dtype)  # padding is not zero once the mean is taken off


@triton.jit
def prefill_fwd_kernel(
    x,
    start,
    mean,
    inverse,
    codes,
    scales,
    window,
    state,
    H,
    S,
    capacity,
    stride_b,
    stride_h,
    stride_s,
    stride_d,
    HAS_MEAN: tl.constexpr,
    HAS_NORM: tl.constexpr,
    IS_KEY: tl.constexpr,
    MODE: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    SINK: tl.constexpr,
    RECENT: tl.constexpr,
    D: tl.constexpr,
    LO: tl.constexpr,
    COLS: tl.constexpr,
):
    """Program (block, b * H + h) quantizes one block of 32 or more tokens; the last block index writes the windows."""
    block = tl.program_id(0)
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    first = tl.load(start + b).to(tl.int32)
    length = S - first
    blocks = tl.maximum(length - SINK - RECENT, 0) // BLOCK
    x += b * stride_b + h * stride_h + first.to(tl.int64) * stride_s
    mean += bh * D
    inverse += bh * D
    if block < tl.num_programs(0) - 1:
        if block < blocks:
            token0 = SINK + block * BLOCK
            source = (x + token0.to(tl.int64) * stride_s, mean, inverse, stride_s, stride_d, HAS_MEAN, HAS_NORM)
            at = bh * capacity + block
            encode_block(
                _load_normalized, source, codes + at * block_words(BITS, BLOCK, D),
                scales + at * block_params(BITS, MODE, GROUP, BLOCK, D, scales.dtype.element_ty),
                IS_KEY, MODE, BITS, GROUP, BLOCK, SINK, RECENT, D, LO, COLS,
            )  # fmt: skip
    else:
        RING: tl.constexpr = RECENT + BLOCK
        window += bh * ((SINK + RING) * D)
        source = (x, mean, inverse, stride_s, stride_d, HAS_MEAN, HAS_NORM)
        channel, real = tile_channels(IS_KEY, BLOCK, D, COLS)
        for slot0 in range(0, SINK + RING, BLOCK):
            slot = slot0 + tl.arange(0, BLOCK)
            # the token of a ring slot is the one of [q_end, q_end + RING) that falls on it
            ahead = (tl.maximum(slot - SINK, 0) + RING - blocks * BLOCK % RING) % RING
            token = tl.where(slot < SINK, slot, SINK + blocks * BLOCK + ahead)
            b_x = _load_normalized(source, token[:, None], channel[None, :], real[None, :] & (token < length)[:, None])
            tl.store(window + slot[:, None] * D + channel[None, :], b_x, (slot < SINK + RING)[:, None] & real[None, :])
        column = tl.arange(0, 4)
        tl.store(state + bh * 4 + column, tl.where(column == 0, first, tl.where(column < 3, length, 0)))


def prefill(
    x: torch.Tensor,
    start: torch.Tensor,
    mean: torch.Tensor | None,
    norm: torch.Tensor | None,
    capacity: int,
    fmt: CacheFormat,
    num_warps: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A cache side made of ``x [B, H, S, D]``, see ``reference.prefill``. Spare capacity is left uninitialized.

    Args:
        x: keys or values, any strides.
        start: ``[B]`` integers, padding tokens before each sequence.
        mean, norm: ``[B, H, D]`` float32 or None.
        capacity: blocks of the result, at least ``blocks_for(fmt, S)``.
        num_warps: warps a block, instead of the default.
    """
    batch, heads, tokens, head_dim = x.shape
    blocks = int(blocks_for(fmt, tokens))
    if capacity < blocks:
        raise ValueError(f"capacity {capacity} is less than the {blocks} blocks that {tokens} tokens need")
    shapes = layout.shapes(fmt, batch, heads, head_dim, capacity)
    cache = tuple(torch.empty(s, dtype=dtype or x.dtype, device=x.device) for s, dtype in shapes.values())
    mean = None if mean is None else mean.float().contiguous()
    inverse = None if norm is None else norm.float().reciprocal().contiguous()
    with on_device(x):
        prefill_fwd_kernel[(blocks + 1, batch * heads)](
            x,
            start.contiguous(),
            x if mean is None else mean,
            x if inverse is None else inverse,
            *cache,
            heads,
            tokens,
            capacity,
            *x.stride(),
            HAS_MEAN=mean is not None,
            HAS_NORM=inverse is not None,
            **side_constants(fmt, head_dim),
            num_warps=num_warps or (1 if fmt.is_key and head_dim <= 128 else 4),
        )
    return cache
