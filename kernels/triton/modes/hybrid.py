"""Mode ``hybrid``, see ``kernels/modes/hybrid.py``."""

from __future__ import annotations

import triton
import triton.language as tl

from ...modes import rounding
from ..casts import round_to
from ..codes import choose
from ..constants import code_offset, is_paired
from . import affine, paired

CLEARLY = tl.constexpr(rounding.CLEARLY)


@triton.jit
def encode(tiles, b_high, b_low, b_anchor, queries, BITS: tl.constexpr, DTYPE: tl.constexpr):
    HALF: tl.constexpr = code_offset(BITS)
    if is_paired(DTYPE):
        b_scale, b_steps = paired.asymmetric(b_high, b_low, None, BITS)
        b_signed, b_signed_steps = paired.signed(b_high, b_low, BITS)
        pairs, b_error = paired.codes_for(tiles, b_scale, b_steps, BITS)
        signed, b_signed_error = paired.codes_for(tiles, b_signed, b_signed_steps, BITS)
        take = b_signed_error <= b_error * CLEARLY
        pairs = choose(take, signed, pairs)
        b_word = paired.word(tl.where(take, b_signed, b_scale), tl.where(take, b_signed_steps, b_steps))
        return pairs, b_word, b_word
    else:
        # a signed group has the zero point -HALF scales, and codes up to 2 * HALF - 1; float16 has room for these
        REACH: tl.constexpr = HALF if tl.float16 == DTYPE else 2 * HALF
        signed, b_scale = affine.signed(tiles, b_high, b_low, REACH, BITS, DTYPE)
        b_signed_zero = round_to(b_scale * -HALF, DTYPE).to(tl.float32)
        codes, b_wide, b_zero = affine.asymmetric(tiles, b_high, b_low, None, BITS, DTYPE)
        b_signed_error = affine.squared_error(tiles, signed, b_scale, b_signed_zero)
        take = b_signed_error <= affine.squared_error(tiles, codes, b_wide, b_zero)
        chosen = affine.in_words(choose(take, signed, codes))
        return chosen, tl.where(take, b_scale, b_wide), tl.where(take, b_signed_zero, b_zero)
