"""Groups whose scale, and zero point if any, are separate elements: ``kernels/modes/affine.py``."""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from ..casts import fma, round_to
from ..codes import BIAS, both_halves, clamp, past_code
from ..constants import F32_TINY, code_offset, largest


@triton.jit
def stored_scale(b_scale, REACH: tl.constexpr, DTYPE: tl.constexpr):
    """``(scale, 1 / scale)`` after rounding the scale to ``DTYPE``, both as float32.

    The scale is limited so that ``REACH * scale`` is finite. Zero and subnormal scales become zero. Their inverse, and
    that of NaN, is NaN: all codes of such a group are 0, see :func:`code`.
    """
    b_stored = round_to(clamp(b_scale, largest(DTYPE) / REACH), DTYPE).to(tl.float32)
    empty = tl.abs(b_stored) < F32_TINY
    b_inverse = tl.div_rn(tl.full(b_stored.shape, 1.0, tl.float32), tl.where(empty, float("nan"), b_stored))
    return tl.where(empty, 0.0, b_stored), b_inverse


@triton.jit
def code(b_ratio, b_inverse, LOW: tl.constexpr, HIGH: tl.constexpr):
    """``round(ratio)`` clamped to ``[LOW, HIGH]``, as a biased code; 0 where the inverse of the scale is NaN.

    ``BIAS`` and, for signed codes, an offset that makes them unsigned are added. The offset is even: ties still round
    to even.
    """
    OFFSET: tl.constexpr = BIAS - (LOW // 2 * 2 if LOW < 0 else 0)
    b_code = tl.minimum(tl.maximum(b_ratio, LOW), HIGH) + OFFSET
    return tl.where(tl.expand_dims(b_inverse == b_inverse, 1), b_code, OFFSET)


@triton.jit
def difference(b_code, b_scale, b_zero, b_x):
    """The decoded element of a biased code, minus the element."""
    return (b_code - BIAS) * tl.expand_dims(b_scale, 1) + tl.expand_dims(b_zero, 1) - b_x


@triton.jit
def signed(tiles, b_high, b_low, REACH: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Codes in ``[-HALF, HALF)`` and the scale. Its sign is such that the element of largest magnitude is ``-HALF``."""
    HALF: tl.constexpr = code_offset(BITS)
    b_most = tl.where(b_high > -b_low, -b_high, -b_low)
    b_scale, b_inverse = stored_scale(b_most * (1.0 / HALF), REACH, DTYPE)
    codes = ()
    for i in tl.static_range(len(tiles)):
        b_ratio = tiles[i] * tl.expand_dims(b_inverse, 1)
        codes = codes + (code(b_ratio, b_inverse, -HALF, HALF - 1),)
    return codes, b_scale


@triton.jit
def asymmetric(tiles, b_high, b_low, b_anchor, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Codes from the smallest element of a group to its largest. ``b_anchor`` (or None) is to lie exactly on a code."""
    LEVELS: tl.constexpr = (1 << BITS) - 1
    # code * scale alone reaches high - low, for which float32 may be too small
    SPAN: tl.constexpr = 1 if tl.float16 == DTYPE else LEVELS
    b_levels = tl.full(b_high.shape, LEVELS, tl.float32)
    b_scale = tl.div_rn(b_high, b_levels) - tl.div_rn(b_low, b_levels)
    b_scale, b_inverse = stored_scale(b_scale, SPAN, DTYPE)
    b_zero = b_low
    if b_anchor is not None:
        b_past = past_code(b_anchor, b_low, b_inverse, BITS)
        b_zero = fma(tl.where(b_inverse == b_inverse, b_past, 0.0), b_scale, b_low)
        b_most = largest(DTYPE) - b_scale * LEVELS  # so that the largest code decodes to a finite number, too
        b_zero = tl.where(b_zero > b_most, b_most, b_zero)
    b_zero = round_to(clamp(b_zero, largest(DTYPE)), DTYPE).to(tl.float32)
    codes = ()
    for i in tl.static_range(len(tiles)):
        b_ratio = (tiles[i] - tl.expand_dims(b_zero, 1)) * tl.expand_dims(b_inverse, 1)
        codes = codes + (code(b_ratio, b_inverse, 0, LEVELS),)
    return codes, b_scale, b_zero


@triton.jit
def squared_error(tiles, codes, b_scale, b_zero):
    b_error = tl.zeros_like(tiles[0])
    for i in tl.static_range(len(tiles)):
        b_difference = difference(codes[i], b_scale, b_zero, tiles[i])
        b_error += b_difference * b_difference
    return tl.sum(b_error, 1)


@triton.jit
def in_words(codes):
    """Pack the codes of each two neighbouring tiles, see ``codes.both_halves``."""
    pairs = ()
    for i in tl.static_range(0, len(codes), 2):
        pairs = pairs + (both_halves(codes[i], codes[i + 1]),)
    return pairs
