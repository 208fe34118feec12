"""Calls of compiled regions: what each gets, what is kept, and what is not."""

from __future__ import annotations

import weakref

import pytest
import torch

from innerq_compile.runtime.regions import Call, RegionCalls


def emptying(function):
    """A function as Inductor makes them: it takes a list and empties it."""

    def call(inputs):
        values = list(inputs)
        inputs.clear()
        return function(*values)

    return call


def test_places():
    calls = [
        Call(emptying(lambda x, y: (x + y, x * y)), [0, 1], [], [2, 3]),
        Call(emptying(lambda a, b: (a - b,)), [3, 2], [], [4]),
    ]
    run = RegionCalls(calls, [], 5, [4, 2, 0, (None,), 4, (7,)])
    x, y = torch.tensor(2.0), torch.tensor(5.0)
    results = run(x, y)
    assert results[:2] == [3.0, 7.0] and results[2] is x and results[3:] == [None, results[0], 7]
    assert run(y, x)[0] == 3.0


def test_results_that_nothing_needs():
    run = RegionCalls([Call(emptying(lambda x: (x, x + 1)), [0], [], [None, 1])], [], 2, [1])
    assert run(3) == [4]


def test_sizes_are_read_of_the_inputs_of_each_call():
    seen = []
    calls = [Call(emptying(lambda x, rows, number: seen.append((rows, number)) or ()), [0, 2, 3], [], [])]
    run = RegionCalls(calls, [(0, 1), (1, None)], 4, [])
    assert run(torch.ones(2, 3), 7) == [] and run(torch.ones(2, 4), 8) == []
    assert seen == [(3, 7), (4, 8)]


def test_no_calls():
    assert RegionCalls([], [], 1, [0, (None,)])(5) == [5, None]


def test_a_wrong_number_of_results_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        RegionCalls([Call(emptying(lambda x: (x, x)), [0], [], [1])], [], 2, [1])(1)


@pytest.mark.parametrize("last", [0, 1, 2])
def test_results_are_freed_while_the_last_call_that_needs_them_runs(last):
    """Whichever of the three results it is, a region can drop an input before it computes."""
    alive = []

    def first(x):
        made = [x + number for number in range(3)]
        alive.extend(map(weakref.ref, made))
        return made

    def second(inputs):
        assert all(one() is not None for one in alive)
        del inputs[last]
        assert [one() is not None for one in alive] == [index != last for index in range(3)]
        return (inputs[0] + 1,)

    def third(y):
        assert alive[last]() is None
        return (y,)

    calls = [
        Call(emptying(first), [0], [], [1, 2, 3]),
        Call(second, [1, 2, 3], [last + 1], [4]),
        Call(emptying(third), [4], [4], [5]),
    ]

    assert RegionCalls(calls, [], 6, [5])(torch.ones(2)) is not None


def test_nothing_is_kept_after_the_call():
    made = []

    def function(x):
        result = x + 1
        made.append(weakref.ref(result))
        return (result,)

    run = RegionCalls([Call(emptying(function), [0], [], [1])], [], 2, [1])
    x = torch.ones(2)
    inputs = weakref.ref(x)
    result = run(x)
    del x, result
    assert inputs() is None and made[0]() is None
