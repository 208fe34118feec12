"""How many graphs Dynamo compiles of a function. See ``table/dynamo_limits.py``. Imports Dynamo.

Dynamo compiles a function, that is, a code object, so many times and no more, 8 by default. From then on, calls that no
graph fits run uncompiled. For a decoder that is soon reached: all models of transformers share the wrapper of a
decorator, and all layers of a model what runs behind a break of the graph in each of them. A layer has graphs of its
own, because its place in the cache is a constant, and needs several: for a prompt and for a step, for one sequence and
for several, padded or not. So, for backends of :func:`on_limit`, the limit is higher, and one for each module that
calls the function.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, MethodType
from typing import Any

import torch
from torch._dynamo import config, convert_frame

from .dynamo_backends import OfBackends

__all__ = ["Limit", "graphs_at_most", "on_limit"]


@dataclasses.dataclass(frozen=True)
class Limit:
    """A limit that was reached.

    Attributes:
        code: the function that is not compiled any more.
        setting: the name of the limit in ``torch._dynamo.config``.
        value: how many times the function was compiled for the module that called it, or for all modules together.
    """

    code: CodeType
    setting: str
    value: int


#: By the name of a limit in ``torch._dynamo.config``: Dynamo's default, and what it is here. The first holds for each
#: module, the second for all together: it ends a program that goes on making modules.
_LIMITS = {"recompile_limit": (8, 64), "accumulated_recompile_limit": (256, 64 * 256)}

_LISTENERS: OfBackends[Callable[[Limit], None]] = OfBackends()
#: The module of Dynamo that asks whether a limit is reached.
_MODULE: Any = convert_frame


def on_limit(backend: Callable[..., Any], listener: Callable[[Limit], None]) -> None:
    """Raise the limits for a backend, and call ``listener`` when one is reached and Dynamo goes on without an error."""
    _LISTENERS.set(backend, listener)
    if not hasattr(_MODULE.exceeds_recompile_limit, "__wrapped__"):
        _MODULE.exceeds_recompile_limit = _of_modules(_MODULE.exceeds_recompile_limit)


def graphs_at_most(setting: str) -> int:
    """The value of a limit for backends of :func:`on_limit`. One that the program has lowered is as it says."""
    default, raised = _LIMITS[setting]
    value = getattr(config, setting)
    return value if value < default else max(value, raised)


def _of_modules(original: Callable[..., tuple[bool, str]]) -> Callable[..., tuple[bool, str]]:
    @functools.wraps(original)
    def exceeds(cache_size: Any, compile_id: Any) -> tuple[bool, str]:
        frame = sys._getframe(1).f_locals
        listener, code = _LISTENERS.of_compiler(frame.get("compiler_fn")), frame.get("code")
        if listener is None or not isinstance(code, CodeType):
            return original(cache_size, compile_id)
        compiled = _count(code, _caller(frame), anew=compile_id.frame_compile_id == 0)
        with config.patch({setting: graphs_at_most(setting) for setting in _LIMITS}):
            exceeded, setting = original(cache_size, compile_id)
            if not exceeded or (setting == "recompile_limit" and compiled <= config.recompile_limit):
                return False, ""
            limit = Limit(code, setting, getattr(config, setting))
        if not frame.get("one_graph") and not config.fail_on_recompile_limit_hit:
            listener(limit)
        return exceeded, setting

    return exceeds


# --- who calls a function ---------------------------------------------------------------------------------------------

#: By code object and identity of a module, or of None: what it is, and how many times the code was compiled for it.
_COMPILED: weakref.WeakKeyDictionary[CodeType, dict[int, tuple[Callable[[], torch.nn.Module | None], int]]]
_COMPILED = weakref.WeakKeyDictionary()


def _count(code: CodeType, module: torch.nn.Module | None, *, anew: bool) -> int:
    """Count one more compilation of a function for a module, or for calls without one. Returns how many there are.

    Args:
        anew: there is none for any module, as after a reset.
    """
    counts = _COMPILED.setdefault(code, {})
    if anew:
        counts.clear()
    known, count = counts.get(id(module), (None, 0))
    if known is None or known() is not module:  # another module had the same identity
        known, count = (lambda: None) if module is None else weakref.ref(module), 0
    counts[id(module)] = known, count + 1
    return count + 1


def _caller(frame: dict[str, Any]) -> torch.nn.Module | None:
    """The module that runs a function which Dynamo compiles: ``self``, or the first one among what it is given.

    That is where wrappers have it that pass on their arguments. Others have closed over a method of it.
    """
    given = frame.get("locals", {})
    values = (given.get("self"), *given.values(), *_contents(frame.get("closure") or ()))
    return next(_modules(values), None)


def _modules(values: Iterable[Any]) -> Iterator[torch.nn.Module]:
    for value in values:
        if isinstance(value, tuple):
            yield from _modules(value)
            continue
        one = value.__self__ if isinstance(value, MethodType) else value
        if isinstance(one, torch.nn.Module):
            yield one


def _contents(cells: Iterable[Any]) -> Iterator[Any]:
    for cell in cells:
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            continue
