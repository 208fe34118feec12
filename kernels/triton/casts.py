"""Conversions and fused multiply-adds that give the same bits on a GPU and in Triton's interpreter."""

from __future__ import annotations

import triton
import triton.language as tl

from .support import interpreted

#: True while kernels run in the interpreter, which has no inline PTX, and truncates where a GPU rounds.
INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def round_to(b_x, DTYPE: tl.constexpr):
    """Round float32 to ``DTYPE``, to nearest even. The interpreter's own conversion to bfloat16 truncates."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        b_bits = b_x.to(tl.uint32, bitcast=True)
        b_even = (b_bits + 0x7FFF + ((b_bits >> 16) & 1)) & 0xFFFF0000
        b_x = tl.where(b_x == b_x, b_even, b_bits).to(tl.uint32).to(tl.float32, bitcast=True)
    return b_x.to(DTYPE)


@triton.jit
def fma(b_a, b_b, b_c):
    """``a * b + c``, rounded once. The interpreter's ``tl.fma`` rounds twice."""
    if INTERPRETED:
        return (b_a.to(tl.float64) * b_b.to(tl.float64) + b_c.to(tl.float64)).to(tl.float32)
    else:
        return tl.fma(b_a, b_b, b_c)


@triton.jit
def fma_within(b_a, b_b, b_c):
    """:func:`fma` clamped to [0, 1], in one instruction; NaN gives 0."""
    if INTERPRETED:
        b_x = fma(b_a, b_b, b_c)
        return tl.minimum(tl.maximum(tl.where(b_x == b_x, b_x, 0.0), 0.0), 1.0)
    else:
        b_a, b_b = tl.broadcast(b_a, b_b)
        return tl.inline_asm_elementwise(
            "fma.rn.sat.f32 $0, $1, $2, $3;",
            "=f,f,f,f",
            [b_a, b_b, tl.broadcast_to(b_c, b_a.shape)],
            dtype=tl.float32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def in_order(b_word):
    """``b_word`` (int32), behind an empty ``mov`` that keeps LLVM from reordering the sum it is part of.

    LLVM would otherwise delay additions to the end, and keep all summands in registers until then.
    """
    if INTERPRETED:
        return b_word
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [b_word], dtype=tl.int32, is_pure=True, pack=1)
