"""Values that hold inside a ``with`` block, in a process whose threads have blocks of their own."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Scoped(Generic[T]):
    """What was given in the ``with`` blocks that are open.

    Code inside a block sees the values of its own thread (or asynchronous task). A thread without a block, such as one
    that was started inside of a block, sees those of all others.

    Attributes:
        opened: the values of all blocks that are open in this process, oldest first. Empty costs nothing to ask.
    """

    def __init__(self, name: str) -> None:
        self.opened: tuple[T, ...] = ()
        self._own: contextvars.ContextVar[tuple[T, ...]] = contextvars.ContextVar(name, default=())
        self._lock = threading.Lock()

    def values(self) -> tuple[T, ...]:
        """The values that hold here, the innermost last."""
        return self._own.get() or self.opened

    @contextlib.contextmanager
    def holding(self, value: T) -> Iterator[None]:
        """``value`` holds inside."""
        with self._lock:
            self.opened = (*self.opened, value)
        token = self._own.set((*self._own.get(), value))
        try:
            yield
        finally:
            self._own.reset(token)
            with self._lock:
                others = list(self.opened)
                others.remove(value)
                self.opened = tuple(others)
