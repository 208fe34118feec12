"""The source of a function is that of the code that runs."""

from __future__ import annotations

import ast
import types

import pytest

from innerq_compile.compiler.loops.finding import Place, definition_of, place_of, same_code
from innerq_compile.kernels.internals.dynamo_loops import Refused


def doubled(x):
    return [value * 2 for value in x]


def test_a_function_is_found():
    found = definition_of(place_of(doubled.__code__), globals(), doubled.__code__)
    assert ast.unparse(found) == "def doubled(x):\n    return [value * 2 for value in x]"


@pytest.mark.parametrize("place", [Place(__file__, "doubled", 1), Place("<nowhere>", "doubled", 1)])
def test_other_places(place):
    with pytest.raises(Refused, match="not found"):
        definition_of(place, globals())


def test_an_inner_function():
    x = 1

    def inner():
        return x

    with pytest.raises(Refused, match="a function in a function"):
        definition_of(place_of(inner.__code__), globals(), inner.__code__)


def code_of(text: str) -> types.CodeType:
    names: dict = {}
    exec(text, names)
    return names["f"].__code__


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("def f(x): return x * 2", "def f(x): return x * 3"),
        ("def f(x): return x.exp()", "def f(x): return x.log()"),
        ("def f(x, y): return x - y", "def f(y, x): return y - x"),
        ("def f(x): return x * 1", "def f(x): return x * True"),
        ("def f(x): return [v * 2 for v in x]", "def f(x): return [v * 3 for v in x]"),
    ],
)
def test_code_that_is_not_that_of_the_file(one, other):
    assert same_code(code_of(one), code_of(one))
    assert not same_code(code_of(one), code_of(other))
