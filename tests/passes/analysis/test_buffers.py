"""Which writes to a preallocated buffer a quantized copy can follow."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from innerq_compile import compiled_graphs

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")

SLOTS = 32
RING = (
    "keys: the position of the write is computed by a remainder or a choice, so that it may begin anew, as in a ring, and "
    "new tokens take the places of older ones"
)


def remainder(at):
    return at % SLOTS


def remainder_by_function(at):
    return torch.remainder(at, SLOTS) + torch.arange(1)


def truncated(at):
    return at.fmod(SLOTS).to(torch.int32).long()


def chosen(at):
    return torch.where(at < SLOTS, at, at - SLOTS)


def quotient(at):
    return at - at // SLOTS * SLOTS


def low_bits(at):
    return at & SLOTS - 1


def remainder_in_place(at):
    to = at + 0
    to %= SLOTS
    return to


def as_it_is(at):
    return at


def counted_back(at):
    return at + 5 - torch.ones_like(at) * 5


RINGS = [remainder, remainder_by_function, truncated, chosen, quotient, low_bits, remainder_in_place]


def by_index(buffer, at, new):
    buffer.index_copy_(2, at, new)


def by_setitem(buffer, at, new):
    buffer[:, :, at] = new


def step(place, put):
    """A step that writes to ``place(at)``, and attends to all that has been written."""

    def run(q, k, v, keys, values, at):
        to = place(at)
        put(keys, to, k)
        put(values, to, v)
        return sdpa(q, keys, values, attn_mask=(torch.arange(SLOTS) <= at)[None, None, None])

    return run


def sliced(q, k, v, keys, values, at):
    """As `step` with a number for a position."""
    place = at % SLOTS
    keys[:, :, place : place + 1] = k
    values[:, :, place : place + 1] = v
    return sdpa(q, keys, values, attn_mask=(torch.arange(SLOTS) <= at)[None, None, None])


def run(program, first, steps, number=False, preset=None):
    """Outputs of single tokens from position ``first`` on, and the buffers in the end."""
    if preset is not None:
        torch._dynamo.reset()
        program = torch.compile(program, backend="innerq", options={"preset": preset})
    torch.manual_seed(0)
    keys, values = (torch.randn(2, 2, SLOTS, 16) for _ in range(2))
    found = []
    for at in range(first, first + steps):
        q, k, v = (torch.randn(2, 2, 1, 16) for _ in range(3))
        found.append(program(q, k, v, keys, values, at if number else torch.tensor([at])))
    return [*found, keys, values]


def reasons() -> set[str]:
    return {reason.text for graph in compiled_graphs() for reason in graph.reasons}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("put", [by_index, by_setitem], ids=lambda put: put.__name__)
@pytest.mark.parametrize("place", RINGS, ids=lambda place: place.__name__)
@pytest.mark.parametrize("preset", ["lossless", "base"])
def test_rings_stay_dense(place, put, preset):
    """A token that takes the place of an older one is none that is written behind all others: below the border too."""
    arguments = (step(place, put), SLOTS - 4, 12)
    torch.testing.assert_close(run(*arguments, preset=preset), run(*arguments))
    (graph,) = compiled_graphs()
    assert not graph.rewritten
    assert reasons() == {RING}


def test_a_ring_of_numbers_stays_dense():
    arguments = (sliced, SLOTS - 4, 12, True)
    torch.testing.assert_close(run(*arguments, preset="lossless"), run(*arguments), atol=1e-5, rtol=1e-4)
    first, *others = compiled_graphs()  # the first graph has a constant for a position, which has not wrapped
    assert first.rewritten and others and not any(graph.rewritten for graph in others)
    assert RING in reasons()


@pytest.mark.parametrize("place", [as_it_is, counted_back], ids=lambda place: place.__name__)
def test_what_is_written_in_order_is_rewritten(place):
    arguments = (step(place, by_index), 5, 12)
    torch.testing.assert_close(run(*arguments, preset="lossless"), run(*arguments), atol=1e-5, rtol=1e-4)
    assert all(graph.rewritten == graph.attentions == 1 for graph in compiled_graphs())


def test_what_else_is_computed_does_not_count():
    """Positions of a model whose number of tokens is that of its hidden states, which masks and remainders made."""

    def program(q, k, v, keys, values, at):
        states = torch.where(q > 0, q, q % 0.5)
        place = at + states.shape[2] - 1
        return step(as_it_is, by_index)(states, k, v, keys, values, place)

    torch.testing.assert_close(run(program, 5, 6, preset="lossless"), run(program, 5, 6), atol=1e-5, rtol=1e-4)
    assert all(graph.rewritten == graph.attentions == 1 for graph in compiled_graphs())
