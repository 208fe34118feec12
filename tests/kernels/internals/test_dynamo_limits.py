"""Dynamo's limits of graphs: higher for this backend, and one for each module that runs a function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn
from torch._dynamo import config

from innerq_compile import compiled_graphs
from innerq_compile.kernels.internals.dynamo_limits import graphs_at_most

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")
MODULES, LIMIT = 3, 2


def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


class Plain(nn.Module):
    """``index`` is a constant of its graphs, so that each module has graphs of its own."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, x):
        return x * (self.index + 2)


class Wrapped(Plain):
    forward = wrapped(Plain.forward)


class WrappedInObject(Plain):
    """The wrapper does not get the module, but a method of it."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.forward = wrapped(self.forward)


class Broken(Plain):
    """The second half, behind a break of the graph, is a function that Dynamo makes."""

    def forward(self, x):
        x = x + self.index
        torch._dynamo.graph_break()
        return x * (self.index + 2)


def graphs(modules: Sequence[Callable[..., torch.Tensor]], sizes: range, backend: str = "innerq") -> int:
    """How many graphs calls with these sizes add, each of which needs graphs of its own."""
    before = len(compiled_graphs())
    for size in sizes:
        for module in modules:
            x = torch.randn(size)
            assert torch.equal(torch.compile(module, backend=backend, dynamic=False)(x), module(x))
    return len(compiled_graphs()) - before


@pytest.mark.parametrize(("kind", "each"), [(Plain, 1), (Wrapped, 1), (WrappedInObject, 1), (Broken, 2)])
def test_a_limit_for_each_module(kind, each):
    modules = [kind(index) for index in range(MODULES)]
    with config.patch(recompile_limit=LIMIT):
        assert graphs(modules, range(2, 2 + LIMIT)) == MODULES * LIMIT * each
        assert graphs(modules, range(8, 10)) == 0, "each has reached its limit"


def test_calls_without_a_module():
    """A wrapper of methods and of functions: graphs of the modules do not count for the functions."""

    @wrapped
    def scale(x):
        return x * 2

    modules = [Wrapped(index) for index in range(MODULES)]
    with config.patch(recompile_limit=LIMIT):
        assert graphs(modules, range(2, 2 + LIMIT)) == MODULES * LIMIT
        assert graphs([scale], range(2, 8)) == LIMIT


def test_all_modules_together():
    modules = [Plain(index) for index in range(MODULES)]
    with config.patch(accumulated_recompile_limit=MODULES):
        assert graphs(modules, range(2, 4)) == MODULES


def test_counts_begin_anew_after_a_reset():
    modules = [Plain(index) for index in range(MODULES)]
    with config.patch(recompile_limit=LIMIT):
        for _ in range(2):
            assert graphs(modules, range(2, 2 + LIMIT)) == MODULES * LIMIT
            torch._dynamo.reset()


def test_modules_that_are_gone_count_no_more():
    """A module may get the identity of one that is gone."""
    with config.patch(recompile_limit=LIMIT):
        for index in range(3 * LIMIT):
            assert graphs([Plain(index)], range(2, 4)) == 2


def test_the_limit_is_higher():
    """Of a function that no module runs, too."""
    assert config.recompile_limit < 12
    before = len(compiled_graphs())
    step = torch.compile(lambda x: x + 1, backend="innerq", dynamic=False)
    for size in range(2, 14):
        step(torch.zeros(size))
    assert len(compiled_graphs()) - before == 12


def test_other_backends_have_dynamos():
    modules = [Plain(index) for index in range(12)]
    calls = torch._dynamo.utils.counters["stats"]
    before = calls["unique_graphs"]
    graphs(modules, range(2, 3), backend="eager")
    assert calls["unique_graphs"] - before == config.recompile_limit


def test_what_the_program_sets():
    """A lower limit than Dynamo's own holds; a higher one does where it is higher than ours."""
    usual = graphs_at_most("recompile_limit")
    assert usual > config.recompile_limit
    for value, expected in ((2, 2), (7, 7), (8, usual), (20, usual), (usual + 1, usual + 1)):
        with config.patch(recompile_limit=value):
            assert graphs_at_most("recompile_limit") == expected
