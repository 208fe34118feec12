"""What Dynamo does not expect of programs with threads. See ``table/dynamo_threads.py``. Imports Dynamo.

Dynamo compiles for one thread at a time. Threads that find no graph for their calls wait for one another, and then each
compiles, though the first may have compiled what fits the calls of all: eight threads that start together would have
eight graphs that are alike, after which Dynamo has reached its limit with torch 2.11. :func:`use_graphs_of_others` lets
a thread that has waited look again.

Until torch 2.13, a call of a compiled function raises an error while any thread traces a graph, also one that traces
nothing itself: see :func:`tracing`.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo import convert_frame, trace_rules
from torch._dynamo.eval_frame import innermost_backend
from torch._dynamo.guards import DeletedGuardManagerWrapper
from torch._dynamo.types import ConvertFrameReturn, GuardedCode, wrap_guarded_code
from torch.fx import _symbolic_trace
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .dynamo_backends import OfBackends
from .dynamo_frames import NO_REGION, region, region_of, wrapping

__all__ = ["let_others_call", "tracing", "use_graphs_of_others"]

# --- a graph that another thread has compiled in the meantime ---------------------------------------------------------

_SHARING: OfBackends[bool] = OfBackends()
_WRAPPER: Any = convert_frame.CatchErrorsWrapper


def use_graphs_of_others(backend: Callable[..., Any]) -> None:
    """Let a thread that has waited to compile for a backend use a graph that fits its call by now."""
    _SHARING.set(backend, True)
    if not hasattr(_WRAPPER.__call__, "__wrapped__"):
        _WRAPPER.__call__ = _looking_again(_WRAPPER.__call__)


def _looking_again(original: Callable[..., ConvertFrameReturn]) -> Callable[..., ConvertFrameReturn]:
    @wrapping(original)
    def call(self: Any, frame: Any, *args: Any) -> ConvertFrameReturn:
        if not _SHARING.of_compiler(self) or _is_skipped(frame):
            return original(self, frame, *args)
        code, backend, at = frame.f_code, innermost_backend(self), region()
        waits = not convert_frame.compile_lock.acquire(blocking=False)
        if waits:
            convert_frame.compile_lock.acquire()
        try:
            if waits and (found := _fitting(frame, backend, at)) is not None:
                return found
            result = original(self, frame, *args)
            if result.guarded_code is not None:
                _PENDING.append((weakref.ref(code), backend, at, weakref.ref(result.guarded_code)))
            return result
        finally:
            convert_frame.compile_lock.release()

    return call


def _is_skipped(frame: Any) -> bool:
    """Whether Dynamo would not compile a frame, and so not wait for others."""
    return convert_frame.config.disable or _get_current_dispatch_mode() is not None or trace_rules.check(frame.f_code)


#: Dynamo keeps a note of each use, and walks all notes of a function to find a graph for a call of it. Behind so many,
#: threads compile what others have compiled.
MOST_NOTES = 128

#: By the checks of a graph: the threads that have used it so. If Dynamo still does not find it for one, that compiles.
_USED: weakref.WeakKeyDictionary[Any, set[int]] = weakref.WeakKeyDictionary()

#: What was compiled: for which code, by which backend, in which region, and a reference that lives until Dynamo has
#: noted it.
_PENDING: list[tuple[weakref.ref[Any], Any, int, weakref.ref[GuardedCode]]] = []


def _fitting(frame: Any, backend: Any, own_region: int) -> ConvertFrameReturn | None:
    """What was compiled for a function and fits a call of it, if there is such a graph."""
    own, code, regions = threading.get_ident(), frame.f_code, (own_region, NO_REGION)
    # before the entries are read: what is none yet when they are may have become one, and be gone, behind that
    _PENDING[:] = [pending for pending in _PENDING if pending[3]() is not None]
    noted = [ref() for of, by, at, ref in _PENDING if of() is code and by == backend and at in regions]
    entries = _debug_get_cache_entry_list(code)
    if sum(isinstance(entry.guard_manager, DeletedGuardManagerWrapper) for entry in entries) >= MOST_NOTES:
        return None
    found: list[Any] = [
        *noted,
        *(entry for entry in entries if entry.backend == backend and region_of(entry) in regions),
    ]
    for entry in filter(None, found):
        # read once: an object that a graph depends on may end in another thread, which makes the entry invalid
        manager, compiled, compile_id = entry.guard_manager, entry.code, entry.compile_id
        if compiled is None or isinstance(manager, DeletedGuardManagerWrapper):
            continue
        threads = _USED.setdefault(manager, set())
        if own not in threads and manager.check(frame.f_locals):
            threads.add(own)
            return _again(compiled, compile_id)
    return None


def _again(code: Any, compile_id: Any) -> ConvertFrameReturn:
    """What was compiled, for one call that it is valid for.

    Dynamo notes it as new code: with checks that are invalid from the start. The notes do not count as graphs of the
    function, which have a limit: they say that it depends on an object which no call has.
    """
    manager: Any = DeletedGuardManagerWrapper("another thread's graph, used once by a thread that had waited for it")
    manager.root = manager.diff_guard_root = None
    manager.id_matched_objs = {"": weakref.ref(_again)}
    return wrap_guarded_code(GuardedCode(code, manager, compile_id))


# --- calls beside a trace ---------------------------------------------------------------------------------------------

#: How many compilations each thread is in that traces.
_TRACING: dict[int, int] = {}


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Context of a compilation. Other threads may call compiled functions meanwhile."""
    own = threading.get_ident()
    _TRACING[own] = _TRACING.get(own, 0) + 1
    try:
        yield
    finally:
        _TRACING[own] -= 1
        if not _TRACING[own]:
            del _TRACING[own]


def let_others_call() -> None:
    """Let Dynamo ask for the calling thread whether it traces. Does nothing where torch does not ask for a thread."""
    asked = _ASKED.is_fx_symbolic_tracing
    if not hasattr(torch.compiler, "_compile_session_context") and not hasattr(asked, "__wrapped__"):
        _ASKED.is_fx_symbolic_tracing = _of_this_thread(asked)


_ASKED: Any = _symbolic_trace


def _of_this_thread(original: Callable[[], bool]) -> Callable[[], bool]:
    @functools.wraps(original)
    def is_tracing() -> bool:
        return original() and (not _TRACING or threading.get_ident() in _TRACING)

    return is_tracing
