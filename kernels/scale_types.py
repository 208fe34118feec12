"""How scales are stored: as ordinary floating-point numbers, as ``float8_e5m2`` bytes, or in ``pair8`` words.

The last two have the exponent of a float16 and a shorter mantissa, so that a shift or a mask turns them into float16.
They are stored as integers of the same bits, because few operators take eight-bit floating-point tensors.

======== ===================================================== ======================================================
byte     float16 with these bits                               meaning
======== ===================================================== ======================================================
``w``    ``w << 8``                                            the scale, of either sign
======== ===================================================== ======================================================

======== ===================================================== ======================================================
word     float16 with these bits                               meaning
======== ===================================================== ======================================================
``w``    ``w & 0x7F80``: 5 bits of exponent, 3 of mantissa     the scale, not negative
``w``    ``w & 0x807F``: sign and magnitude m, a subnormal     ``+-m * 2^-24``; the zero point is ``+-m * 2^(bits-6)``
                                                               scales, m up to 127
======== ===================================================== ======================================================

A zero point is up to about two ranges of codes (``2^bits`` scales) away from zero, in steps of 1/64 of that range. Zero
points and ``code * scale + zero`` are exact in float32.
"""

from __future__ import annotations

import dataclasses

import torch

#: Masks of the parts of a ``pair8`` word: scale, zero point with its sign, magnitude of the zero point in steps, sign.
PAIR_SCALE, PAIR_ZERO, PAIR_STEPS, PAIR_SIGN = 0x7F80, 0x807F, 0x7F, 0x8000
#: Largest magnitude of a zero point, in steps.
MOST_STEPS = PAIR_STEPS
#: One step of a zero point whose bits are read as those of a float16: the smallest subnormal number.
STEP_AS_FLOAT16 = 2.0**-24
#: Smallest normal number of float16. Short scales below it are subnormal: all multiples of one number.
SMALLEST_NORMAL = 2.0**-14
#: Up to so many bits of a code, short scales are rounded to nearest. For wider codes they are rounded up: a scale that
#: was rounded down clips the ends of a group, which costs more than the finer steps gain (``docs/formats.md``).
NEAREST_BITS = 4


@dataclasses.dataclass(frozen=True)
class ScaleType:
    """One way to store the scales of groups.

    Attributes:
        name: its name in ``CacheFormat.scale_dtype``.
        storage: dtype of the tensor of scales, which holds numbers, or integers with the bits of short types.
        largest: the largest finite scale.
        mantissa_bits: explicit bits of the mantissa.
        is_short: whether torch has no arithmetic of this precision, so that :func:`round_scale` does the rounding.
        holds_zero: whether an element holds the zero point of the group as well.
    """

    name: str
    storage: torch.dtype
    largest: float
    mantissa_bits: int
    is_short: bool = False
    holds_zero: bool = False


def _ordinary(name: str, dtype: torch.dtype) -> ScaleType:
    numbers = torch.finfo(dtype)
    return ScaleType(name, dtype, numbers.max, round(-torch.tensor(numbers.eps).log2().item()))


#: All of them, by name.
SCALE_TYPES: dict[str, ScaleType] = {
    scale_type.name: scale_type
    for scale_type in (
        _ordinary("float16", torch.float16),
        _ordinary("bfloat16", torch.bfloat16),
        _ordinary("float32", torch.float32),
        ScaleType("float8_e5m2", torch.uint8, 57344.0, mantissa_bits=2, is_short=True),
        ScaleType("pair8", torch.int16, 61440.0, mantissa_bits=3, is_short=True, holds_zero=True),
    )
}
FLOAT8 = SCALE_TYPES["float8_e5m2"]
PAIR = SCALE_TYPES["pair8"]


