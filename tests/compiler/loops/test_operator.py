"""The operator runs a loop that a graph describes by a string."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from innerq_compile.compiler.loops.operator import OPERATOR, Description, digest_of, runner_of
from innerq_compile.compiler.loops.source import Place, source_of
from innerq_compile.errors import InnerQError
from innerq_compile.kernels.internals.dynamo_loops import Refused


def loop(x, out, n):
    for i in range(n):
        out[i] = x[i] * 2
        last = x[i] + 1
    return last


def description(**changes) -> Description:
    code = loop.__code__
    place = Place(code.co_filename, code.co_name, code.co_firstlineno, code.co_firstlineno + 1)
    params = (("out", ("tensor", 0)), ("x", ("tensor", 1)))
    outcome = ("list", (("new", ("torch.float32", 0)),))
    bounds = (("value", 0), ("number", 0), ("value", 1))
    digest = digest_of(source_of(place, globals()))
    return dataclasses.replace(Description(place, __name__, digest, bounds, params, ("last",), (), outcome), **changes)


def test_a_description_is_a_string():
    assert Description.parse(description().text()) == description()


def test_what_is_written_is_a_copy():
    x, out = torch.arange(3.0), torch.zeros(3)
    written, last = OPERATOR([out], [x], [2], description().text())
    assert written.tolist() == [0.0, 2.0, 0.0] and last == 2.0 and not out.any()


def test_a_loop_that_writes_more_than_it_did():
    params = (("out", ("tensor", 1)), ("x", ("tensor", 0)))
    with pytest.raises(InnerQError, match="writes a tensor that it did not write"):
        OPERATOR([torch.zeros(3)], [torch.arange(3.0)], [2], description(params=params).text())


def test_a_loop_that_returns_something_else_than_it_did():
    outcome = ("list", (("new", ("torch.float64", 0)),))
    with pytest.raises(InnerQError, match="returns something else"):
        OPERATOR([torch.zeros(3)], [torch.arange(3.0)], [2], description(outcome=outcome).text())


def test_another_source():
    with pytest.raises(Refused, match="has changed since"):
        runner_of(description(digest="0").text())


def test_it_is_not_recorded():
    assert torch.Tag.cudagraph_unsafe in OPERATOR.tags
