"""Which sizes of a program's inputs are symbols in the first graph already. See ``table/dynamo_sizes.py``.

Dynamo takes every size for a constant when it first sees an input, and for a symbol from the second size on
(`automatic dynamic shapes <https://docs.pytorch.org/docs/stable/torch.compiler_dynamic_shapes.html>`_). It keeps what it
has seen in one entry for each input. What is read here is that entry; a size marked in it is treated as one that has
changed before. Nothing is left on the tensors, and nothing is done or guarded at later calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch._dynamo import pgo
from torch._dynamo.eval_frame import innermost_backend
from torch._dynamo.variables import builder

__all__ = ["with_symbols"]

#: For each backend, the function that names the dimensions of an input whose sizes are symbols.
_CHOICES: dict[Any, Callable[[torch.Tensor], Collection[int]]] = {}


def with_symbols(backend: Callable[..., Any], choose: Callable[[torch.Tensor], Collection[int]]) -> None:
    """Treat sizes of inputs as symbols from the first graph on, in programs that are compiled with a backend.

    A size of 1, and one that the program or the user fixes, stays a constant. ``dynamic=False`` turns this off.

    Args:
        backend: the backend, as passed to ``torch.compile``, or as registered under a name.
        choose: the dimensions of an input whose sizes are symbols.
    """
    _CHOICES[backend] = choose
    original = builder.record_automatic_dynamic
    if getattr(original, "_innerq", False):
        return

    @functools.wraps(original)
    def record(tx: Any, name: str, tensor: torch.Tensor) -> Any:
        entry = original(tx, name, tensor)
        choice = _CHOICES.get(_backend(tx))
        return entry if choice is None else _marked(entry, choice(tensor))

    record._innerq = True  # pyright: ignore[reportFunctionMemberAccess]
    builder.record_automatic_dynamic = record


def _backend(tx: Any) -> Any:
    backend: Any = innermost_backend(tx.output.compiler_fn)
    return getattr(backend, "compiler_fn", backend)


def _marked(entry: Any, dims: Collection[int]) -> Any:
    if not isinstance(entry.size, tuple) or not dims:
        return entry
    sizes = tuple(pgo.auto_dynamic if dim in dims else size for dim, size in enumerate(entry.size))
    return pgo.FrameStateSizeEntry(scalar=entry.scalar, size=sizes, stride=entry.stride)
