"""Arithmetic that several modes share, with the roundings that kernels have."""

from __future__ import annotations

import torch

#: How much larger a number may be that counts as equal: which of many equal candidates is chosen then does not depend
#: on the order of a sum.
CLEARLY = 1 + 2.0**-10


def fma(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """``a * b + c`` with one rounding, as kernels have it."""
    return (a.double() * b.double() + c.double()).to(a.dtype)


def unit(scale: torch.Tensor) -> torch.Tensor:
    """1 in place of a scale of 0, to which all of a group is nearer than half."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def is_empty(scale: torch.Tensor) -> torch.Tensor:
    """Whether a group's scale is zero or subnormal in float32: the group decodes to zero, or to its zero point."""
    return scale.abs() < torch.finfo(torch.float32).tiny
