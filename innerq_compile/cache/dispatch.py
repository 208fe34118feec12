"""What serves an operator of ATen on a quantized cache: a function for it, the dense tensor, or an error."""

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
    """Functions for operators: those for caches that hold data, and those for caches that are being traced."""

    def __init__(self) -> None:
        self._held: dict[Any, Handler] = {}
        self._traced: dict[Any, Handler] = {}

    def held(self, *overloads: Any) -> Callable[[Handler], Handler]:
        """Have the decorated function serve these operators on caches that hold data."""
        return _register(self._held, overloads)

    def traced(self, *overloads: Any) -> Callable[[Handler], Handler]:
        """Have the decorated function serve these operators while a program is traced: shapes are all that counts."""
        return _register(self._traced, overloads)

    def handler(self, overload: Any, args: tuple[Any, ...]) -> Handler | None:
        """The function that serves an operator called with ``args``, None where the dense tensor serves."""
        if overload not in self._held and overload not in self._traced:
            return None
        first = args[0] if args else None
        tensors = first if isinstance(first, (list, tuple)) else (first,)
        return (self._traced if any(map(is_traced, tensors)) else self._held).get(overload)


def dispatch(
    kind: type[InnerQTensor], operations: Operations, overload: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """The result of an operator with arguments of class ``kind`` among its own.

    Raises:
        UnsupportedOperation: where it would write to one of them and no function of ``operations`` serves it.
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
