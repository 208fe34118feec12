"""Python's garbage collector while graphs are compiled."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

#: How many contexts are open in all threads, and whether they have frozen anything.
_OPEN, _FROZEN = 0, False
_LOCK = threading.Lock()


@contextlib.contextmanager
def sparing_old_objects() -> Iterator[None]:
    """Context in which the garbage collector leaves alone what existed before.

    torch, transformers and a model are some million objects. Compiling makes so many more that the collector would walk
    through all of them again and again, which takes a fifth of a warm start. Contexts may be nested. Where a program
    has frozen objects itself, nothing is done. Cycles that were garbage before are freed behind the context.
    """
    global _OPEN, _FROZEN
    with _LOCK:
        if _OPEN == 0:
            _FROZEN = gc.get_freeze_count() == 0  # it counts them one by one
            if _FROZEN:
                gc.freeze()
        _OPEN += 1
    try:
        yield
    finally:
        with _LOCK:
            _OPEN -= 1
            if _OPEN == 0 and _FROZEN:
                gc.unfreeze()
