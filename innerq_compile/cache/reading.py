"""The data behind a cache tensor: its storage, or the dense tensor that it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .layouts import length_of
from .storage import CacheStorage
from .traced import TracedCache

if TYPE_CHECKING:
    from .buffer import InnerQBuffer
    from .tensor import InnerQTensor


def held_storage(tensor: InnerQTensor) -> CacheStorage:
    """The storage of a cache tensor.

    Raises:
        CompileError: If the tensor is being traced, and has none.
    """
    if isinstance(tensor._storage, TracedCache):
        raise tensor._storage.refusal()
    return tensor._storage


def dense(tensor: InnerQTensor) -> torch.Tensor:
    """Dequantize an :class:`InnerQTensor`, in its layout and dtype. While it is traced, a fake tensor."""
    storage = tensor._storage
    if isinstance(storage, TracedCache):
        return storage.dense(tensor.shape)
    by_head = storage.dequantize(length_of(tensor), tensor._extent.first)
    if tensor._tokens_dim == 2:
        return by_head
    # with the strides of the wrapper, also in dimensions of size 1, because programs are traced with those
    return by_head.transpose(1, 2).reshape(-1).view(tensor.shape)


def dense_buffer(tensor: InnerQBuffer) -> torch.Tensor:
    """Dequantize an :class:`InnerQBuffer` or a slice of one. Positions that hold no token are zero."""
    storage = tensor._storage
    if isinstance(storage, TracedCache):
        return storage.dense(tensor.shape)
    end = tensor._offset + tensor.shape[2]
    # contiguous like the wrapper, whose strides programs rely on
    return storage.dequantize(end)[:, :, tensor._offset :].contiguous()


def as_dense(value: Any) -> Any:
    """``value``, dequantized if it is a cache tensor."""
    return value.dequantize() if isinstance(getattr(value, "_storage", None), (CacheStorage, TracedCache)) else value
