"""Observers of compilations, such as graph dumps, which the compiler itself does not import.

A function registered by :func:`install` is called at the start of each compilation, and returns an observer of that
compilation or None.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch.fx import GraphModule

from ..config import InnerQConfig
from ..runtime.report import GraphReport


class Observer(Protocol):
    """An observer of the compilation of one graph."""

    def after_pass(self, name: str, gm: GraphModule) -> None:
        """Called after the pass ``name`` with the graph as it is then.

        Called with the name ``passes.pipeline.CAPTURED`` before the first pass, and again each time that the pipeline
        starts over without a pass that failed.
        """
        ...

    def compiling(
        self, gm: GraphModule, report: GraphReport, prelude: GraphModule | None
    ) -> AbstractContextManager[None]:
        """Context of the compilation of ``gm`` by Inductor; ``prelude`` is the graph that runs before it."""
        ...

    def first_call(self, args: tuple[Any, ...]) -> None:
        """Called before the first call of the compiled graph, with the arguments of the captured graph."""
        ...


#: Takes the captured graph, the config and the options of Inductor; returns None for a graph that is not observed.
BeginObserver = Callable[[GraphModule, InnerQConfig, dict[str, Any]], Observer | None]

_INSTALLED: list[BeginObserver] = []
_INSTALLING = threading.Lock()


def install(begin: BeginObserver) -> None:
    """Register ``begin`` to be called at the start of each compilation. Does nothing if it is registered already."""
    with _INSTALLING:
        if begin not in _INSTALLED:
            _INSTALLED.append(begin)


class Observers:
    """The observers of the compilation of one graph; usually there is none."""

    def __init__(self, gm: GraphModule, config: InnerQConfig, inductor_options: dict[str, Any]) -> None:
        begun = [begin(gm, config, inductor_options) for begin in _INSTALLED]
        self._observers: list[Observer] = [observer for observer in begun if observer is not None]

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return bool(self._observers)

    @property
    def after_pass(self) -> Callable[[str, GraphModule], None] | None:
        """The function that the pipeline calls after each pass; None if there is no observer."""
        if not self._observers:
            return None

        def notify(name: str, gm: GraphModule) -> None:
            for observer in self._observers:
                observer.after_pass(name, gm)

        return notify

    @contextlib.contextmanager
    def compiling(self, gm: GraphModule, report: GraphReport, prelude: GraphModule | None = None) -> Iterator[None]:
        """Context of the compilation of ``gm`` by Inductor, see :class:`Observer`."""
        with contextlib.ExitStack() as stack:
            for observer in self._observers:
                stack.enter_context(observer.compiling(gm, report, prelude))
            yield

    def observed(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """``compiled``, wrapped to notify the observers of its first call."""
        if not self._observers:
            return compiled
        calls = itertools.count()  # next() on it is atomic, and several threads may call

        def call(*args: Any) -> Any:
            if next(calls) == 0:
                for observer in self._observers:
                    observer.first_call(args)
            return compiled(*args)

        return call
