"""How a group's codes become numbers again; attention computes the same without writing the numbers down."""

from __future__ import annotations

import torch


def code_offset(bits: int) -> int:
    """What is taken from a code before the scale in modes without a zero point: codes are stored without a sign."""
    return 1 << (bits - 1)


def with_zero(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, bits: int) -> torch.Tensor:
    """``code * scale + zero`` of groups ``codes [..., group_size]``, in the dtype of ``scales [...]``."""
    assert zeros is not None
    return codes.to(scales.dtype) * scales[..., None] + zeros[..., None]


def without_zero(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, bits: int) -> torch.Tensor:
    """``(code - offset) * scale`` of groups ``codes [..., group_size]``, in the dtype of ``scales [...]``."""
    return (codes - code_offset(bits)).to(scales.dtype) * scales[..., None]
