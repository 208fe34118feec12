"""Of which kinds the values of guards are, compared before a guard is built. See ``table/guarded_values.py``.

Guards of a trace that does not fit a call cannot always be built: a step's guards name the codes of a cache, which is
empty when the prompt is run. Building them to find out takes longer than reading a few thousand attributes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch._dynamo.source import (
    AttrSource,
    DictGetItemSource,
    GetItemSource,
    ListGetItemSource,
    LocalSource,
    NNModuleSource,
    TupleIteratorGetItemSource,
)
from torch._guards import Guard, Source

#: Guards that hold for one value only, which is compared if it is a constant.
_OF_VALUES = frozenset(("BOOL_MATCH", "CONSTANT_MATCH", "EQUALS_MATCH", "ID_MATCH"))
#: Guards that hold for one length only.
_OF_LENGTHS = frozenset(("DICT_LENGTH", "SEQUENCE_LENGTH"))
#: Guards that hold for other values than those of the same type, or that are on attributes which modules always have.
_NOT_OF_TYPES = frozenset(("DICT_NOT_CONTAINS", "EMPTY_NN_MODULE_HOOKS_DICT", "NOT_PRESENT_IN_GENERIC_DICT"))
_CONSTANTS = (bool, int, float, str)


class _Compared(NamedTuple):
    """What of a value is compared besides its type: a constant itself, the length of a list, tuple or dict."""

    exactly: bool
    length: bool


class _Missing:
    """Stands for a value that the call does not have."""


@dataclasses.dataclass(frozen=True)
class Outline:
    """Which values guards are on, and of what kind each of them is.

    Attributes:
        steps: how to get to each value: the number of the value that has it, "local", "attribute" or "item", and its
            name. A value stands behind the one that has it.
        kinds: the kinds of those values that are guarded, with a number each.
    """

    steps: list[tuple[int, str, Any]]
    kinds: list[tuple[int, _Compared, str]]

    def fits(self, scope: dict[str, Any]) -> bool:
        """Whether the values of a call are of these kinds. If they are not, the guards do not hold."""
        values = _values(self.steps, scope)
        with torch._C.DisableTorchFunctionSubclass():
            return all(_kind(values[number], compared) == kind for number, compared, kind in self.kinds)


def outline_of(guards: Iterable[Guard], scope: dict[str, Any]) -> Outline:
    """The outline of a call for which guards were made. Values that are found in other ways are left out."""
    steps: list[tuple[int, str, Any]] = []
    numbers: dict[Source, int | None] = {}

    def number(source: Source) -> int | None:
        if source not in numbers:
            step = _step(source)
            base = None if step is None else -1 if step[0] is None else number(step[0])
            if step is None or base is None:
                numbers[source] = None
            elif step[1] == "":
                numbers[source] = base
            else:
                numbers[source] = len(steps)
                steps.append((base, step[1], step[2]))
        return numbers[source]

    everything: dict[int, _Compared] = {}
    for guard in guards:
        kind = guard.create_fn_name()
        if kind not in _NOT_OF_TYPES and (found := number(guard.originating_source)) is not None:
            before = everything.get(found, _Compared(False, False))
            everything[found] = _Compared(before.exactly or kind in _OF_VALUES, before.length or kind in _OF_LENGTHS)
    values = _values(steps, scope)
    with torch._C.DisableTorchFunctionSubclass():
        kinds = [(found, compared, _kind(values[found], compared)) for found, compared in everything.items()]
    return Outline(steps, kinds)


def _step(source: Source) -> tuple[Source | None, str, Any] | None:
    """What has the value of a source, how it has it, and by which name. None if it is found in another way."""
    if isinstance(source, LocalSource):
        return None, "local", source.local_name
    if isinstance(source, NNModuleSource):
        return source.base, "", None
    if isinstance(source, AttrSource):
        return source.base, "attribute", source.member
    if isinstance(source, (ListGetItemSource, TupleIteratorGetItemSource)):
        return None
    if isinstance(source, DictGetItemSource) or (isinstance(source, GetItemSource) and not source.index_is_slice):
        return (source.base, "item", source.index) if isinstance(source.index, (str, int)) else None
    return None


def _values(steps: list[tuple[int, str, Any]], scope: dict[str, Any]) -> list[Any]:
    values: list[Any] = []
    for base, how, name in steps:
        if how == "local":
            value = scope.get(name, _Missing)
        elif (holder := values[base]) is _Missing:
            value = _Missing
        elif how == "attribute":
            value = _attribute(holder, name)
        else:
            value = _item(holder, name)
        values.append(value)
    return values


def _attribute(holder: Any, name: str) -> Any:
    try:
        return getattr(holder, name)
    except Exception:  # a property of the program
        return _Missing


def _item(holder: Any, key: Any) -> Any:
    try:
        if isinstance(holder, dict) and key not in holder:  # which must not get an entry by being asked
            return _Missing
        return holder[key]
    except Exception:
        return _Missing


def _kind(value: Any, compared: _Compared) -> str:
    cls = type(value)
    if compared.exactly and cls in _CONSTANTS:
        return repr(value)
    if compared.length and cls in (list, tuple, dict):
        return f"{cls.__qualname__} {len(value)}"
    name = f"{cls.__module__}.{cls.__qualname__}"
    return f"{name} {value.dtype} {value.ndim}" if isinstance(value, torch.Tensor) else name
