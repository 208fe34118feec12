"""Arithmetic that several modes share, rounded exactly as the kernels round it."""

from __future__ import annotations

import torch

#: Sums that differ by less than this factor count as equal, so that the choice among candidates of equal error does not
#: depend on the order of summation.
CLEARLY = 1 + 2.0**-10


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """``a * b + c``, rounded once: a fused multiply-add. float32, computed in float64."""
    return (a.double() * b.double() + c.double()).to(a.dtype)


def unit(scale: torch.Tensor) -> torch.Tensor:
    """The scale, or 1 where it is 0: a divisor for groups whose elements all round to code 0."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def is_empty(scale: torch.Tensor) -> torch.Tensor:
    """Whether a scale is zero or subnormal in float32. All codes of such a group are 0."""
    return scale.abs() < torch.finfo(torch.float32).tiny
