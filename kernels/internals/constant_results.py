"""Calls of functions whose results Dynamo takes for constants. See ``table/constant_results.py``. Imports Dynamo.

``torch._dynamo.assume_constant_result`` marks them: Dynamo calls them while it traces, and no guard says what they
returned.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch._dynamo.variables import functions, nn_module
from torch._dynamo.variables.functions import invoke_and_store_as_constant

_ORIGINAL: Any = invoke_and_store_as_constant
_PLAIN = (int, float, complex, str, bytes, bool, type(None), type(...), torch.dtype, torch.device)


#: Module, qualified name, arguments, keyword arguments and a description of the result.
Call = tuple[str, str, tuple[Any, ...], dict[str, Any], str]


class NotRepeatable(Exception):
    """A call cannot be made in another process, or its arguments or its result cannot be compared."""


class Calls:
    """Calls of functions that were marked, with what they returned.

    Attributes:
        calls: those that can be repeated.
        problem: why the calls cannot be repeated, None if they can.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.problem: str | None = None
        self._seen: set[str] = set()

    def add(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note a call."""
        module, name = str(getattr(function, "__module__", "")), str(getattr(function, "__qualname__", ""))
        try:
            if _marked(module, name) is not function:
                raise NotRepeatable(f"{module}.{name}, whose result is a constant, cannot be found by its name")
            called = f"{module}.{name}{_text(args)}{_text(kwargs)}"
            returned = _text(result)
        except NotRepeatable as error:
            self.problem = self.problem or str(error)
            return
        if f"{called}{returned}" not in self._seen:
            self._seen.add(f"{called}{returned}")
            self.calls.append((module, name, args, kwargs, returned))


def changed(calls: list[Call]) -> str | None:
    """Make noted calls again. Returns the name of a function that returns something else by now, None if none does."""
    for module, name, args, kwargs, returned in calls:
        function = _marked(module, name)
        try:
            if function is None or _text(function(*args, **kwargs)) != returned:
                return f"{module}.{name}"
        except Exception:  # it did not raise it when Dynamo called it
            return f"{module}.{name}"
    return None


@contextlib.contextmanager
def noting() -> Iterator[Calls]:
    """Within the block, calls that Dynamo makes of functions whose results it takes for constants are noted."""
    found = Calls()

    @functools.wraps(_ORIGINAL)
    def invoke(tx: Any, fn: Any, *args: Any, **kwargs: Any) -> Any:
        return _ORIGINAL(tx, _noted(fn, found), *args, **kwargs)

    modules: tuple[Any, ...] = (functions, nn_module)  # the second has a name of its own for it
    before = [module.invoke_and_store_as_constant for module in modules]
    for module in modules:
        module.invoke_and_store_as_constant = invoke
    try:
        yield found
    finally:
        for module, original in zip(modules, before, strict=True):
            module.invoke_and_store_as_constant = original


def _noted(function: Any, found: Calls) -> Any:
    if isinstance(function, (types.BuiltinFunctionType, type)):  # operators on constants, which depend on nothing else
        return function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        found.add(function, args, kwargs, result)
        return result

    return call


def _marked(module: str, name: str) -> Any:
    """The function that Dynamo calls for a name: the outermost that has the mark, below caches of results."""
    value: Any = sys.modules.get(module)
    for part in name.split("."):
        value = getattr(value, part, None)
    seen: set[int] = set()
    while value is not None and id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, types.FunctionType) and vars(value).get("_dynamo_marked_constant"):
            return value
        value = getattr(value, "__wrapped__", None)
    return None


def _text(value: Any) -> str:
    """A description of a constant that no other constant has."""
    kind = type(value)
    if kind in _PLAIN:
        return f"{kind.__name__} {value!r}"
    if kind in (list, tuple):
        return f"{kind.__name__}({', '.join(map(_text, value))})"
    if kind in (set, frozenset):
        return f"{kind.__name__}({', '.join(sorted(map(_text, value)))})"
    if kind is dict:
        return f"dict({', '.join(f'{_text(key)}: {_text(held)}' for key, held in value.items())})"
    raise NotRepeatable(f"a value of a function whose result is a constant cannot be compared: {kind.__qualname__}")
