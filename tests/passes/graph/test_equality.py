"""Nodes that compute the same from the same inputs, and those of which that is not known."""

from __future__ import annotations

import operator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph

from innerq_compile.passes.graph.aliases import Writes
from innerq_compile.passes.graph.equality import have_same_value
from innerq_compile.passes.graph.values import set_example
from innerq_compile.passes.graph.writing import Writer


class Program:
    """A graph with a boolean input ``[2, 12]`` and one of floats, and calls in it."""

    def __init__(self) -> None:
        self.write = Writer(Graph())
        with FakeTensorMode() as mode:
            self.mask = self.write.placeholder("mask", mode.from_tensor(torch.ones(2, 12, dtype=torch.bool)))
            self.x = self.write.placeholder("x", mode.from_tensor(torch.ones(2, 12)))

    def same(self, a, b) -> bool:
        return have_same_value(a, b, Writes(self.write.graph))

    def hidden(self, sizes=(2, 1, 3, 4), value: object = False):
        view = self.write.method("view", self.mask, *sizes)
        return self.write.call(operator.eq, view, self.write.call(torch.tensor, value))


@pytest.fixture
def program() -> Program:
    return Program()


def test_computed_twice(program):
    assert program.same(program.hidden(), program.hidden())
    assert program.same(program.mask, program.mask)


def test_computed_from_sizes_and_slices(program):
    def first():
        return program.write.call(operator.getitem, program.mask, (slice(None), slice(program.sizes[0], 5, None)))

    program.sizes = [program.write.method("size", program.mask, 0)]
    assert program.same(first(), first())


def test_something_else(program):
    hidden = program.hidden()
    assert not program.same(hidden, program.hidden(value=True))
    assert not program.same(hidden, program.hidden(sizes=(2, 3, 1, 4)))
    assert not program.same(hidden, program.hidden(value=0))
    assert not program.same(program.x, program.mask)
    assert not program.same(hidden, program.write.call(operator.ne, *hidden.args))


def test_random_numbers_and_new_memory(program):
    def dropout():
        return program.write.call(torch.nn.functional.dropout, program.x, 0.5)

    def empty():
        return program.write.call(torch.empty_like, program.x)

    assert not program.same(dropout(), dropout()) and not program.same(empty(), empty())


def test_unknown_functions(program):
    def rounded():
        return program.write.call(torch.round, program.x)

    assert not program.same(rounded(), rounded())


@pytest.mark.parametrize("through_a_view", [False, True])
def test_written_in_place(program, through_a_view):
    first = program.hidden()
    target = program.mask if not through_a_view else program.write.call(operator.getitem, program.mask, 0)
    set_example(program.write.method("logical_not_", target), None)
    second = program.hidden()
    assert not program.same(first, second) and not program.same(first, first.args[0])
    assert not program.same(program.mask, program.mask)
