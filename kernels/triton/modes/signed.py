"""Mode ``signed``, see ``kernels/modes/signed.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from ..constants import code_offset
from . import affine


@triton.jit
def encode(tiles, b_high, b_low, b_anchor, queries, BITS: tl.constexpr, DTYPE: tl.constexpr):
    codes, b_scale = affine.signed(tiles, b_high, b_low, code_offset(BITS), BITS, DTYPE)
    return affine.in_words(codes), b_scale, b_scale
