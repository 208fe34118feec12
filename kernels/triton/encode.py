"""Quantizes and packs blocks in a Triton kernel: ``reference.encode_blocks``.

A tile holds the elements of one field and one half of all words, ``[columns of all blocks, lane pairs]`` (see
``kernels/layout.py``). A warp has 32 columns, one per thread, so that a thread has all elements of a group, and all
codes of a word: extremes and errors need no exchange between threads, and the work per group is done once. Triton
chooses the layout of a tile by what is contiguous in memory, and then by its first dimension; shapes and
``max_contiguous`` hints are chosen for that. The tiles of one set of groups are loaded, quantized and packed before
those of the next set.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from ..modes import rounding
from .addresses import first_word, tile_channels
from .codes import start_of_plane
from .constants import (
    block_groups,
    block_params,
    block_words,
    column_run,
    field_number,
    group_row,
    params_per_group,
    plane_columns,
    plane_words,
    slice_stride,
    sub_range_stride,
    sub_ranges,
)
from .fields import add_to_planes, add_to_some_plane
from .quantize import quantize_set
from .queries import query_words

CLEARLY = tl.constexpr(rounding.CLEARLY)


@triton.constexpr_function
def channels_at_once(head_dim):
    """Channels of a token that are loaded at a time for its norm: a power of two that divides ``head_dim``."""
    return min(head_dim & -head_dim, 128)


@triton.jit
def least_tokens(load, of_channels, source, first, NB: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr):
    """The token of least norm in one group of each of ``NB`` blocks, as an index into the group, ``[NB]``.

    ``first [NB]`` are the first tokens of the groups. See ``kernels/modes/anchored.py``.
    """
    WIDTH: tl.constexpr = channels_at_once(D)
    token = first[:, None] + tl.arange(0, GROUP)[None, :]
    token = tl.reshape(token, (NB * GROUP, 1))
    b_sum = tl.zeros((NB * GROUP, WIDTH), tl.float32)
    for channel0 in range(0, D, WIDTH):
        channel = channel0 + tl.arange(0, WIDTH)[None, :]
        numbers = of_channels(source, channel, None, (NB * GROUP, WIDTH))
        b_x = load(source, numbers, token, channel, None).to(tl.float32)
        b_sum += b_x * b_x
    b_norm = tl.reshape(tl.sum(b_sum, 1), (NB, GROUP))
    b_norm = tl.where(b_norm == b_norm, b_norm, float("inf"))
    b_least = tl.min(b_norm, 1)[:, None] * CLEARLY
    return tl.min(tl.where(b_norm <= b_least, tl.arange(0, GROUP)[None, :], GROUP), 1)


@triton.jit
def copy_blocks(
    load,
    of_channels,
    source,
    codes,
    left,
    NB: tl.constexpr,
    IS_KEY: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    SLICES: tl.constexpr,
    COLS: tl.constexpr,
):
    """Store the elements of blocks themselves, for mode ``none``. The arguments are those of :func:`encode_blocks`."""
    channel, real = tile_channels(IS_KEY, SLICES, D, COLS)
    for block in range(tl.minimum(left, NB)):
        token = block * BLOCK + tl.arange(0, BLOCK)[:, None]
        number = of_channels(source, channel[None, :], real[None, :], (1, COLS))
        b_x = load(source, number, token, channel[None, :], real[None, :])
        tl.store(codes + token * D + channel[None, :], b_x, mask=real[None, :])


@triton.jit
def _columns(IS_KEY: tl.constexpr, NB: tl.constexpr, PADDED: tl.constexpr):
    """The column of each of the ``NB * PADDED`` rows of a tile, and the block that it belongs to."""
    WIDTH: tl.constexpr = NB * PADDED
    column = tl.arange(0, WIDTH) % PADDED
    if not IS_KEY:
        # so that a thread has few channels, and all tokens of them
        column = tl.max_contiguous(column, max(1, WIDTH // 32))
    return column, tl.arange(0, WIDTH) // PADDED


@triton.jit
def _encode_group(
    load,
    of_channels,
    source,
    queries,
    p_scales,
    left,
    hi,
    group,
    planes,
    NB: tl.constexpr,
    IS_KEY: tl.constexpr,
    ENCODER: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    USES_ANCHOR: tl.constexpr,
    USES_QUERIES: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    SLICES: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Quantize group ``group`` of all columns and sub-ranges: store the scales, and add the codes to ``planes``."""
    DTYPE: tl.constexpr = p_scales.dtype.element_ty
    COLUMNS: tl.constexpr = plane_columns(IS_KEY, SLICES, BLOCK, D)
    SUBS: tl.constexpr = sub_ranges(SLICES)
    SUB: tl.constexpr = sub_range_stride(IS_KEY, SLICES)
    SLICE: tl.constexpr = slice_stride(IS_KEY, SLICES)
    # two tokens of a column share the result of `of_channels`
    TOGETHER: tl.constexpr = min(SUBS, 2) if IS_KEY else 1
    WIDTH: tl.constexpr = NB * PADDED
    column, block = _columns(IS_KEY, NB, PADDED)
    real = (column < COLUMNS) & (block < left)
    # without padding, as in most formats, there is no mask: a load without one costs less
    present = None
    there = None
    if COLUMNS != PADDED:
        present = column < COLUMNS
        there = present[:, None]
    pair = tl.arange(0, 8)
    # [columns, halves of a slice, lanes]: 16 bytes a load, all lanes of a column in one thread
    b_lane = tl.arange(0, 2)[None, :, None] * 8 + tl.arange(0, 8)[None, None, :]
    # for blocks past the last one, the last one is read again
    first = tl.minimum(block, left - 1) * BLOCK
    if USES_ANCHOR:
        begins = tl.minimum(tl.arange(0, NB), left - 1) * BLOCK + group * GROUP
        least = least_tokens(load, of_channels, source, begins, NB, GROUP, D)
        least = tl.reshape(tl.broadcast_to(least[:, None], (NB, PADDED)), (WIDTH,))
    known = None
    if USES_QUERIES:
        channel0 = hi * (16 * SLICES) + group * GROUP
        known = query_words(queries, channel0, WIDTH, GROUP, D)
    for sub in tl.static_range(0, SUBS, TOGETHER):
        tiles = ()
        for i in tl.static_range(GROUP // 16):
            lane0 = (group * (GROUP // 16) + i) * 16
            if IS_KEY:
                b_channel = hi * (16 * SLICES) + lane0 + b_lane
                numbers = of_channels(source, b_channel, None, (WIDTH, 2, 8))
            for t in tl.static_range(TOGETHER):
                place = (sub + t) * COLUMNS + column
                if IS_KEY:
                    b_x = load(source, numbers, (first + place)[:, None, None], b_channel, None)
                    b_first, b_second = tl.split(tl.reshape(b_x, (WIDTH, 8, 2)))
                else:
                    b_token = first[:, None] + (lane0 + pair * 2)[None, :]
                    numbers = of_channels(source, place[:, None], there, (WIDTH, 8))
                    b_first = load(source, numbers, b_token, place[:, None], there)
                    b_second = load(source, numbers, b_token + 1, place[:, None], there)
                tiles = tiles + (b_first, b_second)
        for t in tl.static_range(TOGETHER):
            own = ()
            for i in tl.static_range(GROUP // 16):
                own = own + (tiles[2 * (i * TOGETHER + t)], tiles[2 * (i * TOGETHER + t) + 1])
            b_anchor = None
            if USES_ANCHOR:
                at = first + group * GROUP + least
                place = (sub + t) * COLUMNS + column
                numbers = of_channels(source, place, present, (WIDTH,))
                b_anchor = load(source, numbers, at, place, present).to(tl.float32)
            set_codes, b_scale, b_zero = quantize_set(own, b_anchor, known, ENCODER, BITS, DTYPE)
            for i in tl.static_range(GROUP // 16):
                if IS_KEY:
                    field = (sub + t) * SUB + (group * (GROUP // 16) + i) * SLICE
                    planes = add_to_some_plane(planes, set_codes[i], field, BITS)
                else:
                    # not assigned to a name: that would make it a value of the kernel's run time
                    planes = add_to_planes(
                        planes, set_codes[i], field_number(IS_KEY, SLICES, sub + t, group * (GROUP // 16) + i), BITS
                    )
            row = (hi * (16 * SLICES // GROUP) + group) * group_row(IS_KEY, BLOCK, D)
            p_scale = p_scales + (row + (sub + t) * COLUMNS + column)
            tl.store(p_scale, b_scale.to(DTYPE), mask=real)
            if params_per_group(HAS_ZERO, DTYPE) == 2:
                tl.store(p_scale + block_groups(GROUP, BLOCK, D), b_zero.to(DTYPE), mask=real)
    return planes


@triton.jit
def encode_blocks(
    load,
    of_channels,
    source,
    queries,
    codes,
    scales,
    left,
    NB: tl.constexpr,
    IS_KEY: tl.constexpr,
    ENCODER: tl.constexpr,
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
    """Quantize blocks, and store them at ``codes`` and ``scales``: pointers to the first word and scale of the first.

    Args:
        load: ``load(source, numbers, token, channel, real)`` returns elements in the dtype of the cache. ``token``,
            ``channel`` and the mask ``real`` (None: all true) broadcast to the shape of a tile; elements where it is
            false are unspecified. Tokens are counted from the first token of the first block.
        of_channels: ``of_channels(source, channel, real, shape)`` returns ``numbers`` for ``load``, for tiles of this
            shape: values that all tokens of a channel share.
        source: passed to ``load`` and ``of_channels``.
        queries: pointer to the query profile of the head, if ``USES_QUERIES``.
        left: how many blocks there are, at least 1. Only the first ``NB`` of them are quantized.
        NB: how many blocks a program quantizes.
        ENCODER, HAS_ZERO, USES_ANCHOR, USES_QUERIES: of the mode, see ``support.mode_constants``.
    """
    DTYPE: tl.constexpr = scales.dtype.element_ty
    PADDED: tl.constexpr = plane_columns(IS_KEY, SLICES, BLOCK, COLS)
    COLUMNS: tl.constexpr = plane_columns(IS_KEY, SLICES, BLOCK, D)
    HI: tl.constexpr = D // (16 * SLICES) if IS_KEY else 1
    PLANE: tl.constexpr = plane_words(COLUMNS)
    column, block = _columns(IS_KEY, NB, PADDED)
    real = (column < COLUMNS) & (block < left)
    pair = tl.arange(0, 8)
    p_codes = codes + block * block_words(BITS, BLOCK, D)
    p_scales = scales + block * block_params(BITS, HAS_ZERO, GROUP, BLOCK, D, DTYPE)
    for hi in range(HI):
        planes = ()
        for _ in tl.static_range(BITS):
            planes = planes + (tl.full((NB * PADDED, 8), start_of_plane(BITS), tl.int32),)
        # a loop that is not unrolled: the code of one group of keys is as much as the instruction cache holds
        if IS_KEY:
            for group in range(SLICES * 16 // GROUP):
                planes = _encode_group(
                    load, of_channels, source, queries, p_scales, left, hi, group, planes,
                    NB, IS_KEY, ENCODER, HAS_ZERO, USES_ANCHOR, USES_QUERIES, BITS, GROUP, BLOCK, D, SLICES, PADDED,
                )  # fmt: skip
        else:
            for group in tl.static_range(SLICES * 16 // GROUP):
                planes = _encode_group(
                    load, of_channels, source, queries, p_scales, left, hi, group, planes,
                    NB, IS_KEY, ENCODER, HAS_ZERO, USES_ANCHOR, USES_QUERIES, BITS, GROUP, BLOCK, D, SLICES, PADDED,
                )  # fmt: skip
        p_word = p_codes + (hi * (BITS * PLANE) + first_word(column, COLUMNS))
        p_word = p_word[:, None] + pair[None, :] * column_run(COLUMNS)
        for j in tl.static_range(BITS):
            tl.store(p_word + j * PLANE, planes[j], mask=real[:, None])
