"""Mode ``paper_hybrid``, see ``kernels/modes/paper_hybrid.py``."""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from ..casts import round_to
from ..codes import choose, clamp
from ..constants import code_offset, largest
from . import affine


@triton.jit
def encode(tiles, b_high, b_low, b_anchor, queries, BITS: tl.constexpr, DTYPE: tl.constexpr):
    HALF: tl.constexpr = code_offset(BITS)
    ROOMY: tl.constexpr = tl.float16 == DTYPE  # float16 numbers leave float32 room, see ``modes/affine.py``
    b_levels = tl.full(b_high.shape, HALF - 1, tl.float32)
    b_zero = round_to(clamp(b_low, largest(DTYPE)), DTYPE).to(tl.float32)
    b_wide = tl.div_rn(b_high - b_low, b_levels)
    b_scale, b_inverse = affine.stored_scale(b_wide, 1 if ROOMY else HALF - 1, DTYPE)
    b_most = tl.div_rn(tl.where(b_high > -b_low, b_high, -b_low), b_levels)
    b_sym_scale, b_sym_inverse = affine.stored_scale(b_most, HALF if ROOMY else 2 * HALF, DTYPE)
    b_sym_zero = round_to(b_sym_scale * -HALF, DTYPE).to(tl.float32)
    b_error = tl.zeros_like(tiles[0])
    b_sym_error = tl.zeros_like(tiles[0])
    codes, syms = (), ()
    for i in tl.static_range(len(tiles)):
        b_divisor = tl.broadcast_to(tl.expand_dims(b_scale, 1), tiles[i].shape)
        b_ratio = tl.div_rn(tiles[i] - tl.expand_dims(b_zero, 1), b_divisor)
        codes = codes + (affine.code(b_ratio, b_inverse, 0, HALF - 1),)
        b_divisor = tl.broadcast_to(tl.expand_dims(b_sym_scale, 1), tiles[i].shape)
        b_ratio = tl.div_rn(tiles[i], b_divisor)
        syms = syms + (affine.code(b_ratio, b_sym_inverse, 1 - HALF, HALF - 1),)
        b_error += tl.abs(affine.difference(codes[i], b_scale, b_zero, tiles[i]))
        b_sym_error += tl.abs(affine.difference(syms[i], b_sym_scale, b_sym_zero, tiles[i]))
    keep = tl.sum(b_error, 1) <= tl.sum(b_sym_error, 1)
    chosen = affine.in_words(choose(keep, codes, syms))
    return chosen, tl.where(keep, b_scale, b_sym_scale), tl.where(keep, b_zero, b_sym_zero)
