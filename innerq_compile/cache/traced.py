"""What Dynamo sees of a quantized cache: its format and sizes, and no data.

Dynamo takes a wrapper subclass apart (``__tensor_flatten__``) and makes another one of fake inner tensors and of what
else was given (``__tensor_unflatten__``). The other one holds a :class:`TracedCache` where the first holds a storage.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..kernels.formats import CacheFormat
from ..kernels.internals.tensors import FakeTensor
from .extents import Extents

#: What a compiled graph is made for, besides sizes: the format's spec, the dtype, the statistics that there are
#: (``kernels.cache.STATISTICS``), the device.
Kind = tuple[str, torch.dtype, tuple[str, ...], str]
#: What ``__tensor_flatten__`` returns: names of tensors that Dynamo looks at, and what else makes the type.
Flattened = tuple[list[str], tuple[Kind, int]]


@functools.cache
def flattened(*kind: Any) -> dict[int, Flattened]:
    """For each ``tokens_dim`` what ``InnerQTensor.__tensor_flatten__`` returns for a cache of a :data:`Kind`.

    Guards ask each cache twice a step: objects that are the same compare fast.
    """
    return {tokens_dim: (["_blocks"], (kind, tokens_dim)) for tokens_dim in (1, 2)}


@dataclasses.dataclass(eq=False)
class TracedCache:
    """A cache while a program that takes it is traced.

    Attributes:
        format: the cache format.
        dtype, device: of the logical tensor.
        batch, heads, head_dim, length: sizes of the logical tensor, numbers or symbols.
        statistics: the names of those of ``kernels.cache.STATISTICS`` that it has.
        blocks: fake, ``[capacity]`` uint8 on the CPU; its size is the number of blocks that there is room for.
        flat: for each ``tokens_dim``, what ``InnerQTensor.__tensor_flatten__`` returns.
        extents: as of a storage; nobody asks for them.
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
        """From the arguments of ``__tensor_unflatten__``."""
        kind, tokens_dim = context
        spec, dtype, statistics, device = kind
        sizes = (size[0], size[3 - tokens_dim], size[3], size[tokens_dim])
        return TracedCache(
            CacheFormat.parse(spec), dtype, torch.device(device), *sizes, statistics, inner["_blocks"], flattened(*kind)
        )

    @property
    def capacity(self) -> Any:
        """Blocks of the quantized region that there is room for."""
        return self.blocks.shape[0]

    def new_empty(self, shape: Sequence[Any], dtype: torch.dtype) -> torch.Tensor:
        """A tensor without data on the cache's device, fake as the cache is."""
        return self.blocks.new_empty(shape, dtype=dtype, device=self.device)

    def dense(self, shape: Sequence[Any]) -> torch.Tensor:
        """A dense tensor of a cache's ``shape``: Dynamo asks for no more, the backend emits what makes it.

        Raises:
            CompileError: where a compiler traces further and would read data.
        """
        if not isinstance(self.blocks, FakeTensor):
            raise self.refusal()
        return self.new_empty(shape, self.dtype)

    def refusal(self) -> Exception:
        """The error for a program that looks for data."""
        from ..compile_error import CompileError  # imports Dynamo, which is at work here anyway

        return CompileError(
            "an InnerQTensor was traced by a compiler that does not know it: compile this program with "
            "backend='innerq', or call .dequantize() on the cache before it enters the compiled function"
        )


def is_traced(tensor: Any) -> bool:
    """Whether a value is a tensor of a cache that is being traced."""
    return isinstance(getattr(tensor, "_storage", None), TracedCache)
