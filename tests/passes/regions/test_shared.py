"""What is moved in front of the first layer, and what is not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from innerq_compile.passes.graph.aliases import Writes
from innerq_compile.passes.graph.reading import called_name
from innerq_compile.passes.regions.cuts import body_of
from innerq_compile.passes.regions.shared import movable, shared_first
from tests.helpers.stacks import captured

X, Y = torch.ones(4, 4), torch.full((4, 4), 2.0)


def pieces_of(program, *inputs) -> list[str]:
    """The calls of each piece after the move. Pieces begin at products."""
    gm, _ = captured(program, *inputs)
    pieces = [[]]
    for node in body_of(gm.graph):
        if called_name(node) == "linear":
            pieces.append([])
        pieces[-1].append(node)
    moved = shared_first(pieces, movable([node for piece in pieces for node in piece], Writes(gm.graph)))
    nodes = [node for piece in moved for node in piece]
    assert sorted(nodes) == sorted(body_of(gm.graph))
    position = {node: index for index, node in enumerate(nodes)}
    for node in position:
        assert all(position.get(argument, -1) < position[node] for argument in node.all_input_nodes)
    return [" ".join(map(called_name, piece)) for piece in moved]


def test_what_several_pieces_use():
    def program(x, y):
        x = F.linear(x.sin(), y)
        shared = y.cos().tanh()
        for _ in range(2):
            x = F.linear(x + shared, y)
        return x

    assert pieces_of(program, X, Y) == ["sin cos tanh", "linear add", "linear add", "linear"]


def test_what_depends_on_a_piece_stays():
    def program(x, y):
        x = F.linear(x.sin(), y)
        shared = x.cos() + y.tanh()
        for _ in range(2):
            x = F.linear(x + shared, y)
        return x

    assert pieces_of(program, X, Y) == ["sin", "linear cos tanh add add", "linear add", "linear"]


def test_what_is_passed_to_the_next_piece_alone_stays():
    """Weights in another dtype are made one after the other, not all at once before the first layer."""

    def program(x, *weights):
        for weight in weights:
            x = F.linear(x.sin(), weight.to(torch.float32))
        return x

    weights = [torch.ones(4, 4, dtype=torch.int8) for _ in range(4)]
    assert pieces_of(program, X, *weights) == ["sin to", "linear sin to", "linear sin to", "linear sin to", "linear"]


@pytest.mark.parametrize("first", [True, False])
def test_memory_that_is_written_stays(first):
    def program(x, y, z):
        x = F.linear(x.sin(), y)
        if first:
            z[0] = 1
        shared = z.cos()
        for _ in range(2):
            x = F.linear(x + shared, y)
        if not first:
            z[0] = 1
        return x

    assert pieces_of(program, X, Y, X * 3)[0] == "sin"

    def result(x, y):
        x = F.linear(x.sin(), y)
        shared = y.cos()
        for _ in range(2):
            x = F.linear(x + shared, y)
        return x, shared.add_(1)

    assert pieces_of(result, X, Y)[0] == "sin"


def test_random_operations_stay_in_order():
    def program(x, y):
        x = F.linear(x.sin(), y)
        x = F.dropout(x, 0.5)
        shared = F.dropout(y, 0.5)
        for _ in range(2):
            x = F.linear(x + shared, y)
        return x

    assert pieces_of(program, X, Y)[0] == "sin"


def test_nothing_leaves_autocast():
    def program(x, y):
        x = F.linear(x.sin(), y)
        with torch.autocast("cpu", torch.bfloat16):
            inside = y.pow(2)
        outside = y.tanh()
        for _ in range(2):
            x = F.linear(x + inside - outside, y)
        return x

    assert pieces_of(program, X, Y)[0] == "sin tanh"


def test_tuples_stay():
    """A part of one would be moved without the other part."""

    def program(x, y):
        x = F.linear(x.sin(), y)
        one, other = y.chunk(2)
        x = x + other.sum()
        for _ in range(2):
            x = F.linear(x + one.sum(), y)
        return x

    assert pieces_of(program, X, Y)[0] == "sin"


def test_parts_of_packed_weights_stay_together():
    def program(x, *packed):
        for both in packed:
            weight, bias = both.chunk(2)
            x = F.linear(x * bias.sum(), weight)
        return x

    packed = [torch.ones(8, 4) for _ in range(3)]
    assert pieces_of(program, X, *packed)[1] == "linear chunk getitem getitem sum mul"


def test_one_piece():
    assert pieces_of(lambda x: x.sin().cos(), X) == ["sin cos"]
