"""Scales of a few bits: ``float8_e5m2`` bytes, and ``pair8`` words that hold a scale and a zero point.

Both have the exponent of a float16 and a shorter mantissa, so that a mask or a shift makes a float16 of them.

======== ===================================================== ======================================================
byte     float16 with these bits                               worth
======== ===================================================== ======================================================
``w``    ``w << 8``                                            the scale, of either sign
======== ===================================================== ======================================================

======== ===================================================== ======================================================
word     float16 with these bits                               worth
======== ===================================================== ======================================================
``w``    ``w & 0x7F80``: 5 bits of exponent, 3 of mantissa     the scale, not negative
``w``    ``w & 0x807F``: sign and magnitude m, a subnormal     ``+-m * 2^-24``; the zero point is ``+-m * 2^(bits-6)``
                                                               scales, m up to 127
======== ===================================================== ======================================================

A zero point reaches two widths of the codes away from zero, in steps of 1/64 of it. It times the scale is exact in
float32, and so is ``code * scale + zero``.
"""

from __future__ import annotations

import torch

#: Mantissa bits and the largest finite number, by name of the scale dtype.
MANTISSA_BITS = {"float8_e5m2": 2, "pair8": 3}
LARGEST = {"float8_e5m2": 57344.0, "pair8": 61440.0}
#: Smallest normal number of float16; the scales below it are multiples of the same quantum.
SMALLEST_NORMAL = 2.0**-14
#: Most steps that a zero point lies from zero.
MOST_STEPS = 127
#: Codes of more bits take the scale rounded up: what a rounded-down one cuts off at the ends of a group would be more
#: than its finer steps gain within it (``docs/formats.md``).
NEAREST_BITS = 4
#: Zero points that mode ``steered`` tries, as many as there are within a scale where those are fewer.
MOST_TRIED = 4
#: An error is held in these parts of a scale when zero points are compared, so that it wraps around in a byte.
PARTS = 256
#: Added to a ratio below 2^14, it leaves a float32 whose low byte is those parts past the nearest code, signed.
TO_PARTS = 1.5 * 2.0**15
#: The bits of that float32.
TO_PARTS_BITS = 0x47400000
#: Codes of so few bits are tried with a signed group, too.
MOST_SIGNED_BITS = 2
#: How much larger the squared error of `signed` may be: groups that both candidates hold alike, which are many, then do
#: not depend on the order of a sum.
CLEARLY = 1 + 2.0**-10


def quantum(scale: torch.Tensor, name: str) -> torch.Tensor:
    """Distance from ``scale`` (float32, >= 0) to the next larger number of a short dtype."""
    power = (scale.view(torch.int32) & 0x7F800000).view(torch.float32).clamp(min=SMALLEST_NORMAL)
    return power * 2.0 ** -MANTISSA_BITS[name]


def round_scale(scale: torch.Tensor, name: str, bits: int, limit: float | None = None) -> torch.Tensor:
    """``scale`` as a short dtype holds it, in float32: to nearest even for codes of up to 4 bits, else away from zero.

    Magnitudes above ``limit`` (the largest number of the dtype, where it is left out) count as it. NaN stays.
    """
    size = scale.float().abs().clamp(max=LARGEST[name] if limit is None else limit)
    step = quantum(size, name)
    shift = step * (1.5 * 2**23)  # a number whose own steps are these; exact
    rounded = (size + shift) - shift
    if bits > NEAREST_BITS:
        rounded = torch.where(rounded < size, rounded + step, rounded)
    return torch.copysign(rounded, scale.float())


# --- float8_e5m2 ------------------------------------------------------------------------------------------------


def to_bytes(scale: torch.Tensor) -> torch.Tensor:
    """Scales that :func:`round_scale` gave, as uint8."""
    return scale.to(torch.float8_e5m2).view(torch.uint8)


def from_bytes(held: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return held.view(torch.float8_e5m2).to(dtype)


# --- pair8 ------------------------------------------------------------------------------------------------------


def zero_step(bits: int) -> float:
    """What a step of the zero point is worth, in scales."""
    return 2.0 ** (bits - 6)


def steering(bits: int) -> tuple[int, ...]:
    """Steps by which mode ``steered`` moves a zero point: half a scale at most, and none in the first place."""
    steps = max(1, round(1 / zero_step(bits)))
    tried = min(MOST_TRIED, steps)
    return tuple((index - tried * (index > tried // 2)) * steps // tried for index in range(tried))


def product_shift(group_size: int) -> int:
    """Bits by which the product of errors with the mean query is shortened, so that its square is below 2^31."""
    return 4 + max(0, group_size // 32 - 1).bit_length()


def pair_scale(scale: torch.Tensor, low: torch.Tensor, bits: int) -> torch.Tensor:
    """The scale of a pair, as it is stored: ``scale`` rounded, and so large that the zero point ``low`` can be reached.

    Limited to the largest scale; what lies further away saturates.
    """
    reach = MOST_STEPS * zero_step(bits)
    stored = round_scale(torch.maximum(scale.float(), low.float().abs() * (1 / reach)), "pair8", bits)
    larger = (stored + quantum(stored, "pair8")).clamp(max=LARGEST["pair8"])
    return torch.where(low.abs() > stored * reach, larger, stored)


def to_pair(scale: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Words int16 of scales (as stored, NaN allowed) and whole ``steps`` of the zero point, -127 to 127."""
    bits = scale.to(torch.float16).view(torch.int16).to(torch.int32) & 0x7F80  # -0 is 0
    bits = torch.where(scale.isnan(), torch.full_like(bits, 0x7F80), bits)
    steps = torch.where(scale.isnan(), torch.zeros_like(steps), steps).to(torch.int32)
    word = bits | steps.abs() | torch.where(steps < 0, 0x8000, 0)
    return torch.where(word >= 0x8000, word - 0x10000, word).to(torch.int16)


def from_pair(words: torch.Tensor, bits: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """``(scale, zero)`` of words int16, in ``dtype``. ``bits`` are those of a code."""
    scale = (words & 0x7F80).view(torch.float16).to(dtype)
    steps = (words & 0x7F).to(dtype)
    return scale, torch.where(words < 0, -steps, steps) * zero_step(bits) * scale
