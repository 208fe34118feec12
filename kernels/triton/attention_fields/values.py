"""Products of probabilities with the values of a block: ``O^T += V^T P^T``.

``SLICES`` is ``layout.word_slices`` of values, ``COLS`` are the columns of their planes.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from ..constants import code_offset, field_number
from .operands import field_operand, unit_in_operand
from .rows import padded_columns, stack, tile_rows, value_rows
from .scales import with_params, zero_unit


@triton.jit
def channel_units(
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    BITS: tl.constexpr,
    SLICES: tl.constexpr,
    COLS: tl.constexpr,
    CODE: tl.constexpr,
):
    """What a code ``CODE`` is in the operand of each row ``[R]`` of a row tile of channels, one of ``TILES``."""
    FIRST: tl.constexpr = CODE * unit_in_operand(BITS, field_number(False, SLICES, TILE, 0))
    if padded_columns(COLS) == 8:
        SECOND: tl.constexpr = CODE * unit_in_operand(BITS, field_number(False, SLICES, TILE + TILES, 0))
        return tl.where(tl.arange(0, 16) < 8, FIRST, SECOND)
    else:
        return tl.full((tile_rows(COLS),), FIRST, tl.float32)


@triton.jit
def add_values(
    b_out,
    planes,
    b_scale,
    b_zero,
    b_sum,
    p_slices,
    BITS: tl.constexpr,
    SLICES: tl.constexpr,
    COLS: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    PAIRED: tl.constexpr,
):
    """``out + V^T P^T`` of a block, ``[value_rows, HEADS]`` in the order of row tiles and in :func:`channel_units`.

    ``p_slices`` are the probabilities of its two slices of tokens, ``b_sum [R, HEADS]`` is their sum, the same in every
    row of a tile.
    """
    TILES: tl.constexpr = value_rows(COLS) // tile_rows(COLS)
    tiles, weights = (), ()
    for i in tl.static_range(TILES):
        if HAS_ZERO:
            b_unit = channel_units(i, TILES, BITS, SLICES, COLS, zero_unit(BITS, PAIRED))
            weights = weights + (b_sum * b_unit[:, None],)
            b_acc = tl.zeros_like(b_sum)
        else:
            b_acc = b_sum * channel_units(i, TILES, BITS, SLICES, COLS, -code_offset(BITS))[:, None]
        for s in tl.static_range(SLICES):
            b_acc = tl.dot(field_operand(planes, i, s, TILES, False, SLICES, BITS), p_slices[s], b_acc)
        tiles = tiles + (b_acc,)
    b_weight = b_out
    if HAS_ZERO:
        b_weight = stack(weights)
    return b_out + with_params(stack(tiles), b_weight, b_scale, b_zero, HAS_ZERO, PAIRED)


@triton.jit
def from_channel_units(b_out, BITS: tl.constexpr, SLICES: tl.constexpr, COLS: tl.constexpr):
    """The sums of :func:`add_values`, ``[value_rows, HEADS]``, in numbers."""
    HEADS: tl.constexpr = b_out.shape[1]
    TILES: tl.constexpr = value_rows(COLS) // tile_rows(COLS)
    units = ()
    for i in tl.static_range(TILES):
        b_unit = (1.0 / channel_units(i, TILES, BITS, SLICES, COLS, 1.0))[:, None]
        units = units + (tl.broadcast_to(b_unit, (tile_rows(COLS), HEADS)),)
    return b_out * stack(units)
