"""Groups whose scale, and zero point where there is one, are elements of their own.

Codes are chosen for the scale as it is stored: ``round((x - zero) * inverse)``, with the inverse of the scale rounded
once a group; ``round(x / scale)`` in the modes of the paper.
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
    """``(as it is stored, the number that it is then)``, limited so that ``reach`` times the scale is finite too."""
    limit = fmt.scale_type.largest / reach
    if fmt.scale_type.is_short:
        rounded = scale_types.round_scale(scale, fmt.scale_type, fmt.bits, limit)
        return scale_types.to_bytes(rounded), rounded.to(scale.dtype)
    held = scale.clamp(-limit, limit).to(fmt.scale_type.storage)
    return held, held.to(scale.dtype)


def stored_zero(zero: torch.Tensor, fmt: GroupFormat) -> torch.Tensor:
    """A zero point as it is stored."""
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
    """``(codes, scale as it is stored)`` for ``x ~ code * scale + zero``, codes from ``low`` to ``high``.

    Args:
        x: groups ``[..., group_size]``.
        scale: ``[...]``.
        zero: ``[...]`` as it is stored, or None.
        low, high: range of the codes.
        reach: of how many scales a group has to stay finite: the scale is limited to that.
        fmt: the format.
        divide: whether elements are divided by the scale, and not multiplied with its inverse.
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
    """Codes from ``-2^(bits-1)`` to ``2^(bits-1) - 1`` and the scale, whose sign puts the element of largest magnitude
    on the longer side."""
    half = 1 << (fmt.bits - 1)
    high, low = x.amax(-1), x.amin(-1)
    scale = torch.where(high > -low, -high, -low) / half
    return codes_for(x, scale, None, -half, half - 1, reach, fmt)


def asymmetric(x: torch.Tensor, fmt: GroupFormat, zero: torch.Tensor | None = None) -> Encoded:
    """Codes from the least element of a group to its largest. ``zero [...]``: a zero point in place of the least."""
    zero = stored_zero(x.amin(-1) if zero is None else zero, fmt)
    codes, scale = codes_for(x, asymmetric_scale(x, fmt), zero, 0, levels(fmt), asymmetric_reach(fmt), fmt)
    return codes, scale, zero


def asymmetric_scale(x: torch.Tensor, fmt: GroupFormat) -> torch.Tensor:
    """The scale of an asymmetric group, before it is stored."""
    return x.amax(-1) / levels(fmt) - x.amin(-1) / levels(fmt)


def asymmetric_reach(fmt: GroupFormat) -> int:
    """``code * scale`` alone is up to ``high - low``, for which float32 may be too small, unless scales are float16."""
    return 1 if leaves_room(fmt) else levels(fmt)


def leaves_room(fmt: GroupFormat) -> bool:
    """Whether scales are so small that twice what a group holds is finite in float32."""
    return fmt.scale_type.storage is torch.float16


def signed_with_zero(x: torch.Tensor, fmt: GroupFormat) -> Encoded:
    """A signed group as an asymmetric one, whose zero point is ``-2^(bits-1)`` scales: a group may have either."""
    half = decoding.code_offset(fmt.bits)
    # its codes reach 2 * half - 1 scales, and its zero point half of that
    codes, scale = signed(x, fmt, half if leaves_room(fmt) else 2 * half)
    return codes + half, scale, (-half * scale.to(x.dtype)).to(scale.dtype)


def errors(x: torch.Tensor, encoded: Encoded, fmt: GroupFormat) -> torch.Tensor:
    """Differences of groups from what they decode to, where zero points are stored apart."""
    codes, scales, zeros = encoded
    found = scale_types.numbers(scales, zeros, fmt.scale_type, fmt.bits, x.dtype)
    return decoding.with_zero(codes, *found, fmt.bits) - x


def choose(take: torch.Tensor, first: Encoded, second: Encoded) -> Encoded:
    """The groups of ``first`` that ``take [...]`` says, else those of ``second``."""
    codes = torch.where(take[..., None], first[0], second[0])
    zeros = None if first[2] is None or second[2] is None else torch.where(take, first[2], second[2])
    return codes, torch.where(take, first[1], second[1]), zeros
