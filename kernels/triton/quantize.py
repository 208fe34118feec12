"""Quantizes a set of groups in a Triton kernel: ``reference.quantize_groups``."""

# ruff: noqa: RUF005
# Triton has no starred expressions in tuples.
from __future__ import annotations

import triton
import triton.language as tl

from .codes import clamp, max_nan, min_nan
from .constants import F32_MAX


@triton.jit
def _in_float32(tiles):
    wide = ()
    for i in tl.static_range(len(tiles)):
        wide = wide + (tiles[i].to(tl.float32),)
    return wide


@triton.jit
def _extremes(b_high, b_low, b_other_high, b_other_low):
    return max_nan(b_high, b_other_high), min_nan(b_low, b_other_low)


@triton.jit
def quantize_set(tiles, b_anchor, queries, ENCODER: tl.constexpr, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """Codes, scales and zero points of a set of groups, as ``ENCODER`` returns them.

    ``ENCODER`` is the encoder of a mode; ``modes/__init__.py`` describes it and the other arguments.
    """
    halves = tiles  # minimum and maximum of float16: one instruction has two or three operands, each two numbers
    tiles = _in_float32(tiles)
    if halves[0].dtype != tl.float16:
        halves = tiles
    b_high = halves[0]
    b_low = halves[0]
    for i in tl.static_range(1, len(halves)):
        b_high = max_nan(b_high, halves[i])
        b_low = min_nan(b_low, halves[i])
    b_high, b_low = tl.reduce((b_high, b_low), 1, _extremes)
    b_high, b_low = clamp(b_high.to(tl.float32), F32_MAX), clamp(b_low.to(tl.float32), F32_MAX)
    return ENCODER(tiles, b_high, b_low, b_anchor, queries, BITS, DTYPE)
