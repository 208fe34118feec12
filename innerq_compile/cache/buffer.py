"""The preallocated quantized cache as a tensor: :class:`InnerQBuffer`.

``empty_cache.py`` creates one, ``writing.py`` writes to it, ``buffer_operations.py`` implements operators on it.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InnerQError, UnsupportedOperation
from ..kernels import layout
from ..kernels.internals.tensors import make_wrapper, mark_sizes
from .dispatch import Operations, dispatch
from .indexing import token_index, token_range
from .reading import dense_buffer
from .refusals import buffer_refusal
from .storage import CacheStorage
from .tensor import InnerQTensor
from .traced import TracedCache, is_traced
from .writing import write

#: The operators that have an implementation of their own, see ``buffer_operations.py``.
OPERATIONS = Operations()


class InnerQBuffer(InnerQTensor):
    """A preallocated quantized cache ``[B, H, max_tokens, D]``, or a slice of one along the tokens.

    Created by :func:`empty_cache`. Programs write it as they write a dense buffer: ``buffer[:, :, position] = k``,
    ``buffer[:, :, a:b] = k``, ``buffer[:, :, a:b].copy_(k)``, ``buffer.index_copy_(2, position, k)``. Tokens have to be
    written in order, without a gap; writing before the end of the tokens held discards those after the written ones.
    Until then they are read, as in a dense buffer: for a program that reads before it writes, call ``buffer.zero_()``
    outside of compiled code before another text begins. Positions that hold no token read as zero.

    Slices along the tokens are views of the buffer. Any other view (``buffer[0]``, ``buffer.transpose(1, 2)``) is a
    dense copy: what is written to it does not reach the buffer.
    """

    #: The position in the whole buffer of the first token of this slice.
    _offset: int

    @staticmethod
    def __new__(cls, storage: CacheStorage | TracedCache, length: int, offset: int = 0):
        tensor = make_wrapper(
            cls,
            (storage.batch, storage.heads, length, storage.head_dim),
            dtype=storage.dtype,
            device=storage.device,
            requires_grad=False,
        )
        tensor._storage, tensor._blocks, tensor._offset = storage, storage.blocks, offset
        mark_sizes(tensor, set(), {1, 3})  # as in an InnerQTensor
        return tensor

    def __init__(self, storage: CacheStorage | TracedCache, length: int, offset: int = 0) -> None:
        pass

    @property
    def tokens_held(self) -> int:
        """Number of tokens held by the longest sequence. Synchronizes with the device."""
        return int(self._storage.tensors.state[..., layout.LENGTH].max())

    def dequantize(self) -> torch.Tensor:
        """A dense copy ``[B, H, max_tokens, D]``. Positions that hold no token are zero."""
        return dense_buffer(self)

    def __tensor_flatten__(self):
        if self._offset or self.shape[2] != self._storage.length:
            raise InnerQError(
                "a slice of a quantized buffer cannot be an input of a compiled function: pass the whole buffer"
            )
        return super().__tensor_flatten__()

    @staticmethod
    def __tensor_unflatten__(inner, context, outer_size, outer_stride):
        return InnerQBuffer(TracedCache.of(inner, context, outer_size), outer_size[2])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(cls, OPERATIONS, func, args, kwargs or {})

    @staticmethod
    def _refusal(what: Any, tensor: InnerQBuffer) -> UnsupportedOperation:
        return buffer_refusal(what, tensor)

    def __getitem__(self, index):
        if not is_traced(self):
            window = token_range(index, self.shape)
            if window is not None:
                return InnerQBuffer(self._storage, window[1] - window[0], self._offset + window[0])
        return torch.Tensor.__getitem__(self, index)

    def __setitem__(self, index, value):
        if is_traced(self):
            return  # Dynamo asks for shapes only
        position = token_index(index, self.shape)
        if position is None:
            raise buffer_refusal(f"tensor[{index}] = value", self)
        write(self, *position, value)

    def narrow(self, dim, start, length):
        """``torch.Tensor.narrow``. Along the tokens, the result is a view of the buffer."""
        if dim not in (2, -2) or is_traced(self):
            return self.dequantize().narrow(dim, start, length)
        first, size = int(start), self.shape[2]
        first += size if first < 0 else 0
        if not 0 <= first <= first + length <= size:  # raises torch's own error
            return self.dequantize().narrow(dim, start, length)
        return InnerQBuffer(self._storage, length, self._offset + first)

    def split(self, split_size, dim=0):
        """``torch.Tensor.split``. The parts are dense."""
        return self.dequantize().split(split_size, dim)

    def chunk(self, chunks, dim=0):
        """``torch.Tensor.chunk``. The parts are dense."""
        return self.dequantize().chunk(chunks, dim)

    def repeat_interleave(self, repeats, dim=None, *, output_size=None):
        """``torch.Tensor.repeat_interleave``. The result is dense."""
        return self.dequantize().repeat_interleave(repeats, dim=dim, output_size=output_size)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = InnerQBuffer(self._storage.copy(), self.shape[2], self._offset)
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return InnerQBuffer, (self._storage, self.shape[2], self._offset)


torch.serialization.add_safe_globals([InnerQBuffer])
