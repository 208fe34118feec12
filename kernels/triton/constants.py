"""Where bits lie, for kernels: what ``layout.py`` and ``scale_types.py`` say, as compile-time constants.

Functions run while a kernel is compiled. Code that Inductor generates holds their text (``lowering/source.py``), so
each name here is the function's own, and they call no others but those of this file.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .. import layout, scale_types

whole_fields = triton.constexpr_function(layout.whole_fields)
spare_bits = triton.constexpr_function(layout.spare_bits)
column_run = triton.constexpr_function(layout.column_run)
block_words = triton.constexpr_function(layout.block_words)
zero_step = triton.constexpr_function(scale_types.zero_step)

PAIR_SCALE = tl.constexpr(scale_types.PAIR_SCALE)
PAIR_STEPS = tl.constexpr(scale_types.PAIR_STEPS)
PAIR_SIGN = tl.constexpr(scale_types.PAIR_SIGN)
#: The mask of the zero point in a word as int16.
PAIR_ZERO = tl.constexpr(scale_types.PAIR_ZERO - 0x10000)
PAIR_LARGEST = tl.constexpr(scale_types.PAIR.largest)
#: From the power of two of a scale to the distance of the next larger one.
PAIR_QUANTUM = tl.constexpr(2.0**-scale_types.PAIR.mantissa_bits)
SMALLEST_NORMAL = tl.constexpr(scale_types.SMALLEST_NORMAL)
NEAREST_BITS = tl.constexpr(scale_types.NEAREST_BITS)
MOST_STEPS = tl.constexpr(float(scale_types.MOST_STEPS))
#: In 1 / STEP_AS_FLOAT16 a step of a zero point that was read as a float16 is 1.
STEPS_OF_FLOAT16 = tl.constexpr(1 / scale_types.STEP_AS_FLOAT16)


@triton.constexpr_function
def is_paired(dtype):
    """Whether scale and zero point of a group are one word: it is the only int16 that scales are held in."""
    return str(dtype) == "int16"


@triton.constexpr_function
def params_per_group(has_zero, dtype):
    """Elements of the tensor of scales that a group has."""
    return 2 if has_zero and not is_paired(dtype) else 1


@triton.constexpr_function
def block_params(bits, has_zero, group, block, head_dim, dtype):
    """Scales and zero points of a block: ``layout.scales_per_block`` in a kernel. ``bits`` is 0 without codes."""
    return block * head_dim // group * params_per_group(has_zero, dtype) if bits else 0


@triton.constexpr_function
def spare_mask(bits):
    """The spare bits of both halves of a word, at their lowest."""
    return ((1 << spare_bits(bits)) - 1) * 0x10001


@triton.constexpr_function
def start_of_plane(bits):
    """What a plane has to begin with, so that the ``codes.PAIR_BIAS`` of its whole fields ends in zero."""
    bias = sum(0x4B000000 << (position * bits) for position in range(whole_fields(bits)))
    return (2**31 - bias) % 2**32 - 2**31
