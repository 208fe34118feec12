"""Key mean and normalization of a prompt, in two kernels; the keys are read once.

The first kernel computes sum, count, maximum and minimum of each channel over a part of the tokens. The second combines
them: ``max|k - mean|`` is ``max(max - mean, mean - min)``, exactly, since rounding is monotonic. There are no atomics,
so results are the same bits every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import reference
from ..pairs import Pairs
from .constants import F32_MAX, F32_TINY
from .support import launching, next_power_of_2

#: Tokens of a tile, and of the part that one program reads. Parts are short because a program's loads are sequential.
TILE, PART = 64, 128
#: Parts that the second kernel loads at a time.
PARTS_AT_ONCE = tl.constexpr(16)


@triton.jit(do_not_specialize=("S",))  # the length of the prompt
def key_moments_kernel(
    x,
    start,
    parts,
    H,
    S,
    unit,
    stride_b,
    stride_h,
    stride_s,
    stride_d,
    D: tl.constexpr,
    COLS: tl.constexpr,
    TILE: tl.constexpr,
    PART: tl.constexpr,
):
    """Program (part, b * H + h): sum, count, maximum, minimum ``[4, D]`` of the finite keys of a part's real tokens.

    Keys are multiplied by ``unit``, a power of two, so that sums of large keys stay finite.
    """
    part = tl.program_id(0)
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    first = tl.load(start + b).to(tl.int32)
    channel = tl.arange(0, COLS)
    x += b * stride_b + h * stride_h
    b_sum = tl.zeros((COLS,), tl.float32)
    b_count = tl.zeros((COLS,), tl.float32)
    b_high = tl.full((COLS,), float("-inf"), tl.float32)
    b_low = tl.full((COLS,), float("inf"), tl.float32)
    for tile in range(0, PART, TILE):
        token = part * PART + tile + tl.arange(0, TILE)
        real = ((token >= first) & (token < S))[:, None] & (channel < D)[None, :]
        p_x = x + token.to(tl.int64)[:, None] * stride_s + (channel * stride_d)[None, :]
        b_x = tl.load(p_x, mask=real, other=0.0).to(tl.float32)
        valid = real & (tl.abs(b_x) <= F32_MAX)  # neither infinite nor NaN
        b_sum += tl.sum(tl.where(valid, b_x * unit, 0.0), 0)
        b_count += tl.sum(valid.to(tl.float32), 0)
        b_high = tl.maximum(b_high, tl.max(tl.where(valid, b_x, float("-inf")), 0))
        b_low = tl.minimum(b_low, tl.min(tl.where(valid, b_x, float("inf")), 0))
    p_part = parts + (bh * tl.num_programs(0) + part) * (4 * D) + channel
    tl.store(p_part, b_sum, channel < D)
    tl.store(p_part + D, b_count, channel < D)
    tl.store(p_part + 2 * D, b_high, channel < D)
    tl.store(p_part + 3 * D, b_low, channel < D)


@triton.jit
def _moments(parts, bh, count, channel, D: tl.constexpr, COLS: tl.constexpr):
    """Sum, count, maximum and minimum over all parts, of the channels ``channel [COLS]``."""
    real = channel < D
    b_sum = tl.zeros((COLS,), tl.float32)
    b_count = tl.zeros((COLS,), tl.float32)
    b_high = tl.full((COLS,), float("-inf"), tl.float32)
    b_low = tl.full((COLS,), float("inf"), tl.float32)
    for first in range(0, count, PARTS_AT_ONCE):
        part = first + tl.arange(0, PARTS_AT_ONCE)
        p_part = parts + ((bh * count + part) * (4 * D))[:, None] + channel[None, :]
        mask = (part < count)[:, None] & real[None, :]
        b_sum += tl.sum(tl.load(p_part, mask, other=0.0), 0)
        b_count += tl.sum(tl.load(p_part + D, mask, other=0.0), 0)
        b_high = tl.maximum(b_high, tl.max(tl.load(p_part + 2 * D, mask, other=float("-inf")), 0))
        b_low = tl.minimum(b_low, tl.min(tl.load(p_part + 3 * D, mask, other=float("inf")), 0))
    return b_sum, b_count, b_high, b_low


@triton.jit
def _reach(parts, bh, count, channel, unit, D: tl.constexpr, COLS: tl.constexpr, CENTRE: tl.constexpr):
    """Mean, ``max|k - mean|`` and ``max|k|`` of channels; 0 for channels without a finite key."""
    b_sum, b_count, b_high, b_low = _moments(parts, bh, count, channel, D, COLS)
    b_mean = tl.zeros((COLS,), tl.float32)
    if CENTRE:
        b_mean = tl.div_rn(b_sum, tl.maximum(b_count, 1.0)) / unit
    some = b_count > 0
    b_most = tl.where(some, tl.maximum(b_high - b_mean, b_mean - b_low), 0.0)
    b_whole = tl.where(some, tl.maximum(b_high, -b_low), 0.0)
    return b_mean, b_most, b_whole


@triton.jit(do_not_specialize=("S", "count"))  # they depend on the length of the prompt
def key_statistics_kernel(
    parts,
    start,
    divisor,
    mean,
    norm,
    H,
    S,
    count,
    unit,
    CENTRE: tl.constexpr,
    NORMALIZE: tl.constexpr,
    PAPER: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    PAIRED: tl.constexpr,
    FIRST: tl.constexpr,
    MIN_TOKENS: tl.constexpr,
    MIN_NORM: tl.constexpr,
    MAX_KEY: tl.constexpr,
    D: tl.constexpr,
    COLS: tl.constexpr,
):
    """Program b * H + h: statistics ``[D]`` of a head, see ``reference.key_statistics``."""
    bh = tl.program_id(0).to(tl.int64)
    enough = S - tl.load(start + bh // H).to(tl.int32) >= MIN_TOKENS
    channel = tl.arange(0, COLS)
    b_mean, b_most, b_whole = _reach(parts, bh, count, channel, unit, D, COLS, CENTRE)
    tl.store(mean + bh * D + channel, tl.where(enough, b_mean, 0.0), channel < D)
    b_norm = tl.full((COLS,), 1.0, tl.float32)
    if NORMALIZE:
        if PAPER:
            b_norm = tl.where(b_most > 0, tl.sqrt_rn(b_most), 1.0)
        else:
            if PAIRED > 0:
                # the other channel of each pair, see kernels/pairs.py
                place = channel - FIRST
                other = place ^ 1 if INTERLEAVED else (place + PAIRED // 2) % PAIRED
                other = tl.where((place >= 0) & (place < PAIRED), other + FIRST, channel)
                _, b_most_other, b_whole_other = _reach(parts, bh, count, other, unit, D, COLS, CENTRE)
                b_most = tl.maximum(b_most, b_most_other)
                b_whole = tl.maximum(b_whole, b_whole_other)
            b_largest = tl.maximum(tl.max(b_most, 0), F32_TINY) + tl.zeros((COLS,), tl.float32)
            b_limit = tl.maximum(tl.max(b_whole, 0), MAX_KEY) + tl.zeros((COLS,), tl.float32)
            b_norm = tl.sqrt_rn(tl.div_rn(b_most, b_largest))
            if divisor is not None:
                b_norm = tl.div_rn(b_norm, tl.load(divisor + bh * D + channel, channel < D, other=1.0))
                b_norm = tl.div_rn(b_norm, tl.maximum(tl.max(b_norm, 0), F32_TINY) + tl.zeros((COLS,), tl.float32))
            b_norm = tl.maximum(tl.maximum(b_norm, tl.div_rn(b_whole, b_limit)), MIN_NORM)
    tl.store(norm + bh * D + channel, tl.where(enough, b_norm, 1.0), channel < D)


def key_statistics(
    keys: torch.Tensor,
    start: torch.Tensor,
    centre: bool,
    normalize: bool,
    norm: str = "channel",
    divisor: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Key mean and normalization ``[B, H, D]`` float32 of ``keys [B, H, S, D]``, see ``reference.key_statistics``."""
    batch, heads, tokens, head_dim = keys.shape
    count = max(triton.cdiv(tokens, PART), 1)
    parts = torch.empty((batch, heads, count, 4, head_dim), dtype=torch.float32, device=keys.device)
    mean = torch.empty((batch, heads, head_dim), dtype=torch.float32, device=keys.device)
    out = torch.empty_like(mean)
    pairs = Pairs.parse(norm)
    divisor = None if divisor is None else divisor.contiguous()
    start = start.contiguous()
    unit = 1.0 / next_power_of_2(tokens)
    sizes = {"D": head_dim, "COLS": next_power_of_2(head_dim)}
    with launching(keys, key_moments_kernel, key_statistics_kernel):
        key_moments_kernel[(count, batch * heads)](
            keys, start, parts, heads, tokens, unit, *keys.stride(), **sizes, TILE=TILE, PART=PART, num_warps=4
        )
        key_statistics_kernel[(batch * heads,)](
            parts,
            start,
            divisor,
            mean,
            out,
            heads,
            tokens,
            count,
            unit,
            CENTRE=centre,
            NORMALIZE=normalize,
            PAPER=norm == "paper",
            INTERLEAVED=pairs.interleaved,
            PAIRED=pairs.count,
            FIRST=pairs.first,
            MIN_TOKENS=reference.MIN_STATISTICS_TOKENS,
            MIN_NORM=reference.MIN_KEY_NORM,
            MAX_KEY=reference.MAX_DIVIDED_KEY,
            **sizes,
            num_warps=4,
        )
    return mean, out
