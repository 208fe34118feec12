"""A value for each thread, which outlives it: programs that start a thread for each request find it again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerThread(Generic[T]):
    """A value for each thread. When a thread has ended, the next new thread gets its value.

    So there are as many values as there were threads at the same time, and each is used by one thread at a time.

    Args:
        make: makes a value.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self.forget()

    def get(self) -> T:
        """The value of the calling thread."""
        local, values, spare = self._state
        try:
            return local.lease.value
        except AttributeError:
            lease = local.lease = _Lease(self._next(values, spare), spare)
            return lease.value

    def all(self) -> list[T]:
        """The values of all threads, those that have ended included."""
        return list(self._state[1])

    def forget(self) -> None:
        """Make new values from now on."""
        # replaced as one, so that a call in another thread sees all of it or nothing
        self._state: tuple[Any, list[T], list[T]] = threading.local(), [], []

    def _next(self, values: list[T], spare: list[T]) -> T:
        try:
            return spare.pop()
        except IndexError:
            value = self._make()
            values.append(value)
            return value


class _Lease(Generic[T]):
    """What a thread holds: the value is spare when the thread ends, and with it this object."""

    __slots__ = ("_spare", "value")

    def __init__(self, value: T, spare: list[T]) -> None:
        self.value = value
        self._spare = spare

    def __del__(self) -> None:
        self._spare.append(self.value)
