"""Groups whose scale and zero point share a ``pair8`` word, see ``kernels/scale_types.py``.

Codes are ``round(x * inverse - zero * inverse)`` with ``inverse = 1 / scale``, a fused multiply-add.
"""

from __future__ import annotations

import dataclasses

import torch

from .. import scale_types
from ..scale_types import MOST_STEPS, PAIR, zero_step
from .mode import Encoded, GroupFormat
from .rounding import fma, unit


@dataclasses.dataclass(frozen=True)
class Pair:
    """Rounded scales, and zero points in steps: each ``[...]``, in the dtype of the elements."""

    scale: torch.Tensor
    steps: torch.Tensor

    def choose(self, take: torch.Tensor, other: Pair) -> Pair:
        """This pair where ``take [...]`` is true, else the ``other``."""
        return Pair(torch.where(take, self.scale, other.scale), torch.where(take, self.steps, other.steps))

    def encoded(self, codes: torch.Tensor) -> Encoded:
        return codes, scale_types.to_pair(self.scale, self.steps), None


def asymmetric(x: torch.Tensor, fmt: GroupFormat, past: torch.Tensor | None = None) -> Pair:
    """Scale and zero point for codes from the smallest element of a group to its largest, within the range of a word.

    ``past [...]``: by how many (rounded) scales the zero point is moved up, see ``modes/anchored.py``.
    """
    scale = asymmetric_scale(x, fmt)
    low, inverse = x.amin(-1), 1 / unit(scale)
    zero = low * inverse if past is None else fma(low, inverse, past)  # in scales
    return Pair(scale, within_reach(x, scale, zero, fmt))


def asymmetric_scale(x: torch.Tensor, fmt: GroupFormat) -> torch.Tensor:
    """The rounded scale of an asymmetric group."""
    high, low = x.amax(-1), x.amin(-1)
    # half the width: the width itself may overflow
    scale = (high * 0.5 - low * 0.5) * (2 / ((1 << fmt.bits) - 1))
    return scale_types.pair_scale(scale, low, fmt.bits).to(x.dtype)


def within_reach(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, fmt: GroupFormat) -> torch.Tensor:
    """Steps of the zero point nearest to ``zero``, which is in units of the scale."""
    step, half = zero_step(fmt.bits), 1 << (fmt.bits - 1)
    steps = torch.round((zero * (1 / step)).clamp(-MOST_STEPS, MOST_STEPS))
    # where even the largest scale is too small for both ends of a group, zero stays in the middle of the codes
    beyond = (scale >= PAIR.largest) & (x.amax(-1) > 0)
    return torch.where(beyond, steps.clamp(min=-round(half / step)), steps)


def signed(x: torch.Tensor, fmt: GroupFormat) -> Pair:
    """A signed group with a positive scale. Its additional level is on the side of the largest magnitude."""
    half, step = 1 << (fmt.bits - 1), zero_step(fmt.bits)
    high, low = x.amax(-1), x.amin(-1)
    positive = high > -low
    scale = torch.where(positive, high, -low) / half
    scale = scale_types.round_scale(scale, PAIR, fmt.bits).to(x.dtype)
    steps = torch.where(positive, -round((half - 1) / step), -round(half / step)).to(x.dtype)
    return Pair(scale, torch.where(scale == 0, 0.0, steps))


def ratios(x: torch.Tensor, pair: Pair, fmt: GroupFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """``(x - zero) / scale`` of elements and the codes nearest to that, both as floating-point numbers.

    The ratio is ``x * (1 / scale) - zero / scale``: the inverse is rounded, then the whole expression, once.
    """
    offset = pair.steps * zero_step(fmt.bits)
    exact = x.double() * (1 / unit(pair.scale)).double()[..., None] - offset.double()[..., None]
    ratio = exact.to(x.dtype)
    codes = torch.round(ratio.clamp(0, (1 << fmt.bits) - 1))
    return ratio, torch.where(codes.isnan(), torch.zeros_like(codes), codes)


def codes_for(x: torch.Tensor, pair: Pair, fmt: GroupFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """``(codes [..., group_size] int32, squared error [...])`` of groups."""
    ratio, codes = ratios(x, pair, fmt)
    return codes.to(torch.int32), (ratio - codes).square().sum(-1) * unit(pair.scale).square()
