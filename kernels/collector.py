"""Python's garbage collector while graphs are compiled."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def sparing_old_objects() -> Iterator[None]:
    """Context in which the garbage collector leaves alone what existed before.

    torch, transformers and a model are some million objects. Compiling makes so many more that the collector would walk
    through all of them again and again, which takes a third of a warm start. Contexts may be nested.
    """
    if gc.get_freeze_count() > 0:  # by an outer context, or the program has done it
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
