"""A function that was compiled with the sizes of one layer is called with those of another only where that is right."""

from __future__ import annotations

import pytest
import torch

from innerq_compile.kernels.internals.graphs import guards_of, shape_env_of
from innerq_compile.passes.graph.values import example
from innerq_compile.passes.regions import Guards
from tests.helpers.stacks import captured


@pytest.fixture
def sizes() -> list[torch.SymInt]:
    """Three sizes, which are 16, 32 and 33 in the first call."""
    tensors = [torch.ones(size) for size in (16, 32, 33)]
    for tensor in tensors:
        torch._dynamo.mark_dynamic(tensor, 0)
    gm, _ = captured(lambda x, y, z: (x.sin(), y.sin(), z.sin()), *tensors)
    found = [example(node).shape[0] for node in gm.graph.find_nodes(op="placeholder") if torch.is_tensor(example(node))]
    assert [size.node.hint for size in found] == [16, 32, 33]
    return found


def symbols(*sizes):
    return [size.node.expr for size in sizes]


def count(sizes) -> int:
    return len(guards_of(shape_env_of(sizes[0])))


def test_a_guard_of_the_compilation(sizes):
    one, two, three = sizes
    with Guards(sizes) as guards:
        assert one % 16 == 0
    before = count(sizes)
    assert guards.hold_for(symbols(one), symbols(two)) and count(sizes) == before + 1, "it is a guard of the graph now"
    assert not guards.hold_for(symbols(one), symbols(three))
    assert count(sizes) == before + 1, "the graph does not rely on three being no multiple"


def test_a_guard_that_the_graph_had_before(sizes):
    one, two, three = sizes
    assert one % 16 == 0
    with Guards(sizes) as guards:
        pass
    assert guards.hold_for(symbols(one), symbols(two)) and not guards.hold_for(symbols(one), symbols(three))


def test_guards_on_other_symbols(sizes):
    one, two, three = sizes
    with Guards(sizes) as guards:
        pass
    assert two % 16 == 0 and one < two
    with Guards(sizes) as later:
        pass
    assert guards.hold_for(symbols(one), symbols(three)), "what comes later does not matter"
    assert later.hold_for(symbols(one), symbols(three)), "a guard on a symbol that is not in the region"
    assert not later.hold_for(symbols(two), symbols(three))


def test_guards_on_several_symbols(sizes):
    one, two, three = sizes
    with Guards(sizes) as guards:
        assert one < two
    assert guards.hold_for(symbols(one, two), symbols(one, three))
    assert guards.hold_for(symbols(one, two), symbols(two, three))
    assert not guards.hold_for(symbols(one, two), symbols(three, two))
    assert not guards.hold_for(symbols(one, two), symbols(two, one)), "all symbols are replaced at once"


def test_sizes_that_are_one_symbol_in_one_region_alone(sizes):
    one, two, three = sizes
    with Guards(sizes) as guards:
        pass
    assert guards.hold_for(symbols(one, two), symbols(three, three)), "two equal sizes are two sizes"
    assert not guards.hold_for(symbols(one, one), symbols(two, three)), "the function may use either for both"


def test_the_same_symbols(sizes):
    with Guards(sizes) as guards:
        assert sizes[0] % 16 == 0
    assert guards.hold_for(symbols(sizes[0]), symbols(sizes[0]))


def test_no_symbols():
    with Guards([]) as guards:
        pass
    assert guards.hold_for([], [])
