"""Prefill: makes a cache side from a whole prompt, reading each key or value once."""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import dataclasses

import torch
import triton
import triton.language as tl

from .. import layout, reference
from ..cache import ENCODED, Cache, CacheTensors
from ..formats import CacheFormat, blocks_for
from .addresses import quantized_blocks, tile_channels
from .casts import round_to
from .constants import (
    STATE_LENGTH,
    STATE_PEAK,
    STATE_SIZE,
    STATE_START,
    block_params,
    block_words,
    plane_columns,
    ring_slots,
    window_slots,
)
from .encode import copy_blocks, encode_blocks
from .support import launching, mode_constants, side_constants

#: Tokens of the windows per program.
WINDOW_ROWS = tl.constexpr(16)


@triton.jit
def _of_channels(source, channel, real, SHAPE: tl.constexpr):
    """Load mean and 1 / norm of the channels of a tile, if there are any. A thread loads those of its own elements."""
    _, mean, inverse, _, _ = source
    numbers = ()
    if mean is not None:
        numbers = numbers + (tl.load(tl.broadcast_to(mean + channel, SHAPE), mask=real),)
    if inverse is not None:
        numbers = numbers + (tl.load(tl.broadcast_to(inverse + channel, SHAPE), mask=real),)
    return numbers


@triton.jit
def _load_normalized(source, numbers, token, channel, real):
    """Load elements of ``x`` as a cache holds them: ``(x - mean) / norm`` in the dtype of ``x``.

    For the arguments see ``encode.encode_blocks``. ``source`` is ``(x, mean or None, 1 / norm or None, stride of
    tokens, stride of channels)``.
    """
    x, mean, inverse, stride_s, stride_d = source
    b_x = tl.load(x + token.to(tl.int64) * stride_s + channel * stride_d, mask=real).to(tl.float32)
    if mean is not None:
        b_x -= numbers[0]
    if inverse is not None:
        b_x *= numbers[len(numbers) - 1]
    return round_to(b_x, x.dtype.element_ty)


#: Numbers that depend on the length of a prompt. A kernel is not compiled again for those that divide by 16.
UNSPECIALIZED = ("S", "capacity")


@triton.jit(do_not_specialize=UNSPECIALIZED)
def prefill_fwd_kernel(
    x,
    start,
    mean,
    inverse,
    codes,
    scales,
    window,
    state,
    query_profile,
    H,
    S,
    capacity,
    stride_b,
    stride_h,
    stride_s,
    stride_d,
    STRIDE_S: tl.constexpr,
    NB: tl.constexpr,
    WINDOWS: tl.constexpr,
    IS_KEY: tl.constexpr,
    ENCODER: tl.constexpr,
    ROLLS: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    USES_ANCHOR: tl.constexpr,
    USES_QUERIES: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    SINK: tl.constexpr,
    RECENT: tl.constexpr,
    D: tl.constexpr,
    SLICES: tl.constexpr,
    COLS: tl.constexpr,
):
    """Program (i, b * H + h) quantizes ``NB`` blocks; the last ``WINDOWS`` programs write the windows and the state.

    A cache that ``ROLLS`` has no blocks, and its peak is 0; its ring holds the last tokens.
    """
    block = tl.program_id(0) * NB
    if STRIDE_S:
        stride_s = STRIDE_S
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    first = tl.load(start + b).to(tl.int32)
    length = S - first
    blocks = 0
    if not ROLLS:
        blocks = quantized_blocks(length, SINK, RECENT, BLOCK)
    x += b * stride_b + h * stride_h + first.to(tl.int64) * stride_s
    if mean is not None:
        mean += bh * D
    if inverse is not None:
        inverse += bh * D
    RING: tl.constexpr = ring_slots(RECENT, BLOCK)
    window += bh * (window_slots(SINK, RECENT, BLOCK) * D)
    if USES_QUERIES:
        query_profile += bh * (2 * D)
    if block < (tl.num_programs(0) - WINDOWS) * NB:
        if block < blocks:
            token0 = SINK + block * BLOCK
            source = (x + token0.to(tl.int64) * stride_s, mean, inverse, stride_s, stride_d)
            at = bh * capacity + block
            p_codes = codes + at * block_words(BITS, BLOCK, D)
            if BITS == 0:
                copy_blocks(
                    _load_normalized, _of_channels, source, p_codes, blocks - block, NB, IS_KEY, BLOCK, D, SLICES, COLS
                )
            else:
                encode_blocks(
                    _load_normalized, _of_channels, source, query_profile, p_codes,
                    scales + at * block_params(BITS, HAS_ZERO, GROUP, BLOCK, D, scales.dtype.element_ty),
                    blocks - block, NB, IS_KEY, ENCODER, HAS_ZERO, USES_ANCHOR, USES_QUERIES, BITS, GROUP, BLOCK,
                    SINK, RECENT, D, SLICES, COLS,
                )  # fmt: skip
    else:
        part = tl.program_id(0) - (tl.num_programs(0) - WINDOWS)
        source = (x, mean, inverse, stride_s, stride_d)
        channel, real = tile_channels(IS_KEY, SLICES, D, COLS)
        slot = part * WINDOW_ROWS + tl.arange(0, WINDOW_ROWS)
        # the token of a ring slot is the one of [SINK + first_held, SINK + first_held + RING) that maps to it
        first_held = blocks * BLOCK
        if ROLLS:
            first_held = tl.maximum(length - SINK - RING, 0)
        ahead = (tl.maximum(slot - SINK, 0) + RING - first_held % RING) % RING
        token = tl.where(slot < SINK, slot, SINK + first_held + ahead)
        held = (token < length)[:, None]
        numbers = _of_channels(source, channel[None, :], real[None, :], (WINDOW_ROWS, COLS))
        b_x = _load_normalized(source, numbers, token[:, None], channel[None, :], real[None, :] & held)
        b_x = tl.where(held, b_x, 0.0)
        tl.store(window + slot[:, None] * D + channel[None, :], b_x, (slot < SINK + RING)[:, None] & real[None, :])
        if part == 0:
            column = tl.arange(0, STATE_SIZE)
            counts = column == STATE_LENGTH
            if not ROLLS:
                counts = counts | (column == STATE_PEAK)
            b_state = tl.where(column == STATE_START, first, tl.where(counts, length, 0))
            tl.store(state + bh * STATE_SIZE + column, b_state)


