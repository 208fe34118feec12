"""How the outputs of the program are rebuilt from those of the rewritten graph."""

from __future__ import annotations

import dataclasses

import torch
from torch.fx import Node

from ...kernels.cache import CacheTensors
from ...kernels.formats import CacheFormat
from .caches import ProgramCache


@dataclasses.dataclass(frozen=True, eq=False)
class Appended:
    """An output that is an input cache to which the rewritten graph appends tokens in place.

    Attributes:
        cache: the input.
        count: how many tokens are appended.
        dropped: how many tokens at its front the output does not have.
    """

    cache: ProgramCache
    count: int | torch.SymInt
    dropped: int | torch.SymInt = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Quantized:
    """A dense output that the rewritten graph returns as the inner tensors of a quantized cache.

    Attributes:
        tensors: the nodes of the inner tensors.
        length: the number of tokens, padding included.
        tokens_dim: 2 if its shape is ``[B, H, S, D]``, 1 if it is ``[B, S, H, D]``.
    """

    tensors: CacheTensors[Node]
    length: int | torch.SymInt
    tokens_dim: int = 2

    @property
    def format(self) -> CacheFormat:
        return self.tensors.format


@dataclasses.dataclass(frozen=True, eq=False)
class Number:
    """An output that follows from sizes and numbers among the inputs, so that the host computes it.

    A CUDA graph would return that of the call in which it was recorded.
    """

    value: torch.SymInt


@dataclasses.dataclass(frozen=True, eq=False)
class OutputPlan:
    """How one output of the original graph is rebuilt.

    Attributes:
        what: the cache that it is: an input that is returned unchanged, an input appended to, or a new one; or a
            number. None for any other value.
        at: the index of the value, or of the first inner tensor of a new cache, among the outputs of the rewritten
            graph; None for an input cache and a number.
    """

    what: ProgramCache | Appended | Quantized | Number | None
    at: int | None
