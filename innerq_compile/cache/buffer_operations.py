"""The operators of ATen that write to an :class:`InnerQBuffer` or act on its quantized form.

A function takes the arguments of its operator. If it does not support them it returns ``NotImplemented``. Then an
operator that writes raises an error, and any other one runs on the dequantized tensor.
"""

from __future__ import annotations

import torch

from ..kernels.formats import DTYPES
from .buffer import OPERATIONS, InnerQBuffer
from .indexing import consecutive, is_mask
from .writing import write, zero

aten = torch.ops.aten


@OPERATIONS.held(aten.index_copy_.default)
def _index_copy_(tensor, dim, index, source):
    batch, heads, tokens, head_dim = tensor.shape
    if dim not in (2, -2) or is_mask(index) or source.shape != (batch, heads, index.numel(), head_dim):
        return NotImplemented
    places = consecutive(index.reshape(-1), tokens, negative=False)
    if places is None:
        return NotImplemented
    write(tensor, *places, source)
    return tensor


@OPERATIONS.held(aten.index_put_.default, aten._index_put_impl_.default)
def _index_put_(tensor, indices, values, accumulate=False, *unsafe):
    if accumulate or len(indices) != 3 or indices[0] is not None or indices[1] is not None:
        return NotImplemented
    places = consecutive(indices[2], tensor.shape[2])
    if places is None:
        return NotImplemented
    write(tensor, *places, values)
    return tensor


@OPERATIONS.held(aten.copy_.default)
def _copy_(tensor, source, non_blocking=False):
    write(tensor, 0, tensor.shape[2], source)
    return tensor


@OPERATIONS.held(aten.zero_.default)
def _zero_(tensor):
    zero(tensor)
    return tensor


@OPERATIONS.held(aten.slice.Tensor)
def _slice(tensor, dim=0, start=None, end=None, step=1):
    if dim % 4 != 2 or step != 1:
        return NotImplemented
    return tensor[:, :, slice(start, end)]


@OPERATIONS.traced(aten.alias.default, aten.detach.default)
@OPERATIONS.held(aten.alias.default, aten.detach.default)
def _alias(tensor):
    return InnerQBuffer(tensor._storage, tensor.shape[2], tensor._offset)


@OPERATIONS.held(aten.clone.default)
def _clone(tensor, *, memory_format=None):
    return InnerQBuffer(tensor._storage.copy(), tensor.shape[2], tensor._offset)


@OPERATIONS.held(aten._to_copy.default)
def _to_copy(tensor, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None):
    if layout not in (None, torch.strided):
        return NotImplemented
    if dtype is not None and dtype not in DTYPES:
        return NotImplemented
    storage = tensor._storage.converted(dtype, device, non_blocking=non_blocking, pin_memory=bool(pin_memory))
    return InnerQBuffer(storage, tensor.shape[2], tensor._offset)


@OPERATIONS.traced(
    aten.index_copy_.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten.copy_.default,
    aten.zero_.default,
)
def _written(tensor, *args, **kwargs):
    return tensor
