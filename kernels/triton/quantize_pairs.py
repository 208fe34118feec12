"""Groups whose scale and zero point share a word, ``reference._paired``, see ``kernels/short_scales.py``."""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from .. import short_scales
from .casts import INTERPRETED, fma, fma_within
from .codes import BIAS, ROUND, both_halves, choose, max_nan, past_code
from .steer import channel_numbers, steer

PAIR_MAX = tl.constexpr(short_scales.LARGEST["pair8"])
SMALLEST_NORMAL = tl.constexpr(short_scales.SMALLEST_NORMAL)
NEAREST_BITS = tl.constexpr(short_scales.NEAREST_BITS)
CLEARLY = tl.constexpr(short_scales.CLEARLY)
MOST_SIGNED_BITS = tl.constexpr(short_scales.MOST_SIGNED_BITS)


@triton.jit
def _quantum(b_scale):
    """Distance from a scale to the next larger one that a pair can hold."""
    b_power = (b_scale.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.maximum(b_power, SMALLEST_NORMAL) * 0.125


@triton.jit
def _unit(b_scale):
    """1 in place of a scale of 0, to which all of a group is nearer than half."""
    return tl.where(b_scale == 0.0, 1.0, b_scale)


@triton.jit
def _pair_scale(b_scale, BITS: tl.constexpr):
    """``short_scales.round_scale`` of scales that are not negative. NaN stays."""
    b_size = tl.where(b_scale > PAIR_MAX, PAIR_MAX, b_scale)
    b_shift = _quantum(b_size) * ROUND
    b_rounded = (b_size + b_shift) - b_shift
    if BITS > NEAREST_BITS:
        b_rounded = tl.where(b_rounded < b_size, b_rounded + _quantum(b_size), b_rounded)
    return b_rounded


@triton.jit
def _pair_codes(tiles, b_scale, b_steps, BITS: tl.constexpr):
    """Codes for a scale as it is stored and a zero point of so many steps, and their squared error.

    Codes come as :func:`both_halves` has them. The error is in squares of the scale times ``b_unit ** 2``.
    """
    STEP: tl.constexpr = 2.0 ** (BITS - 6)
    b_unit = _unit(b_scale)
    b_inverse = _reciprocal(b_unit)
    b_inverse, b_offset = tl.expand_dims(b_inverse, 1), tl.expand_dims(b_steps * STEP, 1)
    b_error = tl.zeros_like(tiles[0])
    pairs = ()
    for i in tl.static_range(0, len(tiles), 2):
        b_first = fma(tiles[i], b_inverse, -b_offset)
        b_second = fma(tiles[i + 1], b_inverse, -b_offset)
        b_first_code = _unsigned_code(b_first, BITS)
        b_second_code = _unsigned_code(b_second, BITS)
        pairs = pairs + (both_halves(b_first_code, b_second_code),)
        b_first -= b_first_code - BIAS
        b_second -= b_second_code - BIAS
        b_error += b_first * b_first
        b_error += b_second * b_second
    return pairs, tl.sum(b_error, 1) * (b_unit * b_unit)


@triton.jit
def _steered(tiles, queries, b_high, b_low, b_scale, b_steps, b_signed, b_signed_steps, BITS: tl.constexpr):
    """Codes, scale and steps of the zero point of least cost, ``reference._steered``.

    ``queries`` is of `query_words`.
    """
    b_inverse = _reciprocal(_unit(b_scale))
    b_steps = steer(tiles, queries, b_high, b_low, b_inverse, b_steps, BITS)
    if BITS <= MOST_SIGNED_BITS:
        b_signed_cost = _cost(tiles, queries, b_signed, b_signed_steps, BITS)
        less = b_signed_cost * CLEARLY < _cost(tiles, queries, b_scale, b_steps, BITS)
        b_scale = tl.where(less, b_signed, b_scale)
        b_steps = tl.where(less, b_signed_steps, b_steps)
        b_inverse = _reciprocal(_unit(b_scale))
    return _codes_within(tiles, b_inverse, b_steps, BITS), b_scale, b_steps


@triton.jit
def _codes_within(tiles, b_inverse, b_steps, BITS: tl.constexpr):
    """``reference._codes_within``, as :func:`both_halves` has them."""
    LEVELS: tl.constexpr = (1 << BITS) - 1.0
    b_inverse = tl.expand_dims(b_inverse * (1.0 / LEVELS), 1)
    b_offset = tl.expand_dims(b_steps * 2.0 ** (BITS - 6) * (1.0 / LEVELS), 1)
    b_levels, b_bias = tl.full(tiles[0].shape, LEVELS, tl.float32), tl.full(tiles[0].shape, BIAS, tl.float32)
    pairs = ()
    for i in tl.static_range(0, len(tiles), 2):
        b_first = fma(fma_within(tiles[i], b_inverse, -b_offset), b_levels, b_bias)
        b_second = fma(fma_within(tiles[i + 1], b_inverse, -b_offset), b_levels, b_bias)
        pairs = pairs + (both_halves(b_first, b_second),)
    return pairs


@triton.jit
def _cost(tiles, queries, b_scale, b_steps, BITS: tl.constexpr):
    """What the errors of groups cost, as ``reference._steered`` compares them with those of signed ones."""
    b_unit = _unit(b_scale)
    b_inverse, b_offset = tl.expand_dims(_reciprocal(b_unit), 1), tl.expand_dims(b_steps * 2.0 ** (BITS - 6), 1)
    b_product = tl.zeros_like(tiles[0])
    b_rest = tl.zeros_like(tiles[0])
    for i in tl.static_range(len(tiles)):
        b_mean, b_weight = channel_numbers(queries, i)
        b_ratio = fma(tiles[i], b_inverse, -b_offset)
        b_error = b_ratio - (_unsigned_code(b_ratio, BITS) - BIAS)
        b_product += b_mean * b_error
        b_rest += b_weight * (b_error * b_error)
    b_product = tl.sum(b_product, 1)
    return (b_product * b_product + tl.sum(b_rest, 1)) * (b_unit * b_unit)


@triton.jit
def _unsigned_code(b_ratio, BITS: tl.constexpr):
    """``round(ratio)`` within the range of a code, plus ``BIAS``. NaN gives 0."""
    if INTERPRETED:
        b_ratio = tl.where(b_ratio == b_ratio, b_ratio, 0.0)  # a GPU's maximum prefers the number
    return tl.minimum(tl.maximum(b_ratio, 0.0), (1 << BITS) - 1.0) + BIAS


@triton.jit
def _reciprocal(b_x):
    """``1 / x`` to nearest, of a scale that a pair can hold: of its 4 bits no inverse is near a tie.

    So one step of Newton is enough.
    """
    if INTERPRETED:
        return tl.div_rn(tl.full(b_x.shape, 1.0, tl.float32), b_x)
    else:
        b_near = 1.0 / b_x
        return tl.fma(b_near, tl.fma(-b_x, b_near, 1.0), b_near)


@triton.jit
def _pair_steps(b_scale, b_low, b_anchor, BITS: tl.constexpr):
    """Steps of the zero point of asymmetric groups for a scale as it is stored."""
    b_inverse = _reciprocal(_unit(b_scale))
    b_zero = b_low * b_inverse
    if b_anchor is not None:
        b_zero = fma(b_low, b_inverse, past_code(b_anchor, b_low, b_inverse, BITS))
    b_steps = tl.minimum(tl.maximum(b_zero * 2.0 ** (6 - BITS), -127.0), 127.0)
    return (b_steps + ROUND) - ROUND


@triton.jit
def _pair_word(b_scale, b_steps):
    """``short_scales.to_pair`` as int32 below 2^16, which the caller stores as int16."""
    b_steps = tl.where(b_scale == b_scale, b_steps, 0.0).to(tl.int32)
    b_bits = b_scale.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0x7F80
    b_bits = tl.where(b_scale == b_scale, b_bits, 0x7F80)
    return b_bits | tl.abs(b_steps) | tl.where(b_steps < 0, 0x8000, 0)


@triton.jit
def quantize_paired(tiles, b_high, b_low, b_anchor, queries, MODE: tl.constexpr, BITS: tl.constexpr):
    """``reference._paired``: codes and the words of scales and zero points."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    LEVELS: tl.constexpr = (1 << BITS) - 1
    REACH: tl.constexpr = 127 * 2.0 ** (BITS - 6)
    # halves, so that neither overflows and a fused multiply-add changes nothing
    b_width = (b_high * 0.5 - b_low * 0.5) * (2.0 / LEVELS)
    b_scale = _pair_scale(max_nan(b_width, tl.abs(b_low) * (1.0 / REACH)), BITS)
    b_larger = b_scale + _quantum(b_scale)
    b_larger = tl.where(b_larger > PAIR_MAX, PAIR_MAX, b_larger)
    b_scale = tl.where(tl.abs(b_low) > b_scale * REACH, b_larger, b_scale)
    b_steps = _pair_steps(b_scale, b_low, b_anchor, BITS)
    # the largest scale may be too small for both ends: then there are codes on both sides of zero
    beyond = (b_scale >= PAIR_MAX) & (b_high > 0.0) & (b_steps < _steps_of(HALF, BITS))
    b_steps = tl.where(beyond, _steps_of(HALF, BITS), b_steps)
    # signed, with a positive scale: the level without a counterpart lies on the side of the extreme value
    positive = b_high > -b_low
    b_signed = _pair_scale(tl.where(positive, b_high, -b_low) * (1.0 / HALF), BITS)
    b_signed_steps = tl.where(positive, _steps_of(HALF - 1, BITS), _steps_of(HALF, BITS))
    b_signed_steps = tl.where(b_signed == 0.0, 0.0, b_signed_steps)
    if MODE == "steered":
        pairs, b_scale, b_steps = _steered(
            tiles, queries, b_high, b_low, b_scale, b_steps, b_signed, b_signed_steps, BITS
        )
    else:
        pairs, b_error = _pair_codes(tiles, b_scale, b_steps, BITS)
    if MODE == "hybrid":
        signed, b_signed_error = _pair_codes(tiles, b_signed, b_signed_steps, BITS)
        take = b_signed_error <= b_error * CLEARLY
        pairs = choose(take, signed, pairs)
        b_scale = tl.where(take, b_signed, b_scale)
        b_steps = tl.where(take, b_signed_steps, b_steps)
    b_word = _pair_word(b_scale, b_steps)
    return pairs, b_word, b_word


@triton.constexpr_function
def _steps_of(scales, bits):
    """Steps of a zero point that many scales below zero."""
    return float(-round(scales * 2.0 ** (6 - bits)))
