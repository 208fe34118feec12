"""Dispatch of ATen operators on quantized caches.

An operator is served by a function registered for it, or else by the dequantized tensor. One that would write to the
cache and has no function raises an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..kernels.internals.tensors import schema_of, tree_map_only
from .refusals import written_arguments
from .traced import is_traced

if TYPE_CHECKING:
    from .tensor import InnerQTensor

Handler = Callable[..., Any]


class Operations:
    """A table of functions that implement operators: one for caches with data, one for caches being traced."""

    def __init__(self) -> None:
        self._held: dict[Any, Handler] = {}
        self._traced: dict[Any, Handler] = {}

    def held(self, *overloads: Any) -> Callable[[Handler], Handler]:
        """Decorator: register a function for these operators on caches with data."""
        return _register(self._held, overloads)

    def traced(self, *overloads: Any) -> Callable[[Handler], Handler]:
        """Decorator: register a function for these operators on traced caches, of which only shapes are known."""
        return _register(self._traced, overloads)

    def handler(self, overload: Any, args: tuple[Any, ...]) -> Handler | None:
        """The function registered for an operator called with ``args``, or None."""
        if overload not in self._held and overload not in self._traced:
            return None
        first = args[0] if args else None
        tensors = first if isinstance(first, (list, tuple)) else (first,)
        return (self._traced if any(map(is_traced, tensors)) else self._held).get(overload)


def dispatch(
    kind: type[InnerQTensor], operations: Operations, overload: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Run an operator that has cache tensors of class ``kind`` among its arguments.

    Args:
        kind: The class whose ``__torch_dispatch__`` was called.
        operations: The functions registered for the class.
        overload: The operator.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        UnsupportedOperation: If it would write to a cache in a way that is not supported.
    """
    handler = operations.handler(overload, args)
    if handler is not None and isinstance(args[0], (kind, list, tuple)):
        result = handler(*args, **kwargs)
        if result is not NotImplemented:
            return result
    if schema_of(overload).is_mutable:
        for value in written_arguments(overload, args, kwargs):
            if isinstance(value, kind):
                raise kind._refusal(overload, value)
    args, kwargs = tree_map_only(kind, kind.dequantize, (args, kwargs))
    return overload(*args, **kwargs)


def _register(table: dict[Any, Handler], overloads: tuple[Any, ...]) -> Callable[[Handler], Handler]:
    def register(function: Handler) -> Handler:
        table.update(dict.fromkeys(overloads, function))
        return function

    return register
