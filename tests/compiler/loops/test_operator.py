"""The operator runs a function that a graph describes by a string."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
import torch

from innerq_compile.compiler.loops.finding import place_of
from innerq_compile.compiler.loops.operator import OPERATOR, Description, digest_of, runner_of
from innerq_compile.compiler.loops.source import source_of
from innerq_compile.errors import InnerQError
from innerq_compile.kernels.internals.dynamo_loops import Refused


def function(x, factor):
    out = torch.zeros_like(x)
    for i in range(x.shape[0]):
        out[i] = x[i] * factor
    return out, None


def writes(x, factor):
    for i in range(x.shape[0]):
        x[i] = x[i] * factor
    return x * 1, None


NEW = ("new", "torch.float32", "cpu", ((0, 0),))


def description(function=function, **changes) -> Description:
    place = place_of(function.__code__)
    params = (("x", ("tensor", 0)), ("factor", ("value", 2)))
    outcome = ("tuple", NEW, ("value", None))
    digest = digest_of(source_of(place, globals()))
    return dataclasses.replace(Description(place, __name__, digest, params, outcome), **changes)


def test_a_description_is_a_string():
    assert Description.parse(description().text()) == description()


def test_it_returns_the_new_tensors():
    (out,) = OPERATOR([torch.arange(3.0)], [], description().text())
    assert out.tolist() == [0.0, 2.0, 4.0]


def test_tensors_are_freed_at_once():
    """Not when the garbage collector runs: a prompt has gigabytes of them."""
    gc.collect()
    gc.disable()
    try:
        x = torch.arange(3.0)
        (out,) = OPERATOR([x], [], description().text())
        held = [weakref.ref(x), weakref.ref(out)]
        del x, out
        assert [one() for one in held] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("inference", [False, True])
def test_a_function_that_writes_its_argument(inference):
    with torch.inference_mode(inference):
        x = torch.arange(3.0)
        with pytest.raises(InnerQError, match="writes one of its arguments"):
            OPERATOR([x], [], description(writes).text())
        assert x.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "outcome",
    [
        ("tuple", ("new", "torch.float64", "cpu", ((0, 0),)), ("value", None)),
        ("tuple", ("new", "torch.float32", "cpu", (4,)), ("value", None)),
        ("tuple", ("new", "torch.float32", "cpu", ((0, 0), 1)), ("value", None)),
        ("tuple", NEW, ("value", 1)),
        ("tuple", ("tensor", 0), ("value", None)),
        NEW,
    ],
)
def test_a_function_that_returns_something_else_than_it_did(outcome):
    with pytest.raises(InnerQError, match="returns something else"):
        OPERATOR([torch.arange(3.0)], [], description(outcome=outcome).text())


def test_another_source():
    with pytest.raises(Refused, match="has changed since"):
        runner_of(description(digest="0").text())


def test_it_is_not_recorded():
    assert torch.Tag.cudagraph_unsafe in OPERATOR.tags
