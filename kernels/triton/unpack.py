"""Reading the bytes of a cache side from a Triton kernel: any format, one code at a time.

The addresses are those of ``kernels/layout.py``. Words are addressed as int16 halves: what a lane has in plane j lies
``j * PLANE`` behind what it has in plane 0, whose place is :func:`place_in_plane`. These helpers are the slow and
general way, for every bit width, head_dim and block; the fast kernels read whole planes as tensor-core operands.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .constants import PAIR_SCALE, PAIR_STEPS, column_run, spare_bits, whole_fields, zero_step


@triton.jit
def tile_channels(IS_KEY: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, COLS: tl.constexpr):
    """``(channel [COLS], is there one [COLS])`` of the columns of a tile ``[tokens, COLS]``.

    Keys: channel = column. Values: the channels of each sub-range that a field covers are padded to a power of two of
    their own, so that a tile can be reshaped into fields.
    """
    column = tl.arange(0, COLS)
    if IS_KEY:
        return column, column < D
    else:
        SUBS: tl.constexpr = 256 // BLOCK
        WIDTH: tl.constexpr = D // SUBS
        PADDED: tl.constexpr = COLS // SUBS
        return (column // PADDED) * WIDTH + column % PADDED, column % PADDED < WIDTH


@triton.jit
def place_in_plane(lane, column, COLUMNS: tl.constexpr):
    """Where the half-word of (lane, column) lies in a plane of ``COLUMNS * 8`` words, in int16 halves."""
    RUN: tl.constexpr = column_run(COLUMNS)
    return column // RUN * (RUN * 16) + lane // 2 * (RUN * 2) + column % RUN * 2 + lane % 2


@triton.jit
def locate(
    token,
    channel,
    IS_KEY: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    LO: tl.constexpr,
):
    """``(field, offset of plane 0, PLANE)`` of the code of (token, channel) in a block, in int16 halves."""
    if IS_KEY:
        SUBS: tl.constexpr = 16 // LO
        COLUMNS: tl.constexpr = BLOCK // SUBS
        lane = channel % 16
        field = token // COLUMNS * LO + channel // 16 % LO
        high = channel // (16 * LO)
        column = token % COLUMNS
    else:
        SUBS: tl.constexpr = 256 // BLOCK
        COLUMNS: tl.constexpr = D // SUBS
        lane = token % 16
        field = token // 16 * SUBS + channel // COLUMNS
        high = 0
        column = channel % COLUMNS
    PLANE: tl.constexpr = COLUMNS * 16
    return field, high * (BITS * PLANE) + place_in_plane(lane, column, COLUMNS), PLANE


@triton.jit
def load_codes(p_halves, field, PLANE: tl.constexpr, mask, BITS: tl.constexpr):
    """Unsigned codes, int32, of ``field`` where plane 0 lies at ``p_halves`` (int16 pointers)."""
    WHOLE: tl.constexpr = whole_fields(BITS)
    SPARE: tl.constexpr = spare_bits(BITS)
    SPREAD: tl.constexpr = WHOLE * BITS  # first field that is spread over the spare bits
    MASK: tl.constexpr = (1 << BITS) - 1
    spread = field >= SPREAD
    half = tl.load(p_halves + field // WHOLE * PLANE, mask=mask & (field < SPREAD), other=0).to(tl.int32)
    code = (half >> (field % WHOLE * BITS)) & MASK
    if SPARE > 0:
        rest = tl.zeros_like(code)
        for j in tl.static_range(BITS):
            half = tl.load(p_halves + j * PLANE, mask=mask & spread, other=0).to(tl.int32)
            rest |= ((half >> SPREAD) & ((1 << SPARE) - 1)) << (j * SPARE)
        code = tl.where(spread, (rest >> tl.where(spread, (field - SPREAD) * BITS, 0)) & MASK, code)
    return code


@triton.jit
def pair_numbers(b_word, BITS: tl.constexpr):
    """``(scale, zero)`` float32 of words int16, see ``kernels/scale_types.py``."""
    b_scale = (b_word & PAIR_SCALE).to(tl.float16, bitcast=True).to(tl.float32)
    b_steps = (b_word & PAIR_STEPS).to(tl.float32)
    return b_scale, tl.where(b_word < 0, -b_steps, b_steps) * zero_step(BITS) * b_scale


@triton.jit
def quantized_end(state, SINK: tl.constexpr, RECENT: tl.constexpr, BLOCK: tl.constexpr):
    """First token behind the quantized region of the sequence whose state ``[4]`` lies at ``state``."""
    return SINK + tl.maximum(tl.load(state + 2) - SINK - RECENT, 0) // BLOCK * BLOCK


@triton.jit
def load_tokens(
    codes,
    scales,
    window,
    bh,
    capacity,
    position,
    held,
    q_end,
    ANY_QUANTIZED,
    ANY_WINDOW,
    IS_KEY: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    SINK: tl.constexpr,
    RECENT: tl.constexpr,
    D: tl.constexpr,
    LO: tl.constexpr,
    COLS: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
):
    """What a cache side holds at ``position [T]``, ``[T, COLS]`` float32, from its blocks and windows.

    Tokens that are not ``held`` and columns without a channel give zero, and nothing is read for them.
    ``ANY_QUANTIZED`` and ``ANY_WINDOW`` are scalars that let a tile skip the region it does not touch.
    """
    channel, real = tile_channels(IS_KEY, BLOCK, D, COLS)
    b_x = tl.zeros((position.shape[0], COLS), tl.float32)
    quantized = held & (position >= SINK) & (position < q_end)
    if ANY_QUANTIZED:
        block = tl.maximum(position - SINK, 0) // BLOCK
        token = tl.maximum(position - SINK, 0) % BLOCK
        at = (bh * capacity + block)[:, None]
        mask = quantized[:, None] & real[None, :]
        if BITS == 0:
            b_x += tl.load(codes + at * (BLOCK * D) + (token[:, None] * D + channel[None, :]), mask, other=0.0).to(
                tl.float32
            )
        else:
            GROUPS: tl.constexpr = BLOCK * D // GROUP
            field, offset, plane = locate(token[:, None], channel[None, :], IS_KEY, BITS, BLOCK, D, LO)
            halves = codes.to(tl.pointer_type(tl.int16))
            b_code = load_codes(halves + at * (BLOCK * D * BITS // 16) + offset, field, plane, mask, BITS)
            if IS_KEY:
                group = channel[None, :] // GROUP * BLOCK + token[:, None]
            else:
                group = token[:, None] // GROUP * D + channel[None, :]
            if scales.dtype.element_ty == tl.int16:
                b_scale, b_zero = pair_numbers(tl.load(scales + at * GROUPS + group, mask, other=0), BITS)
                b_x += b_code.to(tl.float32) * b_scale + b_zero
            elif HAS_ZERO:
                p_scale = scales + at * (2 * GROUPS) + group
                b_zero = tl.load(p_scale + GROUPS, mask, other=0.0).to(tl.float32)
                b_x += b_code.to(tl.float32) * tl.load(p_scale, mask, other=0.0).to(tl.float32) + b_zero
            else:
                b_scale = tl.load(scales + at * GROUPS + group, mask, other=0)
                if scales.dtype.element_ty == tl.uint8:
                    b_scale = (b_scale.to(tl.int16) << 8).to(tl.float16, bitcast=True)
                OFFSET: tl.constexpr = 1 << (BITS - 1)
                b_x += (b_code - OFFSET).to(tl.float32) * b_scale.to(tl.float32)
    if ANY_WINDOW:
        RING: tl.constexpr = RECENT + BLOCK
        slot = tl.where(position < SINK, position, SINK + tl.maximum(position - SINK, 0) % RING)
        mask = (held & ((position < SINK) | (position >= q_end)))[:, None] & real[None, :]
        at = (bh * (SINK + RING + QUERY_ROWS) + slot)[:, None]
        b_x += tl.load(window + at * D + channel[None, :], mask, other=0.0).to(tl.float32)
    return b_x
