"""Decides whether a loop of symbolic length can be one operator, and with which arguments and results.

The operator runs the whole function of the loop, if nothing but tensors and numbers goes into it. What such functions
compute with the number of chunks of a prompt makes sizes that take Inductor minutes. Else it runs the loop alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ...kernels.internals.dynamo_loops import (
    Call,
    Handler,
    Loop,
    Refused,
    Replacement,
    Value,
    larger,
    remembered,
    same_sizes,
    tried,
)
from ...kernels.internals.tensors import memory_of
from .operator import OPERATOR, Description, copies, description_of, digest_of, globals_of, metadata, runner_of
from .source import Place, Source, attributes_of, function_source_of, source_of

log = logging.getLogger(__name__)


def of_loop(loop: Loop) -> Replacement | None:
    """The operator that runs a loop, or None if it stays as it is."""
    place = Place(loop.code.co_filename, loop.code.co_name, loop.code.co_firstlineno, loop.line)
    found = _found(lambda: _loop(loop, place), place)
    if isinstance(found, Replacement):
        return found
    _tell(place, found)
    return None


def of_call(call: Call) -> Replacement | None:
    """The operator that runs a call of a function with such a loop, or None if its loop alone may become one."""
    place = Place(call.code.co_filename, call.code.co_name, call.code.co_firstlineno, 0)
    found = _found(lambda: _call(call, place), place)
    if isinstance(found, Replacement):
        return found
    log.debug("the function in %s is no operator: %s", place, found)
    return None


#: What becomes of the loops of every program that is compiled with this backend.
LOOPS = Handler(of_loop, of_call)


@functools.cache
def _tell(place: Place, why: str) -> None:
    """Warn of a loop, once."""
    log.warning("the loop in %s is unrolled, and compiled anew for each number of its iterations: %s", place, why)


def _found(replacement: Callable[[], Replacement], place: Place) -> Replacement | str:
    try:
        return replacement()
    except Refused as reason:
        return str(reason)
    except Exception as error:  # a loop may do anything with fake tensors
        log.debug("the loop in %s fails", place, exc_info=True)
        return f"{type(error).__name__}: {error}"


def _loop(loop: Loop, place: Place) -> Replacement:
    source = source_of(place, loop.globals, loop.code)
    if any(not isinstance(bound.example, (int, torch.SymInt)) for bound in loop.range):
        raise Refused("a bound of its range is no integer")
    if loop.range[2].example != 1 or not bool(loop.range[0].example < loop.range[1].example):
        raise Refused("its range is empty, or has a step")
    results = tuple(sorted((source.stores & loop.live(source.last)) - source.lists))
    values: dict[str, Value] = {}
    for name in sorted(name for name in source.reads.union(results) if loop.known(name)):
        value = loop.value(name)
        if value is not None:
            values[name] = value
        else:
            if name in source.stores:
                raise Refused(f"it uses {name}, which is no tensor or number")
            values |= _given((path, loop.value(path)) for path in attributes_of(source, [name]))
    return _Capture(place, loop.globals, source, values, loop.range).replacement(results)


def _call(call: Call, place: Place) -> Replacement:
    source = function_source_of(place, call.globals, call.code)
    return _Capture(place, call.globals, source, _given(call.values()), ()).replacement()


def _given(values: Iterable[tuple[str, Value | None]]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in values:
        if value is None:
            raise Refused(f"it uses {name}, which is no tensor or number")
        found[name] = value
    return found


class _Capture:
    """A loop with the values that it reads."""

    def __init__(
        self,
        place: Place,
        names: dict[str, Any],
        source: Source,
        values: Mapping[str, Value],
        bounds: Iterable[Value],
    ) -> None:
        self._tensors: list[Value] = []
        self._numbers: list[Value] = []
        self._place, self._module, self._source = place, _module(names), source
        self._params = tuple((name, self._describe(value)) for name, value in sorted(values.items()))
        self._bounds = tuple(self._describe(value) for value in bounds)

    def replacement(self, names: tuple[str, ...] = ()) -> Replacement:
        """The operator.

        Args:
            names: the local variables that a loop returns.
        """
        self._check_state()
        lists = tuple(sorted(self._source.lists))
        trial = Description(
            self._place, self._module, digest_of(self._source), self._bounds, self._params, names, lists
        )
        examples = [value.example for value in self._tensors]
        numbers = [value.example for value in self._numbers]
        written, outcome = remembered(trial.text(), examples, numbers, lambda: _try(trial, examples, numbers))
        places = [memory_of(example) for example in examples]
        if any(places.count(places[index]) > 1 for index in written):
            raise Refused("it writes a tensor of which it reads a view")
        order = [*written, *(index for index in range(len(self._tensors)) if index not in written)]
        moved = {old: new for new, old in enumerate(order)}
        params = tuple((name, _moved(value, moved)) for name, value in self._params)
        final = dataclasses.replace(trial, params=params, outcome=_moved(outcome, moved))
        tensors, count = [self._tensors[index] for index in order], len(written)
        args = (tensors[:count], tensors[count:], self._numbers, final.text())
        log.debug("the loop in %s is one operator", self._place)
        return Replacement(
            OPERATOR, args, tensors[:count], _results(final.outcome, tensors, itertools.count(count)), names
        )

    def _describe(self, value: Value) -> Any:
        if value.items is not None:
            return (value.kind, tuple(self._describe(item) for item in value.items))
        if value.named is not None:
            return ("dict", tuple((name, self._describe(item)) for name, item in value.named.items()))
        if isinstance(value.example, torch.Tensor):
            for index, known in enumerate(self._tensors):
                if known.node is value.node:
                    return ("tensor", index)
            self._tensors.append(value)
            return ("tensor", len(self._tensors) - 1)
        if isinstance(value.example, torch.SymInt):
            self._numbers.append(value)
            return ("number", len(self._numbers) - 1)
        return description_of(value.example)

    def _check_state(self) -> None:
        if torch.is_grad_enabled() and any(value.example.requires_grad for value in self._tensors):
            raise Refused("it computes gradients")
        if any(torch.is_autocast_enabled(value.example.device.type) for value in self._tensors):
            raise Refused("autocast is enabled")


def _try(description: Description, examples: list[torch.Tensor], numbers: list[Any]) -> tuple[list[int], Any]:
    """Run a loop over fake tensors, with one and with two iterations, and with larger sizes.

    Returns:
        The indices of tensors that it writes, and the description of what it returns.
    """
    new: list[torch.Tensor] = []
    with tried(examples):
        once, twice = _tried(description, examples, numbers, 1), _tried(description, examples, numbers, 2)
        if once.written != twice.written:
            raise Refused("it writes other tensors in its first iteration")
        outcome = _outcome(once.returned, twice.returned, once.tensors, new)
    others = larger(examples, numbers, new)
    found: list[torch.Tensor] = []
    with others.mode, torch.inference_mode(False), torch.no_grad():
        again = _tried(description, others.tensors, others.numbers, 1)
        _outcome(again.returned, again.returned, again.tensors, found)
    if [tuple(tensor.shape) for tensor in found] != others.shapes:
        raise Refused("the sizes of its results are not known for all sizes of its arguments")
    return once.written, outcome


@dataclasses.dataclass(frozen=True)
class _Tried:
    """What a loop has done with fake tensors: what it returns, and the indices of those that it has written."""

    tensors: list[torch.Tensor]
    returned: Any
    written: list[int]


def _tried(description: Description, examples: list[torch.Tensor], numbers: list[Any], rounds: int) -> _Tried:
    tensors = copies(examples)
    versions = [tensor._version for tensor in tensors]
    returned = runner_of(description.text()).example(tensors, numbers, rounds)
    return _Tried(tensors, returned, [at for at, tensor in enumerate(tensors) if tensor._version != versions[at]])


def _outcome(one: Any, two: Any, arguments: list[torch.Tensor], new: list[torch.Tensor]) -> Any:
    """The description of what a loop returns after one and after two iterations. Collects tensors that are new."""
    if type(one) is not type(two):
        raise Refused("what it returns depends on the number of iterations")
    if isinstance(one, (list, tuple)):
        if type(one) not in (list, tuple) or len(one) != len(two):
            raise Refused(f"it returns a {type(one).__name__}, whose length may depend on the number of iterations")
        items = tuple(_outcome(first, second, arguments, new) for first, second in zip(one, two, strict=True))
        return (type(one).__name__, items)
    if not isinstance(one, torch.Tensor):
        if one is None or (type(one) in (bool, int, float, str) and one == two):
            return description_of(one)
        raise Refused(f"it returns a {type(one).__name__}")
    if metadata(one) != metadata(two) or one.device != two.device or not same_sizes(one, two):
        raise Refused("the shape or dtype of a result changes from one iteration to the next")
    for index, tensor in enumerate(arguments):
        if tensor is one:
            return ("tensor", index)
    if any(memory_of(one) == memory_of(tensor) for tensor in [*arguments, *new]):
        raise Refused("a result is a view of another tensor")
    new.append(one)
    return ("new", metadata(one))


def _results(outcome: Any, tensors: list[Value], places: Any) -> Any:
    """What the program gets for what a loop returns: indices of results of the operator, and values."""
    kind, what = outcome
    if kind == "new":
        return next(places)
    if kind == "tensor":
        return tensors[what]
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_results(item, tensors, places) for item in what)
    return Value(what)


def _module(names: dict[str, Any]) -> str:
    """The name of the module that has these global variables."""
    module = names.get("__name__", "")
    try:
        known = globals_of(module) is names
    except ImportError:
        known = False
    if not known:
        raise Refused("its function belongs to no module")
    return module


def _moved(described: Any, moved: dict[int, int]) -> Any:
    kind, value = described
    if kind == "tensor":
        return (kind, moved[value])
    if kind in ("list", "tuple"):
        return (kind, tuple(_moved(item, moved) for item in value))
    if kind == "dict":
        return (kind, tuple((name, _moved(item, moved)) for name, item in value))
    return described
