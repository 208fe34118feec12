"""Process-wide detection of changes to caches."""

from __future__ import annotations

import threading
import weakref
from typing import Any


class ChangeClock:
    """Tells whether any cache of this process has changed since an earlier moment.

    It ticks after a storage or a cache tensor is created, and after a storage changes its length or its tensors, in
    any thread. Reading and ticking are single reads and writes of an attribute, which need no lock.

    Attributes:
        now: An object that is replaced by each tick. If it is still the same object, nothing has changed.
    """

    def __init__(self) -> None:
        self.now = object()
        self._lock = threading.Lock()
        self._holders: weakref.WeakSet[Any] = weakref.WeakSet()

    def tick(self) -> None:
        """Note that a cache has changed."""
        self.now = object()

    def add_holder(self, holder: Any) -> None:
        """Register an object that keeps inner tensors between calls.

        ``holder.forget()`` is called before a storage replaces its tensors, so that the old ones can be freed.

        Args:
            holder: The object. Only a weak reference to it is kept.
        """
        with self._lock:
            self._holders.add(holder)

    def forget_tensors(self) -> None:
        """Make all registered objects drop the inner tensors that they keep."""
        with self._lock:
            holders = list(self._holders)
        for holder in holders:
            holder.forget()


CHANGES = ChangeClock()
