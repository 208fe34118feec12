"""Precision and range of inputs and results."""

from __future__ import annotations

import torch

from ..formats import compute_dtype


def as_float(x: torch.Tensor) -> torch.Tensor:
    """``x`` in float32; float64 stays float64."""
    return x.to(compute_dtype(x.dtype))


def to_finite(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert ``x`` to ``dtype``; finite numbers stay finite (decoding may slightly exceed the range of ``dtype``)."""
    largest = torch.finfo(dtype).max
    return torch.where(x.isinf(), x, x.clamp(-largest, largest)).to(dtype)


def saturate(x: torch.Tensor) -> torch.Tensor:
    """Replace infinities by the largest finite number, so that other elements of the group keep a scale. NaN stays."""
    largest = torch.finfo(x.dtype).max
    return x.clamp(-largest, largest)
