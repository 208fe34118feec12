"""How numbers are taken in and given back: precision, what is not finite."""

from __future__ import annotations

import torch


def as_float(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def to_finite(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x`` in ``dtype``; what is finite stays so, as a quantized number may lie just beyond the range of its cache."""
    largest = torch.finfo(dtype).max
    return torch.where(x.isinf(), x, x.clamp(-largest, largest)).to(dtype)


def saturate(x: torch.Tensor) -> torch.Tensor:
    """Infinities as the largest finite number, so that they spoil no other element of their group. NaN stays."""
    largest = torch.finfo(x.dtype).max
    return x.clamp(-largest, largest)