def numbers(
    held: torch.Tensor, zeros: torch.Tensor | None, scale_type: ScaleType, bits: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Decode the stored scales and zero points of groups.

    Args:
        held: stored scales ``[...]``, in the storage dtype of ``scale_type``.
        zeros: stored zero points ``[...]`` where they are elements of their own, else None.
        scale_type: how scales are stored.
        bits: bits of a code.
        dtype: dtype of the results.

    Returns:
        Scales and zero points, each ``[...]`` in ``dtype``; None for zero points that do not exist.
    """
    if scale_type.holds_zero:
        return from_pair(held, bits, dtype)
    if scale_type.is_short:
        return from_bytes(held, dtype), None
    return held.to(dtype), None if zeros is None else zeros.to(dtype)


def quantum(scale: torch.Tensor, scale_type: ScaleType) -> torch.Tensor:
    """Distance from ``scale`` (float32, >= 0) to the next larger number of a short scale type."""
    power = (scale.view(torch.int32) & 0x7F800000).view(torch.float32).clamp(min=SMALLEST_NORMAL)
    return power * 2.0**-scale_type.mantissa_bits


def round_scale(scale: torch.Tensor, scale_type: ScaleType, bits: int, limit: float | None = None) -> torch.Tensor:
    """Round ``scale`` to a short scale type. The result is float32.

    Rounds to nearest, ties to even, for codes of up to :data:`NEAREST_BITS` bits, else away from zero. Magnitudes are
    clamped to ``limit``, by default the largest scale of the type. NaN stays NaN.
    """
    size = scale.float().abs().clamp(max=scale_type.largest if limit is None else limit)
    step = quantum(size, scale_type)
    shift = step * (1.5 * 2**23)  # exact; adding it rounds to multiples of step, which is its unit in the last place
    rounded = (size + shift) - shift
    if bits > NEAREST_BITS:
        rounded = torch.where(rounded < size, rounded + step, rounded)
    return torch.copysign(rounded, scale.float())


# --- float8_e5m2 ------------------------------------------------------------------------------------------------


def to_bytes(scale: torch.Tensor) -> torch.Tensor:
    """Store scales that :func:`round_scale` has rounded, as uint8."""
    return scale.to(torch.float8_e5m2).view(torch.uint8)


def from_bytes(held: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scales that bytes of :func:`to_bytes` hold, in ``dtype``."""
    return held.view(torch.float8_e5m2).to(dtype)


# --- pair8 ------------------------------------------------------------------------------------------------------


def zero_step(bits: int) -> float:
    """One step of the zero point, in scales."""
    return 2.0 ** (bits - 6)


def pair_scale(scale: torch.Tensor, low: torch.Tensor, bits: int) -> torch.Tensor:
    """The stored scale of a ``pair8`` group: ``scale`` rounded, or larger where the zero point ``low`` requires it.

    A zero point is at most :data:`MOST_STEPS` steps, which are fractions of the scale. Where even the largest scale is
    too small for ``low``, the zero point saturates.
    """
    reach = MOST_STEPS * zero_step(bits)
    stored = round_scale(torch.maximum(scale.float(), low.float().abs() * (1 / reach)), PAIR, bits)
    larger = (stored + quantum(stored, PAIR)).clamp(max=PAIR.largest)
    return torch.where(low.abs() > stored * reach, larger, stored)


def to_pair(scale: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Words int16 of scales (already rounded; may be NaN) and zero points in whole ``steps``, -127 to 127."""
    bits = scale.to(torch.float16).view(torch.int16).to(torch.int32) & PAIR_SCALE  # -0 is 0
    bits = torch.where(scale.isnan(), torch.full_like(bits, PAIR_SCALE), bits)
    steps = torch.where(scale.isnan(), torch.zeros_like(steps), steps).to(torch.int32)
    word = bits | steps.abs() | torch.where(steps < 0, PAIR_SIGN, 0)
    return torch.where(word >= PAIR_SIGN, word - 2 * PAIR_SIGN, word).to(torch.int16)


def from_pair(words: torch.Tensor, bits: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """``(scale, zero)`` of words int16, in ``dtype``. ``bits``: bits of a code."""
    scale = (words & PAIR_SCALE).view(torch.float16).to(dtype)
    steps = (words & PAIR_STEPS).to(dtype)
    return scale, torch.where(words < 0, -steps, steps) * zero_step(bits) * scale
