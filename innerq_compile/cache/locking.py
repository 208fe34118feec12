"""Locking several storages at once."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from .storage import CacheStorage


class StorageLocks:
    """The locks of several storages. All threads acquire them in the same order, so that there is no deadlock."""

    __slots__ = ("_locks",)

    def __init__(self, storages: Iterable[CacheStorage]) -> None:
        self._locks: list[threading.RLock] = sorted({storage.lock for storage in storages}, key=id)

    def acquire(self) -> None:
        """Acquire all locks. Waits for other threads that hold one; if that is interrupted, none is held."""
        held = 0
        try:
            for lock in self._locks:
                lock.acquire()
                held += 1
        except BaseException:
            for lock in self._locks[:held]:
                lock.release()
            raise

    def release(self) -> None:
        """Release all locks."""
        for lock in self._locks:
            lock.release()
