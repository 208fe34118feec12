"""The base of the softmax's exponents, and when it is raised.

Probabilities are ``2^(s - base)``. The base does not follow the maximum of the scores: it is raised only when a score
outgrows it so far that a probability might leave the range of float16.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from ..constants import BLOCK_TOKENS

#: Exponent of the largest probability when the base is set, and by how much scores may then grow: p stays below 2^15.
START = tl.constexpr(6.0)
HEADROOM = tl.constexpr(8.0)
#: Stands for -inf as a base, so that no difference of scores is NaN.
LOWEST = tl.constexpr(-3.0e38)
#: The bits of START + HEADROOM as float32: an exponent beyond it asks for another base.
OUTGROWN = tl.constexpr(0x41600000)


@triton.jit
def exponents_of(logits, b_factor, b_base):
    """``logits * factor - base`` of each of some blocks, and the bits of the largest as integers.

    Floats compare as the integers of their bits do if one of them is positive, so one instruction of a warp (REDUX)
    says whether any of them is beyond :data:`OUTGROWN`.
    """
    exponents = (logits[0] * b_factor[None, :] - b_base[None, :],)
    b_most = exponents[0].to(tl.int32, bitcast=True)
    for i in tl.static_range(1, len(logits)):
        b_e = logits[i] * b_factor[None, :] - b_base[None, :]
        b_most = tl.maximum(b_most, b_e.to(tl.int32, bitcast=True))
        exponents = exponents + (b_e,)
    return exponents, b_most


@triton.jit
def from_position(logits, position, first):
    """``logits`` of some blocks, -inf for tokens in front of ``first``; ``position [32]`` are those of the first block.

    A kernel needs this only where it raises the base. That is so in the first step of each share, as the first base is
    lower than any finite score, and only there are some of the tokens hidden.
    """
    shown = ()
    for i in tl.static_range(len(logits)):
        shown = shown + (tl.where((position + i * BLOCK_TOKENS >= first)[:, None], logits[i], float("-inf")),)
    return shown


@triton.jit
def raised_base(b_base, logits, b_factor):
    """A base for which the exponents of ``logits`` are ``START`` at most, and no lower one than before."""
    b_top = logits[0]
    for i in tl.static_range(1, len(logits)):
        b_top = tl.maximum(b_top, logits[i])
    return tl.maximum(b_base, tl.max(b_top * b_factor[None, :], 0) - START)