def launch_options(fmt: CacheFormat, head_dim: int) -> tuple[dict[str, int], dict[str, int]]:
    """``(constants NB and WINDOWS, launch options)``. A program has as many blocks as give each thread a column."""
    constants = {"NB": 1, "WINDOWS": triton.cdiv(fmt.window, WINDOW_ROWS.value)}
    if not fmt.quantized:
        return constants, {"num_warps": 4}
    side = side_constants(fmt, head_dim)
    columns = plane_columns(fmt.is_key, side["SLICES"], fmt.block, side["COLS"])
    constants["NB"] = max(1, 32 // columns)
    # a set of groups has to fit the registers of a thread: 128 elements
    warps = max(1, constants["NB"] * columns * fmt.group_size // 4096)
    # 12 programs per multiprocessor; wider codes or groups would spill registers with this limit
    small = fmt.bits <= 4 and fmt.group_size <= 32
    return constants, {"num_warps": warps} | ({"maxnreg": 168} if small else {})


def prefill(
    x: torch.Tensor,
    start: torch.Tensor,
    mean: torch.Tensor | None,
    norm: torch.Tensor | None,
    capacity: int,
    fmt: CacheFormat,
    query_profile: torch.Tensor | None = None,
    num_warps: int | None = None,
) -> Cache:
    """Make a cache side from ``x [B, H, S, D]``, see ``reference.prefill``. Spare capacity is left uninitialized.

    Args:
        x: keys or values, any strides.
        start: ``[B]`` integers, padding tokens before each sequence.
        mean, norm: ``[B, H, D]`` float32 or None.
        capacity: blocks of the result, at least ``blocks_for(fmt, S)``.
        query_profile: ``[B, H, 2, D]`` of ``reference.query_profile``, in modes that use one; None if not known.
        num_warps: warps per program, instead of the default.

    Raises:
        ValueError: if ``capacity`` is too small.
    """
    batch, heads, tokens, head_dim = x.shape
    blocks = int(blocks_for(fmt, tokens))
    if capacity < blocks:
        raise ValueError(f"capacity {capacity} is less than the {blocks} blocks that {tokens} tokens need")
    shapes = layout.shapes(fmt, batch, heads, head_dim, capacity)
    encoded = (torch.empty(s, dtype=own or x.dtype, device=x.device) for s, own in (shapes[name] for name in ENCODED))
    profile = reference.default_profile(fmt, x, norm) if query_profile is None else query_profile.contiguous()
    cache = dataclasses.replace(CacheTensors.of_encoded(fmt, encoded), query_profile=profile, mean=mean, norm=norm)
    mean = None if mean is None else mean.float().contiguous()
    inverse = None if norm is None else norm.float().reciprocal().contiguous()
    constants, options = launch_options(fmt, head_dim)
    if num_warps is not None:
        options["num_warps"] = num_warps
    with launching(x, prefill_fwd_kernel):
        prefill_fwd_kernel[(triton.cdiv(blocks, constants["NB"]) + constants["WINDOWS"], batch * heads)](
            x,
            start.contiguous(),
            mean,
            inverse,
            *cache.encoded,
            cache.query_profile,
            heads,
            tokens,
            capacity,
            *x.stride(),
            # as a constant it takes no instructions and registers; it has the same few values in all models
            STRIDE_S=x.stride(2) if x.stride(2) % head_dim == 0 else 0,
            **constants,
            **side_constants(fmt, head_dim),
            **mode_constants(fmt),
            **options,
        )
    return cache
