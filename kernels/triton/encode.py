"""Quantizing and packing blocks inside a Triton kernel: ``reference.encode_blocks``.

Blocks are taken in tiles of one field and one half of the words (``kernels/layout.py``), ``[columns of all blocks, lane
pairs]``. With 32 columns a warp each thread has a column, so that a group and what goes into a word meet in one thread:
extremes and errors need no exchange, and what a group costs is paid once. Triton lays a tile out by what is contiguous
in memory, and then by its first dimension; the shapes and the hint of the columns are chosen for that. Tiles that share
groups make a set, which is loaded, quantized and packed before the next one.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from ..modes import rounding
from .casts import in_order
from .constants import (
    block_params,
    block_words,
    column_run,
    params_per_group,
    spare_bits,
    spare_mask,
    start_of_plane,
    whole_fields,
)
from .quantize import quantize_set
from .queries import query_words
from .unpack import tile_channels

CLEARLY = tl.constexpr(rounding.CLEARLY)


@triton.jit
def _add_to_planes(planes, b_codes, FIELD: tl.constexpr, BITS: tl.constexpr):
    """Words ``planes`` (``BITS`` tensors) with a field of both halves set, see ``layout.field_bits``."""
    WHOLE: tl.constexpr = whole_fields(BITS)
    SPARE: tl.constexpr = spare_bits(BITS)
    FIRST: tl.constexpr = (FIELD - WHOLE * BITS) * BITS  # place of a spread field's lowest bit among the spare ones
    new = ()
    for j in tl.static_range(BITS):
        b_word = planes[j]
        if FIELD < WHOLE * BITS:
            if j == FIELD // WHOLE:
                b_word = in_order(b_word + (b_codes << (FIELD % WHOLE * BITS)))
        elif j * SPARE < FIRST + BITS and (j + 1) * SPARE > FIRST:
            b_bits = b_codes >> (j * SPARE - FIRST) if j * SPARE > FIRST else b_codes << (FIRST - j * SPARE)
            b_word = in_order(b_word + ((b_bits & spare_mask(BITS)) << (WHOLE * BITS)))
        new = new + (b_word,)
    return new


@triton.jit
def _add_to_some_plane(planes, b_codes, field, BITS: tl.constexpr):
    """:func:`_add_to_planes` of a field that is not known before the kernel runs."""
    WHOLE: tl.constexpr = whole_fields(BITS)
    SPARE: tl.constexpr = spare_bits(BITS)
    new = ()
    for j in tl.static_range(BITS):
        # a multiplication by a power of two or zero, which takes the addition along
        new = new + (in_order(planes[j] + b_codes * tl.where(field // WHOLE == j, 1 << (field % WHOLE * BITS), 0)),)
    if SPARE > 0:  # noqa: SIM102 (known when the kernel is compiled)
        if field >= WHOLE * BITS:
            first = (field - WHOLE * BITS) * BITS  # place of a spread field's lowest bit among the spare ones
            spread = ()
            for j in tl.static_range(BITS):
                below = j * SPARE - first
                b_bits = (b_codes >> tl.maximum(below, 0)) << tl.maximum(-below, 0)
                b_bits = tl.where((below < BITS) & (below > -SPARE), b_bits & spare_mask(BITS), 0)
                spread = spread + (new[j] + (b_bits << (WHOLE * BITS)),)
            new = spread
    return new


@triton.constexpr_function
def tile_columns(is_key, block, low, cols):
    """Columns of a block (``kernels/layout.py``), padded to a power of two."""
    return block * low // 16 if is_key else cols * block // 256


@triton.constexpr_function
def channels_at_once(head_dim):
    """Channels of a token that are loaded together for its norm: a power of two that divides ``head_dim``."""
    return min(head_dim & -head_dim, 128)


@triton.jit
def least_tokens(load, of_channels, source, first, NB: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr):
    """The token of least norm of a group of each of ``NB`` blocks, as its distance from the group's first, ``[NB]``.

    ``first [NB]`` are the first tokens of the groups. See ``modes/anchored.py``.
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
    COLS: tl.constexpr,
):
    """Blocks of mode ``none``, token after token; see :func:`encode_blocks`."""
    channel, real = tile_channels(IS_KEY, BLOCK, D, COLS)
    for block in range(tl.minimum(left, NB)):
        token = block * BLOCK + tl.arange(0, BLOCK)[:, None]
        number = of_channels(source, channel[None, :], real[None, :], (1, COLS))
        b_x = load(source, number, token, channel[None, :], real[None, :])
        tl.store(codes + token * D + channel[None, :], b_x, mask=real[None, :])


