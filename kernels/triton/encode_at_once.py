"""Quantizes and packs one block in a Triton kernel, all of its groups at once: ``reference.encode_blocks``.

``encode.encode_blocks`` is for prompts, whose many blocks fill a GPU; this is for the single block that a decode step
may have to quantize, where latency counts. There, a thread processes whole groups one after another. Here, two threads
share a group, and the fields of a word are in different threads and summed across them. These threads should be in one
warp: exchanging through shared memory, with its barriers, would take most of the time
(``docs/lab/encoding-kernels.md``). The order of rows and the shapes of tiles are chosen for that.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from ..formats import CacheFormat
from . import support
from .addresses import first_word
from .codes import start_of_plane
from .constants import (
    block_groups,
    column_run,
    group_row,
    next_power_of_2,
    params_per_group,
    plane_columns,
    plane_words,
    slice_stride,
    sub_range_stride,
    sub_ranges,
)
from .encode import least_tokens
from .fields import field_in_plane
from .quantize import quantize_set
from .queries import query_words
from .support import side_constants

#: Most warps of a program. With more groups than threads for them, a thread has several.
MOST_WARPS = 8


@triton.constexpr_function
def padded_rows(is_key, group, block, slices, cols, head_dim):
    """Groups of a block, with each dimension of :func:`encode_block`'s rows padded to a power of two."""
    high = 1 << (head_dim // (16 * slices) - 1).bit_length() if is_key else 1
    return high * (16 * slices // group) * sub_ranges(slices) * plane_columns(is_key, slices, block, cols)


def warps_for(fmt: CacheFormat, head_dim: int) -> int:
    """Warps of a program: two threads per group of a block, at most :data:`MOST_WARPS`."""
    if not fmt.quantized:
        return min(MOST_WARPS, max(1, support.next_power_of_2(fmt.block * head_dim) // 1024))
    side = side_constants(fmt, head_dim)
    rows = padded_rows(fmt.is_key, fmt.group_size, fmt.block, side["SLICES"], side["COLS"], head_dim)
    return min(MOST_WARPS, max(1, rows // 16))


@triton.jit
def _side_by_side(planes, BITS: tl.constexpr):
    """Join up to eight planes to a tensor. Its last dimension is the next power of two, in the order of :func:`_plane`.

    One tensor is then reduced, converted to another layout and stored, with one synchronization instead of one a plane.
    """
    b_zero = tl.zeros_like(planes[0])
    if BITS == 1:
        b_all = tl.expand_dims(planes[0], 4)
    elif BITS == 2:
        b_all = tl.join(planes[0], planes[1])
    else:
        b_all = tl.join(tl.join(planes[0], planes[1]), tl.join(planes[2], planes[3] if BITS > 3 else b_zero))
        if BITS > 4:
            b_low = tl.join(planes[4], planes[5] if BITS > 5 else b_zero)
            b_high = tl.join(planes[6] if BITS > 6 else b_zero, planes[7] if BITS > 7 else b_zero)
            b_all = tl.join(b_all, tl.join(b_low, b_high))
    return b_all


@triton.jit
def _plane(COUNT: tl.constexpr):
    """The plane at each index of :func:`_side_by_side`'s last dimension: nested joins reverse the bits of the index."""
    place = tl.arange(0, COUNT)
    if COUNT == 4:
        place = place // 2 + place % 2 * 2
    elif COUNT == 8:
        place = place // 4 + place // 2 % 2 * 2 + place % 2 * 4
    return place


@triton.jit
def encode_block(
    load,
    of_channels,
    source,
    queries,
    codes,
    scales,
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
    COLS: tl.constexpr,
):
    """Quantize a block, and store it at ``codes`` and ``scales``, pointers to its first word and first scale.

    The other arguments are those of ``encode.encode_blocks``.
    """
    DTYPE: tl.constexpr = scales.dtype.element_ty
    PADDED: tl.constexpr = plane_columns(IS_KEY, SLICES, BLOCK, COLS)
    ROWS: tl.constexpr = padded_rows(IS_KEY, GROUP, BLOCK, SLICES, COLS, D)
    SUBS: tl.constexpr = sub_ranges(SLICES)
    SUB: tl.constexpr = sub_range_stride(IS_KEY, SLICES)
    SLICE: tl.constexpr = slice_stride(IS_KEY, SLICES)
    GROUPS: tl.constexpr = SLICES * 16 // GROUP
    HIGH: tl.constexpr = ROWS // (GROUPS * SUBS * PADDED)
    COLUMNS: tl.constexpr = plane_columns(IS_KEY, SLICES, BLOCK, D)
    PLANE: tl.constexpr = plane_words(COLUMNS)
    HI: tl.constexpr = D // (16 * SLICES) if IS_KEY else 1
    # [slice_hi, columns, sub-ranges, groups of a slice_hi]: the fields of a word lie in neighbouring threads
    row = tl.arange(0, ROWS)
    group = row % GROUPS
    sub = row // GROUPS % SUBS
    column = row // (GROUPS * SUBS) % PADDED
    hi = tl.minimum(row // (PADDED * SUBS * GROUPS), HI - 1)  # padding reads the last one again
    place = sub * COLUMNS + column  # tokens of keys, channels of values
    # without padding, as in most formats, there is no mask: a load without one costs less
    present = None
    there = None
    if COLUMNS != PADDED:
        present = column < COLUMNS
        there = present[:, None]
    pair = tl.arange(0, 8)
    lane = tl.arange(0, 16)[None, :]  # two neighbouring threads have a slice, 8 lanes (16 bytes of float16) each
    tiles = ()
    for i in tl.static_range(GROUP // 16):
        if IS_KEY:
            channel = (hi * (16 * SLICES) + group * GROUP + i * 16)[:, None] + lane
            numbers = of_channels(source, channel, None, (ROWS, 16))
            b_x = load(source, numbers, place[:, None], channel, None)
            b_first, b_second = tl.split(tl.reshape(b_x, (ROWS, 8, 2)))
        else:
            token = (group * GROUP)[:, None] + (i * 16 + pair * 2)[None, :]
            numbers = of_channels(source, place[:, None], there, (ROWS, 8))
            b_first = load(source, numbers, token, place[:, None], there)
            b_second = load(source, numbers, token + 1, place[:, None], there)
        tiles = tiles + (b_first, b_second)
    b_anchor = None
    if USES_ANCHOR:
        begins = tl.arange(0, GROUPS) * GROUP
        least = least_tokens(load, of_channels, source, begins, GROUPS, GROUP, D)
        least = tl.reshape(tl.broadcast_to(least[None, :], (PADDED * SUBS, GROUPS)), (ROWS,))
        numbers = of_channels(source, place, present, (ROWS,))
        b_anchor = load(source, numbers, group * GROUP + least, place, present).to(tl.float32)
    known = None
    if USES_QUERIES:
        channel = (hi * (16 * SLICES) + group * GROUP)[:, None]
        known = query_words(queries, channel, ROWS, GROUP, D)
    set_codes, b_scale, b_zero = quantize_set(tiles, b_anchor, known, ENCODER, BITS, DTYPE)

    real = row // (PADDED * SUBS * GROUPS) < HI
    if present is not None:
        real = real & present
    p_scale = scales + (hi * (16 * SLICES // GROUP) + group) * group_row(IS_KEY, BLOCK, D) + place
    tl.store(p_scale, b_scale.to(DTYPE), mask=real)
    if params_per_group(HAS_ZERO, DTYPE) == 2:
        tl.store(p_scale + block_groups(GROUP, BLOCK, D), b_zero.to(DTYPE), mask=real)
    planes = ()
    for j in tl.static_range(BITS):
        b_word = tl.zeros((ROWS, 8), tl.int32)
        for i in tl.static_range(GROUP // 16):
            field = sub * SUB + (group * (GROUP // 16) + i) * SLICE
            b_word += field_in_plane(set_codes[i], field, j, BITS)
        planes = planes + (tl.reshape(b_word, (HIGH, PADDED, GROUPS * SUBS, 8)),)
    PLANES: tl.constexpr = next_power_of_2(BITS)
    b_words = tl.reshape(_side_by_side(planes, BITS), (HIGH, PADDED, GROUPS * SUBS, 8, PLANES))
    b_words = tl.sum(b_words, 2) + start_of_plane(BITS)
    high = tl.arange(0, HIGH)[:, None, None, None]
    column = tl.arange(0, PADDED)[None, :, None, None]
    plane = _plane(PLANES)[None, None, None, :]
    p_word = codes + high * (BITS * PLANE) + plane * PLANE
    p_word += first_word(column, COLUMNS) + pair[None, None, :, None] * column_run(COLUMNS)
    tl.store(p_word, b_words, mask=(high < HI) & (column < COLUMNS) & (plane < BITS))
