"""The statements of a loop are found in its file and become a function."""

from __future__ import annotations

import pytest
import torch

from innerq_compile.compiler.loops.source import Place, function_of, function_source_of, source_of
from innerq_compile.kernels.internals.dynamo_loops import Refused


def place_of(function, line: int | None = None) -> Place:
    code = function.__code__
    return Place(code.co_filename, code.co_name, code.co_firstlineno, 0 if line is None else code.co_firstlineno + line)


def sums(x, n):
    total = 0
    for i in range(n):
        total = total + x[i]
    return total


def stacks(x):
    rows = []
    for i in range(len(x)):
        rows.append(x[i])
    y = torch.stack(rows)
    return y


def reads_list(x):
    rows = []
    for i in range(len(x)):
        rows.append(x[i])
    y = torch.stack(rows)
    return y, rows


def two_on_a_line(x, n):
    for i in range(n): x = [x[0] for _ in range(n)]  # fmt: skip  # noqa: B007, E701
    return x


class Holder:
    factor = 3

    def scaled(self, x, n):
        for i in range(n):
            x = x * self.factor
            self.last = i
        return x


def generates(n):
    for i in range(n):
        yield i * 2


def test_a_loop_is_a_function_of_what_it_reads():
    source = source_of(place_of(sums, 2), globals(), sums.__code__)
    assert (source.reads, source.stores) == ({"total", "x", "i"}, {"total", "i"})
    function = function_of(source, globals(), __file__, ["total", "x"], ["total"])
    assert function(lambda: range(3), None, 1, [1, 2, 3]) == [7]


def test_a_function_is_a_function_of_its_arguments():
    function = function_of(function_source_of(place_of(sums), globals()), globals(), __file__, ["n", "x"], [])
    assert function(range, None, 2, [1, 2, 3]) == 3


def test_a_list_that_is_stacked_at_once_stays_inside():
    source = source_of(place_of(stacks, 2), globals())
    assert (source.lists, source.last) == ({"rows"}, stacks.__code__.co_firstlineno + 4)
    function = function_of(source, globals(), __file__, ["rows", "x"], ["y"])
    assert function(lambda: range(2), len, [], "ab") == [2]


def test_a_list_that_is_read_later_does_not():
    assert source_of(place_of(reads_list, 2), globals()).lists == set()


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (place_of(Holder.scaled, 1), "assigns the attribute self.last"),
        (place_of(sums, 3), "not found"),
        (Place(__file__, "sums", 1, 3), "not found"),
        (Place("<nowhere>", "sums", 1, 3), "not found"),
        (place_of(generates, 1), "yield"),
    ],
)
def test_what_is_refused(place, reason):
    with pytest.raises(Refused, match=reason):
        source_of(place, globals())


def test_code_that_is_not_that_of_the_file():
    with pytest.raises(Refused, match="not found"):
        source_of(place_of(sums, 2), globals(), stacks.__code__)
