"""Which tokens the cache tensors have that share a storage.

A storage may be written in place only behind the last token of all tensors that can still read it; one that rolls, only
where none of them has the tokens that it overwrites.
"""

from __future__ import annotations

import threading
import weakref

from .changes import CHANGES

#: How many references are kept before those to dead extents are removed.
_MAX_REFERENCES = 16


class Extent:
    """The tokens of one cache tensor. It lives as long as the tensor does.

    Tokens are counted from the first that was ever in the storage, padding included.

    Attributes:
        first: The first token.
        end: One more than the last.
    """

    __slots__ = ("__weakref__", "end", "first")

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end


class Extents:
    """Weak references to the extents of all tensors of one storage. Safe to use from several threads.

    No method waits for a lock: a finalizer or a signal handler may run within any of them, and make or read a tensor of
    the same storage.
    """

    __slots__ = ("_references", "_removing")

    def __init__(self) -> None:
        self._removing = threading.Lock()
        self._references: list[weakref.ref[Extent]] = []  # a WeakSet is ten times as slow

    def add(self, first: int, end: int) -> Extent:
        """Create the extent of a new tensor."""
        made = Extent(first, end)
        references = self._references
        references.append(weakref.ref(made))  # atomic, so that it needs no lock
        if len(references) > _MAX_REFERENCES:
            self._remove_dead()
        CHANGES.tick()
        return made

    def is_one_behind(self, end: int) -> bool:
        """Whether a tensor is alive that has a token from ``end`` on."""
        references = self._references.copy()
        return any((extent := ref()) is not None and extent.end > end for ref in references)

    def first(self) -> int | None:
        """The first token of all tensors that are alive; None if there are none."""
        alive = [extent.first for ref in self._references.copy() if (extent := ref()) is not None]
        return min(alive, default=None)

    def is_one_besides(self, extent: Extent) -> bool:
        """Whether any tensor but that of ``extent`` is alive."""
        return any(ref() not in (None, extent) for ref in self._references.copy())

    def _remove_dead(self) -> None:
        if not self._removing.acquire(blocking=False):
            return  # someone else does; the next tensor tries again
        try:
            references = self._references
            count = len(references)  # others may append meanwhile, behind these
            references[:count] = [ref for ref in references[:count] if ref() is not None]
        finally:
            self._removing.release()

    def __reduce__(self):
        return Extents, ()  # of a copy there are no tensors yet
