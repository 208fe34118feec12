"""Groups whose scale and zero point share a word: ``kernels/modes/paired.py``."""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from ..casts import INTERPRETED, fma
from ..codes import BIAS, ROUND, both_halves, max_nan, past_code
from ..constants import (
    MOST_STEPS,
    NEAREST_BITS,
    PAIR_LARGEST,
    PAIR_QUANTUM,
    PAIR_SCALE,
    PAIR_SIGN,
    SMALLEST_NORMAL,
    code_offset,
    zero_step,
)


@triton.jit
def _quantum(b_scale):
    """Distance from a scale to the next larger ``pair8`` scale."""
    b_power = (b_scale.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.maximum(b_power, SMALLEST_NORMAL) * PAIR_QUANTUM


@triton.jit
def unit(b_scale):
    """The scale, or 1 where it is 0: a divisor for groups whose elements all round to code 0."""
    return tl.where(b_scale == 0.0, 1.0, b_scale)


@triton.jit
def _rounded_scale(b_scale, BITS: tl.constexpr):
    """``scale_types.round_scale`` of non-negative scales. NaN stays NaN."""
    b_size = tl.where(b_scale > PAIR_LARGEST, PAIR_LARGEST, b_scale)
    b_shift = _quantum(b_size) * ROUND
    b_rounded = (b_size + b_shift) - b_shift
    if BITS > NEAREST_BITS:
        b_rounded = tl.where(b_rounded < b_size, b_rounded + _quantum(b_size), b_rounded)
    return b_rounded


@triton.jit
def codes_for(tiles, b_scale, b_steps, BITS: tl.constexpr):
    """Codes for a rounded scale and a zero point in steps, packed by ``codes.both_halves``, and their squared error."""
    b_unit = unit(b_scale)
    b_inverse = reciprocal(b_unit)
    b_inverse, b_offset = tl.expand_dims(b_inverse, 1), tl.expand_dims(b_steps * zero_step(BITS), 1)
    b_error = tl.zeros_like(tiles[0])
    pairs = ()
    for i in tl.static_range(0, len(tiles), 2):
        b_first = fma(tiles[i], b_inverse, -b_offset)
        b_second = fma(tiles[i + 1], b_inverse, -b_offset)
        b_first_code = unsigned_code(b_first, BITS)
        b_second_code = unsigned_code(b_second, BITS)
        pairs = pairs + (both_halves(b_first_code, b_second_code),)
        b_first -= b_first_code - BIAS
        b_second -= b_second_code - BIAS
        b_error += b_first * b_first
        b_error += b_second * b_second
    return pairs, tl.sum(b_error, 1) * (b_unit * b_unit)


@triton.jit
def unsigned_code(b_ratio, BITS: tl.constexpr):
    """``round(ratio)`` clamped to the range of a code, as a biased code. NaN gives code 0."""
    if INTERPRETED:
        b_ratio = tl.where(b_ratio == b_ratio, b_ratio, 0.0)  # a GPU's maximum prefers the number
    return tl.minimum(tl.maximum(b_ratio, 0.0), (1 << BITS) - 1.0) + BIAS


@triton.jit
def reciprocal(b_x):
    """``1 / x`` to nearest, of a scale that a pair can hold: of its 4 bits no inverse is near a tie.

    So one step of Newton is enough.
    """
    if INTERPRETED:
        return tl.div_rn(tl.full(b_x.shape, 1.0, tl.float32), b_x)
    else:
        b_near = 1.0 / b_x
        return tl.fma(b_near, tl.fma(-b_x, b_near, 1.0), b_near)


@triton.jit
def asymmetric(b_high, b_low, b_anchor, BITS: tl.constexpr):
    """Scale and steps of the zero point of groups from their least element to their largest.

    ``b_anchor`` is to lie on a code; None for none.
    """
    HALF: tl.constexpr = code_offset(BITS)
    LEVELS: tl.constexpr = (1 << BITS) - 1
    REACH: tl.constexpr = MOST_STEPS * zero_step(BITS)
    # half the width, which cannot overflow, and which a fused multiply-add does not change
    b_width = (b_high * 0.5 - b_low * 0.5) * (2.0 / LEVELS)
    b_scale = _rounded_scale(max_nan(b_width, tl.abs(b_low) * (1.0 / REACH)), BITS)
    b_larger = b_scale + _quantum(b_scale)
    b_larger = tl.where(b_larger > PAIR_LARGEST, PAIR_LARGEST, b_larger)
    b_scale = tl.where(tl.abs(b_low) > b_scale * REACH, b_larger, b_scale)
    b_inverse = reciprocal(unit(b_scale))
    b_zero = b_low * b_inverse
    if b_anchor is not None:
        b_zero = fma(b_low, b_inverse, past_code(b_anchor, b_low, b_inverse, BITS))
    b_steps = tl.minimum(tl.maximum(b_zero * (1 / zero_step(BITS)), -MOST_STEPS), MOST_STEPS)
    b_steps = (b_steps + ROUND) - ROUND
    # where even the largest scale is too small for both ends of a group, zero stays in the middle of the codes
    beyond = (b_scale >= PAIR_LARGEST) & (b_high > 0.0) & (b_steps < _steps_of(HALF, BITS))
    return b_scale, tl.where(beyond, _steps_of(HALF, BITS), b_steps)


@triton.jit
def signed(b_high, b_low, BITS: tl.constexpr):
    """Scale and steps of the zero point of signed groups, with a positive scale.

    Their additional level is on the side of the largest magnitude.
    """
    HALF: tl.constexpr = code_offset(BITS)
    positive = b_high > -b_low
    b_scale = _rounded_scale(tl.where(positive, b_high, -b_low) * (1.0 / HALF), BITS)
    b_steps = tl.where(positive, _steps_of(HALF - 1, BITS), _steps_of(HALF, BITS))
    return b_scale, tl.where(b_scale == 0.0, 0.0, b_steps)


@triton.jit
def word(b_scale, b_steps):
    """``scale_types.to_pair``, as int32 below 2^16; the caller stores it as int16."""
    b_steps = tl.where(b_scale == b_scale, b_steps, 0.0).to(tl.int32)
    b_bits = b_scale.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & PAIR_SCALE
    b_bits = tl.where(b_scale == b_scale, b_bits, PAIR_SCALE)
    return b_bits | tl.abs(b_steps) | tl.where(b_steps < 0, PAIR_SIGN, 0)


@triton.constexpr_function
def _steps_of(scales, bits):
    """The zero point ``-scales * scale``, in steps."""
    return float(-round(scales / zero_step(bits)))
