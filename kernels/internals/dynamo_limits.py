"""How many graphs Dynamo compiles of a function. See ``table/dynamo_limits.py``. Imports Dynamo.

Dynamo compiles a function, that is, a code object, so many times and no more, 8 by default. From then on, calls that no
graph fits run uncompiled. For a decoder that is soon reached: all models of transformers share the wrapper of a
decorator, and all layers of a model what runs behind a break of the graph in each of them. A layer has graphs of its
own, because its place in the cache is a constant, and needs several: for a prompt and for a step, for one sequence and
for several, padded or not. So, for backends of :func:`raise_limits`, the limit is higher, and one for each module that
calls the function: where one module has reached it, others have graphs as before.

For other backends, what these compile does not count. Where another backend reaches its limit, Dynamo compiles the
function for none any more, which is told to those that have graphs of it.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, _FrameAction, _FrameExecStrategy
from torch._dynamo import config, convert_frame
from torch._dynamo.cache_size import _has_same_id_matched_objs
from torch._dynamo.types import ConvertFrameReturn

from .dynamo_backends import OfBackends
from .dynamo_frames import module_of, region, region_of, wrapping

__all__ = ["Limit", "default_of", "graphs_at_most", "raise_limits"]


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


#: By the name of a limit in ``torch._dynamo.config``: what it is in place of Dynamo's default. The first holds for each
#: module, the second for all together: it ends a program that goes on making modules.
_RAISED = {"recompile_limit": 64, "accumulated_recompile_limit": 64 * 256}

_LISTENERS: OfBackends[Callable[[Limit], None]] = OfBackends()
#: The module of Dynamo that asks whether a limit is reached.
_MODULE: Any = convert_frame


def raise_limits(backend: Callable[..., Any], listener: Callable[[Limit], None]) -> None:
    """Raise the limits for a backend, and call ``listener`` when one is reached and Dynamo goes on without an error.

    That is once for each module that reaches a limit of its own.
    """
    _LISTENERS.set(backend, listener)
    if not hasattr(_MODULE.exceeds_recompile_limit, "__wrapped__"):
        _MODULE.exceeds_recompile_limit = _of_modules(_MODULE.exceeds_recompile_limit)
        _MODULE.ConvertFrameAssert.__call__ = _with_raised_limits(_MODULE.ConvertFrameAssert.__call__)
        _MODULE.ConvertFrame.__call__ = _ending_for_a_module(_MODULE.ConvertFrame.__call__)


def graphs_at_most(setting: str) -> int:
    """The value of a limit for backends of :func:`raise_limits`. One that the program has set is as it says."""
    value = getattr(config, setting)
    return _RAISED[setting] if value == default_of(setting) else value


def default_of(setting: str) -> int:
    """What a limit is in Dynamo where no program has set it."""
    return vars(config)["_config"][setting].default


# --- what Dynamo calls: all of it holds the lock of compilations ------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call that is compiled.

    Attributes:
        ours: whether it is compiled for a backend of :func:`raise_limits`.
        frame: what Dynamo tells of the call.
        compiled: what was compiled of the function.
    """

    ours: bool
    frame: Any
    compiled: _Compiled


#: The calls that are compiled now; each one but the first is one within that before it.
_CALLS: list[_Call] = []
#: The limit that was reached last, until it is told of.
_REACHED: list[Limit] = []


def _with_raised_limits(original: Callable[..., ConvertFrameReturn]) -> Callable[..., ConvertFrameReturn]:
    """A limit of a single ``torch.compile`` is set within, and holds. So do those that Dynamo's messages state."""

    @wrapping(original)
    def call(self: Any, frame: Any, cache_entry: Any, hooks: Any, frame_state: Any, *, skip: int = 0) -> Any:
        ours = _LISTENERS.of_compiler(self) is not None
        _CALLS.append(_Call(ours, frame, _compiled(frame.f_code, frame_state)))
        try:
            with config.patch({setting: graphs_at_most(setting) for setting in _RAISED} if ours else {}):
                return original(self, frame, cache_entry, hooks, frame_state, skip=skip + 1)
        finally:
            _CALLS.pop()

    return call


def _of_modules(original: Callable[..., tuple[bool, str]]) -> Callable[..., tuple[bool, str]]:
    @wrapping(original)
    def exceeds(cache_size: Any, compile_id: Any) -> tuple[bool, str]:
        if not _CALLS:
            return original(cache_size, compile_id)
        call = _CALLS[-1]
        if call.ours:
            exceeded, setting = original(cache_size, compile_id)
            call.compiled.tries += 1
            own = call.compiled.of(module_of(call.frame))
            exceeded = exceeded and (setting != "recompile_limit" or own.count >= config.recompile_limit)
            own.count += not exceeded
        else:
            exceeded, setting = original(*_without_ours(call, cache_size, compile_id))
        if not exceeded:
            return False, ""
        _REACHED[:] = [Limit(call.frame.f_code, setting, getattr(config, setting))]
        return True, setting

    return exceeds


