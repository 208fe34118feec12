"""Planes of packed words, and one field of all their lanes as an A operand of the tensor core, for ``mma.m16n8k16``.

``COLS`` are the columns of a plane (``layout.plane_columns``). With 8, 16 or 32 of them, words are operands as they lie
in memory. Others take some instructions more: planes of values have dead columns up to the next such number, and of
narrower planes of keys several fields make one operand. ``ALIGNED`` says that fields of keys are moved to the lowest
bits of their operands, so that the query need not correct for their places: see :func:`aligned`.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples, and `and` there is an operator on tensors.
from __future__ import annotations

import triton
import triton.language as tl

from ..addresses import first_word
from ..constants import (
    SUBNORMAL,
    column_run,
    field_number,
    first_spread_field,
    half_of_bit,
    place_of_bit,
    plane_words,
)
from .rows import columns_of_rows, pair_up


@triton.constexpr_function
def aligned(slices, head_dim):
    """Whether fields of keys are moved to the lowest bits of their operands.

    That is where fields of different places are rows of one operand, and where the query would have to be held for each
    place and each slice_hi.
    """
    return slices < 4 or head_dim != slices * 16


@triton.constexpr_function
def place_in_operand(bits, field, aligned=False):
    """The lowest bit of a field in the halves of its operand. All its bits lie below bit 10, in float16's mantissa.

    The same for fields ``f`` and ``f + 8``.
    """
    if aligned:
        return 0
    if bits == 3:
        return (0, 3, 0, 3, 6, 0, 3, 6)[field % 8]
    return place_of_bit(bits, field, 0) % 8


@triton.constexpr_function
def unit_in_operand(bits, field, aligned=False):
    """The float16 that the code 1 of a field is in its operand."""
    return 2.0 ** place_in_operand(bits, field, aligned) * SUBNORMAL


@triton.constexpr_function
def in_both_halves(mask):
    return mask | mask << 16


@triton.jit
def joined(words):
    """The bits of all of some words."""
    b_all = words[len(words) - 1]
    for m in tl.static_range(1, len(words)):
        b_all = b_all | words[len(words) - 1 - m]
    return b_all


@triton.jit
def masked_field(planes, FIRST: tl.constexpr, FIELD: tl.constexpr, BITS: tl.constexpr, ALIGNED: tl.constexpr):
    """Field ``FIELD`` of words, all other bits zero. Plane 0 of the words is ``planes[FIRST]``."""
    PLACE: tl.constexpr = place_in_operand(BITS, FIELD, ALIGNED)
    if first_spread_field(BITS) <= FIELD:
        bits = ()
        for m in tl.static_range(BITS):
            b_bit = planes[FIRST + half_of_bit(BITS, FIELD, m)] >> (place_of_bit(BITS, FIELD, m) - PLACE - m)
            bits = bits + (b_bit & in_both_halves(1 << (PLACE + m)),)
        return joined(bits)
    else:
        b_word = planes[FIRST + half_of_bit(BITS, FIELD, 0)]
        SHIFT: tl.constexpr = place_of_bit(BITS, FIELD, 0) - PLACE
        if SHIFT > 0:
            b_word = b_word >> SHIFT
        return b_word & in_both_halves(((1 << BITS) - 1) << PLACE)


@triton.jit
def halves(b_word):
    """Words ``[R, 8]`` as their float16 halves ``[R, 16]``. No instruction: a word is a register of an operand."""
    b_low = b_word.to(tl.int16).to(tl.float16, bitcast=True)
    b_high = (b_word >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return tl.reshape(tl.join(b_low, b_high), (b_word.shape[0], 16))


@triton.jit
def field_operand(
    planes,
    TILE: tl.constexpr,
    SLICE: tl.constexpr,
    TILES: tl.constexpr,
    IS_KEY: tl.constexpr,
    SLICES: tl.constexpr,
    BITS: tl.constexpr,
    ALIGNED: tl.constexpr = False,
):
    """The A operand ``[R, 16 lanes]`` of a slice and a row tile, one of ``TILES``: the columns of sub-range ``TILE``.

    An operand has 16 rows or 32. Planes of 8 columns have the other 8 in sub-range ``TILE + TILES``; narrower ones have
    the columns of neighbouring sub-ranges in an operand.
    """
    FIRST: tl.constexpr = SLICE // SLICES * BITS  # of the slice_hi
    LOW: tl.constexpr = SLICE % SLICES
    COLS: tl.constexpr = planes[0].shape[0]
    if COLS >= 16:
        return halves(masked_field(planes, FIRST, field_number(IS_KEY, SLICES, TILE, LOW), BITS, ALIGNED))
    elif COLS == 8:
        b_word = masked_field(planes, FIRST, field_number(IS_KEY, SLICES, TILE, LOW), BITS, ALIGNED)
        b_other = masked_field(planes, FIRST, field_number(IS_KEY, SLICES, TILE + TILES, LOW), BITS, ALIGNED)
        b_word = tl.join(b_word, b_other)
        return halves(tl.reshape(tl.permute(b_word, (2, 0, 1)), (16, 8)))
    else:
        PARTS: tl.constexpr = 16 // COLS
        parts = ()
        for i in tl.static_range(PARTS):
            b_word = masked_field(planes, FIRST, field_number(IS_KEY, SLICES, TILE * PARTS + i, LOW), BITS, ALIGNED)
            parts = parts + (b_word,)
        if PARTS == 4:
            b_word = tl.permute(pair_up(pair_up(parts))[0], (3, 2, 0, 1))
        else:
            b_word = tl.permute(pair_up(pair_up(pair_up(parts)))[0], (4, 3, 2, 0, 1))
        return halves(tl.reshape(b_word, (16, 8)))


@triton.jit
def code_one(BITS: tl.constexpr, FIELD: tl.constexpr, ROWS: tl.constexpr, ALIGNED: tl.constexpr):
    """An A operand ``[ROWS, 16]`` with the code 1 in a field everywhere."""
    return tl.full((ROWS, 16), unit_in_operand(BITS, FIELD, ALIGNED), tl.float16)


@triton.jit
def load_planes(p_words, BITS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr, HIGH: tl.constexpr):
    """Planes of words, ``BITS`` for each slice_hi, as tensors ``[WIDTH, 8]``; columns from ``COLS`` on are dead.

    In memory they are ``[COLS / 8, 8 lane pairs, 8]``, or ``[8, COLS]`` where 8 does not divide the columns.

    Row ``(tile, i, c)`` of 16, 2, 8 is column ``(tile, c, i)``: a thread's rows c and c + 8 are neighbours in memory,
    and the four lane pairs that a quarter of a warp reads lie in different banks.
    """
    RUN: tl.constexpr = column_run(COLS)
    planes = ()
    for j in tl.static_range(HIGH * BITS):
        p_plane = p_words + j * plane_words(COLS)
        if WIDTH != COLS:
            column = columns_of_rows(tl.arange(0, WIDTH), WIDTH)
            p_plane += first_word(column, COLS)[:, None]
            b_word = tl.load(p_plane + (tl.arange(0, 8) * RUN)[None, :], mask=(column < COLS)[:, None], other=0)
        elif WIDTH <= 8:
            b_word = tl.load(p_plane + tl.arange(0, plane_words(COLS)))
            b_word = tl.trans(tl.reshape(b_word, (8, COLS)))
        else:
            b_word = tl.load(p_plane + tl.arange(0, plane_words(COLS)))
            b_word = tl.reshape(b_word, (COLS // 16, 2, 8, 4, 2))
            b_word = tl.reshape(tl.permute(b_word, (0, 4, 1, 3, 2)), (COLS, 8))
        planes = planes + (b_word,)
    return planes
