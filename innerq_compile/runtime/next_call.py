"""Prepares the caches of a graph's next call while the GPU is still busy with the current one.

A decode step appends to the cache of each layer and returns a new tensor for it. Usually these tensors are the
arguments of the next call, and no cache changes in between. Then the inputs of the graph are known before the call, and
the GPU does not have to wait for them.
"""

from __future__ import annotations

import dataclasses
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..cache.changes import CHANGES
from ..cache.locking import StorageLocks
from ..cache.storage import CacheStorage
from ..cache.tensor import InnerQTensor


@dataclasses.dataclass(frozen=True)
class Caches:
    """The inputs that a graph takes for its caches.

    Attributes:
        inner: All inner tensors, in the order of the graph's inputs.
        memory: The address of each inner tensor, followed by the capacity of each cache in blocks. A recording can be
            replayed for calls with the same value.
    """

    inner: list[torch.Tensor]
    memory: list[int]

    @classmethod
    def of(cls, storages: Sequence[CacheStorage]) -> Caches:
        """The inputs for caches with these storages."""
        inner = [tensor for storage in storages for tensor in storage.inputs]
        return cls(inner, [*map(torch.Tensor.data_ptr, inner), *(storage.capacity for storage in storages)])


class _Expected(NamedTuple):
    """The prepared caches of the next call.

    Attributes:
        moment: ``ChangeClock.now`` when they were prepared.
        extents: Ids of the extents of the tensors that are expected as arguments.
        caches: The inputs of the graph for them.
        locks: The locks of their storages.
        storages: Weak references to the storages. If one of them dies, the inner tensors are released.
    """

    moment: object
    extents: list[int]
    caches: Caches
    locks: StorageLocks
    storages: list[weakref.ref[CacheStorage]]


class NextCall:
    """The prepared caches of the next call of a graph.

    They are valid if the arguments are the tensors given to :meth:`expect`. Only the ids of their extents are compared.
    That is sufficient: an extent that reuses the id of a dead one would have been created in between, and creating or
    changing any cache (``cache/changes.py``) invalidates the prepared ones. The inner tensors are released when one of
    the storages dies, and before one of them grows.

    Threads that run the same graph share this object. The prepared caches are one immutable value, which is replaced as
    a whole.

    Args:
        places: The index of each cache among the arguments; there are at least two.
        counts: The number of tokens that are appended to each cache.
    """

    def __init__(self, places: Sequence[int], counts: Sequence[int]) -> None:
        self._caches = operator.itemgetter(*places)
        self._counts = counts
        self._expected: _Expected | None = None
        CHANGES.add_holder(self)

    def take(self, args: tuple[Any, ...]) -> tuple[Caches, StorageLocks] | None:
        """The caches of a call with ``args`` and their locks, which have been acquired; None if not prepared."""
        expected = self._expected
        if expected is None or expected.moment is not CHANGES.now:
            return None
        if _extents(self._caches(args)) != expected.extents:
            return None
        locks = expected.locks
        locks.acquire()
        if expected.moment is CHANGES.now:
            return expected.caches, locks
        locks.release()  # another thread held them, and has changed a cache
        return None

    def expect(self, tensors: Sequence[InnerQTensor]) -> None:
        """Prepare these tensors, which a call has just returned, as the caches of the next call."""
        storages = [tensor._storage for tensor in tensors]
        if not all(storage.has_room(count) for storage, count in zip(storages, self._counts, strict=True)):
            self.forget()
            return
        last = self._expected
        if last is not None and [ref() for ref in last.storages] == storages:  # they compare by identity
            locks, references = last.locks, last.storages
        else:
            forget = self._forgetting()
            locks, references = StorageLocks(storages), [weakref.ref(storage, forget) for storage in storages]
        self._expected = _Expected(CHANGES.now, _extents(tensors), Caches.of(storages), locks, references)

    def forget(self) -> None:
        """Release the prepared caches."""
        self._expected = None

    def _forgetting(self) -> Callable[[Any], None]:
        mine = weakref.ref(self)  # so that a storage does not keep the graph alive

        def forget(_: Any) -> None:
            if (self := mine()) is not None:
                self.forget()

        return forget


def _extents(tensors: Sequence[InnerQTensor]) -> list[int]:
    return list(map(id, map(operator.attrgetter("_extent"), tensors)))
