"""The quantized cache as a tensor: :class:`InnerQTensor`, a wrapper subclass with the shape and dtype of a dense cache.

A program that uses it gives the same results with and without the compiler, which makes it fast. The usual operations
on caches (``cat``, crop, beam reorder, copies, moves, saving) act on the quantized form, see ``operations.py``. Any
other operation reads the dequantized tensor. In-place operations that the quantized form does not support raise an
error.
"""

from __future__ import annotations

from typing import Any

import torch

from ..config import InnerQConfig
from ..errors import InnerQError, UnsupportedOperation
from ..kernels import ops as _ops  # noqa: F401  (defines the innerq:: operators)
from ..kernels.formats import CacheFormat, Role
from ..kernels.internals.tensors import make_wrapper, mark_sizes, no_torch_function
from .checks import check_layout, check_norm, check_queries, check_role, check_start
from .derived import copied, of_length, of_tokens, select_batch
from .dispatch import Operations, dispatch
from .extents import Extent
from .indexing import last_tokens_of, ranges_of, tokens_of
from .layouts import is_along_tokens, length_of, with_tokens_at
from .quantizing import quantize
from .reading import dense, held_storage
from .refusals import tensor_refusal
from .storage import CacheStorage, restore
from .traced import TracedCache, is_traced

#: The operators that have an implementation of their own, see ``operations.py``.
OPERATIONS = Operations()


