"""Cache tensors made from another one: of another length on the same storage, or independent copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from .layouts import length_of
from .storage import CacheStorage

if TYPE_CHECKING:
    from .tensor import InnerQTensor


def of_length(tensor: InnerQTensor, length: int) -> InnerQTensor:
    """A tensor of the first ``length`` tokens on the same storage, in the same layout."""
    return of_tokens(tensor, 0, length)


def of_tokens(tensor: InnerQTensor, start: int, end: int) -> InnerQTensor:
    """A tensor of the tokens ``start`` to ``end`` of another one, on the same storage, in the same layout."""
    return type(tensor)(tensor._storage, end - start, tensor._tokens_dim, tensor._extent.first + start)


def copied(tensor: InnerQTensor, transform: Callable[[torch.Tensor], torch.Tensor] | None = None) -> InnerQTensor:
    """An independent tensor with the same content.

    Args:
        tensor: what is copied.
        transform: applied to each inner tensor; has to return a new tensor. None clones them.
    """
    return on_own_storage(tensor._storage.copy(transform=transform), tensor)


def select_batch(tensor: InnerQTensor, index: torch.Tensor) -> InnerQTensor:
    """An independent tensor of the sequences that ``index`` selects, ``[N]`` integers."""
    return copied(tensor, lambda inner: inner.index_select(0, index.to(inner.device)))


def on_own_storage(storage: CacheStorage, tensor: InnerQTensor) -> InnerQTensor:
    """A tensor of the length and layout of ``tensor`` on ``storage``, which no other tensor shares.

    The storage is truncated to its tokens.
    """
    extent = tensor._extent
    storage.show(extent.first, extent.end)
    return type(tensor)(storage, length_of(tensor), tensor._tokens_dim, extent.first)
