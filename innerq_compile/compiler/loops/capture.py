"""Decides whether the call of a function with a loop of symbolic length can be one operator, with which arguments."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import types
from collections.abc import Iterator
from typing import Any

import torch

from ...kernels.internals.dynamo_loops import (
    Call,
    Handler,
    Refused,
    Replacement,
    Value,
    other_sizes,
    remembered,
    tried,
)
from ...kernels.internals.graphs import same_sizes
from ...kernels.internals.tensors import memory_of
from .finding import Place, place_of
from .operator import OPERATOR, Description, copies, description_of, digest_of, globals_of, runner_of, sizes
from .source import source_of

log = logging.getLogger(__name__)

#: Why functions are no operator, and those that the user was told of.
_REASONS: dict[Place, str] = {}
_TOLD: set[Place] = set()


def of_call(call: Call) -> Replacement | None:
    """The operator that runs a call of a function with such a loop, or None if Dynamo goes on as ever."""
    place = place_of(call.code)
    try:
        return _replacement(call, place)
    except Refused as reason:
        _REASONS[place] = str(reason)
    except Exception as error:  # a function may do anything with fake tensors
        log.debug("the loop in %s fails", place, exc_info=True)
        _REASONS[place] = f"{type(error).__name__}: {error}"
    return None


def unrolled(code: types.CodeType) -> None:
    """Warn of the loop of a function that is unrolled, once."""
    place = place_of(code)
    if place not in _TOLD:
        _TOLD.add(place)
        why = _REASONS.get(place, "it is not in a plain function that the program calls")
        log.warning("the loop in %s is unrolled, and compiled anew for each number of its iterations: %s", place, why)


#: What becomes of the loops of every program that is compiled with this backend.
LOOPS = Handler(of_call, unrolled)


def _replacement(call: Call, place: Place) -> Replacement:
    source = source_of(place, call.globals, call.code)
    tensors: list[Value] = []
    numbers: list[Value] = []
    params = tuple((name, _described(name, value, tensors, numbers)) for name, value in call.values(source.params))
    _check_state(tensors)
    trial = Description(place, _module(call.globals), digest_of(source), params)
    examples, symbols = [value.example for value in tensors], [value.example for value in numbers]
    outcome = remembered(trial.text(), examples, symbols, lambda: _try(trial, examples, symbols))
    args = (tensors, numbers, dataclasses.replace(trial, outcome=outcome).text())
    log.debug("the loop in %s is one operator", place)
    return Replacement(OPERATOR, args, _results(outcome, tensors, itertools.count()))


def _described(name: str, value: Value | None, tensors: list[Value], numbers: list[Value]) -> Any:
    if value is None:
        raise Refused(f"it uses {name}, which is no tensor or number")
    if isinstance(value.example, torch.Tensor):
        for index, known in enumerate(tensors):
            if known.node is value.node:
                return ("tensor", index)
        tensors.append(value)
        return ("tensor", len(tensors) - 1)
    if isinstance(value.example, torch.SymInt):
        numbers.append(value)
        return ("number", len(numbers) - 1)
    return description_of(value.example)


def _check_state(tensors: list[Value]) -> None:
    if torch.is_grad_enabled() and any(value.example.requires_grad for value in tensors):
        raise Refused("it computes gradients")
    if any(torch.is_autocast_enabled(value.example.device.type) for value in tensors):
        raise Refused("autocast is enabled")


def _try(description: Description, examples: list[torch.Tensor], numbers: list[Any]) -> Any:
    """Run a function over fake tensors, its loop with none to two iterations, and with other sizes.

    Returns:
        The description of what it returns.
    """
    with tried(examples):
        found: list[Any] = []
        results: list[list[torch.Tensor]] = []
        for rounds in (1, 2, 0):
            tensors = copies(examples)
            returned, new = _returned(description, tensors, numbers, rounds), []
            found.append(_outcome(returned, tensors, numbers, new))
            results.append(new)
        # without an iteration, an argument may be returned as it is, if there always is one: see the smallest sizes
        if found[0] != found[1] or (len(results[0]) == len(results[2]) and found[0] != found[2]):
            raise Refused("what it returns depends on the number of iterations")
    for others in other_sizes(examples, numbers, results[0]):
        with others.mode, torch.inference_mode(False), torch.no_grad():
            new = []
            returned = _returned(description, others.tensors, others.numbers, None)
            _outcome(returned, others.tensors, others.numbers, new)
            if [tuple(tensor.shape) for tensor in new] != others.shapes:
                raise Refused("the sizes of its results are not known for all sizes of its arguments")
    return found[0]


def _returned(description: Description, tensors: list[torch.Tensor], numbers: list[Any], rounds: int | None) -> Any:
    versions = [tensor._version for tensor in tensors]
    returned = runner_of(description.text()).example(tensors, numbers, rounds)
    if versions != [tensor._version for tensor in tensors]:
        raise Refused("it writes one of its arguments")
    return returned


def _outcome(value: Any, tensors: list[torch.Tensor], numbers: list[Any], new: list[torch.Tensor]) -> Any:
    """The description of what a function returns. Collects tensors that are new."""
    if type(value) is tuple:
        return ("tuple", *(_outcome(item, tensors, numbers, new) for item in value))
    if not isinstance(value, torch.Tensor):
        if value is None or type(value) in (bool, int, float, str):
            return description_of(value)
        raise Refused(f"it returns a {type(value).__name__}")
    for index, tensor in enumerate(tensors):
        if tensor is value:
            return ("tensor", index)
    if any(memory_of(value) == memory_of(tensor) for tensor in [*tensors, *new]):
        raise Refused("a result is a view of another tensor")
    new.append(value)
    shape = tuple(_size(size, tensors, numbers) for size in value.shape)
    return ("new", str(value.dtype), str(value.device), shape)


def _size(size: Any, tensors: list[torch.Tensor], numbers: list[Any]) -> Any:
    if isinstance(size, int):
        return size
    for known, described in sizes(tensors, numbers):
        if same_sizes([known], [size]):
            return described
    raise Refused("a size of a result is neither a constant nor one of its arguments")


def _results(outcome: Any, tensors: list[Value], places: Iterator[int]) -> Any:
    """What the program gets for what a function returns: indices of results of the operator, and values."""
    kind, *what = outcome
    if kind == "new":
        return next(places)
    if kind == "tensor":
        return tensors[what[0]]
    if kind == "tuple":
        return tuple(_results(item, tensors, places) for item in what)
    return Value(what[0])


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
