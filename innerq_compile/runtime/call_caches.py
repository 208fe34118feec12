"""The caches of one call of a compiled graph, handled as a transaction.

    prepare     locks every storage and ensures that it has room for the appended tokens and that appending does not
                overwrite tokens of another tensor
    ...         the graph runs: it appends tokens and advances the lengths on the device
    commit      the call has succeeded: advances the lengths on the host
    exit        without a commit the call has failed: resets the lengths on the device to those on the host; then
                unlocks the storages

Nothing else changes the length of a cache during a call.
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
    """Prepares the caches of each call of a graph.

    Args:
        context: the context of the passes.
        original: the graph as captured.
        sizes: evaluates symbolic sizes of ``original``.
        returned: for each cache, the index of the output that is this cache with tokens appended, or None.
    """

    def __init__(
        self, context: PassContext, original: GraphModule, sizes: SizeReader, returned: Sequence[int | None]
    ) -> None:
        caches = list(context.caches.values())
        appended = {appended.cache: appended for appended in context.appended.values()}
        counts = {cache: what.count for cache, what in appended.items()}
        drops = [appended[cache].dropped if cache in appended else 0 for cache in caches]
        self.shadows = [ShadowReader(plan, original, context.config, sizes) for plan in context.shadows.values()]
        #: the index of each cache among the arguments
        self.arguments = [cache.index for cache in caches]
        #: for each cache, a function of the arguments that gives the number of appended tokens; None if it is only read
        self._counts = [sizes.reader(counts[cache]) if cache in counts else None for cache in caches]
        numbers = {cache: number for number, cache in enumerate(caches)}
        #: the keys and the values that an attention reads, by their number among the caches
        self._pairs = [(numbers[key], numbers[value]) for key, value in context.pairs]
        fixed = [count for count in (counts.get(cache, 0) for cache in caches) if isinstance(count, int)]
        #: the numbers of appended tokens if all are constants, else None
        self._fixed_counts = fixed if len(fixed) == len(caches) else None
        #: for each cache, a function of the arguments that gives how many tokens at the front are dropped
        self._drops = [sizes.reader(drop) for drop in drops]
        fixed = [drop for drop in drops if isinstance(drop, int)]
        self._fixed_drops = fixed if len(fixed) == len(drops) else None
        #: prepared caches of the next call; None if this graph does not support it
        self.next: NextCall | None = None
        self._returned: Callable[[Any], Any] | None = None
        if len(caches) > 1 and self._fixed_counts and len(counts) == len(caches) and not self.shadows:
            self.next = NextCall(self.arguments, self._fixed_counts)
            if None not in returned:
                self._returned = operator.itemgetter(*returned)

    def prepare(self, args: tuple[Any, ...]) -> CallCaches:
        """The caches of a call with ``args``, ready to be appended to.

        Their storages remain locked until the end of the call, because other threads may call with tensors of the same
        storage.

        Raises:
            UnsupportedOperation: If the same buffer is passed twice.
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

    def drops(self, args: tuple[Any, ...]) -> Sequence[int]:
        """How many tokens at its front each cache loses by a call with ``args``."""
        return self._fixed_drops if self._fixed_drops is not None else [drop(args) for drop in self._drops]

    def expect(self, outputs: Sequence[Any]) -> None:
        """Prepare the next call, whose caches are usually among the ``outputs`` of this one."""
        if self.next is not None and self._returned is not None:
            self.next.expect(self._returned(outputs))

    def _writable(self, args: tuple[Any, ...], counts: Sequence[int]) -> list[CacheStorage]:
        """The storage of each cache, or a copy of it if appending would overwrite tokens of another tensor."""
        tensors = [args[index] for index in self.arguments]  # Dynamo has checked their types
        if len({id(tensor._storage) for tensor in tensors}) != len(tensors):
            return self._writable_copies(tensors, counts)
        storages = [
            _fit(tensor._storage, tensor, count, appends)
            for tensor, count, appends in zip(tensors, counts, self._counts, strict=True)
        ]
        for key, value in self._pairs:
            if storages[key].on_device != storages[value].on_device:
                _bring_together(storages, tensors, counts, (key, value))
        return storages

    def _writable_copies(self, tensors: list[Any], counts: Sequence[int]) -> list[CacheStorage]:
        """Copies of all storages, for several arguments on one storage: appended tokens must not be shared.

        Copies of the same storage have the same capacity, because it is one symbol in the graph.
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


def _bring_together(
    storages: list[CacheStorage], tensors: list[Any], counts: Sequence[int], pair: tuple[int, int]
) -> None:
    """Make keys and values anew that are not counted alike, as a program has that cuts one of them elsewhere.

    Kernels take the lengths of keys for those of values.
    """
    for number in pair:
        extent = tensors[number]._extent
        storages[number] = storages[number].made_anew(extent.first, extent.end)
        storages[number].reserve(counts[number])


def _fit(storage: CacheStorage, tensor: Any, count: int, appends: object) -> CacheStorage:
    """``storage`` or a copy of it, with the length of ``tensor``, and room for ``count`` tokens if it is written."""
    if appends is not None:
        return storage.writable_from(tensor._extent, count)
    if isinstance(tensor, InnerQBuffer):
        return storage
    extent = tensor._extent
    if (storage.hidden, storage.length) == (extent.first, extent.end):
        return storage
    copy = storage.copy()
    copy.show(extent.first, extent.end)
    return copy


class CallCaches:
    """The caches of one call, locked for other threads: a context in which the graph runs.

    If the context is left before :meth:`commit`, the call has failed. Tokens that the graph may have appended on the
    device are discarded, so that the call can be repeated.

    Attributes:
        inner, memory: Inputs of the graph, see :class:`Caches`.
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
    def storages(self) -> list[CacheStorage]:
        """The storage of each cache. For prepared caches these are the storages of the arguments."""
        if self._storages is None:  # determined after the graph was launched, so that the GPU does not wait
            self._storages = [self._args[index]._storage for index in self._graph.arguments]
        return self._storages

    @property
    def all_storages(self) -> list[CacheStorage]:
        """The storages of the caches, followed by those of shadows."""
        return [*self.storages, *(side for shadow in self._shadows for side in (shadow.key, shadow.value))]

    def commit(self) -> None:
        """Advance the lengths on the host, after the graph has run."""
        for reader, shadow in zip(self._graph.shadows, self._shadows, strict=True):
            reader.followed(self._args, shadow)
        counts, drops = self._graph.counts(self._args), self._graph.drops(self._args)
        for storage, count, dropped in zip(self.storages, counts, drops, strict=True):
            if count or dropped:
                storage.advance(count, dropped)
        self._committed = True

    def _roll_back(self) -> None:
        """Reset the lengths on the device to those on the host."""
        counts, drops = self._graph.counts(self._args), self._graph.drops(self._args)
        for storage, count, dropped in zip(self.storages, counts, drops, strict=True):
            if count or dropped:
                # after an error of the device no kernel can be launched; the original error is raised
                with contextlib.suppress(RuntimeError):
                    storage.reset(storage.hidden, storage.length)
