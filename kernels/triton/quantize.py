"""Quantizing a set of groups inside a Triton kernel, ``reference.quantize_groups``."""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from .casts import fma, round_to
from .codes import BIAS, F32_MAX, both_halves, choose, clamp, max_nan, min_nan, past_code
from .quantize_pairs import quantize_paired
from .unpack import is_paired

F32_TINY = tl.constexpr(1.1754943508222875e-38)


@triton.constexpr_function
def _largest(dtype, reach=1):
    """The largest number of a scale dtype of which ``reach`` times is finite too."""
    limits = {"fp16": 65504.0, "bf16": 3.3895313892515355e38, "fp32": 3.4028234663852886e38}
    return limits[str(dtype)] / reach


@triton.jit
def _stored_scale(b_scale, REACH: tl.constexpr, DTYPE: tl.constexpr):
    """``(scale as it is stored in DTYPE, its inverse)``, float32.

    The scale is limited so that ``REACH`` of it is finite. Zero and subnormal scales become zero, and the inverse of
    those, and of NaN, is NaN, which stands for a group whose codes are all zero.
    """
    b_stored = round_to(clamp(b_scale, _largest(DTYPE, REACH)), DTYPE).to(tl.float32)
    empty = tl.abs(b_stored) < F32_TINY
    b_inverse = tl.div_rn(tl.full(b_stored.shape, 1.0, tl.float32), tl.where(empty, float("nan"), b_stored))
    return tl.where(empty, 0.0, b_stored), b_inverse


