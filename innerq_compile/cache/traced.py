"""What stands in place of a storage while Dynamo traces: the format and the sizes of a cache, without data.

Dynamo flattens a wrapper subclass into inner tensors and metadata (``__tensor_flatten__``), and creates another one
from fake inner tensors and the same metadata (``__tensor_unflatten__``). That one holds a :class:`TracedCache` instead
of a :class:`CacheStorage`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..kernels.formats import CacheFormat
from ..kernels.internals.tensors import FakeTensor, fake_empty
from .extents import Extents

#: What a graph is specialized to, besides sizes: the format (``CacheFormat.spec``), the dtype, the names of the
#: statistics that the cache has (among ``kernels.cache.STATISTICS``), the device.
Kind = tuple[str, torch.dtype, tuple[str, ...], str]
#: The result of ``__tensor_flatten__``: names of the inner tensors, and metadata: the kind and ``tokens_dim``.
Flattened = tuple[list[str], tuple[Kind, int]]


@functools.cache
def flattened(*kind: Any) -> dict[int, Flattened]:
    """The result of ``InnerQTensor.__tensor_flatten__`` for each ``tokens_dim``, for a cache of a :data:`Kind`.

    Cached, because guards compare it twice for each cache in every step, and identical objects compare fast.
    """
    return {tokens_dim: (["_blocks"], (kind, tokens_dim)) for tokens_dim in (1, 2)}


@dataclasses.dataclass(eq=False)
class TracedCache:
    """A cache while a program that takes it is traced. Sizes are numbers or symbols.

    Attributes:
        format: The cache format.
        dtype: The dtype of the cache tensor.
        device: The device of the cache tensor.
        batch: Number of sequences.
        heads: Number of KV heads.
        head_dim: Elements of a key or value.
        length: Number of tokens.
        statistics: The names of the statistics that it has (among ``kernels.cache.STATISTICS``).
        blocks: A fake tensor ``[capacity]``, uint8 on the CPU. Its size is the capacity in blocks.
        flat: The result of ``InnerQTensor.__tensor_flatten__`` for each ``tokens_dim``.
        extents: As in a storage; not used.
    """

    format: CacheFormat
    dtype: torch.dtype
    device: torch.device
    batch: Any
    heads: Any
    head_dim: Any
    length: Any
    statistics: tuple[str, ...]
    blocks: torch.Tensor
    flat: dict[int, Flattened]
    extents: Extents = dataclasses.field(default_factory=Extents)

    @staticmethod
    def of(inner: Mapping[str, torch.Tensor], context: tuple[Kind, int], size: Sequence[Any]) -> TracedCache:
        """Create one from the arguments of ``__tensor_unflatten__``."""
        kind, tokens_dim = context
        spec, dtype, statistics, device = kind
        sizes = (size[0], size[3 - tokens_dim], size[3], size[tokens_dim])
        return TracedCache(
            CacheFormat.parse(spec), dtype, torch.device(device), *sizes, statistics, inner["_blocks"], flattened(*kind)
        )

    @property
    def capacity(self) -> Any:
        """The capacity in blocks."""
        return self.blocks.shape[0]

    def new_empty(self, shape: Sequence[Any], dtype: torch.dtype) -> torch.Tensor:
        """A fake tensor on the device of the cache."""
        if type(self.blocks) is FakeTensor:
            return fake_empty(self.blocks.fake_mode, shape, dtype, self.device)
        return self.blocks.new_empty(shape, dtype=dtype, device=self.device)

    def dense(self, shape: Sequence[Any]) -> torch.Tensor:
        """A fake dense tensor of ``shape`` in the cache's dtype. The backend emits the operator that computes it.

        Raises:
            CompileError: If a compiler other than this package's backend traces the cache.
        """
        if not isinstance(self.blocks, FakeTensor):
            raise self.refusal()
        return self.new_empty(shape, self.dtype)

    def refusal(self) -> Exception:
        """The error for reading data of a traced cache."""
        from ..compile_error import CompileError  # imports Dynamo, which is loaded while it traces

        return CompileError(
            "an InnerQTensor was traced by a compiler that does not know it: compile this program with "
            "backend='innerq', or call .dequantize() on the cache before it enters the compiled function"
        )


def is_traced(tensor: Any) -> bool:
    """Whether a value is a cache tensor without data, in a program that is being traced."""
    return isinstance(getattr(tensor, "_storage", None), TracedCache)
