"""Numbers of ``layout.py``, ``formats.py`` and ``scale_types.py`` as compile-time constants of Triton kernels.

The functions run when a kernel is compiled. Code that Inductor generates contains copies of their source
(``lowering/source.py``), found by name: each has the name here that it is defined with, and calls only functions of
this file.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import formats, layout, scale_types
from ..modes import decoding
from . import support

# --- words of codes, see layout.py --------------------------------------------------------------------------------

#: Tokens of a block, unless groups of values are longer.
BLOCK_TOKENS = tl.constexpr(formats.BLOCK_TOKENS)

whole_fields = triton.constexpr_function(layout.whole_fields)
spare_bits = triton.constexpr_function(layout.spare_bits)
first_spare_bit = triton.constexpr_function(layout.first_spare_bit)
first_spread_field = triton.constexpr_function(layout.first_spread_field)
half_of_bit = triton.constexpr_function(layout.half_of_bit)
place_of_bit = triton.constexpr_function(layout.place_of_bit)
sub_ranges = triton.constexpr_function(layout.sub_ranges)
plane_columns = triton.constexpr_function(layout.plane_columns)
sub_range_stride = triton.constexpr_function(layout.sub_range_stride)
slice_stride = triton.constexpr_function(layout.slice_stride)
column_run = triton.constexpr_function(layout.column_run)
plane_words = triton.constexpr_function(layout.plane_words)
block_words = triton.constexpr_function(layout.block_words)
code_offset = triton.constexpr_function(decoding.code_offset)


@triton.constexpr_function
def field_number(is_key, slices, sub, slice_lo):
    """The field of a sub-range and a slice, both known at compile time."""
    return sub * sub_range_stride(is_key, slices) + slice_lo * slice_stride(is_key, slices)


@triton.constexpr_function
def spare_mask(bits):
    """A mask of as many bits as a half has spare bits, at the lowest bits of both halves of a word."""
    return ((1 << spare_bits(bits)) - 1) * 0x10001


# --- scales, see layout.py and scale_types.py -----------------------------------------------------------------------

block_groups = triton.constexpr_function(layout.block_groups)
group_row = triton.constexpr_function(layout.group_row)
zero_step = triton.constexpr_function(scale_types.zero_step)

PAIR_SCALE = tl.constexpr(scale_types.PAIR_SCALE)
PAIR_STEPS = tl.constexpr(scale_types.PAIR_STEPS)
PAIR_SIGN = tl.constexpr(scale_types.PAIR_SIGN)
#: The mask of the zero point in a word as int16.
PAIR_ZERO = tl.constexpr(scale_types.PAIR_ZERO - 0x10000)
PAIR_LARGEST = tl.constexpr(scale_types.PAIR.largest)
#: Distance from a scale to the next larger one, relative to the power of two below the scale.
PAIR_QUANTUM = tl.constexpr(2.0**-scale_types.PAIR.mantissa_bits)
SMALLEST_NORMAL = tl.constexpr(scale_types.SMALLEST_NORMAL)
NEAREST_BITS = tl.constexpr(scale_types.NEAREST_BITS)
MOST_STEPS = tl.constexpr(float(scale_types.MOST_STEPS))
#: The smallest subnormal float16: an integer whose bits are read as those of a float16 is so many times this.
SUBNORMAL = tl.constexpr(scale_types.STEP_AS_FLOAT16)


@triton.constexpr_function
def is_paired(dtype):
    """Whether scales are ``pair8`` words, which hold the zero point: no other scale type is stored as int16."""
    return str(dtype) == "int16"


@triton.constexpr_function
def is_byte(dtype):
    """Whether scales are ``float8_e5m2``: no other scale type is stored as uint8."""
    return str(dtype) == "uint8"


@triton.constexpr_function
def params_per_group(has_zero, dtype):
    """Elements per group in the tensor of scales: ``CacheFormat.scales_per_group``."""
    return 2 if has_zero and not is_paired(dtype) else 1


@triton.constexpr_function
def block_params(bits, has_zero, group, block, head_dim, dtype):
    """Elements per block in the tensor of scales: ``layout.scales_per_block``. ``bits`` is 0 without codes."""
    return block_groups(group, block, head_dim) * params_per_group(has_zero, dtype) if bits else 0


# --- windows and state, see formats.py and layout.py ------------------------------------------------------------------

ring_slots = triton.constexpr_function(formats.ring_slots)

STATE_SIZE = tl.constexpr(len(layout.STATE_FIELDS))
STATE_START = tl.constexpr(layout.START)
STATE_LENGTH = tl.constexpr(layout.LENGTH)
STATE_PEAK = tl.constexpr(layout.PEAK)
STATE_HIDDEN = tl.constexpr(layout.HIDDEN)


@triton.constexpr_function
def window_slots(sink, recent, block):
    """Slots of the tensor of windows: ``CacheFormat.window``."""
    return sink + ring_slots(recent, block)


# --- sizes ------------------------------------------------------------------------------------------------------------

#: Tensors have such sizes.
next_power_of_2 = triton.constexpr_function(support.next_power_of_2)

# --- floating-point numbers -------------------------------------------------------------------------------------------

F16_MAX = tl.constexpr(torch.finfo(torch.float16).max)
BF16_MAX = tl.constexpr(torch.finfo(torch.bfloat16).max)
F32_MAX = tl.constexpr(torch.finfo(torch.float32).max)
#: The smallest normal number.
F32_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
LOG2E = tl.constexpr(1.4426950408889634)


@triton.constexpr_function
def largest(dtype):
    """The largest finite number of a floating-point dtype."""
    return {"fp16": F16_MAX, "bf16": BF16_MAX, "fp32": F32_MAX}[str(dtype)]
