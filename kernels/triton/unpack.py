"""Loads and dequantizes tokens of a cache side in a Triton kernel, in any format, one code at a time.

The fast attention kernel (``attention_fields``) loads whole planes of words as tensor-core operands instead.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .addresses import locate_code, scale_of, tile_channels, window_slot
from .constants import (
    PAIR_SCALE,
    PAIR_STEPS,
    block_groups,
    block_words,
    code_offset,
    is_byte,
    is_paired,
    ring_slots,
    window_slots,
    zero_step,
)
from .fields import load_codes


@triton.jit
def pair_numbers(b_word, BITS: tl.constexpr):
    """``(scale, zero)`` float32 of words int16, see ``kernels/scale_types.py``."""
    b_scale = (b_word & PAIR_SCALE).to(tl.float16, bitcast=True).to(tl.float32)
    b_steps = (b_word & PAIR_STEPS).to(tl.float32)
    return b_scale, tl.where(b_word < 0, -b_steps, b_steps) * zero_step(BITS) * b_scale


@triton.jit
def decoded(b_code, scales, at, group, mask, HAS_ZERO: tl.constexpr, BITS: tl.constexpr, GROUPS: tl.constexpr):
    """Numbers float32 of codes. ``at`` is their block, with ``GROUPS`` groups; ``group`` is theirs in it."""
    if is_paired(scales.dtype.element_ty):
        b_scale, b_zero = pair_numbers(tl.load(scales + at * GROUPS + group, mask, other=0), BITS)
        return b_code.to(tl.float32) * b_scale + b_zero
    elif HAS_ZERO:
        p_scale = scales + at * (2 * GROUPS) + group
        b_zero = tl.load(p_scale + GROUPS, mask, other=0.0).to(tl.float32)
        return b_code.to(tl.float32) * tl.load(p_scale, mask, other=0.0).to(tl.float32) + b_zero
    else:
        b_scale = tl.load(scales + at * GROUPS + group, mask, other=0)
        if is_byte(scales.dtype.element_ty):
            b_scale = (b_scale.to(tl.int16) << 8).to(tl.float16, bitcast=True)
        return (b_code - code_offset(BITS)).to(tl.float32) * b_scale.to(tl.float32)


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
    SLICES: tl.constexpr,
    COLS: tl.constexpr,
):
    """The tokens at ``position [T]`` of a cache side, ``[T, COLS]`` float32, from its blocks and windows.

    Tokens that are not ``held`` and columns without a channel are zero, and nothing is read for them. ``q_end`` is
    ``addresses.quantized_end``. ``ANY_QUANTIZED`` and ``ANY_WINDOW`` (scalars) say whether any of the tokens may be in
    the blocks and in the windows; the other region is skipped.
    """
    channel, real = tile_channels(IS_KEY, SLICES, D, COLS)
    b_x = tl.zeros((position.shape[0], COLS), tl.float32)
    quantized = held & (position >= SINK) & (position < q_end)
    if ANY_QUANTIZED:
        block = tl.maximum(position - SINK, 0) // BLOCK
        token = tl.maximum(position - SINK, 0) % BLOCK
        at = (bh * capacity + block)[:, None]
        mask = quantized[:, None] & real[None, :]
        if BITS == 0:
            p_x = codes + at * block_words(BITS, BLOCK, D) + (token[:, None] * D + channel[None, :])
            b_x += tl.load(p_x, mask, other=0.0).to(tl.float32)
        else:
            GROUPS: tl.constexpr = block_groups(GROUP, BLOCK, D)
            field, offset, plane = locate_code(token[:, None], channel[None, :], IS_KEY, BITS, BLOCK, D, SLICES)
            halves = codes.to(tl.pointer_type(tl.int16))
            b_code = load_codes(halves + at * (block_words(BITS, BLOCK, D) * 2) + offset, field, plane, mask, BITS)
            group = scale_of(token[:, None], channel[None, :], IS_KEY, GROUP, BLOCK, D)
            b_x += decoded(b_code, scales, at, group, mask, HAS_ZERO, BITS, GROUPS)
    if ANY_WINDOW:
        slot = window_slot(position, SINK, ring_slots(RECENT, BLOCK))
        mask = (held & ((position < SINK) | (position >= q_end)))[:, None] & real[None, :]
        at = (bh * window_slots(SINK, RECENT, BLOCK) + slot)[:, None]
        b_x += tl.load(window + at * D + channel[None, :], mask, other=0.0).to(tl.float32)
    return b_x
