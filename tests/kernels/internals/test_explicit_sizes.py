"""Guards on sizes of tensors are checked where compiled code is found on disk."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch._dynamo.utils import counters
from torch._inductor.lowering import lowerings, register_lowering
from torch._inductor.utils import fresh_cache
from torch._inductor.virtualized import V
from torch.fx import Graph, GraphModule, Node

from innerq_compile.kernels.internals import inductor
from innerq_compile.kernels.internals.dynamo_graphs import copy_notes
from innerq_compile.kernels.internals.explicit_sizes import Place, hidden_sizes


@torch.library.custom_op("innerq_test::by_size", mutates_args=())
def by_size(x: torch.Tensor) -> torch.Tensor:
    """Stands for what Inductor compiles in one way for small tensors and in another for large ones."""
    raise AssertionError("compiled code has the lowering")


@by_size.register_fake
def _(x):
    return torch.empty_like(x)


@register_lowering(torch.ops.innerq_test.by_size.default)
def _lower(x):
    small = V.graph.sizevars.evaluate_expr(sympy.Le(x.get_size()[0], 100))
    return lowerings[torch.ops.aten.mul.Tensor](x, 2.0 if small else 3.0)


def program(x: torch.Tensor) -> torch.Tensor:
    return torch.ops.innerq_test.by_size(x) + 1


def without_numbers(gm: GraphModule, inputs: list) -> tuple[GraphModule, list]:
    """The graph without inputs that are numbers, as rewritten graphs lack the capacity of a cache."""
    graph, nodes, kept = Graph(), {}, []
    values = iter(inputs)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            value = next(values)
            if isinstance(value, torch.SymInt):
                assert not node.users
                continue
            kept.append(value)
        nodes[node] = graph.node_copy(node, nodes.__getitem__)
    made = GraphModule(gm, graph)
    copy_notes(gm, made, {node: copy for node, copy in nodes.items() if isinstance(copy, Node)})
    return made, kept


@pytest.mark.parametrize("is_captured", [True, False])
def test_code_for_small_tensors_is_not_taken_for_large_ones(is_captured):
    hidden = []

    def backend(gm, inputs):
        if not is_captured:
            gm, inputs = without_numbers(gm, inputs)
        before = list(gm.graph.nodes)
        hidden.append(list(hidden_sizes(gm)))
        compiled = inductor.compile_graph(gm, inputs, {})
        assert list(gm.graph.nodes) == before
        return compiled if is_captured else lambda *values: compiled(*filter(torch.is_tensor, values))

    with fresh_cache():
        for size, factor in ((50, 2.0), (200, 3.0), (60, 2.0)):
            torch._dynamo.reset()
            counters.clear()
            x = torch.randn(size, 8)
            torch._dynamo.mark_dynamic(x, 0)
            out = torch.compile(program, backend=backend)(x)
            torch.testing.assert_close(out, factor * x + 1)
        assert counters["inductor"]["fxgraph_cache_hit"] == 1  # the third time, that of the first
    assert hidden == [[] if is_captured else [Place(0, 0, 1, 0)]] * 3


def test_symbols_of_which_only_a_multiple_is_a_size():
    def backend(gm, inputs):
        graph = Graph()
        x = graph.placeholder("x")
        size = next(one for one in inputs if isinstance(one, torch.SymInt))
        tensor = next(node.meta["example_value"] for node in gm.graph.nodes if "x" in node.name)
        x.meta["example_value"] = tensor.new_empty(2 * size + 3, 8)
        graph.output((graph.call_function(torch.ops.innerq_test.by_size, (x,)),))
        ((place, symbol),) = hidden_sizes(GraphModule(torch.nn.Module(), graph)).items()
        assert place == Place(0, 0, 2, 3) and symbol.node.expr == size.node.expr and symbol.node.hint == 50
        assert place.value([torch.empty(2 * 7 + 3, 8)]) == 7
        return gm.forward

    torch._dynamo.reset()
    x = torch.randn(50, 8)
    torch._dynamo.mark_dynamic(x, 0)
    torch.compile(lambda x: x + x.shape[0], backend=backend)(x)
