"""Addresses of codes, scales, state and windows in Triton kernels, as laid out in ``kernels/layout.py``.

All functions take and return offsets in elements. ``SLICES`` is ``layout.word_slices``: how many slices of 16 lanes
share a word.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .constants import (
    STATE_HIDDEN,
    STATE_PEAK,
    STATE_START,
    column_run,
    group_row,
    plane_columns,
    plane_words,
    slice_stride,
    sub_range_stride,
    sub_ranges,
)


@triton.jit
def value_head(b, h, H, v_first, v_heads):
    """Which of the values' heads of all sequences the keys of head ``h`` (int64) meet, see ``AttentionCall``."""
    return b * H + v_first + h % v_heads


@triton.jit
def tile_channels(IS_KEY: tl.constexpr, SLICES: tl.constexpr, D: tl.constexpr, COLS: tl.constexpr):
    """The channel of each column of a tile ``[tokens, COLS]``, and whether the column has one: both ``[COLS]``.

    Keys: channel = column. Values: the channels of each sub-range are padded to a power of two, so that a tile can be
    reshaped into fields.
    """
    column = tl.arange(0, COLS)
    if IS_KEY:
        return column, column < D
    else:
        WIDTH: tl.constexpr = D // sub_ranges(SLICES)
        PADDED: tl.constexpr = COLS // sub_ranges(SLICES)
        return (column // PADDED) * WIDTH + column % PADDED, column % PADDED < WIDTH


@triton.jit
def first_word(column, COLUMNS: tl.constexpr):
    """Offset of the first word of a column in a plane; its others follow at distances of ``column_run(COLUMNS)``."""
    RUN: tl.constexpr = column_run(COLUMNS)
    return column // RUN * plane_words(RUN) + column % RUN


@triton.jit
def half_in_plane(column, lane, COLUMNS: tl.constexpr):
    """Offset of the half of a word that belongs to a column and a lane (0 to 15), in a plane of int16."""
    RUN: tl.constexpr = column_run(COLUMNS)
    return column // RUN * (plane_words(RUN) * 2) + lane // 2 * (RUN * 2) + column % RUN * 2 + lane % 2


@triton.jit
def locate_code(
    token,
    channel,
    IS_KEY: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    SLICES: tl.constexpr,
):
    """Where the code of (token, channel) is in a block of int16: ``(field, offset, PLANE)``.

    ``offset`` is that of its half word in plane 0; in plane ``j`` it is ``offset + j * PLANE``.
    """
    COLUMNS: tl.constexpr = plane_columns(IS_KEY, SLICES, BLOCK, D)
    PLANE: tl.constexpr = 2 * plane_words(COLUMNS)
    if IS_KEY:
        along, across = channel, token
        slice_lo = channel // 16 % SLICES
        slice_hi = channel // (16 * SLICES)
    else:
        along, across = token, channel
        slice_lo = token // 16  # all slices of a block of values share a word
        slice_hi = 0
    field = across // COLUMNS * sub_range_stride(IS_KEY, SLICES) + slice_lo * slice_stride(IS_KEY, SLICES)
    return field, slice_hi * (BITS * PLANE) + half_in_plane(across % COLUMNS, along % 16, COLUMNS), PLANE


@triton.jit
def scale_of(token, channel, IS_KEY: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr):
    """Offset of the scale of (token, channel) in the scales of a block."""
    ROW: tl.constexpr = group_row(IS_KEY, BLOCK, D)
    if IS_KEY:
        return channel // GROUP * ROW + token
    else:
        return token // GROUP * ROW + channel


@triton.jit
def quantized_blocks(peak, SINK: tl.constexpr, RECENT: tl.constexpr, BLOCK: tl.constexpr):
    """Number of quantized blocks of a sequence with this ``peak``: ``reference.quantized_blocks``."""
    return tl.maximum(peak - SINK - RECENT, 0) // BLOCK


@triton.jit
def quantized_end(state, SINK: tl.constexpr, RECENT: tl.constexpr, BLOCK: tl.constexpr):
    """Position of the first token after the quantized blocks; ``state`` points to the state of the sequence."""
    return SINK + quantized_blocks(tl.load(state + STATE_PEAK), SINK, RECENT, BLOCK) * BLOCK


@triton.jit
def shift(state):
    """Where the program's tensor has the first token that was appended: ``layout.shift``, of one sequence."""
    return tl.load(state + STATE_START) - tl.load(state + STATE_HIDDEN)


@triton.jit
def ring_slot(position, SINK: tl.constexpr, RING: tl.constexpr):
    """The row of the windows that holds the token at ``position`` if it is in the recent window."""
    return SINK + tl.maximum(position - SINK, 0) % RING


@triton.jit
def window_slot(position, SINK: tl.constexpr, RING: tl.constexpr):
    """The row of the windows that holds the token at ``position``, a sink or in the recent window."""
    return tl.where(position < SINK, position, ring_slot(position, SINK, RING))
