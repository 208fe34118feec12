"""Conversions that have to give the same bits on a GPU and in Triton's interpreter."""

from __future__ import annotations

import triton
import triton.language as tl

from .support import interpreted

#: True while kernels run in the interpreter, which lacks inline PTX and truncates where a GPU rounds.
INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def round_to(b_x, DTYPE: tl.constexpr):
    """float32 to ``DTYPE``, to nearest even. The interpreter's own conversion to bfloat16 truncates."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        b_bits = b_x.to(tl.uint32, bitcast=True)
        b_even = (b_bits + 0x7FFF + ((b_bits >> 16) & 1)) & 0xFFFF0000
        b_x = tl.where(b_x == b_x, b_even, b_bits).to(tl.uint32).to(tl.float32, bitcast=True)
    return b_x.to(DTYPE)
