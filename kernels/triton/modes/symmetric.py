"""Mode ``symmetric``, see ``kernels/modes/symmetric.py``."""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from ..constants import code_offset
from . import affine


@triton.jit
def encode(tiles, b_high, b_low, b_anchor, queries, BITS: tl.constexpr, DTYPE: tl.constexpr):
    HALF: tl.constexpr = code_offset(BITS)
    b_most = tl.where(b_high > -b_low, b_high, -b_low)
    b_scale = tl.div_rn(b_most, tl.full(b_most.shape, HALF - 1, tl.float32))
    b_scale, b_inverse = affine.stored_scale(b_scale, HALF - 1, DTYPE)
    b_divisor = tl.broadcast_to(tl.expand_dims(b_scale, 1), tiles[0].shape)
    codes = ()
    for i in tl.static_range(len(tiles)):
        codes = codes + (affine.code(tl.div_rn(tiles[i], b_divisor), b_inverse, 1 - HALF, HALF - 1),)
    return affine.in_words(codes), b_scale, b_scale
