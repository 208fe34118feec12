"""Products of the query with the keys of a block: ``S^T = K Q^T``.

``SLICES`` is ``layout.word_slices`` of keys, ``COLS`` are the columns of their planes.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from ..constants import SUBNORMAL, code_offset, field_number, next_power_of_2
from .operands import aligned, code_one, field_operand, place_in_operand
from .rows import stack, tile_rows
from .scales import with_params, zero_unit


@triton.constexpr_function
def query_operand(slices, head_dim, tile, slice):
    """Which of the operands of :func:`query_slices` meets a slice of a row tile of keys."""
    if aligned(slices, head_dim):
        return slice
    return field_number(True, slices, tile, slice) % max(slices, 8)


@triton.jit
def query_slices(p_query, query_mask, query_stride_d, D: tl.constexpr, BITS: tl.constexpr, SLICES: tl.constexpr):
    """The query as B operands, and the unit ``[HEADS]`` of products with them.

    Operand ``field % max(SLICES, 8)``, ``[16, HEADS]`` float16, is the slice of the query that meets the field, divided
    by what the field's place in its operand makes of a code. There is one for each slice where fields are ``aligned``.
    Each row of the query is scaled by a power of two.
    """
    HEADS: tl.constexpr = p_query.shape[1]
    lane = tl.arange(0, 16)
    b_largest = tl.zeros((16, HEADS), tl.float32)
    raw = ()
    for s in tl.static_range(D // 16):
        p_slice = p_query + ((s * 16 + lane) * query_stride_d)[:, None]
        b_slice = tl.load(p_slice, mask=query_mask, other=0.0).to(tl.float32)
        b_largest = tl.maximum(b_largest, tl.abs(b_slice))
        raw = raw + (b_slice,)
    exponent = tl.max(b_largest, 0).to(tl.int32, bitcast=True) >> 23
    exponent = tl.maximum(exponent, 15)  # rows of zeros and of numbers below 2^-112
    b_scale = ((268 - exponent) << 23).to(tl.float32, bitcast=True)  # 2^14 / 2^floor(log2(largest))
    b_unit = ((exponent - 14) << 23).to(tl.float32, bitcast=True) * (1 / SUBNORMAL)
    slices = ()
    ALIGNED: tl.constexpr = aligned(SLICES, D)
    for i in tl.static_range(D // 16 if ALIGNED else max(SLICES, 8)):
        slices = slices + (
            (raw[i % (D // 16)] * (b_scale * 2.0 ** -place_in_operand(BITS, i, ALIGNED))[None, :]).to(tl.float16),
        )
    return slices, b_unit


@triton.jit
def group_sums(
    slices,
    D: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SLICES: tl.constexpr,
    COLS: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    PAIRED: tl.constexpr,
):
    """What :func:`key_scores` has to know of the sums of the query over the channels of each group.

    Returns the initial accumulator of each group, ``-offset * sum`` in formats without zero points, and the sums
    ``[groups * 32, HEADS]`` times ``zero_unit``, for zero points.
    """
    HEADS: tl.constexpr = slices[0].shape[1]
    ROWS: tl.constexpr = tile_rows(COLS)
    starts = ()
    sums = ()
    for group in tl.static_range(D // GROUP):
        b_total = tl.zeros((ROWS, HEADS), tl.float32)
        for s in tl.static_range(GROUP // 16):
            b_one = code_one(BITS, group * (GROUP // 16) + s, ROWS, aligned(SLICES, D))
            b_total = tl.dot(b_one, slices[query_operand(SLICES, D, 0, group * (GROUP // 16) + s)], b_total)
        for _ in tl.static_range(32 // ROWS):
            sums = sums + (b_total * zero_unit(BITS, PAIRED),)
        if HAS_ZERO:
            starts = starts + (tl.zeros((ROWS, HEADS), tl.float32),)
        else:
            starts = starts + (b_total * -code_offset(BITS),)
    for _ in tl.static_range((next_power_of_2(D // GROUP) - D // GROUP) * (32 // ROWS)):
        sums = sums + (tl.zeros((ROWS, HEADS), tl.float32),)
    return starts, stack(sums)


@triton.jit
def key_scores(
    planes,
    b_scale,
    b_zero,
    slices,
    starts,
    b_query_sum,
    D: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SLICES: tl.constexpr,
    COLS: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    PAIRED: tl.constexpr,
):
    """Products ``K Q^T`` of a block of 32 tokens, ``[32, HEADS]`` in the order of stacked row tiles.

    They are in the units of :func:`query_slices`, which gives ``slices``; the rest is of :func:`group_sums`.
    """
    TILES: tl.constexpr = 32 // tile_rows(COLS)
    GROUPS: tl.constexpr = next_power_of_2(D // GROUP)
    HEADS: tl.constexpr = starts[0].shape[1]
    sums = ()
    for group in tl.static_range(D // GROUP):
        for tile in tl.static_range(TILES):
            b_acc = starts[group]
            for s in tl.static_range(GROUP // 16):
                b_codes = field_operand(
                    planes, tile, group * (GROUP // 16) + s, TILES, True, SLICES, BITS, aligned(SLICES, D)
                )
                b_acc = tl.dot(b_codes, slices[query_operand(SLICES, D, tile, group * (GROUP // 16) + s)], b_acc)
            sums = sums + (b_acc,)
    for _ in tl.static_range((GROUPS - D // GROUP) * TILES):
        sums = sums + (tl.zeros_like(starts[0]),)
    b_acc = with_params(stack(sums), b_query_sum, b_scale, b_zero, HAS_ZERO, PAIRED)
    return tl.sum(tl.reshape(b_acc, (GROUPS, 32, HEADS)), 0)
