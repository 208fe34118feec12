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
    """The storage of a tensor that holds data.

    Raises:
        CompileError: while a program is traced.
    """
    if isinstance(tensor._storage, TracedCache):
        raise tensor._storage.refusal()
    return tensor._storage


def dense(tensor: InnerQTensor) -> torch.Tensor:
    """The dense tensor of a cache, in its layout and dtype; of a traced one a fake tensor of its shape."""
    storage = tensor._storage
    if isinstance(storage, TracedCache):
        return storage.dense(tensor.shape)
    by_head = storage.dequantize(length_of(tensor))
    if tensor._tokens_dim == 2:
        return by_head
    # with the strides of the wrapper, also along dimensions of size 1: a program may have been traced with them
    return by_head.transpose(1, 2).reshape(-1).view(tensor.shape)


def dense_buffer(tensor: InnerQBuffer) -> torch.Tensor:
    """The dense tensor of a buffer or of a slice of one; tokens that were not written are zero."""
    storage = tensor._storage
    if isinstance(storage, TracedCache):
        return storage.dense(tensor.shape)
    end = tensor._offset + tensor.shape[2]
    # contiguous as the wrapper says that it is: operators take that for granted
    return storage.dequantize(end)[:, :, tensor._offset :].contiguous()


def as_dense(value: Any) -> Any:
    """The dense tensor of a cache tensor or buffer; any other value as it is."""
    return value.dequantize() if isinstance(getattr(value, "_storage", None), (CacheStorage, TracedCache)) else value
