"""Arithmetic on the four bytes of an int32: PTX instructions, and equivalents for the interpreter, which has no PTX."""

from __future__ import annotations

import triton
import triton.language as tl

from .casts import INTERPRETED


@triton.jit
def low_bytes(b_0, b_1, b_2, b_3):
    """Pack the low bytes of four int32 into one, that of ``b_0`` lowest."""
    if INTERPRETED:
        return (b_0 & 0xFF) | ((b_1 & 0xFF) << 8) | ((b_2 & 0xFF) << 16) | (b_3 << 24)
    else:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 low, high; prmt.b32 low, $1, $2, 0x0040; prmt.b32 high, $3, $4, 0x0040; "
            "prmt.b32 $0, low, high, 0x5410; }",
            "=r,r,r,r,r",
            [b_0, b_1, b_2, b_3],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def dot_bytes(b_a, b_b, b_sum):
    """``b_sum`` plus the dot product of the four signed bytes of ``b_a`` and of ``b_b``."""
    if INTERPRETED:
        for i in tl.static_range(4):
            b_sum += ((b_a << (24 - 8 * i)) >> 24) * ((b_b << (24 - 8 * i)) >> 24)
        return b_sum
    else:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [b_a, b_b, b_sum], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def dot_unsigned_bytes(b_a, b_b, b_sum):
    """``b_sum`` plus the dot product of the four unsigned bytes of ``b_a`` and of ``b_b``."""
    if INTERPRETED:
        for i in tl.static_range(4):
            b_sum += ((b_a >> (8 * i)) & 0xFF) * ((b_b >> (8 * i)) & 0xFF)
        return b_sum
    else:
        return tl.inline_asm_elementwise(
            "dp4a.u32.u32 $0, $1, $2, $3;", "=r,r,r,r", [b_a, b_b, b_sum], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def byte_signs(b_word):
    """0xFF in each byte of an int32 whose sign bit is set, 0x00 in the others."""
    if INTERPRETED:
        return ((b_word >> 7) & 0x01010101) * 0xFF
    else:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, 0, 0xBA98;", "=r,r", [b_word], dtype=tl.int32, is_pure=True, pack=1
        )
