"""Scales and zero points of a block: one load for all of them, and what they make of accumulators of codes."""

from __future__ import annotations

import triton
import triton.language as tl

from ..constants import PAIR_SCALE, PAIR_ZERO, SUBNORMAL, zero_step


@triton.jit
def load_real(p_x, real):
    """Loads what is ``real``, 0 for the rest; all of it where that is None."""
    if real is None:
        return tl.load(p_x)
    else:
        return tl.load(p_x, mask=real, other=0)


@triton.jit
def load_params(p_scales, group, real, SIZE: tl.constexpr, HAS_ZERO: tl.constexpr, PAIRED: tl.constexpr):
    """Scales and zero points of groups of a block, one of ``SIZE``; zero points count :func:`zero_unit`.

    Groups that are not ``real`` have scales and zero points 0; None if all are.

    The two parts of a ``pair8`` word are float16 numbers where they are, see ``kernels/scale_types.py``; the zero point
    is a subnormal one, in steps. Without zero points the second result means nothing.
    """
    if HAS_ZERO and PAIRED:
        b_word = load_real(p_scales + group, real)
        b_scale = (b_word & PAIR_SCALE).to(tl.float16, bitcast=True)
        b_zero = (b_word & PAIR_ZERO).to(tl.float16, bitcast=True)
    else:
        b_scale = load_real(p_scales + group, real)
        b_zero = b_scale
        if HAS_ZERO:
            b_zero = load_real(p_scales + (SIZE + group), real)
    return b_scale, b_zero


@triton.constexpr_function
def zero_unit(bits, paired):
    """What a zero point of :func:`load_params` is multiplied by.

    Those of ``pair8`` words are steps read as float16, and become scales. Others are numbers already.
    """
    return zero_step(bits) / SUBNORMAL if paired else 1.0


@triton.jit
def with_params(b_sum, b_weight, b_scale, b_zero, HAS_ZERO: tl.constexpr, PAIRED: tl.constexpr):
    """Sums of codes times weights, ``b_sum [R, C]``, as sums of numbers times weights.

    ``b_scale [R]`` and ``b_zero [R]`` belong to the rows; ``b_weight`` is the sum of the weights times
    :func:`zero_unit`.
    """
    if HAS_ZERO and PAIRED:
        b_sum += b_weight * b_zero.to(tl.float32)[:, None]
    b_sum *= b_scale.to(tl.float32)[:, None]
    if HAS_ZERO and not PAIRED:
        b_sum += b_weight * b_zero.to(tl.float32)[:, None]
    return b_sum
