"""Which sizes of a program's inputs are symbols in its first graph already."""

from __future__ import annotations

import torch


def growing_sizes(tensor: torch.Tensor) -> frozenset[int]:
    """The dimensions of an input whose sizes are likely to differ in a later call: those of sequences and tokens."""
    if not tensor.is_floating_point():
        return frozenset(range(tensor.dim()))
    if tensor.dim() == 4:
        return frozenset((0, 1, 2, 3) if tensor.shape[1] == 1 else (0, 1, 2))
    if tensor.dim() == 3:
        return frozenset((0, 1))
    return frozenset()
