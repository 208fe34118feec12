"""Whether caches have changed since some moment, for all of this process."""

from __future__ import annotations

import threading
import weakref
from typing import Any


class ChangeClock:
    """Tells whether any cache of this process has changed since some moment.

    It ticks when a cache is made, changes its length or its tensors, or a tensor of a cache is made. Threads share it:
    a change in one of them is one for all of them. Reading and ticking are single assignments and need no lock; the
    clock ticks behind a change, so that what was read before the tick is never taken for the present.

    Attributes:
        now: an object that stands for the present. Whoever keeps it finds another one here after any change.
    """

    def __init__(self) -> None:
        self.now = object()
        self._lock = threading.Lock()
        self._holders: weakref.WeakSet[Any] = weakref.WeakSet()

    def tick(self) -> None:
        """Note that a cache has changed."""
        self.now = object()

    def add_holder(self, holder: Any) -> None:
        """Have ``holder.forget()`` called before a storage replaces its tensors, so that the old ones are freed.

        Args:
            holder: what holds inner tensors of caches from one call to the next; kept weakly.
        """
        with self._lock:
            self._holders.add(holder)

    def forget_tensors(self) -> None:
        """Have everybody let go of the inner tensors that they hold."""
        with self._lock:
            holders = list(self._holders)
        for holder in holders:
            holder.forget()


CHANGES = ChangeClock()
