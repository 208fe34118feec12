"""Which tokens of a storage somebody can still read."""

from __future__ import annotations

import threading
import weakref

from .changes import CHANGES

#: References that are kept before those to extents that have died are taken out.
_MAX_REFERENCES = 16


class Extent:
    """How many tokens of a storage one tensor shows. It lives as long as the tensor.

    Attributes:
        length: The number of tokens, padding included.
    """

    __slots__ = ("__weakref__", "length")

    def __init__(self, length: int) -> None:
        self.length = length


class Extents:
    """The extents of the tensors of one storage, held weakly. Several threads may use it at the same time."""

    __slots__ = ("_lock", "_references")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._references: list[weakref.ref[Extent]] = []  # a WeakSet takes ten times as long

    def add(self, length: int) -> Extent:
        """The extent of a tensor of ``length`` tokens that is being made."""
        made = Extent(length)
        references = self._references
        references.append(weakref.ref(made))  # atomic: what others append at the same time stands behind or before it
        if len(references) > _MAX_REFERENCES:
            self._remove_dead()
        CHANGES.tick()
        return made

    def is_one_longer_than(self, length: int) -> bool:
        """Whether a tensor that is alive shows more than ``length`` tokens."""
        with self._lock:
            return any((extent := ref()) is not None and extent.length > length for ref in self._references)

    def is_one_besides(self, extent: Extent) -> bool:
        """Whether a tensor other than that of ``extent`` is alive."""
        with self._lock:
            return any(ref() not in (None, extent) for ref in self._references)

    def _remove_dead(self) -> None:
        with self._lock:  # nobody else moves references, and nobody looks through them while they move
            references = self._references
            count = len(references)  # what is appended from here on stays where it is, behind these
            references[:count] = [ref for ref in references[:count] if ref() is not None]
