"""Holding several storages at once."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from .storage import CacheStorage


class StorageLocks:
    """The locks of some storages. Threads take them in the same order, so that none waits for another in a circle."""

    __slots__ = ("_locks",)

    def __init__(self, storages: Iterable[CacheStorage]) -> None:
        self._locks: list[threading.RLock] = sorted({storage.lock for storage in storages}, key=id)

    def acquire(self) -> None:
        """Wait until nobody else holds any of them."""
        for lock in self._locks:
            lock.acquire()

    def release(self) -> None:
        """Let others have them."""
        for lock in self._locks:
            lock.release()