@triton.jit
def _columns(IS_KEY: tl.constexpr, NB: tl.constexpr, PADDED: tl.constexpr):
    """``(column [NB * PADDED], block [NB * PADDED])`` of the columns of a program's blocks."""
    WIDTH: tl.constexpr = NB * PADDED
    column = tl.arange(0, WIDTH) % PADDED
    if not IS_KEY:
        # no more channels a thread than it takes to have all the tokens of them
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
    LO: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Write the scales of a group of slices, of all columns and sub-ranges, and add its codes to ``planes``."""
    DTYPE: tl.constexpr = p_scales.dtype.element_ty
    SLICES: tl.constexpr = LO if IS_KEY else BLOCK // 16
    COLUMNS: tl.constexpr = PADDED if IS_KEY else D * SLICES // 16
    SUBS: tl.constexpr = 16 // SLICES
    # two tokens of a column share what `of_channels` gives
    TOGETHER: tl.constexpr = min(SUBS, 2) if IS_KEY else 1
    WIDTH: tl.constexpr = NB * PADDED
    column, block = _columns(IS_KEY, NB, PADDED)
    real = (column < COLUMNS) & (block < left)
    # every column is there in most formats, and a load without a mask costs less
    present = None if COLUMNS == PADDED else column < COLUMNS
    there = None if COLUMNS == PADDED else present[:, None]
    pair = tl.arange(0, 8)
    # [columns, halves of a slice, lanes]: 16 bytes a load, all lanes of a column in one thread
    b_lane = tl.arange(0, 2)[None, :, None] * 8 + tl.arange(0, 8)[None, None, :]
    # a block that is not there is read as the last one that is
    first = tl.minimum(block, left - 1) * BLOCK
    if USES_ANCHOR:
        begins = tl.minimum(tl.arange(0, NB), left - 1) * BLOCK + group * GROUP
        least = least_tokens(load, of_channels, source, begins, NB, GROUP, D)
        least = tl.reshape(tl.broadcast_to(least[:, None], (NB, PADDED)), (WIDTH,))
    known = None
    if USES_QUERIES:
        channel0 = hi * (16 * LO) + group * GROUP
        known = query_words(queries, channel0, WIDTH, GROUP, D)
    for sub in tl.static_range(0, SUBS, TOGETHER):
        tiles = ()
        for i in tl.static_range(GROUP // 16):
            lane0 = (group * (GROUP // 16) + i) * 16
            if IS_KEY:
                b_channel = hi * (16 * LO) + lane0 + b_lane
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
                    field = (sub + t) * SLICES + group * (GROUP // 16) + i
                    planes = _add_to_some_plane(planes, set_codes[i], field, BITS)
                else:
                    # an expression, and no name for it: that would be a number of the kernel's run time
                    planes = _add_to_planes(planes, set_codes[i], (group * (GROUP // 16) + i) * SUBS + sub + t, BITS)
            if IS_KEY:
                p_scale = p_scales + ((hi * (16 * LO // GROUP) + group) * BLOCK + (sub + t) * COLUMNS + column)
            else:
                p_scale = p_scales + (group * D + (sub + t) * COLUMNS + column)
            tl.store(p_scale, b_scale.to(DTYPE), mask=real)
            if params_per_group(HAS_ZERO, DTYPE) == 2:
                tl.store(p_scale + BLOCK * D // GROUP, b_zero.to(DTYPE), mask=real)
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
    LO: tl.constexpr,
    COLS: tl.constexpr,
):
    """Write blocks to ``codes`` and ``scales``, pointers to the first word and the first scale of the first one.

    Args:
        load: ``load(source, numbers, token, channel, real)`` gives elements in the cache's dtype; the last three
            broadcast to a tile, and what is not real is anything (``real`` None: all are). Tokens count from the first
            block's first. ``numbers`` are what ``of_channels(source, channel, real, shape)`` gave for a tile of that
            shape: what elements of a channel share.
        queries: pointer to the query profile of the head, where ``USES_QUERIES``.
        left: how many blocks there are, 1 or more; those behind ``NB`` are left alone.
        NB: how many blocks a program takes at most.
        ENCODER, HAS_ZERO, USES_ANCHOR, USES_QUERIES: of the mode, see ``support.mode_constants``.
    """
    DTYPE: tl.constexpr = scales.dtype.element_ty
    PADDED: tl.constexpr = tile_columns(IS_KEY, BLOCK, LO, COLS)
    SLICES: tl.constexpr = LO if IS_KEY else BLOCK // 16
    COLUMNS: tl.constexpr = PADDED if IS_KEY else D * SLICES // 16
    HI: tl.constexpr = D // (16 * LO) if IS_KEY else 1
    START: tl.constexpr = start_of_plane(BITS)
    RUN: tl.constexpr = column_run(COLUMNS)
    column, block = _columns(IS_KEY, NB, PADDED)
    real = (column < COLUMNS) & (block < left)
    pair = tl.arange(0, 8)
    p_codes = codes + block * block_words(BITS, BLOCK, D)
    p_scales = scales + block * block_params(BITS, HAS_ZERO, GROUP, BLOCK, D, DTYPE)
    for hi in range(HI):
        planes = ()
        for _ in tl.static_range(BITS):
            planes = planes + (tl.full((NB * PADDED, 8), START, tl.int32),)
        # code that the instruction cache cannot hold is slow: that of one group of keys is as much as it takes
        if IS_KEY:
            for group in range(SLICES * 16 // GROUP):
                planes = _encode_group(
                    load, of_channels, source, queries, p_scales, left, hi, group, planes,
                    NB, IS_KEY, ENCODER, HAS_ZERO, USES_ANCHOR, USES_QUERIES, BITS, GROUP, BLOCK, D, LO, PADDED,
                )  # fmt: skip
        else:
            for group in tl.static_range(SLICES * 16 // GROUP):
                planes = _encode_group(
                    load, of_channels, source, queries, p_scales, left, hi, group, planes,
                    NB, IS_KEY, ENCODER, HAS_ZERO, USES_ANCHOR, USES_QUERIES, BITS, GROUP, BLOCK, D, LO, PADDED,
                )  # fmt: skip
        p_word = p_codes + (hi * (BITS * COLUMNS * 8) + column // RUN * (RUN * 8) + column % RUN)
        p_word = p_word[:, None] + pair[None, :] * RUN
        for j in tl.static_range(BITS):
            tl.store(p_word + j * (COLUMNS * 8), planes[j], mask=real[:, None])
