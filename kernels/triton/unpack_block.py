"""Loads and dequantizes a whole block of a cache side in a Triton kernel, in any format with blocks of 32 tokens.

Each word is loaded once, and gives its codes while it is in registers. ``unpack.load_tokens``, which takes any tokens,
loads a half of a word and a scale for each code.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from .addresses import tile_channels
from .attention_fields.rows import pair_up
from .constants import (
    BLOCK_TOKENS,
    block_groups,
    block_words,
    column_run,
    first_spread_field,
    half_of_bit,
    place_of_bit,
    plane_columns,
    plane_words,
    sub_ranges,
)
from .unpack import decoded


@triton.jit
def field_of_words(planes, FIELD: tl.constexpr, BITS: tl.constexpr):
    """The codes of a field, in both halves of a word: ``(lower, upper)``, int32. ``planes`` are ``BITS`` tensors."""
    MASK: tl.constexpr = (1 << BITS) - 1
    if first_spread_field(BITS) > FIELD:
        b_word = planes[half_of_bit(BITS, FIELD, 0)]
        PLACE: tl.constexpr = place_of_bit(BITS, FIELD, 0)
        return (b_word >> PLACE) & MASK, (b_word >> (PLACE + 16)) & MASK
    else:
        b_lower = planes[0] & 0
        b_upper = b_lower
        for m in tl.static_range(BITS):
            b_word = planes[half_of_bit(BITS, FIELD, m)]
            b_lower = b_lower | (((b_word >> place_of_bit(BITS, FIELD, m)) & 1) << m)
            b_upper = b_upper | (((b_word >> (place_of_bit(BITS, FIELD, m) + 16)) & 1) << m)
        return b_lower, b_upper


@triton.jit
def codes_of_words(planes, BITS: tl.constexpr):
    """All codes of words: five dimensions of 2 more than ``planes`` have, for the half and for bits 0 to 3 of a field.

    All codes of a word are in the registers of the thread that has it, so that shifts are constants.
    """
    codes = ()
    for field in tl.static_range(16):
        b_lower, b_upper = field_of_words(planes, field, BITS)
        codes = codes + (b_lower, b_upper)
    return pair_up(pair_up(pair_up(pair_up(pair_up(codes)))))[0]


@triton.constexpr_function
def dimension(place, is_key, slices):
    """Which dimension of :func:`codes_of_words` is at a place of a block: those of tokens, then those of channels.

    A field of keys is (sub-range of tokens, slice), one of values (slice of tokens, sub-range of channels), see
    ``kernels/layout.py``.
    """
    high, run, pair, in_run, half, bit0, bit1, bit2, bit3 = range(9)
    if not is_key:
        return (bit3, pair, half, high, bit2, bit1, bit0, run, in_run)[place]
    field, bits_of_sub = (bit3, bit2, bit1, bit0), {1: 4, 2: 3, 4: 2, 8: 1, 16: 0}[slices]
    return (*field[:bits_of_sub], run, in_run, high, *field[bits_of_sub:], pair, half)[place]


@triton.jit
def tokens_first(b_x, IS_KEY: tl.constexpr, SLICES: tl.constexpr):
    """Codes or numbers of a block with their tokens in front of their channels."""
    return tl.permute(
        b_x, dimension(0, IS_KEY, SLICES), dimension(1, IS_KEY, SLICES), dimension(2, IS_KEY, SLICES),
        dimension(3, IS_KEY, SLICES), dimension(4, IS_KEY, SLICES), dimension(5, IS_KEY, SLICES),
        dimension(6, IS_KEY, SLICES), dimension(7, IS_KEY, SLICES), dimension(8, IS_KEY, SLICES),
    )  # fmt: skip


@triton.jit
def load_block(
    codes,
    scales,
    at,
    IS_KEY: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    SLICES: tl.constexpr,
    COLS: tl.constexpr,
):
    """The 32 tokens of block ``at`` (int64, counted through all sequences) of a cache side, ``[32, COLS]`` float32.

    Columns are those of ``addresses.tile_channels``; those without a channel mean nothing, but are finite. ``GROUP`` is
    a multiple of 16.
    """
    if BITS == 0:
        channel, real = tile_channels(IS_KEY, SLICES, D, COLS)
        p_x = codes + at * block_words(BITS, BLOCK_TOKENS, D) + channel[None, :]
        return tl.load(p_x + tl.arange(0, BLOCK_TOKENS)[:, None] * D, real[None, :], other=0.0).to(tl.float32)
    else:
        # Dimensions: those of words as they lie in memory, which are slice_hi, run of columns, lane pair, column of the
        # run; then those of :func:`codes_of_words`.
        SUBS: tl.constexpr = sub_ranges(SLICES)
        COLUMNS: tl.constexpr = plane_columns(IS_KEY, SLICES, BLOCK_TOKENS, D)
        PLANE: tl.constexpr = plane_words(COLUMNS)
        HIGH: tl.constexpr = COLS // (16 * SLICES) if IS_KEY else 1
        WIDTH: tl.constexpr = COLUMNS if IS_KEY else COLS // SUBS  # a power of two, the columns and some more
        RUN: tl.constexpr = column_run(COLUMNS)
        TILE_RUN: tl.constexpr = 8 if COLUMNS % 8 == 0 else WIDTH
        high = tl.arange(0, HIGH)[:, None, None, None]
        run = tl.arange(0, WIDTH // TILE_RUN)[None, :, None, None]
        pair = tl.arange(0, 8)[None, None, :, None]
        in_run = tl.arange(0, TILE_RUN)[None, None, None, :]
        column = run * TILE_RUN + in_run
        real = (high < (D // (16 * SLICES) if IS_KEY else 1)) & (column < COLUMNS)
        word = high * (BITS * PLANE) + run * plane_words(RUN) + pair * RUN + in_run
        p_words = codes + at * block_words(BITS, BLOCK_TOKENS, D) + word
        planes = ()
        for j in tl.static_range(BITS):
            planes = planes + (tl.load(p_words + j * PLANE, mask=real, other=0),)
        b_code = codes_of_words(planes, BITS)
        bit = tl.arange(0, 2)
        field = bit[:, None, None, None] + bit[:, None, None] * 2 + bit[:, None] * 4 + bit * 8
        field = field[None, None, None, None, None]
        if IS_KEY:
            # the group of a slice_hi where all slices that share a word are in one group
            low = 0 if GROUP % (16 * SLICES) == 0 else field % SLICES
            group = (high[:, :, :, :, None, None, None, None, None] * SLICES + low) * 16 // GROUP * BLOCK_TOKENS
            group += field // SLICES * COLUMNS
        else:
            group = field // SUBS * 16 // GROUP * D + field % SUBS * COLUMNS
        group += column[:, :, :, :, None, None, None, None, None]
        real = real[:, :, :, :, None, None, None, None, None]
        b_x = decoded(b_code, scales, at, group, real, HAS_ZERO, BITS, block_groups(GROUP, BLOCK_TOKENS, D))
        return tl.reshape(tokens_first(b_x, IS_KEY, SLICES), (BLOCK_TOKENS, COLS))
