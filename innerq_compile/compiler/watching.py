"""Who else wants to see what the compiler does with a graph: dumps and logs, which the compiler knows nothing of.

``install`` a function that is asked at the beginning of each compilation whether its graph is to be watched. What it
returns is told of each step of that compilation.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch.fx import GraphModule

from ..config import InnerQConfig
from ..runtime.report import GraphReport


class Watch(Protocol):
    """Somebody who watches the compilation of one graph."""

    def after_pass(self, name: str, gm: GraphModule) -> None:
        """The pass ``name`` has run; ``gm`` is the graph behind it.

        Before the first pass the name is ``captured``; so it is again where the passes start anew without one of them.
        """
        ...

    def compiling(
        self, gm: GraphModule, report: GraphReport, prelude: GraphModule | None
    ) -> AbstractContextManager[None]:
        """Inside, Inductor compiles ``gm``; ``prelude`` is what runs before it in each call."""
        ...

    def first_call(self, args: tuple[Any, ...]) -> None:
        """What was compiled is about to be called for the first time, with ``args``, those of the captured graph."""
        ...


#: Asked with the captured graph, the config and the options of Inductor; gives None for a graph that is not watched.
BeginWatch = Callable[[GraphModule, InnerQConfig, dict[str, Any]], Watch | None]

_INSTALLED: list[BeginWatch] = []


def install(begin: BeginWatch) -> None:
    """Ask ``begin`` at each compilation from now on."""
    if begin not in _INSTALLED:
        _INSTALLED.append(begin)


class Watches:
    """All that watch the compilation of one graph, mostly none."""

    def __init__(self, gm: GraphModule, config: InnerQConfig, inductor_options: dict[str, Any]) -> None:
        asked = [begin(gm, config, inductor_options) for begin in _INSTALLED]
        self._watches: list[Watch] = [watch for watch in asked if watch is not None]

    @property
    def after_pass(self) -> Callable[[str, GraphModule], None] | None:
        """What the pipeline calls behind each pass; None where nobody watches."""
        if not self._watches:
            return None

        def tell(name: str, gm: GraphModule) -> None:
            for watch in self._watches:
                watch.after_pass(name, gm)

        return tell

    @contextlib.contextmanager
    def compiling(self, gm: GraphModule, report: GraphReport, prelude: GraphModule | None = None) -> Iterator[None]:
        """Around the compilation of ``gm`` by Inductor, see :class:`Watch`."""
        with contextlib.ExitStack() as stack:
            for watch in self._watches:
                stack.enter_context(watch.compiling(gm, report, prelude))
            yield

    def watched(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """``compiled``, whose first call is told."""
        if not self._watches:
            return compiled
        calls = itertools.count()  # one step of it is atomic: threads may call at the same time

        def call(*args: Any) -> Any:
            if next(calls) == 0:
                for watch in self._watches:
                    watch.first_call(args)
            return compiled(*args)

        return call
