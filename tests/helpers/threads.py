"""Functions that run in several threads at the same time."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


@contextlib.contextmanager
def frequent_switches() -> Iterator[None]:
    """Inside, threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def at_once(*functions: Callable[[], Any], often: bool = True) -> list[Any]:
    """What the functions return, each called in a thread of its own, at about the same time.

    Args:
        functions: the functions.
        often: take turns as often as possible. Where they compile, that takes several times as long.
    """
    together = threading.Barrier(len(functions))

    def run(function: Callable[[], Any]) -> Any:
        together.wait()
        return function()

    with ThreadPoolExecutor(len(functions)) as pool, frequent_switches() if often else contextlib.nullcontext():
        return list(pool.map(run, functions))