def _ending_for_a_module(original: Callable[..., ConvertFrameReturn]) -> Callable[..., ConvertFrameReturn]:
    """Where Dynamo does not raise an error at a limit, it compiles the function no more: here, not for this module."""

    @wrapping(original)
    def call(self: Any, frame: Any, cache_entry: Any, hooks: Any, frame_state: Any, skip: int = 0) -> Any:
        listener = _LISTENERS.of_compiler(self)
        own = None if listener is None else _compiled(frame.f_code, frame_state).of(module_of(frame))
        if own is not None and own.reached >= _limit_of_modules(self):
            return _skipped()
        _REACHED.clear()
        result = original(self, frame, cache_entry, hooks, frame_state, skip=skip + 1)
        if not _REACHED or _REACHED[0].code is not frame.f_code or result.guarded_code is not None:
            return result
        limit = _REACHED.pop()
        if listener is None or own is None:
            told = {_LISTENERS.of_compiler(entry.backend) for entry in _ours(frame.f_code)}
            for one in filter(None, told):
                one(limit)
            return result
        listener(limit)
        if limit.setting != "recompile_limit":
            return result
        own.reached = limit.value
        return _skipped()

    return call


def _limit_of_modules(convert: Any) -> int:
    """The limit of each module, for a call that ``convert`` compiles: ``torch.compile`` may have been given one."""
    given = getattr(convert, "_recompile_limit", None)
    return graphs_at_most("recompile_limit") if given is None else given


def _skipped() -> ConvertFrameReturn:
    """One call runs uncompiled, and what it calls with graphs that exist, as Dynamo does with all calls at a limit."""
    strategy = _FrameExecStrategy(_FrameAction.RUN_ONLY, _FrameAction.RUN_ONLY)
    skipped: Any = ConvertFrameReturn(frame_exec_strategy=strategy, apply_to_code=False)
    if hasattr(skipped, "skip_reason"):  # torch 2.11 has none
        skipped.skip_reason = "the module that calls the function has reached its limit of graphs"
    return skipped


# --- graphs of other backends -----------------------------------------------------------------------------------------


def _without_ours(call: _Call, cache_size: Any, compile_id: Any) -> tuple[Any, Any]:
    """What Dynamo compares with its limits, without what backends of :func:`raise_limits` have compiled."""
    ours = _ours(call.frame.f_code)
    here = [entry for entry in ours if region_of(entry) == region()]
    fewer = {
        "num_cache_entries": len(here),
        "num_cache_entries_with_same_id_matched_objs": sum(_has_same_id_matched_objs(call.frame, one) for one in here),
        "total_cache_entries_all_regions": len(ours),
    }
    sizes = {name: getattr(cache_size, name) - by for name, by in fewer.items() if hasattr(cache_size, name)}
    tries = compile_id.frame_compile_id - call.compiled.tries
    return dataclasses.replace(cache_size, **sizes), dataclasses.replace(compile_id, frame_compile_id=tries)


def _ours(code: CodeType) -> list[Any]:
    return [entry for entry in _debug_get_cache_entry_list(code) if _LISTENERS.of_compiler(entry.backend) is not None]


# --- what was compiled for a module -----------------------------------------------------------------------------------


@dataclasses.dataclass
class _OfModule:
    """What was compiled of a function for a module, or for calls without one.

    Attributes:
        module: gives the module, or None.
        count: how many times the function was compiled.
        reached: the limit that was reached, 0 if none was.
    """

    module: Callable[[], torch.nn.Module | None]
    count: int = 0
    reached: int = 0


class _Compiled:
    """What was compiled of a function for backends of :func:`raise_limits`, since the last reset of Dynamo."""

    def __init__(self, state: Any) -> None:
        #: What Dynamo keeps with the function: something else after a reset.
        self.state = state
        #: How many times Dynamo began to compile the function, for all modules, those that are gone among them.
        self.tries = 0
        #: By the identity of a module, or of None, and by the region.
        self._known: dict[tuple[int, int], _OfModule] = {}

    def of(self, module: torch.nn.Module | None) -> _OfModule:
        """What was compiled for a module, in the region of the call that is compiled."""
        key = id(module), region()
        known = self._known.get(key)
        if known is None or known.module() is not module:  # another module had the same identity
            known = self._known[key] = _OfModule((lambda: None) if module is None else weakref.ref(module))
        return known


#: By the identity of a function's code: functions that were defined twice have code that is equal, and graphs each.
_COMPILED: dict[int, _Compiled] = {}


def _compiled(code: CodeType, state: Any) -> _Compiled:
    key = id(code)
    found = _COMPILED.get(key)
    if found is None or found.state is not state:
        found = _COMPILED[key] = _Compiled(state)
        weakref.finalize(code, _COMPILED.pop, key, None).atexit = False
    return found