@triton.jit
def _code(b_ratio, b_inverse, LOW: tl.constexpr, HIGH: tl.constexpr):
    """``round(ratio)`` within ``[LOW, HIGH]``, zero where the inverse of the scale is NaN, and plus ``BIAS`` and what
    makes the code unsigned, which is even, so that ties stay even."""
    OFFSET: tl.constexpr = BIAS - (LOW // 2 * 2 if LOW < 0 else 0)
    b_code = tl.minimum(tl.maximum(b_ratio, LOW), HIGH) + OFFSET
    return tl.where(tl.expand_dims(b_inverse == b_inverse, 1), b_code, OFFSET)


@triton.jit
def _difference(b_code, b_scale, b_zero, b_x):
    return (b_code - BIAS) * tl.expand_dims(b_scale, 1) + tl.expand_dims(b_zero, 1) - b_x


@triton.jit
def _paper_hybrid(tiles, b_high, b_low, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Asymmetric with a bit less, or symmetric where its absolute errors sum up to less; both divide."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    ROOMY: tl.constexpr = tl.float16 == DTYPE  # float16 numbers leave float32 room, see `_largest`
    b_levels = tl.full(b_high.shape, HALF - 1, tl.float32)
    b_zero = round_to(clamp(b_low, _largest(DTYPE)), DTYPE).to(tl.float32)
    b_scale, b_inverse = _stored_scale(tl.div_rn(b_high - b_low, b_levels), 1 if ROOMY else HALF - 1, DTYPE)
    b_most = tl.where(b_high > -b_low, b_high, -b_low)
    b_sym_scale, b_sym_inverse = _stored_scale(tl.div_rn(b_most, b_levels), HALF if ROOMY else 2 * HALF, DTYPE)
    b_sym_zero = round_to(b_sym_scale * -HALF, DTYPE).to(tl.float32)
    b_error = tl.zeros_like(tiles[0])
    b_sym_error = tl.zeros_like(tiles[0])
    codes, syms = (), ()
    for i in tl.static_range(len(tiles)):
        b_divisor = tl.broadcast_to(tl.expand_dims(b_scale, 1), tiles[i].shape)
        b_ratio = tl.div_rn(tiles[i] - tl.expand_dims(b_zero, 1), b_divisor)
        codes = codes + (_code(b_ratio, b_inverse, 0, HALF - 1),)
        b_divisor = tl.broadcast_to(tl.expand_dims(b_sym_scale, 1), tiles[i].shape)
        b_ratio = tl.div_rn(tiles[i], b_divisor)
        syms = syms + (_code(b_ratio, b_sym_inverse, 1 - HALF, HALF - 1),)
        b_error += tl.abs(_difference(codes[i], b_scale, b_zero, tiles[i]))
        b_sym_error += tl.abs(_difference(syms[i], b_sym_scale, b_sym_zero, tiles[i]))
    keep = tl.sum(b_error, 1) <= tl.sum(b_sym_error, 1)
    chosen = choose(keep, codes, syms)
    return chosen, tl.where(keep, b_scale, b_sym_scale), tl.where(keep, b_zero, b_sym_zero)


@triton.jit
def _symmetric(tiles, b_high, b_low, BITS: tl.constexpr, DTYPE: tl.constexpr):
    HALF: tl.constexpr = 1 << (BITS - 1)
    b_most = tl.where(b_high > -b_low, b_high, -b_low)
    b_scale = tl.div_rn(b_most, tl.full(b_most.shape, HALF - 1, tl.float32))
    b_scale, b_inverse = _stored_scale(b_scale, HALF - 1, DTYPE)
    b_divisor = tl.broadcast_to(tl.expand_dims(b_scale, 1), tiles[0].shape)
    codes = ()
    for i in tl.static_range(len(tiles)):  # the paper's own format divides, as its authors do
        codes = codes + (_code(tl.div_rn(tiles[i], b_divisor), b_inverse, 1 - HALF, HALF - 1),)
    return codes, b_scale, b_scale


@triton.jit
def _signed(tiles, b_high, b_low, REACH: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Codes run over ``[-HALF, HALF)``: the sign of the scale puts the extreme value on the longer side."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    b_most = tl.where(b_high > -b_low, -b_high, -b_low)
    b_scale, b_inverse = _stored_scale(b_most * (1.0 / HALF), REACH, DTYPE)
    codes = ()
    for i in tl.static_range(len(tiles)):
        b_ratio = tiles[i] * tl.expand_dims(b_inverse, 1)
        codes = codes + (_code(b_ratio, b_inverse, -HALF, HALF - 1),)
    return codes, b_scale, b_scale


@triton.jit
def _asymmetric(tiles, b_high, b_low, b_anchor, BITS: tl.constexpr, DTYPE: tl.constexpr):
    LEVELS: tl.constexpr = (1 << BITS) - 1
    # code * scale alone reaches high - low, for which float32 may be too small
    SPAN: tl.constexpr = 1 if tl.float16 == DTYPE else LEVELS
    b_levels = tl.full(b_high.shape, LEVELS, tl.float32)
    b_scale = tl.div_rn(b_high, b_levels) - tl.div_rn(b_low, b_levels)
    b_scale, b_inverse = _stored_scale(b_scale, SPAN, DTYPE)
    b_zero = b_low
    if b_anchor is not None:
        b_past = past_code(b_anchor, b_low, b_inverse, BITS)
        b_zero = fma(tl.where(b_inverse == b_inverse, b_past, 0.0), b_scale, b_low)
        b_most = _largest(DTYPE) - b_scale * LEVELS  # so that the largest code decodes to a finite number, too
        b_zero = tl.where(b_zero > b_most, b_most, b_zero)
    b_zero = round_to(clamp(b_zero, _largest(DTYPE)), DTYPE).to(tl.float32)
    codes = ()
    for i in tl.static_range(len(tiles)):
        b_ratio = (tiles[i] - tl.expand_dims(b_zero, 1)) * tl.expand_dims(b_inverse, 1)
        codes = codes + (_code(b_ratio, b_inverse, 0, LEVELS),)
    return codes, b_scale, b_zero


@triton.jit
def _squared_error(tiles, codes, b_scale, b_zero):
    b_error = tl.zeros_like(tiles[0])
    for i in tl.static_range(len(tiles)):
        b_difference = _difference(codes[i], b_scale, b_zero, tiles[i])
        b_error += b_difference * b_difference
    return tl.sum(b_error, 1)


@triton.jit
def _hybrid(tiles, b_high, b_low, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Signed or asymmetric; a signed group is an asymmetric one whose zero point is -HALF scales."""
    HALF: tl.constexpr = 1 << (BITS - 1)
    # its zero point is -HALF scales, and its codes go up to 2 * HALF - 1; float16 has room for these
    REACH: tl.constexpr = HALF if tl.float16 == DTYPE else 2 * HALF
    signed, b_scale, _ = _signed(tiles, b_high, b_low, REACH, BITS, DTYPE)
    b_signed_zero = round_to(b_scale * -HALF, DTYPE).to(tl.float32)
    codes, b_wide, b_zero = _asymmetric(tiles, b_high, b_low, None, BITS, DTYPE)
    b_signed_error = _squared_error(tiles, signed, b_scale, b_signed_zero)
    take = b_signed_error <= _squared_error(tiles, codes, b_wide, b_zero)
    chosen = choose(take, signed, codes)
    return chosen, tl.where(take, b_scale, b_wide), tl.where(take, b_signed_zero, b_zero)


@triton.jit
def _in_float32(tiles):
    wide = ()
    for i in tl.static_range(len(tiles)):
        wide = wide + (tiles[i].to(tl.float32),)
    return wide


@triton.jit
def _extremes(b_high, b_low, b_other_high, b_other_low):
    return max_nan(b_high, b_other_high), min_nan(b_low, b_other_low)


@triton.jit
def quantize_set(tiles, b_anchor, queries, MODE: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Groups that run over ``tiles`` and their rows: unsigned codes, scales, zero points.

    ``b_anchor``: for mode ``anchored``, the element of each group that is to lie on a code. ``queries``: for mode
    ``steered``, what is known of the queries, of ``steer.query_words``.

    The modes are those of ``reference.quantize_groups``. Zero points are meaningless in modes without, and where a word
    (int32, below 2^16) in place of the scale holds both.
    """
    halves = tiles  # a GPU compares two float16 at once, or three
    tiles = _in_float32(tiles)
    if halves[0].dtype != tl.float16:
        halves = tiles
    b_high = halves[0]
    b_low = halves[0]
    for i in tl.static_range(1, len(halves)):
        b_high = max_nan(b_high, halves[i])
        b_low = min_nan(b_low, halves[i])
    b_high, b_low = tl.reduce((b_high, b_low), 1, _extremes)
    b_high, b_low = clamp(b_high.to(tl.float32), F32_MAX), clamp(b_low.to(tl.float32), F32_MAX)
    if is_paired(DTYPE):
        return quantize_paired(tiles, b_high, b_low, b_anchor, queries, MODE, BITS)
    else:
        if MODE == "symmetric":
            codes, b_scale, b_zero = _symmetric(tiles, b_high, b_low, BITS, DTYPE)
        elif MODE == "signed":
            codes, b_scale, b_zero = _signed(tiles, b_high, b_low, 1 << (BITS - 1), BITS, DTYPE)
        elif MODE == "asymmetric" or MODE == "anchored":
            codes, b_scale, b_zero = _asymmetric(tiles, b_high, b_low, b_anchor, BITS, DTYPE)
        elif MODE == "hybrid":
            codes, b_scale, b_zero = _hybrid(tiles, b_high, b_low, BITS, DTYPE)
        else:
            codes, b_scale, b_zero = _paper_hybrid(tiles, b_high, b_low, BITS, DTYPE)
        pairs = ()
        for i in tl.static_range(0, len(codes), 2):
            pairs = pairs + (both_halves(codes[i], codes[i + 1]),)
        return pairs, b_scale, b_zero
