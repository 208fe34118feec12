"""Restricts the context to the fields that a pass has declared; fields that it only reads are read-only.

A pass that used other fields would break once the passes run in another order, or one of them is switched off.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, cast

from ..context import PassContext
from .declaration import FIELDS, DeclarationError, Pass


class _View:
    """A proxy for a :class:`PassContext`. Methods of the context run on the proxy, so they are restricted as well."""

    def __init__(self, context: PassContext, graph_pass: Pass) -> None:
        own = {"_context": context, "_name": graph_pass.name}
        own |= {"_writes": frozenset(graph_pass.writes), "_reads": frozenset(graph_pass.reads)}
        vars(self).update(own)

    def __getattr__(self, name: str) -> Any:
        if name not in FIELDS:
            return types.MethodType(_method(name), self)
        value = getattr(self._context, name)
        if name in self._writes:
            return value
        if name not in self._reads:
            raise DeclarationError(
                f"{self._name} reads {name} of the context without declaring it: add it to `reads` (or `writes`) of "
                f"{self._name} in passes/__init__.py"
            )
        return _read_only(value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._writes:
            raise DeclarationError(
                f"{self._name} writes {name} of the context without declaring it: add it to `writes` of {self._name} "
                "in passes/__init__.py"
            )
        setattr(self._context, name, value)


def _method(name: str) -> Callable[..., Any]:
    method = getattr(PassContext, name, None)
    if not isinstance(method, types.FunctionType):
        raise AttributeError(f"the context has no field and no method {name!r}")
    return method


def _read_only(value: Any) -> Any:
    """A read-only view or copy of a dict or list; other values as they are."""
    if isinstance(value, dict):
        return types.MappingProxyType(value)
    return tuple(value) if isinstance(value, list) else value


def view_for(graph_pass: Pass, context: PassContext) -> PassContext:
    """The context restricted to what ``graph_pass`` has declared."""
    return cast(PassContext, _View(context, graph_pass))
