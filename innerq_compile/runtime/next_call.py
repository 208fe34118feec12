"""Preparation of a graph's next call while the GPU still works on the last one.

A decode step appends to the cache of each layer and returns a new cache tensor for it. Usually these tensors are the
arguments of the next call, and no cache has changed in between. Then the inner tensors are known before the call, and
the GPU does not have to wait for the host to collect them.
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
    """The inner tensors of the caches of a call.

    Attributes:
        inner: The inner tensors in the order of the graph's inputs.
        memory: The address of each inner tensor, followed by the capacity of each cache in blocks. A recording can be
            replayed for calls with the same memory.
    """

    inner: list[torch.Tensor]
    memory: list[int]

    @classmethod
    def of(cls, storages: Sequence[CacheStorage]) -> Caches:
        """The inner tensors of ``storages``."""
        inner = [tensor for storage in storages for tensor in storage.inputs]
        return cls(inner, [*map(torch.Tensor.data_ptr, inner), *(storage.capacity for storage in storages)])


class _Expected(NamedTuple):
    """The expected caches of the next call.

    Attributes:
        moment: ``ChangeClock.now`` when they were collected.
        extents: Ids of the extents of the cache tensors that are expected as arguments.
        caches: Their inner tensors.
        locks: The locks of their storages.
        storages: Weak references to the storages. When one dies, its inner tensors are dropped.
    """

    moment: object
    extents: list[int]
    caches: Caches
    locks: StorageLocks
    storages: list[weakref.ref[CacheStorage]]


class NextCall:
    """The inner tensors of the caches of a graph's next call, collected after the last one.

    They are used if no cache has changed since then (``cache/changes.py``), and if the arguments are the expected cache
    tensors. Comparing the ids of their extents is enough: an id can only be reused by an extent created later, which
    counts as a change. The inner tensors are dropped when one of the storages dies or is reallocated.

    Threads that run the same graph share the object. What is expected is replaced as a whole, in one assignment.

    Args:
        places: For each cache, its index among the arguments. There are at least two.
        counts: The number of tokens that a call appends to each cache.
    """

    def __init__(self, places: Sequence[int], counts: Sequence[int]) -> None:
        self._caches = operator.itemgetter(*places)
        self._counts = counts
        self._expected: _Expected | None = None
        CHANGES.add_holder(self)

    def take(self, args: tuple[Any, ...]) -> tuple[Caches, StorageLocks] | None:
        """The caches of a call with ``args``, and their locks, which are acquired; None if they were not expected."""
        expected = self._expected
        if expected is None or expected.moment is not CHANGES.now:
            return None
        if _extents(self._caches(args)) != expected.extents:
            return None
        locks = expected.locks
        locks.acquire()
        if expected.moment is CHANGES.now:
            return expected.caches, locks
        locks.release()  # another thread held one of them, and has changed a cache
        return None

    def expect(self, tensors: Sequence[InnerQTensor]) -> None:
        """Expect these cache tensors, outputs of a call, to be the arguments of the next one."""
        storages = [tensor._storage for tensor in tensors]
        if any(s.length + count > s.room for s, count in zip(storages, self._counts, strict=True)):
            self.forget()
            return
        last = self._expected
        if last is not None and [ref() for ref in last.storages] == storages:  # compared by identity
            locks, references = last.locks, last.storages
        else:
            forget = self._forgetting()
            locks, references = StorageLocks(storages), [weakref.ref(storage, forget) for storage in storages]
        self._expected = _Expected(CHANGES.now, _extents(tensors), Caches.of(storages), locks, references)

    def forget(self) -> None:
        """Drop everything that is held."""
        self._expected = None

    def _forgetting(self) -> Callable[[Any], None]:
        mine = weakref.ref(self)  # so that storages do not keep the graph alive

        def forget(_: Any) -> None:
            if (self := mine()) is not None:
                self.forget()

        return forget


def _extents(tensors: Sequence[InnerQTensor]) -> list[int]:
    return list(map(id, map(operator.attrgetter("_extent"), tensors)))
