"""Prefill: a cache side made of a whole prompt, each key or value read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import layout
from ..formats import CacheFormat, blocks_for
from .casts import round_to
from .encode import encode_block
from .support import on_device, side_constants
from .unpack import has_zero, tile_channels


@triton.jit
def _load_normalized(
    x, mean, norm, bh, token, held, channel, real, stride_s, stride_d, HAS_MEAN: tl.constexpr, HAS_NORM: tl.constexpr
):
    """Rows ``token`` of ``x`` as the cache holds them, ``(x - mean) / norm`` in the dtype of ``x``; others zero."""
    p_x = x + token.to(tl.int64)[:, None] * stride_s + (channel * stride_d)[None, :]
    b_x = tl.load(p_x, mask=held[:, None] & real[None, :], other=0.0)
    dtype: tl.constexpr = b_x.dtype
    if HAS_MEAN:
        b_mean = tl.load(mean + channel, mask=real, other=0.0)
        b_x = b_x.to(tl.float32) - b_mean[None, :]
    if HAS_NORM:
        b_norm = tl.load(norm + channel, mask=real, other=1.0)
        b_x = tl.div_rn(b_x.to(tl.float32), tl.broadcast_to(b_norm[None, :], b_x.shape))
    b_x = tl.where(held[:, None], b_x.to(tl.float32), 0.0)  # padding is not zero once the mean is taken off
    return round_to(b_x, dtype)


@triton.jit
def prefill_fwd_kernel(
    x,
    start,
    mean,
    norm,
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
    channel, real = tile_channels(IS_KEY, BLOCK, D, COLS)
    x += b * stride_b + h * stride_h + first.to(tl.int64) * stride_s
    mean += bh * D
    norm += bh * D
    if block < tl.num_programs(0) - 1:
        if block < blocks:
            token = SINK + block * BLOCK + tl.arange(0, BLOCK)
            b_x = _load_normalized(
                x, mean, norm, bh, token, token < length, channel, real, stride_s, stride_d, HAS_MEAN, HAS_NORM
            )
            at = bh * capacity + block
            if BITS == 0:
                WORDS: tl.constexpr = BLOCK * D
                SCALES: tl.constexpr = 0
            else:
                WORDS: tl.constexpr = BLOCK * D * BITS // 32
                SCALES: tl.constexpr = BLOCK * D // GROUP * (2 if has_zero(MODE) else 1)
            encode_block(
                b_x, codes + at * WORDS, scales + at * SCALES,
                IS_KEY, MODE, BITS, GROUP, BLOCK, SINK, RECENT, D, LO, COLS,
            )  # fmt: skip
    else:
        RING: tl.constexpr = RECENT + BLOCK
        window += bh * ((SINK + RING) * D)
        for slot0 in range(0, SINK + RING, BLOCK):
            slot = slot0 + tl.arange(0, BLOCK)
            # the token of a ring slot is the one of [q_end, q_end + RING) that falls on it
            ahead = (tl.maximum(slot - SINK, 0) + RING - blocks * BLOCK % RING) % RING
            token = tl.where(slot < SINK, slot, SINK + blocks * BLOCK + ahead)
            b_x = _load_normalized(
                x, mean, norm, bh, token, token < length, channel, real, stride_s, stride_d, HAS_MEAN, HAS_NORM
            )
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
    norm = None if norm is None else norm.float().contiguous()
    with on_device(x):
        prefill_fwd_kernel[(blocks + 1, batch * heads)](
            x,
            start.contiguous(),
            x if mean is None else mean,
            x if norm is None else norm,
            *cache,
            heads,
            tokens,
            capacity,
            *x.stride(),
            HAS_MEAN=mean is not None,
            HAS_NORM=norm is not None,
            **side_constants(fmt, head_dim),
            num_warps=num_warps or (4 if fmt.block * head_dim <= 8192 else 8),
        )
    return cache
