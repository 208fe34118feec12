"""The statements of a function become a function that can be tried."""

from __future__ import annotations

import ast

from innerq_compile.compiler.loops.finding import place_of
from innerq_compile.compiler.loops.source import function_of, source_of


def sums(x, n):
    total = 0
    for i in range(n):
        total = total + x[i]
    for k in range(2):
        if k:
            total += k
    return total


SOURCE = source_of(place_of(sums.__code__), globals(), sums.__code__)


def test_it_is_watched():
    text = "\n".join(map(ast.unparse, SOURCE.statements))
    assert "for i in __innerq_range(n):" in text and "total + __innerq_read(x)[i]" in text
    assert "__innerq_end(total)" in text and "__innerq_write(total, False)" in text


def test_a_loop_with_a_branch_is_over_a_constant_range():
    assert "for k in range(2):" in "\n".join(map(ast.unparse, SOURCE.statements))


def test_it_computes_what_the_function_computes():
    function = function_of(SOURCE, globals(), __file__)
    watching = (range, lambda value: value, lambda value, _: value, lambda *_: None)
    assert function(*watching, [1, 2, 3], 3) == sums([1, 2, 3], 3) == 7
