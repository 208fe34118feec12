"""What belongs to the backend that Dynamo traces a program for. See ``table/dynamo_backends.py``. Imports Dynamo."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from torch._dynamo.eval_frame import innermost_backend

__all__ = ["OfBackends"]

_Kept = TypeVar("_Kept")


class OfBackends(Generic[_Kept]):
    """A value for each of some backends. Programs that other backends compile have none."""

    def __init__(self) -> None:
        # by the identity of the backend, which need not be hashable; it is held, so that no other gets its identity
        self._kept: dict[int, tuple[Any, _Kept]] = {}

    def set(self, backend: Any, value: _Kept) -> None:
        """Set the value of a backend, a function."""
        self._kept[id(backend)] = backend, value

    def of(self, tx: Any) -> _Kept | None:
        """The value of the backend that a program is traced for."""
        return self.of_compiler(tx.output.compiler_fn)

    def of_compiler(self, compiler_fn: Any) -> _Kept | None:
        """The value of the backend that is behind what Dynamo calls with a graph."""
        backend: Any = innermost_backend(compiler_fn)
        found = self._kept.get(id(getattr(backend, "compiler_fn", backend)))
        return None if found is None else found[1]
