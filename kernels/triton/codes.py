"""What the encoders of all modes share in Triton kernels: codes as biased float32, packed in pairs into int32.

A set of groups is a tuple of tiles ``[groups, 8]``: row ``i`` of all of them is group ``i``.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from .casts import fma
from .constants import F32_MAX, whole_fields

#: Added to a float32 of magnitude below 2^22 and subtracted again, it rounds to the nearest integer, ties to even.
ROUND = tl.constexpr(12582912.0)
#: So does this for numbers from 0 to 2^23. Before it is subtracted, the low byte of the float32 is the integer.
BIAS = tl.constexpr(8388608.0)
#: The bits of BIAS as float32: what a biased code has in excess of the code, as an integer.
PAIR_BIAS = tl.constexpr(0x4B000000)


@triton.constexpr_function
def start_of_plane(bits):
    """Initial value of the words of a plane: it cancels the :data:`PAIR_BIAS` of the whole fields that are added."""
    bias = sum(PAIR_BIAS << (position * bits) for position in range(whole_fields(bits)))
    return (2**31 - bias) % 2**32 - 2**31


@triton.jit
def clamp(x, LIMIT: tl.constexpr):
    """``x`` clamped to ``[-LIMIT, LIMIT]``. NaN stays NaN, which ``tl.clamp`` does not guarantee."""
    return tl.where(x > LIMIT, LIMIT, tl.where(x < -LIMIT, -LIMIT, x))


@triton.jit
def both_halves(b_low, b_high):
    """Pack the biased codes of two neighbouring lanes into the halves of an int32. It is too large by ``PAIR_BIAS``."""
    return b_low.to(tl.int32, bitcast=True) + (b_high.to(tl.int32, bitcast=True) << 16)


@triton.jit
def choose(take, first, second):
    """Tiles with the groups of ``first`` where ``take [groups]`` is true, else those of ``second``."""
    chosen = ()
    for i in tl.static_range(len(first)):
        chosen = chosen + (tl.where(tl.expand_dims(take, 1), first[i], second[i]),)
    return chosen


@triton.jit
def past_code(b_anchor, b_low, b_inverse, BITS: tl.constexpr):
    """Distance of ``b_anchor`` from the nearest code, in scales, with ``b_low`` as the zero point."""
    b_off = fma(clamp(b_anchor, F32_MAX), b_inverse, -(b_low * b_inverse))
    b_off = tl.minimum(tl.maximum(b_off, 0.0), (1 << BITS) - 1.0)
    return b_off - ((b_off + ROUND) - ROUND)


@triton.jit
def max_nan(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def min_nan(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
