"""The operators of ATen that act on the quantized form of an :class:`InnerQTensor`.

A function takes the arguments of its operator. If it does not support them it returns ``NotImplemented``, and the
operator runs on the dequantized tensor.
"""

from __future__ import annotations

import functools
import sys

import torch

from ..errors import InnerQError, UnsupportedOperation
from ..kernels import reference
from ..kernels.formats import DTYPES
from .derived import copied, of_length, of_tokens, on_own_storage, select_batch
from .indexing import ranges_of
from .layouts import is_along_tokens, length_of, with_tokens_at
from .reading import as_dense
from .tensor import OPERATIONS, InnerQTensor

aten = torch.ops.aten


@OPERATIONS.held(aten.cat.default)
def _cat(tensors, dim=0):
    past, *rest = _without_empty(tensors)
    if not isinstance(past, InnerQTensor) or not is_along_tokens(past, dim):
        return NotImplemented
    if functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors]) != past.dtype:
        return NotImplemented
    storage, tokens = past._storage, past._tokens_dim
    _check_sizes(past, rest)
    count = sum(new.shape[tokens] for new in rest)
    if storage.format.rolls and length_of(past) + count > storage.room:
        return NotImplemented  # the program keeps more than the window: it is dense from then on
    news = [as_dense(new) for new in rest]
    with storage.lock:
        storage = storage.writable_from(past._extent, count)
        for new in news:
            storage.append(with_tokens_at(new, 2, tokens))
        return InnerQTensor(storage, storage.length - storage.hidden, tokens, storage.hidden)


def _without_empty(tensors):
    """The tensors that ``torch.cat`` joins. Programs may start a cache with a tensor without elements, ``[0]``."""
    return [tensor for tensor in tensors if tensor.numel() or isinstance(tensor, InnerQTensor)] or tensors


def _check_sizes(past, rest):
    """Raise the error of tensors that cannot be appended to a cache. While tracing, that they can becomes a guard."""
    tokens = past._tokens_dim
    for new in rest:
        if new.dim() != 4 or any(new.shape[d] != past.shape[d] for d in range(4) if d != tokens):
            raise InnerQError(
                f"cannot append a tensor of shape {tuple(new.shape)} to a cache of shape {tuple(past.shape)}: only the "
                f"{('second', 'third')[tokens - 1]} size may differ"
            )


@OPERATIONS.held(aten.slice.Tensor)
def _slice(tensor, dim=0, start=None, end=None, step=1):
    size = tensor.shape[dim]
    if step != 1:
        return NotImplemented
    start, end, _ = slice(start, end).indices(size)
    if start == 0 and end >= size:
        return _alias(tensor)
    if dim % 4 == tensor._tokens_dim:
        return of_tokens(tensor, start, max(start, end))
    if dim % 4 == 0:
        return select_batch(tensor, torch.arange(start, max(start, end), device=tensor.device))
    return NotImplemented


@OPERATIONS.held(aten.split.Tensor, aten.split_with_sizes.default)
def _split(tensor, sizes, dim=0):
    """Parts of the tokens or of the batch, each as a slice."""
    if dim % 4 not in (0, tensor._tokens_dim):
        return NotImplemented
    parts = torch.empty(tensor.shape[dim], device="meta").split(sizes)
    return [_slice(tensor, dim, first, end) for first, end in ranges_of(parts)]


@OPERATIONS.held(aten.alias.default, aten.detach.default)
@OPERATIONS.traced(aten.alias.default, aten.detach.default)
def _alias(tensor):
    return of_length(tensor, length_of(tensor))


@OPERATIONS.held(aten.index_select.default)
def _index_select(tensor, dim, index):
    return select_batch(tensor, index) if dim % 4 == 0 else NotImplemented


@OPERATIONS.held(aten.index.Tensor)
def _index(tensor, indices):
    first, *others = indices
    if first is None or first.dim() != 1 or any(other is not None for other in others):
        return NotImplemented
    return copied(tensor, lambda inner: inner[first.to(inner.device)])


@OPERATIONS.held(aten.clone.default)
def _clone(tensor, *, memory_format=None):
    return copied(tensor)


@OPERATIONS.held(aten._to_copy.default)
def _to_copy(tensor, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None):
    if layout not in (None, torch.strided):
        return NotImplemented
    if dtype is not None and dtype not in DTYPES:
        return NotImplemented
    storage = tensor._storage.converted(dtype, device, non_blocking=non_blocking, pin_memory=bool(pin_memory))
    return on_own_storage(storage, tensor)


@OPERATIONS.held(aten.zero_.default)
def _zero_(tensor):
    storage, tensors = tensor._storage, tensor._storage.tensors
    with storage.lock:
        if storage.extents.is_one_besides(tensor._extent):
            raise UnsupportedOperation(
                f"zero_() on a cache of shape {tuple(tensor.shape)} that shares its storage with another tensor, which "
                "may not change with it: drop the other one, or call .clone().zero_()"
            )
        for inner in (tensors.scales, tensors.window, tensors.mean):
            if inner is not None:
                inner.zero_()
        if tensors.query_profile is not None:
            tensors.query_profile.copy_(reference.default_profile(storage.format, tensors.window, tensors.norm))
        if not storage.format.quantized:
            tensors.codes.zero_()
    return tensor


# --- traced caches: sizes are symbols, and nothing can depend on their values -----------------------------------------


@OPERATIONS.traced(aten.cat.default)
def _traced_cat(tensors, dim=0):
    past, *rest = tensors
    if not isinstance(past, InnerQTensor) or not is_along_tokens(past, dim):
        return NotImplemented
    if functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors]) != past.dtype:
        return NotImplemented
    _check_sizes(past, rest)
    return of_length(past, length_of(past) + sum(new.shape[past._tokens_dim] for new in rest))


@OPERATIONS.traced(aten.slice.Tensor)
def _traced_slice(tensor, dim=0, start=None, end=None, step=1):
    """A slice that takes the last tokens stays quantized; any other one is dense. See `InnerQTensor.__getitem__`."""
    if dim % 4 != tensor._tokens_dim or step != 1:
        return NotImplemented
    if end is not None and not (isinstance(end, int) and end >= sys.maxsize):
        return NotImplemented
    last = aten.slice.Tensor(tensor._storage.dense(tensor.shape), dim, start, None)
    return of_length(tensor, last.shape[dim])
