"""The two layouts of a cache tensor: ``[B, H, S, D]`` and ``[B, S, H, D]``.

``tokens_dim`` is the dimension of ``S``, 2 or 1; ``3 - tokens_dim`` is the dimension of ``H``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .tensor import InnerQTensor


def with_tokens_at(dense: torch.Tensor, wanted: int, tokens_dim: int) -> torch.Tensor:
    """A view of ``dense`` with its tokens along dimension ``wanted`` instead of ``tokens_dim``; both are 1 or 2."""
    return dense if wanted == tokens_dim else dense.transpose(1, 2)


def length_of(tensor: InnerQTensor) -> int:
    """The number of tokens of a cache tensor, padding included."""
    return tensor.shape[tensor._tokens_dim]


def is_along_tokens(tensor: InnerQTensor, dim: int) -> bool:
    """Whether ``dim``, which may be negative, is the dimension of the tokens."""
    return dim in (tensor._tokens_dim, tensor._tokens_dim - 4)
