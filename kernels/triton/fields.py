"""Reading and writing fields of packed words in Triton kernels: ``layout.field_bits`` as arithmetic.

Whole fields fill each half from its lowest bit on. The bits of the other fields, which are spread, are numbered through
the spare bits of all halves: bit ``i`` is spare bit ``i % SPARE`` of half ``i // SPARE``.
"""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from .casts import in_order
from .constants import first_spare_bit, first_spread_field, spare_bits, spare_mask, whole_fields


@triton.jit
def load_codes(p_halves, field, PLANE: tl.constexpr, mask, BITS: tl.constexpr):
    """Load the unsigned codes of ``field``, int32. ``p_halves`` (of int16) and ``PLANE`` are of ``locate_code``."""
    WHOLE: tl.constexpr = whole_fields(BITS)
    SPARE: tl.constexpr = spare_bits(BITS)
    SPREAD: tl.constexpr = first_spread_field(BITS)
    MASK: tl.constexpr = (1 << BITS) - 1
    spread = field >= SPREAD
    half = tl.load(p_halves + field // WHOLE * PLANE, mask=mask & (field < SPREAD), other=0).to(tl.int32)
    code = (half >> (field % WHOLE * BITS)) & MASK
    if SPARE > 0:
        rest = tl.zeros_like(code)
        for j in tl.static_range(BITS):
            half = tl.load(p_halves + j * PLANE, mask=mask & spread, other=0).to(tl.int32)
            rest |= ((half >> first_spare_bit(BITS)) & ((1 << SPARE) - 1)) << (j * SPARE)
        code = tl.where(spread, (rest >> tl.where(spread, (field - SPREAD) * BITS, 0)) & MASK, code)
    return code


@triton.jit
def add_to_planes(planes, b_codes, FIELD: tl.constexpr, BITS: tl.constexpr):
    """Add codes (``codes.both_halves``) to words ``planes`` (``BITS`` tensors). ``FIELD`` is known at compile time."""
    WHOLE: tl.constexpr = whole_fields(BITS)
    SPARE: tl.constexpr = spare_bits(BITS)
    FIRST: tl.constexpr = (FIELD - first_spread_field(BITS)) * BITS  # number of its lowest bit among the spare bits
    new = ()
    for j in tl.static_range(BITS):
        b_word = planes[j]
        if first_spread_field(BITS) > FIELD:
            if j == FIELD // WHOLE:
                b_word = in_order(b_word + (b_codes << (FIELD % WHOLE * BITS)))
        elif j * SPARE < FIRST + BITS and (j + 1) * SPARE > FIRST:
            b_bits = b_codes >> (j * SPARE - FIRST) if j * SPARE > FIRST else b_codes << (FIRST - j * SPARE)
            b_word = in_order(b_word + ((b_bits & spare_mask(BITS)) << first_spare_bit(BITS)))
        new = new + (b_word,)
    return new


@triton.jit
def add_to_some_plane(planes, b_codes, field, BITS: tl.constexpr):
    """:func:`add_to_planes` of a field that is known only when the kernel runs; a scalar."""
    WHOLE: tl.constexpr = whole_fields(BITS)
    SPARE: tl.constexpr = spare_bits(BITS)
    new = ()
    for j in tl.static_range(BITS):
        # instead of a shift and a select: a multiply-add by a power of two or zero is one instruction
        new = new + (in_order(planes[j] + b_codes * tl.where(field // WHOLE == j, 1 << (field % WHOLE * BITS), 0)),)
    if SPARE > 0:  # noqa: SIM102 (known when the kernel is compiled)
        if field >= first_spread_field(BITS):
            first = (field - first_spread_field(BITS)) * BITS  # number of its lowest bit among the spare bits
            spread = ()
            for j in tl.static_range(BITS):
                below = j * SPARE - first
                b_bits = (b_codes >> tl.maximum(below, 0)) << tl.maximum(-below, 0)
                b_bits = tl.where((below < BITS) & (below > -SPARE), b_bits & spare_mask(BITS), 0)
                spread = spread + (new[j] + (b_bits << first_spare_bit(BITS)),)
            new = spread
    return new


@triton.jit
def field_in_plane(b_codes, field, PLANE: tl.constexpr, BITS: tl.constexpr):
    """What codes ``b_codes [rows, 8]`` (``codes.both_halves``) add to a plane, if row ``r`` is field ``field[r]``."""
    WHOLE: tl.constexpr = whole_fields(BITS)
    SPARE: tl.constexpr = spare_bits(BITS)
    SPREAD: tl.constexpr = first_spread_field(BITS)
    shift = tl.where(field // WHOLE == PLANE, field % WHOLE * BITS, 0)
    b_word = tl.where((field // WHOLE == PLANE)[:, None], b_codes << shift[:, None], 0)
    if SPARE > 0:
        # from the number of the field's lowest bit to that of the plane's first spare bit
        below = PLANE * SPARE - (field - SPREAD) * BITS
        meets = (field >= SPREAD) & (below < BITS) & (below > -SPARE)
        below = tl.where(meets, below, 0)
        b_bits = (b_codes >> tl.maximum(below, 0)[:, None]) << tl.maximum(-below, 0)[:, None]
        b_bits = (b_bits & spare_mask(BITS)) << first_spare_bit(BITS)
        b_word += tl.where(meets[:, None], b_bits, 0)
    return b_word
