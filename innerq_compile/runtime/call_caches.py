"""The caches of one call of a compiled graph.

    prepare     locks the storages, makes room for the tokens that the graph appends, and copies a storage if these
                would overwrite tokens of another cache tensor
    ...         the graph runs: it appends the tokens, and updates the lengths on the device
    commit      updates the lengths on the host
    __exit__    unlocks the storages; if the call failed before commit, resets the lengths on the device

No other code changes the length of a cache during a call.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from ..cache.buffer import InnerQBuffer
from ..cache.locking import StorageLocks
from ..cache.storage import CacheStorage
from ..errors import UnsupportedOperation
from ..passes.context import PassContext
from .next_call import Caches, NextCall
from .shadow import Shadow, ShadowReader
from .sizes import SizeReader


class GraphCaches:
    """Prepares the caches for the calls of a graph.

    Args:
        context: The context of the passes that rewrote the graph.
        original: The captured graph.
        sizes: Evaluates sizes of the captured graph.
        returned: For each cache, the index of the output that is this cache with appended tokens; None if there is
            none.
    """

    def __init__(
        self, context: PassContext, original: GraphModule, sizes: SizeReader, returned: Sequence[int | None]
    ) -> None:
        caches = list(context.caches.values())
        counts = {appended.cache: appended.count for appended in context.appended.values()}
        self.shadows = [ShadowReader(plan, original, context.config, sizes) for plan in context.shadows.values()]
        #: For each cache, its index among the arguments.
        self.arguments = [cache.index for cache in caches]
        #: For each cache, a function of the arguments that gives the number of appended tokens; None if only read.
        self._counts = [sizes.reader(counts[cache]) if cache in counts else None for cache in caches]
        fixed = [count for count in (counts.get(cache, 0) for cache in caches) if isinstance(count, int)]
        #: The numbers of appended tokens if none depends on the arguments, else None.
        self._fixed_counts = fixed if len(fixed) == len(caches) else None
        #: What the last call prepared for the next one; None if the graph does not allow it.
        self.next: NextCall | None = None
        self._returned: Callable[[Any], Any] | None = None
        if len(caches) > 1 and self._fixed_counts and len(counts) == len(caches) and not self.shadows:
            self.next = NextCall(self.arguments, self._fixed_counts)
            if None not in returned:
                self._returned = operator.itemgetter(*returned)

    def prepare(self, args: tuple[Any, ...]) -> CallCaches:
        """The caches of a call with ``args``, ready for the graph to append to.

        Their storages stay locked until the end of the ``with`` block: several threads may call the graph with cache
        tensors of the same storage, and each has to see the tokens that another one has appended.

        Raises:
            UnsupportedOperation: If two arguments share a storage, and one of them is a buffer.
            InnerQError: If changes of a static cache cannot be detected.
        """
        shadows = [reader(args) for reader in self.shadows]
        if self.next is not None and (known := self.next.take(args)) is not None:
            caches, locks = known
            return CallCaches(self, args, caches, locks, None, shadows)
        locks = StorageLocks(args[index]._storage for index in self.arguments)
        locks.acquire()
        try:
            storages = self._writable(args, self.counts(args))
            sides = [side for shadow in shadows for side in (shadow.key, shadow.value)]
            return CallCaches(self, args, Caches.of([*storages, *sides]), locks, storages, shadows)
        except BaseException:
            locks.release()
            raise

    def counts(self, args: tuple[Any, ...]) -> Sequence[int]:
        """The number of tokens that a call with ``args`` appends to each cache."""
        if self._fixed_counts is not None:
            return self._fixed_counts
        return [0 if count is None else count(args) for count in self._counts]

    def expect(self, outputs: Sequence[Any]) -> None:
        """Prepare for the next call, whose caches are usually among these ``outputs``."""
        if self.next is not None and self._returned is not None:
            self.next.expect(self._returned(outputs))

    def _writable(self, args: tuple[Any, ...], counts: Sequence[int]) -> list[CacheStorage]:
        """The storages to append to: those of the caches, or copies to protect tokens of other cache tensors."""
        tensors = [args[index] for index in self.arguments]  # guards have checked their types
        if len({id(tensor._storage) for tensor in tensors}) != len(tensors):
            return self._writable_copies(tensors, counts)
        return [
            _fit(tensor._storage, tensor, count, appends)
            for tensor, count, appends in zip(tensors, counts, self._counts, strict=True)
        ]

    def _writable_copies(self, tensors: list[Any], counts: Sequence[int]) -> list[CacheStorage]:
        """The storages to append to if several arguments share one: a copy for each.

        Copies of the same storage get the same capacity, because it is a single symbol in the graph: Dynamo saw a
        single ``blocks`` tensor.
        """
        for tensor in tensors:
            if isinstance(tensor, InnerQBuffer):
                raise UnsupportedOperation(
                    f"two arguments of a compiled function share one quantized cache, and one of them is a buffer of "
                    f"shape {tuple(tensor.shape)}: pass it once, or pass .clone()"
                )
        copies = [
            _fit(tensor._storage.copy(), tensor, count, appends)
            for tensor, count, appends in zip(tensors, counts, self._counts, strict=True)
        ]
        capacities: dict[int, int] = {}
        for tensor, copy in zip(tensors, copies, strict=True):
            original = id(tensor._storage)
            capacities[original] = max(copy.capacity, capacities.get(original, 0))
        for tensor, copy in zip(tensors, copies, strict=True):
            copy.resize(capacities[id(tensor._storage)])
        return copies


def _fit(storage: CacheStorage, tensor: Any, count: int, appends: object) -> CacheStorage:
    """The storage for a graph that appends ``count`` tokens to ``tensor``; it only reads it if ``appends`` is None."""
    if appends is not None:
        return storage.writable_from(tensor._extent, count)
    length = tensor.shape[tensor.tokens_dim]
    if storage.length == length:
        return storage
    copy = storage.copy()
    copy.truncate(length)
    return copy


class CallCaches:
    """The caches of one call, a context manager around the run of the graph.

    Their storages are locked. If the ``with`` block ends without :meth:`commit`, the call has failed, and tokens that
    the graph may have appended are dropped. The call can be repeated then.

    Attributes:
        inner: See :class:`Caches`.
        memory: See :class:`Caches`.
    """

    __slots__ = ("_args", "_committed", "_graph", "_locks", "_shadows", "_storages", "inner", "memory")

    def __init__(
        self,
        graph: GraphCaches,
        args: tuple[Any, ...],
        caches: Caches,
        locks: StorageLocks,
        storages: list[CacheStorage] | None,
        shadows: list[Shadow],
    ) -> None:
        self._graph = graph
        self._args = args
        self._locks = locks
        self._storages = storages
        self._shadows = shadows
        self._committed = False
        self.inner, self.memory = caches.inner, caches.memory

    def __enter__(self) -> CallCaches:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if not self._committed:
                self._roll_back()
        finally:
            self._locks.release()

    @property
    def blocks(self) -> int:
        """The capacity of the first cache, in blocks."""
        return self.inner[0].shape[2]  # of its codes

    @property
    def storages(self) -> list[CacheStorage]:
        """The storage of each cache."""
        if self._storages is None:  # they were prepared by the last call; found only now, because the GPU is busy now
            self._storages = [self._args[index]._storage for index in self._graph.arguments]
        return self._storages

    @property
    def all_storages(self) -> list[CacheStorage]:
        """The storages of the caches, followed by those of shadows."""
        return [*self.storages, *(side for shadow in self._shadows for side in (shadow.key, shadow.value))]

    def commit(self) -> None:
        """Count on the host the tokens that the graph has appended."""
        for reader, shadow in zip(self._graph.shadows, self._shadows, strict=True):
            reader.followed(self._args, shadow)
        for storage, count in zip(self.storages, self._graph.counts(self._args), strict=True):
            if count:
                storage.advance(count)
        self._committed = True

    def _roll_back(self) -> None:
        """Reset the lengths on the device to those on the host."""
        for storage, count in zip(self.storages, self._graph.counts(self._args), strict=True):
            if count:
                # after an error of the device this one fails as well, and the first one is raised
                with contextlib.suppress(RuntimeError):
                    storage.truncate(storage.length)
