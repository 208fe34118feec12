"""How the program's outputs are made of those of the new graph."""

from __future__ import annotations

import dataclasses

import torch
from torch.fx import Node

from ...kernels.cache import CacheTensors
from ...kernels.formats import CacheFormat
from .caches import ProgramCache


@dataclasses.dataclass(frozen=True, eq=False)
class Appended:
    """An output that is an input cache with ``count`` tokens more; it has no tensor of its own in the new graph."""

    cache: ProgramCache
    count: int | torch.SymInt


@dataclasses.dataclass(frozen=True, eq=False)
class Quantized:
    """An output that was dense and leaves the new graph as the inner tensors of a cache of ``length`` tokens."""

    tensors: CacheTensors[Node]
    length: int | torch.SymInt
    tokens_dim: int = 2

    @property
    def format(self) -> CacheFormat:
        return self.tensors.format


@dataclasses.dataclass(frozen=True, eq=False)
class OutputPlan:
    """One output of the original graph.

    Attributes:
        what: None for a plain value; else the cache that it is: an input passed through, an input appended to, or new.
        at: position among the new outputs of the value, or of the first inner tensor of a new cache; None for what is
            not among them.
    """

    what: ProgramCache | Appended | Quantized | None
    at: int | None
