"""Descriptions are equal where one compiled function does for both, and nowhere else."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from innerq_compile.passes.graph.reading import outputs
from innerq_compile.passes.regions.cuts import body_of
from innerq_compile.passes.regions.description import Describer, Description
from tests.helpers.stacks import captured

X = torch.ones(4, 4)


def described(first, second, *inputs, dynamic=None) -> tuple[Description, Description]:
    """Two functions of the same inputs, as regions of one graph."""

    def program(*inputs):
        one = first(*inputs)
        middle = inputs[0].atan()
        return one, middle, second(*inputs)

    gm, _ = captured(program, *inputs, dynamic=dynamic)
    body = body_of(gm.graph)
    middle = next(index for index, node in enumerate(body) if node.target == "atan")
    returned = outputs(gm.graph)
    pieces = body[:middle], body[middle + 1 :]
    describer = Describer(gm.graph)
    one, two = (describer.region(piece, [node for node in piece if node in returned]) for piece in pieces)
    return one, two


def same(first, second, *inputs, dynamic=None) -> bool:
    one, two = described(first, second, *inputs, dynamic=dynamic)
    assert (one.value == two.value) <= (hash(one.value) == hash(two.value))
    return one.value == two.value


def test_the_same_calls_of_other_inputs():
    assert same(lambda x, y: F.linear(x, x).sin(), lambda x, y: F.linear(y, y).sin(), X, X * 2)


@pytest.mark.parametrize(
    "first, second",
    [
        (lambda x, y: x + 1, lambda x, y: x + 2),
        (lambda x, y: x + 1, lambda x, y: x + 1.0),
        (lambda x, y: x * 0.0, lambda x, y: x * -0.0),
        (lambda x, y: x.sum(1, keepdim=False), lambda x, y: x.sum(1, keepdim=True)),
        (lambda x, y: x.sin(), lambda x, y: x.cos()),
        (lambda x, y: x - y, lambda x, y: x - x),
        (lambda x, y: x.sin() - y.sin(), lambda x, y: (s := x.sin()) - s),
        (lambda x, y: x[1:], lambda x, y: x[2:]),
        (lambda x, y: x.to(torch.float16), lambda x, y: x.to(torch.bfloat16)),
        (lambda x, y: (x.sin(), y.cos()), lambda x, y: y.sin().cos()),
        (lambda x, y: F.layer_norm(x, (4,), eps=1e-5), lambda x, y: F.layer_norm(x, (4,), eps=1e-6)),
    ],
)
def test_other_calls(first, second):
    assert same(first, first, X, X * 2) and same(second, second, X, X * 2)
    assert not same(first, second, X, X * 2)


def test_nan_is_the_same_constant():
    assert same(lambda x: x.nan_to_num(math.nan), lambda x: x.nan_to_num(math.nan), X)


def test_other_outputs():
    def both(x, y):
        z = x.sin()
        return z.cos(), z

    def one(x, y):
        return y.sin().cos()

    assert not same(both, one, X, X * 2)


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(4, 5),
        torch.ones(4, 4, dtype=torch.float64),
        torch.ones(4, 4).t(),
        torch.nn.Parameter(X),
        torch.ones(4, 1).expand(4, 4),
        torch.ones(4, 8)[:, :4],
    ],
    ids=["shape", "dtype", "transposed", "parameter", "expanded", "strided"],
)
def test_other_inputs(other):
    assert not same(lambda x, y: x.sin(), lambda x, y: y.sin(), X, other)


def test_where_an_input_begins_does_not_matter():
    both = torch.ones(2, 4, 4)
    assert same(lambda x, y: x.sin(), lambda x, y: y.sin(), both[0], both[1])


def test_shared_memory_matters_where_it_is_written():
    def writing(a, b):
        a.add_(1)
        return b.sin()

    def reading(a, b):
        return a.cos() + b.sin()

    memory = torch.ones(8)
    apart, together = (torch.ones(4), torch.ones(4)), (memory[:4], memory[2:6])
    for program, equal in ((writing, False), (reading, True)):
        inputs = *apart, *together
        assert same(lambda a, b, c, d, p=program: p(a, b), lambda a, b, c, d, p=program: p(c, d), *inputs) == equal
    moved = (memory[:4], memory[3:7])
    memory = torch.ones(8)
    inputs = *moved, memory[:4], memory[2:6]
    assert not same(lambda a, b, c, d: writing(a, b), lambda a, b, c, d: writing(c, d), *inputs)


def marked(*sizes: int) -> list[torch.Tensor]:
    tensors = [torch.ones(size, 4) for size in sizes]
    for tensor in tensors:
        torch._dynamo.mark_dynamic(tensor, 0)
    return tensors


def test_symbols_are_numbered():
    one, two = described(lambda x, y: x[: x.shape[0] - 2], lambda x, y: y[: y.shape[0] - 2], *marked(5, 9))
    assert one.value == two.value and len(one.symbols) == len(two.symbols) == 1 and one.symbols != two.symbols
    assert not same(lambda x, y: x[: x.shape[0] - 2], lambda x, y: y[: y.shape[0] - 3], *marked(5, 9))
    assert not same(lambda x, y: x[: y.shape[0] - 2], lambda x, y: x[: x.shape[0] - 2], *marked(15, 9))


def test_inputs_of_the_same_size_are_one():
    """Two numbers that have to be the same, as lengths of what is added, have one symbol."""

    def first(x, one, other):
        return x.new_ones(one) + x.new_ones(other).sin() + one

    def second(x, one, other):
        return x.new_ones(one) + x.new_ones(other).sin() + other

    assert same(first, second, X, 7, 7, dynamic=True)


def test_a_symbol_is_no_constant():
    x, (y,) = torch.ones(5, 4), marked(5)
    assert not same(lambda x, y: x.sin(), lambda x, y: y.sin(), x, y)


def test_ranges_matter():
    def program(x, y):
        torch._check(x.shape[0] <= 1000)
        return x.sin()

    one, two = described(program, lambda x, y: y.sin(), *marked(5, 9))
    assert one.value != two.value


def test_symbolic_offsets_and_floats_are_symbols():
    def begin(x, number):
        return x.narrow(0, number, 2).sin()

    gm, _ = captured(begin, torch.ones(8, 4), 3, dynamic=True)
    ((narrow, sin),) = [body_of(gm.graph)]
    symbols = {str(symbol) for symbol in Describer(gm.graph).region([sin], [sin]).symbols}
    assert symbols >= {str(size) for size in narrow.meta["example_value"].storage_offset().node.expr.free_symbols}

    def scaled(x, y, a, b):
        return x * a

    assert same(scaled, lambda x, y, a, b: y * b, *marked(4, 5), 0.5, 0.25, dynamic=True)


def test_sizes_of_the_device_are_not_the_same():
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert not same(lambda x: torch.nonzero(x).sum(), lambda x: torch.nonzero(x).sum(), X)


def test_attributes_of_the_graph_are_not_the_same():
    def branch(x):
        return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))

    assert not same(branch, branch, X)
