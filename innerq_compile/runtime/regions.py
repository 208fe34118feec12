"""Calls the compiled regions of a graph one after the other (see ``passes/regions``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Call:
    """The call of a compiled region. Values are identified by their place in a list of all values.

    Attributes:
        function: takes a list of inputs, which it empties, and returns the results.
        inputs: the places of its inputs.
        freed: the places of results of earlier calls that no later call needs.
        results: the places of its results; None for those that nothing needs.
    """

    function: Callable[[list[Any]], Sequence[Any]]
    inputs: list[int]
    freed: list[int]
    results: list[int | None]


class RegionCalls:
    """A graph whose regions are compiled. Takes the inputs of the graph and returns its outputs.

    Args:
        calls: the calls, in order.
        sizes: sizes that regions take as inputs: the place of an input, and its dimension, or None for a number. They
            are placed after the inputs of the graph.
        values: the number of values: inputs of the graph, sizes and results of all calls.
        outputs: for each output of the graph its place, or a tuple with a constant.
    """

    def __init__(
        self,
        calls: list[Call],
        sizes: list[tuple[int, int | None]],
        values: int,
        outputs: list[int | tuple[Any]],
    ) -> None:
        self._calls, self._sizes, self._values, self._outputs = calls, sizes, values, outputs

    def __call__(self, *inputs: Any) -> list[Any]:
        values = list(inputs)
        values += [inputs[place] if dim is None else inputs[place].shape[dim] for place, dim in self._sizes]
        values += [None] * (self._values - len(values))
        for call in self._calls:
            arguments = [values[place] for place in call.inputs]
            for place in call.freed:
                values[place] = None
            _place(values, call.results, call.function(arguments))
        return [values[place] if isinstance(place, int) else place[0] for place in self._outputs]


def _place(values: list[Any], places: Sequence[int | None], results: Sequence[Any]) -> None:
    """Store results in a function that ends, so that no variable holds one of them while the next call runs."""
    for place, result in zip(places, results, strict=True):
        if place is not None:
            values[place] = result
