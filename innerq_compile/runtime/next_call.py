"""What a graph's next call needs of its caches, made ready while the GPU works on the last one.

A step appends to each cache of each layer and gives a new tensor for it. As a rule the next call's caches are just
these tensors, and nothing has happened to any cache in between. Then all that there is to find out about them is known
before the call, and the GPU need not wait for it.
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
    """What a graph takes of its caches.

    Attributes:
        inner: Their inner tensors, in the order of the graph's inputs.
        memory: The address of each inner tensor, and then the capacity of each cache in blocks. A recording serves
            calls whose caches are in the same memory.
    """

    inner: list[torch.Tensor]
    memory: list[int]

    @classmethod
    def of(cls, storages: Sequence[CacheStorage]) -> Caches:
        """Those of ``storages``."""
        inner = [tensor for storage in storages for tensor in storage.inputs]
        return cls(inner, [*map(torch.Tensor.data_ptr, inner), *(storage.capacity for storage in storages)])


class _Expected(NamedTuple):
    """What is known of the caches of the next call.

    Attributes:
        moment: Since when (``ChangeClock.now``).
        extents: Ids of the extents of the tensors that are expected as arguments.
        caches: What the graph takes of them.
        locks: Those of their storages.
        storages: Weak references to these. Where one dies, its inner tensors are let go.
    """

    moment: object
    extents: list[int]
    caches: Caches
    locks: StorageLocks
    storages: list[weakref.ref[CacheStorage]]


class NextCall:
    """The inner tensors of the caches that the next call of a graph will append to.

    They are known where the arguments are the tensors that :meth:`expect` was told, of whose extents
    only the ids are compared. That is enough: another extent with the id of one that has died would have been made in
    between, and once a cache was made or changed (``cache/changes.py``) nothing is known. Inner tensors are let go with
    the first of the storages, and before one of them grows.

    Threads that run the same graph share it: what is expected is one object, replaced as a whole.

    Args:
        places: For each cache its place among the arguments, two at least.
        counts: How many tokens are appended to each.
    """

    def __init__(self, places: Sequence[int], counts: Sequence[int]) -> None:
        self._caches = operator.itemgetter(*places)
        self._counts = counts
        self._expected: _Expected | None = None
        CHANGES.add_holder(self)

    def take(self, args: tuple[Any, ...]) -> tuple[Caches, StorageLocks] | None:
        """The caches of a call with ``args`` and their locks, which are held from now on; None where not known."""
        expected = self._expected
        if expected is None or expected.moment is not CHANGES.now:
            return None
        if _extents(self._caches(args)) != expected.extents:
            return None
        locks = expected.locks
        locks.acquire()
        if expected.moment is CHANGES.now:
            return expected.caches, locks
        locks.release()  # another thread had them, and has changed a cache
        return None

    def expect(self, tensors: Sequence[InnerQTensor]) -> None:
        """Take these tensors, which a call has just made, for the caches of the next one."""
        storages = [tensor._storage for tensor in tensors]
        if any(s.length + count > s.room for s, count in zip(storages, self._counts, strict=True)):
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
        """Hold nothing any more."""
        self._expected = None

    def _forgetting(self) -> Callable[[Any], None]:
        mine = weakref.ref(self)  # a storage that outlives the graph does not keep it

        def forget(_: Any) -> None:
            if (self := mine()) is not None:
                self.forget()

        return forget


def _extents(tensors: Sequence[InnerQTensor]) -> list[int]:
    return list(map(id, map(operator.attrgetter("_extent"), tensors)))
