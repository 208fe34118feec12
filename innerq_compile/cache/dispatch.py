"""Which function serves an operator of ATen on a quantized cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .traced import is_traced

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


def _register(table: dict[Any, Handler], overloads: tuple[Any, ...]) -> Callable[[Handler], Handler]:
    def register(function: Handler) -> Handler:
        table.update(dict.fromkeys(overloads, function))
        return function

    return register
