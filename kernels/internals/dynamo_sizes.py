"""Which sizes and numbers a program takes as symbols in its first graph. See ``table/dynamo_sizes.py``. Imports Dynamo.

Dynamo takes a size for a constant when it first sees an input, and for a symbol once it has seen a second one. What it
has seen is in an entry for each input. Here the entries of chosen inputs say, from the first call on, that the size has
changed. That happens while Dynamo compiles: nothing is left on tensors, and calls have no more guards or work.

Of floats that are attributes of modules, such as the scale of the scores, the entries say that they have not, unless
the same model has had another one: a second model in the process has constants as well. Dynamo would take a symbol and,
where it is given to an operator, find out late that it has to be a constant, and trace the model again.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch._dynamo import pgo
from torch._dynamo.variables import builder

from .dynamo_backends import OfBackends

__all__ = ["Symbols", "use_symbols"]


@dataclasses.dataclass(frozen=True)
class Symbols:
    """What is a symbol from the first graph on, unless the program or the user makes it a constant. 0 and 1 never are.

    Attributes:
        sizes: for an input, by its name and itself, the dimensions whose sizes are symbols.
        number: for the name of a number, such as ``L['cache'].layers[0].length``, whether it is a symbol.
    """

    sizes: Callable[[str, torch.Tensor], Collection[int]]
    number: Callable[[str], bool]


_SYMBOLS: OfBackends[Symbols] = OfBackends()
#: The module of Dynamo that decides what is a symbol.
_MODULE: Any = builder


def use_symbols(backend: Callable[..., Any], symbols: Symbols) -> None:
    """Make these sizes and numbers symbols in all programs that are compiled with a backend.

    ``dynamic=False`` of ``torch.compile`` turns it off, as it does for sizes that change.
    """
    _SYMBOLS.set(backend, symbols)
    if not hasattr(_MODULE.record_automatic_dynamic, "__wrapped__"):
        _MODULE.record_automatic_dynamic = _with_sizes(_MODULE.record_automatic_dynamic)
        _MODULE.process_automatic_dynamic = _with_numbers(_MODULE.process_automatic_dynamic)


def _with_sizes(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def record(tx: Any, name: str, tensor: torch.Tensor) -> Any:
        entry, symbols = original(tx, name, tensor), _SYMBOLS.of(tx)
        if symbols is None or not isinstance(entry.size, tuple):
            return entry
        dims = symbols.sizes(name, tensor)
        sizes = tuple(pgo.auto_dynamic if dim in dims else size for dim, size in enumerate(entry.size))
        return dataclasses.replace(entry, size=sizes)

    return record


def _with_numbers(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def process(tx: Any, name: str, entry: Any, **options: Any) -> Any:
        found, symbols, number = original(tx, name, entry, **options), _SYMBOLS.of(tx), entry.scalar
        if symbols is None:
            return found
        if type(number) is float and options.get("is_unspecialized_nn_module"):
            return dataclasses.replace(found, scalar=number) if _is_first(tx, name, number) else found
        if type(number) is int and symbols.number(name):
            return dataclasses.replace(found, scalar=pgo.auto_dynamic)
        return found

    return process


#: By model: the first value of each of its floats.
_FLOATS: weakref.WeakKeyDictionary[torch.nn.Module, dict[str, float]] = weakref.WeakKeyDictionary()


def _is_first(tx: Any, name: str, number: float) -> bool:
    """Whether a float of a module has had no other value in the model that is compiled."""
    given = tx.output.root_tx.f_locals.values()  # ``self``, or the arguments of a wrapper around ``forward``
    values = (one for value in given for one in (value if isinstance(value, tuple) else (value,)))
    model = next((value for value in values if isinstance(value, torch.nn.Module)), None)
    return model is not None and _FLOATS.setdefault(model, {}).setdefault(name, number) == number
