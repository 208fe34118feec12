"""Values set by ``with`` blocks that several threads may enter independently."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Scoped(Generic[T]):
    """A stack of values, one for each open ``with`` block.

    Code inside a block sees the values of the blocks of its own thread or asynchronous task. A thread without a block,
    such as one started inside a block, sees the values of all open blocks.

    Attributes:
        opened: the values of all blocks open in this process, oldest first. Read it first where speed matters: if it
            is empty, :meth:`values` is empty, too.
    """

    def __init__(self, name: str) -> None:
        self.opened: tuple[T, ...] = ()
        self._own: contextvars.ContextVar[tuple[T, ...]] = contextvars.ContextVar(name, default=())
        self._lock = threading.Lock()

    def values(self) -> tuple[T, ...]:
        """The values visible to the caller, innermost last."""
        return self._own.get() or self.opened

    @contextlib.contextmanager
    def holding(self, value: T) -> Iterator[None]:
        """Context in which ``value`` is visible."""
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
