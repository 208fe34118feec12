"""What all ways to code groups inside a Triton kernel share: codes as biased float32, two of them in a word.

A set of groups is a tuple of tiles ``[groups, 8]``: group ``i`` is row ``i`` of all of them.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from .casts import fma
from .constants import F32_MAX, whole_fields

# added to and taken from a float32 of magnitude below 2^22, it leaves the nearest integer, ties to even
ROUND = tl.constexpr(12582912.0)
# so does this from 0 to 2^23, and in the low byte of the float32 then is that integer
BIAS = tl.constexpr(8388608.0)
PAIR_BIAS = tl.constexpr(0x4B000000)


@triton.constexpr_function
def start_of_plane(bits):
    """What a plane has to begin with, so that the :data:`PAIR_BIAS` of its whole fields ends in zero."""
    bias = sum(PAIR_BIAS << (position * bits) for position in range(whole_fields(bits)))
    return (2**31 - bias) % 2**32 - 2**31


@triton.jit
def clamp(x, LIMIT: tl.constexpr):
    """``x`` within ``[-LIMIT, LIMIT]``; NaN stays NaN, which tl.clamp does not promise."""
    return tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x))


@triton.jit
def both_halves(b_low, b_high):
    """Biased codes of two neighbouring lanes as the halves of an int32, ``PAIR_BIAS`` more than they are."""
    return b_low.to(tl.int32, bitcast=True) + (b_high.to(tl.int32, bitcast=True) << 16)


@triton.jit
def choose(take, first, second):
    """The tiles of ``first`` for the groups that ``take`` them, else those of ``second``."""
    chosen = ()
    for i in tl.static_range(len(first)):
        chosen = chosen + (tl.where(tl.expand_dims(take, 1), first[i], second[i]),)
    return chosen


@triton.jit
def past_code(b_anchor, b_low, b_inverse, BITS: tl.constexpr):
    """How far elements lie past the nearest code of groups that begin at ``b_low``, in scales."""
    b_off = fma(clamp(b_anchor, F32_MAX), b_inverse, -(b_low * b_inverse))
    b_off = tl.minimum(tl.maximum(b_off, 0.0), (1 << BITS) - 1.0)
    return b_off - ((b_off + ROUND) - ROUND)


@triton.jit
def max_nan(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def min_nan(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
