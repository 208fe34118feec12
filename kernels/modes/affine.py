"""Groups whose scale, and zero point if any, are separate elements in the tensor of scales.

Codes are chosen for the scale as it is stored: ``round((x - zero) * (1 / scale))`` with the inverse rounded to float32,
or ``round((x - zero) / scale)`` in the modes of the paper.
"""

from __future__ import annotations

import torch

from .. import scale_types
from . import decoding
from .mode import Encoded, GroupFormat
from .rounding import is_empty


def levels(fmt: GroupFormat) -> int:
    """The largest code."""
    return (1 << fmt.bits) - 1


def stored_scale(scale: torch.Tensor, reach: float, fmt: GroupFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """``(stored scale, its value)``, limited so that ``reach`` times the scale is finite too."""
    limit = fmt.scale_type.largest / reach
    if fmt.scale_type.is_short:
        rounded = scale_types.round_scale(scale, fmt.scale_type, fmt.bits, limit)
        return scale_types.to_bytes(rounded), rounded.to(scale.dtype)
    held = scale.clamp(-limit, limit).to(fmt.scale_type.storage)
    return held, held.to(scale.dtype)


def stored_zero(zero: torch.Tensor, fmt: GroupFormat) -> torch.Tensor:
    """A zero point, limited and in the storage dtype of scales."""
    limit = fmt.scale_type.largest
    return zero.clamp(-limit, limit).to(fmt.scale_type.storage)


def codes_for(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    low: int,
    high: int,
    reach: float,
    fmt: GroupFormat,
    divide: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes from ``low`` to ``high`` with ``x ~ code * scale + zero``.

    Args:
        x: groups ``[..., group_size]``.
        scale: scales ``[...]``, before they are stored.
        zero: stored zero points ``[...]``, or None.
        low, high: range of the codes.
        reach: the scale is limited so that ``reach * scale`` is finite.
        fmt: the format.
        divide: divide elements by the scale, instead of multiplying with its inverse.

    Returns:
        Codes ``[..., group_size]`` int32 and stored scales ``[...]``.
    """
    held, rounded = stored_scale(scale, reach, fmt)
    empty = is_empty(rounded)
    rounded = torch.where(empty, torch.ones_like(rounded), rounded)[..., None]
    shifted = x if zero is None else x - zero.to(x.dtype)[..., None]
    codes = shifted / rounded if divide else shifted * rounded.reciprocal()
    codes = torch.round(codes).clamp(low, high)
    codes = torch.where(empty[..., None] | codes.isnan(), torch.zeros_like(codes), codes)
    return codes.to(torch.int32), torch.where(empty, torch.zeros_like(held), held)


def signed(x: torch.Tensor, fmt: GroupFormat, reach: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes from ``-2^(bits-1)`` to ``2^(bits-1) - 1`` and the stored scale.

    The sign of the scale is chosen so that the element of largest magnitude has the code ``-2^(bits-1)``.
    """
    half = 1 << (fmt.bits - 1)
    high, low = x.amax(-1), x.amin(-1)
    scale = torch.where(high > -low, -high, -low) / half
    return codes_for(x, scale, None, -half, half - 1, reach, fmt)


def asymmetric(x: torch.Tensor, fmt: GroupFormat, zero: torch.Tensor | None = None) -> Encoded:
    """Codes from the smallest element of a group (or from ``zero [...]``) to its largest."""
    zero = stored_zero(x.amin(-1) if zero is None else zero, fmt)
    codes, scale = codes_for(x, asymmetric_scale(x, fmt), zero, 0, levels(fmt), asymmetric_reach(fmt), fmt)
    return codes, scale, zero


def asymmetric_scale(x: torch.Tensor, fmt: GroupFormat) -> torch.Tensor:
    """The scale of an asymmetric group, not rounded yet."""
    return x.amax(-1) / levels(fmt) - x.amin(-1) / levels(fmt)


def asymmetric_reach(fmt: GroupFormat) -> int:
    """The ``reach`` of an asymmetric group: ``code * scale`` is up to ``high - low``, which may overflow float32."""
    return 1 if leaves_room(fmt) else levels(fmt)


def leaves_room(fmt: GroupFormat) -> bool:
    """Whether scales are float16, so that ``code * scale`` of any code is finite in float32."""
    return fmt.scale_type.storage is torch.float16


def signed_with_zero(x: torch.Tensor, fmt: GroupFormat) -> Encoded:
    """A signed group, in the form of an asymmetric one with the zero point ``-2^(bits-1) * scale``."""
    half = decoding.code_offset(fmt.bits)
    # unsigned codes are up to 2 * half - 1, and the zero point is half scales
    codes, scale = signed(x, fmt, half if leaves_room(fmt) else 2 * half)
    return codes + half, scale, (-half * scale.to(x.dtype)).to(scale.dtype)


def errors(x: torch.Tensor, encoded: Encoded, fmt: GroupFormat) -> torch.Tensor:
    """Decoded elements minus ``x``, for groups with separate zero points."""
    codes, scales, zeros = encoded
    found = scale_types.numbers(scales, zeros, fmt.scale_type, fmt.bits, x.dtype)
    return decoding.with_zero(codes, *found, fmt.bits) - x


def choose(take: torch.Tensor, first: Encoded, second: Encoded) -> Encoded:
    """The groups of ``first`` where ``take [...]`` is true, else those of ``second``."""
    codes = torch.where(take[..., None], first[0], second[0])
    zeros = None if first[2] is None or second[2] is None else torch.where(take, first[2], second[2])
    return codes, torch.where(take, first[1], second[1]), zeros