class InnerQTensor(torch.Tensor):
    """A quantized key or value cache with the shape and dtype of the dense cache that it replaces.

    Its shape is ``[B, H, S, D]`` or ``[B, S, H, D]``: batch, KV heads, tokens, head_dim. Created by compiled prefill
    graphs, or from a dense tensor by :meth:`from_dense`.

    ``torch.cat`` along the tokens, crops (``cache[:, :, :n]``), batch selection, copies, moves and saving keep the
    cache quantized. Any other operation reads the dequantized tensor; its result is dense, and what is written to such
    a result (``cache[0]``, ``cache.transpose(1, 2)``) does not reach the cache.

    Several tensors may share one storage. Appending to the longest of them writes in place; appending to a shorter one
    copies the storage first. If the storage has grown meanwhile, a shorter tensor reads tokens that have left the
    recent window in quantized form.
    """

    #: A :class:`TracedCache` while a program is traced, see :func:`is_traced`.
    _storage: CacheStorage
    _blocks: torch.Tensor
    _extent: Extent
    _tokens_dim: int = 2

    @staticmethod
    def __new__(cls, storage: CacheStorage | TracedCache, length: int, tokens_dim: int = 2, first: int = 0):
        batch, heads = storage.batch, storage.heads
        tensor = make_wrapper(
            cls,
            (batch, heads, length, storage.head_dim) if tokens_dim == 2 else (batch, length, heads, storage.head_dim),
            dtype=storage.dtype,
            device=storage.device,
            requires_grad=False,
        )
        tensor._storage = storage
        tensor._blocks = storage.blocks
        tensor._extent = storage.extents.add(first, first + length)
        tensor._tokens_dim = tokens_dim
        # For Dynamo: the length grows with every token, so it is a symbol from the first graph on. Heads and head_dim
        # are constants in every graph, also with dynamic=True and if another model has others: kernels depend on them.
        mark_sizes(tensor, {tokens_dim}, {3 - tokens_dim, 3})
        return tensor

    def __init__(self, storage: CacheStorage | TracedCache, length: int, tokens_dim: int = 2, first: int = 0) -> None:
        pass

    @classmethod
    def from_dense(
        cls,
        dense: torch.Tensor,
        config: InnerQConfig | str = "base",
        *,
        role: Role,
        start: torch.Tensor | None = None,
        tokens_dim: int = 2,
        norm: str | None = None,
        queries: torch.Tensor | None = None,
    ) -> InnerQTensor:
        """Quantize a dense cache tensor.

        Args:
            dense: ``[B, H, S, D]``, or ``[B, S, H, D]`` with ``tokens_dim=1``; float16, bfloat16, float32 or float64.
            config: A config or the name of a preset.
            role: ``"key"`` or ``"value"``.
            start: ``[B]`` integers, the number of padding tokens before each sequence. They are not stored and read as
                zero.
            tokens_dim: The dimension of ``dense`` that counts tokens: 2 or 1.
            norm: For keys, which channels share a normalization: ``channel`` (none do), or ``half<n>`` or
                ``interleaved<n>`` (the two channels of each pair of a rotary embedding on the first n channels, so that
                the normalization can be folded into the projections). None means ``channel``, or ``paper`` if the
                config says so.
            queries: For keys, ``[B, Hq, N, D]``, the queries of the last ``N`` tokens as they are multiplied with the
                keys. Mode ``steered`` minimizes the error of their scores. Without them it weights all channels alike.

        Returns:
            A tensor of the shape and dtype of ``dense``.

        Raises:
            InnerQError: If a cache cannot have this shape, dtype or format.

        Example:
            >>> keys = InnerQTensor.from_dense(torch.randn(1, 8, 500, 128), "small", role="key")
        """
        check_role(role)
        check_layout(dense, tokens_dim)
        by_head = with_tokens_at(dense.detach(), 2, tokens_dim)
        if not isinstance(config, InnerQConfig):
            config = InnerQConfig.preset(config)
        if start is not None:
            check_start(start, by_head)
        if norm is not None:
            check_norm(norm, role, dense.shape[3])
        if queries is not None:
            check_queries(queries, role, by_head)
        storage = quantize(by_head, config, role, start, norm=norm, queries=queries)
        return cls(storage, dense.shape[tokens_dim], tokens_dim)

    # --- public properties --------------------------------------------------------------------------------------

    @property
    def format(self) -> CacheFormat:
        """The cache format: role, mode, bits, group size, windows."""
        return self._storage.format

    @property
    def nbytes_held(self) -> int:
        """Bytes of all inner tensors, unused capacity included."""
        return held_storage(self).nbytes

    @property
    def room(self) -> int:
        """The number of tokens, padding not counted, that fit into its storage without reallocation."""
        return held_storage(self).room

    @property
    def tokens_dim(self) -> int:
        """The dimension that counts tokens: 2 in ``[B, H, S, D]``, 1 in ``[B, S, H, D]``."""
        return self._tokens_dim

    def dequantize(self) -> torch.Tensor:
        """A dense copy with the shape and dtype of this tensor. Padding tokens are zero."""
        return dense(self)

    def inner_tensors(self) -> dict[str, torch.Tensor]:
        """The inner tensors (codes, scales, windows, ...) by name, see ``kernels/layout.py``. Not copied."""
        return held_storage(self).tensors.present()

    def __repr__(self, *, tensor_contents=None) -> str:
        shape = ", ".join(str(size) for size in self.shape)
        held = "" if is_traced(self) else f", bytes={self.nbytes_held}"
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"InnerQTensor([{shape}], {self.format.role}, bits={self.format.bits}, mode={self.format.mode}, "
            f"dtype={dtype}, device={self.device}{held})"
        )

    # --- protocols of torch -------------------------------------------------------------------------------------

    __torch_function__: Any = no_torch_function

    def __tensor_flatten__(self):
        # Dynamo guards on each tensor named here at every call, and checks symbolic sizes and strides in Python. So it
        # sees a single tensor of one dimension, from which all shapes follow; the backend takes the inner tensors from
        # the storage. Another compiler, which would need their data, gets an error (`TracedCache.dense`).
        return self._storage.flat[self._tokens_dim]

    @staticmethod
    def __tensor_unflatten__(inner, context, outer_size, outer_stride):
        return InnerQTensor(TracedCache.of(inner, context, outer_size), outer_size[context[1]], context[1])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(cls, OPERATIONS, func, args, kwargs or {})

    @staticmethod
    def _refusal(what: Any, tensor: InnerQTensor) -> UnsupportedOperation:
        return tensor_refusal(what, tensor)

    def __getitem__(self, index):
        # A crop by the view operation would make autograd keep the longer tensor alive as the base of the shorter one.
        # Then each append after a crop would copy the storage.
        if is_traced(self):
            # torch would compare in a way that gives the step at which a window is just full a graph of its own
            most, size = last_tokens_of(index, self._tokens_dim), length_of(self)
            return super().__getitem__(index) if most is None else of_length(self, size if size <= most else most)
        tokens = tokens_of(index, self.shape, self._tokens_dim)
        if tokens is not None:
            return of_tokens(self, *tokens)
        part = super().__getitem__(index)
        # Dynamo cannot trace a dense tensor that autograd takes for a view of a quantized one
        return part if isinstance(part, InnerQTensor) else part.clone()

    def narrow(self, dim, start, length):
        """``torch.Tensor.narrow``. A range of tokens stays quantized, as by slicing."""
        if is_traced(self) or not is_along_tokens(self, dim):
            return super().narrow(dim, start, length)
        first = int(start) + (length_of(self) if start < 0 else 0)
        if not 0 <= first <= first + length <= length_of(self):  # raises torch's own error
            return super().narrow(dim, start, length)
        return of_tokens(self, first, first + length)

    def split(self, split_size, dim=0):
        """``torch.Tensor.split``. Ranges of tokens stay quantized, as by slicing."""
        if is_traced(self) or not is_along_tokens(self, dim):
            return super().split(split_size, dim)
        return self._parts(torch.empty(length_of(self), device="meta").split(split_size))

    def chunk(self, chunks, dim=0):
        """``torch.Tensor.chunk``. Ranges of tokens stay quantized, as by slicing."""
        if is_traced(self) or not is_along_tokens(self, dim):
            return super().chunk(chunks, dim)
        return self._parts(torch.empty(length_of(self), device="meta").chunk(chunks))

    def _parts(self, like):
        """The tokens, in parts as long as those of ``like``."""
        return tuple(of_tokens(self, first, end) for first, end in ranges_of(like))

    def __setitem__(self, index, value):
        raise self._refusal("tensor[...] = value", self)

    def repeat_interleave(self, repeats, dim=None, *, output_size=None):
        """``torch.Tensor.repeat_interleave``. Along the batch, the result stays quantized."""
        if dim in (0, -4) and not is_traced(self):
            index = torch.arange(self.shape[0], device=self.device)
            return select_batch(self, index.repeat_interleave(repeats, output_size=output_size))
        return self.dequantize().repeat_interleave(repeats, dim=dim, output_size=output_size)

    # The methods of `torch.Tensor` that follow would access the memory of this tensor; a wrapper has none.

    def numpy(self, *, force=False):
        """The dequantized tensor as a numpy array."""
        return self.dequantize().numpy(force=force)

    def tolist(self):
        """The dequantized tensor as nested lists."""
        return self.dequantize().tolist()

    def __array__(self, *args, **kwargs):
        return self.dequantize().__array__(*args, **kwargs)

    def __dlpack__(self, **kwargs):
        return self.dequantize().__dlpack__(**kwargs)

    def storage(self):
        # safetensors asks for it, and would take a NotImplementedError for that of a tensor without data
        raise InnerQError(
            f"a quantized cache of shape {tuple(self.shape)} has no storage that safetensors can save: use torch.save "
            "or pickle, which keep it quantized, or save .dequantize()"
        )

    def apply_(self, callable):
        raise self._refusal("apply_()", self)

    def map_(self, tensor, callable):
        raise self._refusal("map_()", self)

    def map2_(self, x, y, callable):
        raise self._refusal("map2_()", self)

    @property
    def data(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The same as ``detach()``. It cannot be assigned to."""
        return self.detach()

    @data.setter
    def data(self, value):
        raise self._refusal("tensor.data = value", self)

    def share_memory_(self):
        raise UnsupportedOperation(
            "share_memory_() cannot share a cache that grows: send it to another process by pickling, or share "
            ".dequantize()"
        )

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            memo[id(self)] = copied(self)
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        return InnerQTensor, (self._storage, length_of(self), self._tokens_dim, self._extent.first)


torch.serialization.add_safe_globals([InnerQTensor, restore])
