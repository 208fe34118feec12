"""Dynamo's limits of graphs: higher for this backend, and one for each module that runs a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo import config

from innerq_compile import compiled_graphs
from innerq_compile.kernels.internals import dynamo_limits
from innerq_compile.kernels.internals.dynamo_limits import default_of, graphs_at_most

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


def graphs(modules: Sequence[Callable[..., torch.Tensor]], sizes: range, backend: Any = "innerq") -> int:
    """How many graphs calls with these sizes add, each of which needs graphs of its own."""
    before = len(compiled_graphs())
    for size in sizes:
        for module in modules:
            x = torch.randn(size)
            assert torch.equal(torch.compile(module, backend=backend, dynamic=False)(x), module(x))
    return len(compiled_graphs()) - before


def other_backend(gm, example_inputs):
    return gm.forward


@pytest.mark.parametrize(("kind", "each"), [(Plain, 1), (Wrapped, 1), (WrappedInObject, 1), (Broken, 2)])
def test_a_limit_for_each_module(kind, each):
    modules = [kind(index) for index in range(MODULES)]
    with config.patch(recompile_limit=LIMIT):
        assert graphs(modules, range(2, 2 + LIMIT)) == MODULES * LIMIT * each
        assert graphs(modules, range(8, 10)) == 0, "each has reached its limit"


@pytest.mark.parametrize(("kind", "each"), [(Plain, 1), (Wrapped, 1), (WrappedInObject, 1), (Broken, 2)])
def test_a_module_that_comes_behind_the_limit_of_another(kind, each):
    first, later = kind(0), kind(1)
    with config.patch(recompile_limit=LIMIT):
        assert graphs([first], range(2, 6)) == LIMIT * each, "it reaches its limit"
        assert graphs([later], range(2, 6)) == LIMIT * each
        assert graphs([first, later], range(8, 10)) == 0
    with config.patch(recompile_limit=LIMIT + 1):
        assert graphs([first, later], range(8, 9)) == 2 * each, "a limit that is raised later holds as well"


def test_dynamo_says_once_for_a_module_that_it_has_reached_its_limit(caplog):
    with config.patch(recompile_limit=LIMIT):
        graphs([Plain(0), Plain(1)], range(2, 10))
    assert caplog.text.count(f"torch._dynamo hit config.recompile_limit ({LIMIT})") == 2


def test_calls_without_a_module():
    """A wrapper of methods and of functions: graphs of the modules do not count for the functions."""

    @wrapped
    def scale(x):
        return x * 2

    modules = [Wrapped(index) for index in range(MODULES)]
    with config.patch(recompile_limit=LIMIT):
        assert graphs(modules, range(2, 2 + LIMIT)) == MODULES * LIMIT
        assert graphs([scale], range(2, 8)) == LIMIT


def test_functions_that_are_equal_and_not_the_same():
    source = "def scale(x): return x * 2"
    functions = [torch.compile(defined(source), backend="innerq", dynamic=False) for _ in range(2)]
    with config.patch(recompile_limit=LIMIT):
        for size in range(2, 8):
            for function in functions:
                function(torch.ones(size))
    assert len(compiled_graphs()) == 2 * LIMIT


def defined(source: str) -> Callable[..., Any]:
    found: dict[str, Any] = {}
    exec(compile(source, __file__, "exec"), found)  # torch 2.11 wraps functions without a file
    return found["scale"]


def test_what_is_known_of_functions_ends_with_them():
    """Also of those that were compiled before and behind a reset."""
    code = compile("1", "<test>", "eval")
    key = id(code)
    known = [dynamo_limits._compiled(code, state) for state in ({}, {})]
    assert known[0] is not known[1] and dynamo_limits._COMPILED[key] is known[1]
    del code
    assert key not in dynamo_limits._COMPILED


def test_all_modules_together():
    modules = [Plain(index) for index in range(MODULES)]
    with config.patch(accumulated_recompile_limit=MODULES):
        assert graphs(modules, range(2, 4)) == MODULES


def test_counts_begin_anew_after_a_reset():
    modules = [Plain(index) for index in range(MODULES)]
    with config.patch(recompile_limit=LIMIT):
        for _ in range(2):
            assert graphs(modules, range(2, 2 + LIMIT)) == MODULES * LIMIT
            assert graphs(modules, range(8, 9)) == 0
            torch._dynamo.reset()
            graphs(modules[:1], range(2, 3), backend=other_backend)


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
    """Also for a function of which this backend has more graphs than that."""
    modules = [Plain(index) for index in range(12)]
    assert graphs(modules, range(2, 3)) == 12
    calls = torch._dynamo.utils.counters["stats"]
    before = calls["unique_graphs"]
    graphs(modules, range(2, 3), backend="eager")
    assert calls["unique_graphs"] - before == config.recompile_limit


def test_other_backends_have_dynamos_for_all_modules_together():
    modules = [Plain(index) for index in range(12)]
    with config.patch(accumulated_recompile_limit=4):
        assert graphs(modules[:4], range(2, 3)) == 4
        calls = torch._dynamo.utils.counters["stats"]
        before = calls["unique_graphs"]
        graphs(modules, range(2, 3), backend="eager")
    assert calls["unique_graphs"] - before == 4


def test_defaults_are_dynamos():
    for setting in ("recompile_limit", "accumulated_recompile_limit"):
        assert getattr(config, setting) == default_of(setting) < graphs_at_most(setting)


def test_what_the_program_sets():
    """Any value but Dynamo's own default holds."""
    usual = graphs_at_most("recompile_limit")
    assert usual > config.recompile_limit
    for value, expected in ((2, 2), (7, 7), (8, usual), (9, 9), (20, 20), (63, 63), (usual + 1, usual + 1)):
        with config.patch(recompile_limit=value):
            assert graphs_at_most("recompile_limit") == expected


def test_a_value_above_dynamos_default():
    with config.patch(recompile_limit=10):
        assert graphs([Plain(0)], range(2, 14)) == 10


OF_ONE_CALL = "recompile_limit" in inspect.signature(torch.compile).parameters


@pytest.mark.skipif(not OF_ONE_CALL, reason="this torch.compile takes no recompile_limit")
@pytest.mark.parametrize("limit", [3, 8, 10])
def test_what_the_program_sets_for_one_call(limit):
    """Also where that is Dynamo's default."""
    step = torch.compile(lambda x: x + 1, backend="innerq", dynamic=False, recompile_limit=limit)
    for size in range(2, 14):
        step(torch.zeros(size))
    assert len(compiled_graphs()) == limit


@pytest.mark.parametrize("limit", [None, 10])
def test_messages_of_dynamo_state_the_limit_that_holds(limit):
    step = torch.compile(lambda x: x + 1, backend="innerq", dynamic=False, fullgraph=True)
    held = graphs_at_most("recompile_limit") if limit is None else limit
    with config.patch({} if limit is None else {"recompile_limit": limit}):
        for size in range(2, 2 + held):
            step(torch.zeros(size))
        with pytest.raises(Exception, match="fullgraph=True") as raised:
            step(torch.zeros(2 + held))
    assert f"currently set to {held}" in str(raised.value.__cause__)
