"""Work while Inductor waits for its compilers. See ``table/inductor_waiting.py``.

Inductor hands kernels to compilers in other processes, and waits for them where it loads the code of a graph: seconds
in which this process does nothing. Another graph can be compiled to that point meanwhile, within the compilation that
waits.

Importing this module does not import Inductor; its context does.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch._guards import TracingContext

__all__ = ["Settings", "set_to", "settings", "under_autocast", "while_waiting"]

#: What each thread is to do when it next waits, the next at the end, and the settings with which.
_TASKS = threading.local()

#: Modules of settings, and the values of all of theirs.
Settings = Sequence[tuple[Any, dict[str, Any]]]


@contextlib.contextmanager
def while_waiting(task: Callable[[], None]) -> Iterator[None]:
    """A context of the compilation of a graph, in which ``task`` runs when Inductor first waits, or at the end.

    Args:
        task: compiles another graph, and may use this context. It raises nothing: the compilation that waits cannot
            be blamed for an error of another. Under autocast, which AOTAutograd switches off while it compiles, it
            runs at the end.
    """
    if under_autocast():
        yield
        task()
        return
    _install()
    tasks = _tasks()
    known = len(tasks)
    tasks.append((task, settings()))
    try:
        yield
    except BaseException:
        del tasks[known:]
        raise
    if len(tasks) > known:
        tasks.pop()[0]()


def under_autocast() -> bool:
    """Whether autocast is on for any device."""
    return torch._C._is_any_autocast_enabled()


def _tasks() -> list[tuple[Callable[[], None], Settings]]:
    if not hasattr(_TASKS, "waiting"):
        _TASKS.waiting = []
    return _TASKS.waiting


@functools.cache
def _install() -> None:
    """Have Inductor's wait do the tasks of its thread."""
    from torch._inductor.async_compile import AsyncCompile

    wait = AsyncCompile.wait

    @functools.wraps(wait)
    def working(self: Any, scope: dict[str, Any]) -> None:
        tasks = _tasks()
        while tasks and not _all_done(scope):
            task, wanted = tasks.pop()
            with _apart(wanted):
                task()
        wait(self, scope)

    AsyncCompile.wait = working


def _all_done(scope: dict[str, Any]) -> bool:
    """Whether the kernels of a module are there. Those that were read from a cache are loaded, not compiled."""
    from torch._inductor.codecache import LambdaFuture

    for one in scope.values():
        future = one.future if isinstance(one, LambdaFuture) else one
        if isinstance(one, LambdaFuture) and future is None:
            return False  # a C++ kernel, which does not tell
        if isinstance(future, Future) and not future.done():
            return False
    return True


#: What belongs to the graph that is being compiled: in the tracing context, and of the bundler of its kernels.
_OF_CONTEXT = (
    "aot_graph_name",
    "fakify_first_call",
    "fw_metadata",
    "output_strides",
    "params_flat",
    "params_flat_unwrap_subclasses",
    "params_unwrapped_to_flat_index",
)
_OF_BUNDLER = ("_entries", "_static_autotuners", "_winners")
#: What Inductor's virtualized values hold of the user, and not of one graph.
_CHOICES = "__torchinductor_choices"


def settings() -> Settings:
    """The settings that a compilation may change for itself, and that are part of the keys of compiled graphs."""
    from torch._functorch import config as of_autograd
    from torch._inductor import config as of_inductor

    return [(module, module.get_config_copy()) for module in (of_autograd, of_inductor)]


@contextlib.contextmanager
def set_to(wanted: Settings) -> Iterator[None]:
    """A context with these settings."""
    with contextlib.ExitStack() as stack:
        for module, values in wanted:
            now = module.get_config_copy()
            stack.enter_context(module.patch({name: one for name, one in values.items() if one != now[name]}))
        yield


@contextlib.contextmanager
def _apart(wanted: Settings) -> Iterator[None]:
    """A context in which another graph is compiled. Of that the compilation which waits sees statistics only."""
    from torch._inductor.triton_bundler import TritonBundler
    from torch._inductor.virtualized import threadlocal

    context = TracingContext.try_get()
    with (
        set_to(wanted),
        _put_back(context, _OF_CONTEXT),
        _put_back(TritonBundler, _OF_BUNDLER) as bundle,
        _put_back(threadlocal, [name for name in vars(threadlocal) if name != _CHOICES]) as virtualized,
    ):
        if context is not None:
            context.output_strides = None  # a list that a graph which is found on disk would add to
        for name in bundle:
            setattr(TritonBundler, name, None)
        for name in virtualized:
            delattr(threadlocal, name)
        yield


@contextlib.contextmanager
def _put_back(holder: Any, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A context at whose end those of the attributes that an object has are as they were. It yields their values."""
    before = {name: getattr(holder, name) for name in names if hasattr(holder, name)}
    try:
        yield before
    finally:
        for name, value in before.items():
            setattr(holder, name, value)
