"""Linear layers of one row."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def row_linear(x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """The results of linear layers that have one input, side by side: ``[..., sum N_i]`` in the dtype of ``x``.

    Args:
        x: the input, ``[..., K]``, whose dimensions are 1 but for the last.
        weights: ``[N_i, K]`` of each layer.
        biases: ``[N_i]`` of each layer, or None.
    """
    layers = zip(weights, biases, strict=True)
    return torch.cat([torch.nn.functional.linear(x, weight, bias) for weight, bias in layers], -1)
