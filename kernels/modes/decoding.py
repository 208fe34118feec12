"""Decoding: from the codes of a group to numbers. Attention computes the same without storing the numbers."""

from __future__ import annotations

import torch


def code_offset(bits: int) -> int:
    """Subtracted from an unsigned code before it is multiplied by the scale, in modes without a zero point."""
    return 1 << (bits - 1)


def with_zero(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, bits: int) -> torch.Tensor:
    """``code * scale + zero`` of groups ``codes [..., group_size]``, in the dtype of ``scales [...]``."""
    assert zeros is not None
    return codes.to(scales.dtype) * scales[..., None] + zeros[..., None]


def without_zero(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, bits: int) -> torch.Tensor:
    """``(code - offset) * scale`` of groups ``codes [..., group_size]``, in the dtype of ``scales [...]``."""
    return (codes - code_offset(bits)).to(scales.dtype) * scales[..., None]
