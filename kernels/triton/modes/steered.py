"""Mode ``steered``, see ``kernels/modes/steered.py``: the errors of four channels are processed by one instruction.

An error is a byte, the distance from the nearest code in 256ths of a scale, and an int32 holds four of them. Moving the
zero point by half a scale flips their sign bits, and by a quarter subtracts 64 (modulo 256), so that the elements are
read once for all candidates. Sums of products of bytes are computed by ``dp4a``.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from ...modes import rounding, steered
from ..bytes import byte_signs, dot_bytes, dot_unsigned_bytes, low_bytes
from ..casts import fma, fma_within
from ..codes import BIAS, both_halves
from ..constants import F32_MAX, MOST_STEPS, zero_step
from ..queries import BELOW_SIGNS, channel_numbers
from . import paired

CLEARLY = tl.constexpr(rounding.CLEARLY)
MOST_SIGNED_BITS = tl.constexpr(steered.MOST_SIGNED_BITS)
PARTS = tl.constexpr(steered.PARTS)
TO_PARTS = tl.constexpr(steered.TO_PARTS)
#: The bits of TO_PARTS.
ZERO = tl.constexpr(steered.TO_PARTS_BITS)
#: Bit 7, bit 6 and bit 0 of all four bytes.
SIGNS = tl.constexpr(0x80808080 - 2**32)
QUARTERS = tl.constexpr(0x40404040)
ONES = tl.constexpr(0x01010101)

product_shift = triton.constexpr_function(steered.product_shift)


@triton.constexpr_function
def steps_of_scale(bits):
    """Steps of the zero point in one scale, at least 1."""
    return max(1, round(1 / zero_step(bits)))


@triton.jit
def encode(tiles, b_high, b_low, b_anchor, queries, BITS: tl.constexpr, DTYPE: tl.constexpr):
    b_scale, b_steps = paired.asymmetric(b_high, b_low, None, BITS)
    b_inverse = paired.reciprocal(paired.unit(b_scale))
    b_steps = _steer(tiles, queries, b_high, b_low, b_inverse, b_steps, BITS)
    if BITS <= MOST_SIGNED_BITS:
        b_signed, b_signed_steps = paired.signed(b_high, b_low, BITS)
        b_signed_cost = _cost(tiles, queries, b_signed, b_signed_steps, BITS)
        less = b_signed_cost * CLEARLY < _cost(tiles, queries, b_scale, b_steps, BITS)
        b_scale = tl.where(less, b_signed, b_scale)
        b_steps = tl.where(less, b_signed_steps, b_steps)
        b_inverse = paired.reciprocal(paired.unit(b_scale))
    b_word = paired.word(b_scale, b_steps)
    return _codes_within(tiles, b_inverse, b_steps, BITS), b_word, b_word


@triton.jit
def _codes_within(tiles, b_inverse, b_steps, BITS: tl.constexpr):
    """Codes, rounded from fractions of the largest (clamping to [0, 1] is free), packed by ``codes.both_halves``."""
    LEVELS: tl.constexpr = (1 << BITS) - 1.0
    b_inverse = tl.expand_dims(b_inverse * (1.0 / LEVELS), 1)
    b_offset = tl.expand_dims(b_steps * zero_step(BITS) * (1.0 / LEVELS), 1)
    b_levels, b_bias = tl.full(tiles[0].shape, LEVELS, tl.float32), tl.full(tiles[0].shape, BIAS, tl.float32)
    pairs = ()
    for i in tl.static_range(0, len(tiles), 2):
        b_first = fma(fma_within(tiles[i], b_inverse, -b_offset), b_levels, b_bias)
        b_second = fma(fma_within(tiles[i + 1], b_inverse, -b_offset), b_levels, b_bias)
        pairs = pairs + (both_halves(b_first, b_second),)
    return pairs


@triton.jit
def _cost(tiles, queries, b_scale, b_steps, BITS: tl.constexpr):
    """The cost of the errors of groups in float32, for comparison with signed groups."""
    b_unit = paired.unit(b_scale)
    b_inverse, b_offset = tl.expand_dims(paired.reciprocal(b_unit), 1), tl.expand_dims(b_steps * zero_step(BITS), 1)
    b_product = tl.zeros_like(tiles[0])
    b_rest = tl.zeros_like(tiles[0])
    for i in tl.static_range(len(tiles)):
        b_mean, b_weight = channel_numbers(queries, i)
        b_ratio = fma(tiles[i], b_inverse, -b_offset)
        b_error = b_ratio - (paired.unsigned_code(b_ratio, BITS) - BIAS)
        b_product += b_mean * b_error
        b_rest += b_weight * (b_error * b_error)
    b_product = tl.sum(b_product, 1)
    return (b_product * b_product + tl.sum(b_rest, 1)) * (b_unit * b_unit)


@triton.jit
def _quarters(b_words):
    """Split ``[rows, 8]`` into four ``[rows, 2]``, so that sums over words are sums of tensors, within a thread."""
    b_even, b_odd = tl.split(tl.reshape(b_words, (b_words.shape[0], 4, 2)))
    b_0, b_1 = tl.split(tl.reshape(b_even, (b_words.shape[0], 2, 2)))
    b_2, b_3 = tl.split(tl.reshape(b_odd, (b_words.shape[0], 2, 2)))
    return b_0, b_1, b_2, b_3


@triton.jit
def _low_bytes_of(tiles):
    """Pack the low bytes of int32 tiles ``[groups, 8]``, four each, in the order of ``queries.query_words``."""
    words = ()
    for i in tl.static_range(0, len(tiles), 4):
        if len(tiles) > 2:
            b_words = low_bytes(tiles[i], tiles[i + 1], tiles[i + 2], tiles[i + 3])
        else:  # groups of 16: the weights of the upper bytes are 0
            b_words = low_bytes(tiles[i], tiles[i + 1], tiles[i], tiles[i + 1])
        words = words + _quarters(b_words)
    return words


@triton.jit
def _split_words(tiles):
    """Split all tiles, see :func:`_quarters`."""
    words = ()
    for i in tl.static_range(len(tiles)):
        words = words + _quarters(tiles[i])
    return words


@triton.jit
def _in_parts(b_x, b_inverse, b_offset):
    return fma(b_x, b_inverse, b_offset).to(tl.int32, bitcast=True)


@triton.jit
def _whole_cost(b_product, b_rest, b_beyond, b_weight, GROUP: tl.constexpr):
    SHIFT: tl.constexpr = product_shift(GROUP)
    b_product = tl.sum(b_product, 1) >> SHIFT
    b_rest += tl.minimum(tl.maximum(b_beyond, 0), PARTS - 1) * b_weight * 8 // GROUP
    return b_product * b_product + (b_rest >> (2 * SHIFT - 6))


@triton.jit
def _cheaper(b_cost, b_trial, b_least, b_steps):
    less = (b_cost < b_least) & (tl.abs(b_trial) <= MOST_STEPS)
    return tl.where(less, b_cost, b_least), tl.where(less, b_trial, b_steps)


@triton.jit
def _steer(tiles, queries, b_high, b_low, b_inverse, b_steps, BITS: tl.constexpr):
    """Steps of the zero point of least cost, among the candidates near ``b_steps``.

    ``queries`` is of ``queries.query_words``, ``b_inverse`` is 1 / scale. Let ``e`` be the error of an element with the
    first zero point, ``a = |e|``, ``a'`` the same with the second zero point, and ``f`` the distance of ``e`` from the
    nearest multiple of half a scale. Relative to the first zero point, the reference's piecewise linear term is larger
    by ``2 (a' - a + f) - 63`` for the second, by ``254 - 4 a`` for the third, and by ``191 - 2 (a' + a - f)`` for the
    fourth, so that weighted sums of ``a``, ``a'`` and ``f`` are enough.
    """
    GROUP: tl.constexpr = 8 * len(tiles)
    SCALE: tl.constexpr = steps_of_scale(BITS)
    QUARTER: tl.constexpr = SCALE >= 4
    means, weights = _split_words(queries[0]), _split_words(queries[1])
    b_weight = tl.zeros_like(weights[0])
    for i in tl.static_range(len(weights)):  # the same for all tokens: LLVM computes it once per program
        b_weight = dot_unsigned_bytes(weights[i], tl.full(b_weight.shape, ONES, tl.int32), b_weight)
    b_weight = tl.sum(b_weight, 1)
    b_offset = TO_PARTS - b_steps * zero_step(BITS)
    parts = ()
    for i in tl.static_range(len(tiles)):
        parts = parts + (_in_parts(tiles[i], tl.expand_dims(b_inverse, 1), tl.expand_dims(b_offset, 1)),)
    words = _low_bytes_of(parts)
    b_none = tl.zeros_like(words[0])
    b_product, b_moved, b_half, b_back = b_none, b_none, b_none, b_none
    b_size, b_moved_size, b_fold = b_none, b_none, b_none
    for i in tl.static_range(len(words)):
        b_error = words[i]
        b_product = dot_bytes(b_error, means[i], b_product)
        b_half = dot_bytes(b_error ^ SIGNS, means[i], b_half)
        b_a = b_error ^ byte_signs(b_error)
        b_size = dot_unsigned_bytes(b_a, weights[i], b_size)
        if QUARTER:
            b_error = b_error ^ QUARTERS ^ ((~b_error & QUARTERS) << 1)
            b_moved = dot_bytes(b_error, means[i], b_moved)
            b_back = dot_bytes(b_error ^ SIGNS, means[i], b_back)
            b_moved_size = dot_unsigned_bytes(b_error ^ byte_signs(b_error), weights[i], b_moved_size)
            b_fold = dot_unsigned_bytes(b_a ^ (byte_signs(b_a << 1) & BELOW_SIGNS), weights[i], b_fold)
    b_size = tl.sum(b_size, 1)
    b_above = _in_parts(b_high, b_inverse, b_offset) - (ZERO + ((1 << BITS) - 1) * PARTS + PARTS // 2)
    b_below = (ZERO - PARTS // 2) - _in_parts(b_low, b_inverse, b_offset)
    b_chosen = b_steps
    b_least = _whole_cost(b_product, 0, tl.maximum(b_above, b_below), b_weight, GROUP)
    if QUARTER:
        b_fold = tl.sum(b_fold, 1)
        b_moved_size = tl.sum(b_moved_size, 1)
        b_rest = 2 * (b_moved_size - b_size + b_fold) - 63 * b_weight
        b_cost = _whole_cost(b_moved, b_rest, tl.maximum(b_above - PARTS // 4, b_below + PARTS // 4), b_weight, GROUP)
        b_least, b_chosen = _cheaper(b_cost, b_steps + SCALE // 4, b_least, b_chosen)
    if SCALE > 1:
        b_rest = 254 * b_weight - 4 * b_size
        b_cost = _whole_cost(b_half, b_rest, tl.maximum(b_above - PARTS // 2, b_below + PARTS // 2), b_weight, GROUP)
        b_least, b_chosen = _cheaper(b_cost, b_steps + SCALE // 2, b_least, b_chosen)
    if QUARTER:
        b_rest = 191 * b_weight - 2 * (b_moved_size + b_size - b_fold)
        b_cost = _whole_cost(b_back, b_rest, tl.maximum(b_above + PARTS // 4, b_below - PARTS // 4), b_weight, GROUP)
        b_least, b_chosen = _cheaper(b_cost, b_steps - SCALE // 4, b_least, b_chosen)
    return tl.where(tl.maximum(b_high, -b_low) == F32_MAX, b_steps, b_chosen)  # saturated: its error is not meaningful
