"""The tensors of one side (keys or values) of a quantized cache: the one list of them.

Storages hold them as tensors, passes as nodes of a graph, lowerings as nodes of Inductor's IR; :class:`CacheTensors` is
generic over what it holds, so that the same names, order and presence serve all of them. What each tensor looks like
is said in ``kernels/layout.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import torch

from .formats import CacheFormat

T = TypeVar("T")
U = TypeVar("U")

#: What holds the tokens themselves: what every operator on a cache takes, in this order.
ENCODED = ("codes", "scales", "window", "state")
#: What was measured on the prompt; a cache has those that its format and its config ask for.
STATISTICS = ("query_profile", "mean", "norm")
#: What has a place for each block, ``[B, H, capacity, ...]``, and grows with the cache.
GROWING = ("codes", "scales")
#: All inner tensors, in the order in which compiled graphs take and return them.
INNER_TENSORS = (*ENCODED, *STATISTICS)


@dataclasses.dataclass(eq=False)
class CacheTensors(Generic[T]):
    """One side of a quantized cache.

    Attributes:
        format: how the tensors are to be read.
        codes: ``[B, H, capacity, W]``, packed codes of the blocks; the elements themselves in mode ``none``.
        scales: ``[B, H, capacity, P]``, scales and zero points of the groups of each block.
        window: ``[B, H, sink + recent + block, D]``, the sinks and the recent window in the cache's dtype.
        state: ``[B, H, 4]`` int32, see ``layout.STATE_FIELDS``.
        query_profile: ``[B, H, 2, D]`` int8, see ``reference.query_profile``; keys whose mode uses it, else None.
        mean, norm: ``[B, H, D]`` float32, what was taken out of the keys; None where nothing was.
    """

    format: CacheFormat
    codes: T
    scales: T
    window: T
    state: T
    query_profile: T | None = None
    mean: T | None = None
    norm: T | None = None

    @classmethod
    def of(cls, fmt: CacheFormat, tensors: Mapping[str, T]) -> CacheTensors[T]:
        """From a mapping of names in :data:`INNER_TENSORS`; what is left out is None."""
        return cls(fmt, **tensors)

    @classmethod
    def of_encoded(cls, fmt: CacheFormat, tensors: Iterable[T]) -> CacheTensors[T]:
        """From the tensors named in :data:`ENCODED`, in this order, as ``innerq::prefill`` returns them."""
        return cls.of(fmt, dict(zip(ENCODED, tensors, strict=True)))

    @property
    def encoded(self) -> tuple[T, T, T, T]:
        """The tensors named in :data:`ENCODED`."""
        return self.codes, self.scales, self.window, self.state

    def present(self) -> dict[str, T]:
        """The tensors that there are, by name, in the order of :data:`INNER_TENSORS`."""
        named = ((name, getattr(self, name)) for name in INNER_TENSORS)
        return {name: tensor for name, tensor in named if tensor is not None}

    def __iter__(self) -> Iterator[T]:
        return iter(self.present().values())

    def map(self, function: Callable[[T], U]) -> CacheTensors[U]:
        """The same with ``function`` applied to each tensor that there is."""
        return CacheTensors.of(self.format, {name: function(tensor) for name, tensor in self.present().items()})

    def rebuilt(self, tensors: Sequence[U]) -> CacheTensors[U]:
        """The same side made of other ``tensors``, given in the order in which :meth:`present` names them."""
        return CacheTensors.of(self.format, dict(zip(self.present(), tensors, strict=True)))


#: A cache side as kernels take it.
Cache = CacheTensors[torch.Tensor]
