"""Mode ``asymmetric``, see ``kernels/modes/asymmetric.py``; and ``anchored``, which gives it an anchor."""

from __future__ import annotations

import triton
import triton.language as tl

from ..constants import is_paired
from . import affine, paired


@triton.jit
def encode(tiles, b_high, b_low, b_anchor, queries, BITS: tl.constexpr, DTYPE: tl.constexpr):
    if is_paired(DTYPE):
        b_scale, b_steps = paired.asymmetric(b_high, b_low, b_anchor, BITS)
        pairs, _ = paired.codes_for(tiles, b_scale, b_steps, BITS)
        b_word = paired.word(b_scale, b_steps)
        return pairs, b_word, b_word
    else:
        codes, b_scale, b_zero = affine.asymmetric(tiles, b_high, b_low, b_anchor, BITS, DTYPE)
        return affine.in_words(codes), b_scale, b_zero
