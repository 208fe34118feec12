"""Linear layers of one row."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def row_linear(x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Outputs of linear layers with the same input, concatenated: ``[..., sum N_i]`` in the dtype of ``x``.

    Args:
        x: the input, ``[..., K]``; all dimensions but the last are 1.
        weights: ``[N_i, K]`` of each layer.
        biases: ``[N_i]`` of each layer, or None.
    """
    layers = zip(weights, biases, strict=True)
    return torch.cat([torch.nn.functional.linear(x, weight, bias) for weight, bias in layers], -1)
