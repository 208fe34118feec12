"""The caches of one call of a compiled graph, from before it runs until it has worked or failed.

    prepare     every storage is locked, has room for what the graph appends, and nobody else's tokens behind its own
    ...         the graph runs: the device appends, and counts what it appends
    commit      it has worked: the host counts the same tokens
    the end     without commit it has failed: the device counts as many as the host again; storages are unlocked

Nothing but this changes the length of a cache in a call.
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
    """What is known of the caches of a graph for all of its calls.

    Args:
        context: of the passes that rewrote the graph.
        original: the graph as captured.
        sizes: of that.
        returned: for each cache the place among the outputs of this cache with more tokens, None if there is none.
    """

    def __init__(
        self, context: PassContext, original: GraphModule, sizes: SizeReader, returned: Sequence[int | None]
    ) -> None:
        caches = list(context.caches.values())
        counts = {appended.cache: appended.count for appended in context.appended.values()}
        self.shadows = [ShadowReader(plan, original, context.config, sizes) for plan in context.shadows.values()]
        #: of each cache the place among the arguments
        self.arguments = [cache.index for cache in caches]
        #: of each cache how many tokens are appended, from the arguments of a call; None: it is only read
        self._counts = [sizes.reader(counts[cache]) if cache in counts else None for cache in caches]
        fixed = [count for count in (counts.get(cache, 0) for cache in caches) if isinstance(count, int)]
        #: the same as numbers, where none is a symbol
        self._fixed_counts = fixed if len(fixed) == len(caches) else None
        #: what the last call left for the next one, where that can be known
        self.next: NextCall | None = None
        self._returned: Callable[[Any], Any] | None = None
        if len(caches) > 1 and self._fixed_counts and len(counts) == len(caches) and not self.shadows:
            self.next = NextCall(self.arguments, self._fixed_counts)
            if None not in returned:
                self._returned = operator.itemgetter(*returned)

    def prepare(self, args: tuple[Any, ...]) -> CallCaches:
        """The caches of a call with ``args``, fit to be appended to.

        Their storages are locked until the call is closed: threads may call with views of the same storage, and the
        tokens that one of them appends are to be seen by the next.

        Raises:
            UnsupportedOperation: If a buffer is among the arguments twice.
            InnerQError: For a static cache whose changes cannot be followed.
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
        """How many tokens a call with ``args`` appends to each cache."""
        if self._fixed_counts is not None:
            return self._fixed_counts
        return [0 if count is None else count(args) for count in self._counts]

    def expect(self, outputs: Sequence[Any]) -> None:
        """Get ready for the next call, whose caches are usually among these ``outputs`` of the last one."""
        if self.next is not None and self._returned is not None:
            self.next.expect(self._returned(outputs))

    def _writable(self, args: tuple[Any, ...], counts: Sequence[int]) -> list[CacheStorage]:
        """The storage of each cache, or a copy of it where somebody else's tokens would be overwritten."""
        tensors = [args[index] for index in self.arguments]  # Dynamo has checked their kind
        if len({id(tensor._storage) for tensor in tensors}) != len(tensors):
            return self._writable_copies(tensors, counts)
        return [
            _fit(tensor._storage, tensor, count, appends)
            for tensor, count, appends in zip(tensors, counts, self._counts, strict=True)
        ]

    def _writable_copies(self, tensors: list[Any], counts: Sequence[int]) -> list[CacheStorage]:
        """The same where arguments are views of one storage: none may see what another appends.

        Copies of one storage keep the same capacity. Dynamo saw one tensor of blocks, so that it is one symbol.
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
    """``storage`` for a graph that appends ``count`` tokens behind ``tensor``, or one that only reads it."""
    if appends is not None:
        return storage.writable_from(tensor._extent, count)
    length = tensor.shape[tensor.tokens_dim]
    if storage.length == length:
        return storage
    copy = storage.copy()
    copy.truncate(length)
    return copy


class CallCaches:
    """The caches of one call, locked for other threads. The graph runs within a ``with`` block of it.

    A block that ends before :meth:`commit` is a call that failed. What the graph may have appended on the device is
    forgotten then, so that the call can be made again.

    Attributes:
        inner, memory: What the graph takes of them, see :class:`Caches`.
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
        return self.inner[0].shape[2]  # its codes are its first inner tensor

    @property
    def storages(self) -> list[CacheStorage]:
        """The storage of each cache. Caches that were known before the call are their arguments' own."""
        if self._storages is None:  # not looked for before the graph runs, while a GPU would wait for it
            self._storages = [self._args[index]._storage for index in self._graph.arguments]
        return self._storages

    @property
    def all_storages(self) -> list[CacheStorage]:
        """The storages of the caches, and behind them those of shadows."""
        return [*self.storages, *(side for shadow in self._shadows for side in (shadow.key, shadow.value))]

    def commit(self) -> None:
        """The graph has run: the host counts the tokens that it appended."""
        for reader, shadow in zip(self._graph.shadows, self._shadows, strict=True):
            reader.followed(self._args, shadow)
        for storage, count in zip(self.storages, self._graph.counts(self._args), strict=True):
            if count:
                storage.advance(count)
        self._committed = True

    def _roll_back(self) -> None:
        """The device counts as many tokens as the host again."""
        for storage, count in zip(self.storages, self._graph.counts(self._args), strict=True):
            if count:
                # where the device takes no kernel any more, what happened before says why
                with contextlib.suppress(RuntimeError):
                    storage.truncate(storage.length)
