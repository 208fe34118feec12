"""Nodes that passes put in: where they stand, what is noted on them, how arguments of others are replaced."""

from __future__ import annotations

import operator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import innerq_compile.kernels.ops  # noqa: F401  (registers the operators)
from innerq_compile.passes.graph.reading import op_name, outputs, read
from innerq_compile.passes.graph.values import example, has_example, set_example, shape
from innerq_compile.passes.graph.writing import Writer, replace_argument, set_argument, size_node


@pytest.fixture
def graph() -> Graph:
    """``x [2, S]``, ``s``, ``y = x + x``, returned."""
    graph, mode = Graph(), FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.STATIC, DimDynamic.DYNAMIC])
    x = mode.from_tensor(torch.zeros(2, 5), symbolic_context=context)
    write = Writer(graph)
    nodes = [write.placeholder("x", x), write.placeholder("s", x.shape[1])]
    write.call(operator.add, nodes[0], nodes[0])
    graph.output((list(graph.nodes)[-1],))
    return graph


def names(graph: Graph) -> list[str]:
    return [node.name for node in graph.nodes]


def test_examples_are_known_at_once(graph):
    x, s, y, _ = graph.nodes
    write = Writer(graph)
    with write.before(graph.output_node()):
        half = write.method("to", y, torch.float16)
        column = write.method("reshape", half, (s, 2))
        count = write.size(x, 1)
    assert isinstance(example(half), FakeTensor) and example(half).dtype == torch.float16
    assert example(half).fake_mode is example(x).fake_mode
    assert shape(column) == (example(s), 2)
    assert write.size(x, 0) == 2 and op_name(count) == "size" and example(count) is not None


def test_padding_leaves_symbols_as_they_are(graph):
    """Without torch's Python kernels, an example of padded channels makes the number of tokens a constant."""
    x, s, _, _ = graph.nodes
    tokens, write = x.meta["example_value"].t(), Writer(graph)
    column = write.placeholder("column", tokens)
    with write.before(graph.output_node()):
        padded = write.call(torch.constant_pad_nd, column, (0, 6))
    assert shape(padded) == (example(s), 8) and isinstance(example(s), torch.SymInt)
    assert not example(s).node.shape_env.guards


def test_arithmetic_of_python_is_written_as_nodes(graph):
    _, s, _, _ = graph.nodes
    write = Writer(graph)
    with write.before(graph.output_node()):
        blocks = ((write.traced(s) + 31) // 32).node
    assert str(example(blocks)) == str((example(s) + 31) // 32)
    assert all(has_example(node) for node in graph.nodes if node.op != "output")


def test_places(graph):
    x, _, y, _ = graph.nodes
    write = Writer(graph)
    with write.after(x):
        write.method("neg", x)
        write.method("abs", x)
    with write.before(y):
        write.method("exp", x)
    assert names(graph) == ["x", "neg", "abs_1", "s", "exp", "add", "output"]


def test_a_node_that_stands_for_another_has_its_origin_and_a_value_of_its_own(graph):
    _, _, y, _ = graph.nodes
    y.meta["stack_trace"] = "line 7"
    write = Writer(graph)
    with write.before(graph.output_node()):
        new = write.method("to", y, torch.float16, like=y)
    assert new.meta["stack_trace"] == "line 7" and example(new).dtype == torch.float16
    assert example(y).dtype == torch.float32
    write.replace(y, new, lambda user: user.op == "output")
    assert outputs(graph) == (new,) and new.all_input_nodes == [y]


def test_a_value_that_cannot_be_computed_is_left_out(graph, caplog):
    x, _, y, _ = graph.nodes
    write = Writer(graph)
    with caplog.at_level("DEBUG", "innerq_compile.passes"), write.before(graph.output_node()):
        wrong = write.method("reshape", x, (7, 7, 7), like=y)
        behind = write.method("neg", wrong)
    assert not has_example(wrong) and not has_example(behind)
    assert len([record for record in caplog.records if "no example" in record.message]) == 2


def test_arguments_are_replaced_as_they_are_spelled(graph):
    x, _, y, _ = graph.nodes
    write = Writer(graph)
    with write.before(graph.output_node()):
        nodes = [
            write.call(torch.add, x, y),
            write.call(torch.add, x, other=y),
            write.call(torch.add, input=x, x2=y),
            write.call(torch.ops.aten.add.Tensor, self=x, other=y),
        ]
    for node in nodes:
        call = read(node)
        assert call is not None
        set_argument(call, "other", 3)
        replace_argument(node, "input", y)
        call = read(node)
        assert call is not None and (call["input"], call["other"]) == (y, 3)
    with pytest.raises(ValueError, match="not recognized"):
        replace_argument(x, "input", y)


def test_dead_nodes_go_with_what_only_they_used(graph):
    x, _, y, _ = graph.nodes
    write = Writer(graph)
    with write.before(graph.output_node()):
        exp = write.method("exp", x)
        dead = write.method("neg", exp)
        kept = write.method("neg_", y)
    write.erase_dead([dead, kept])
    assert names(graph) == ["x", "s", "add", "neg_", "output"]


def test_writes_to_what_nothing_else_uses_are_dead(graph):
    """Behind ``scores /= 4``, and not if the tensor is used elsewhere, or is a view or an input of the program."""
    x, _, y, _ = graph.nodes
    write = Writer(graph)
    with write.before(graph.output_node()):
        own, used = (write.method("exp", x) for _ in range(2))
        view = write.method("transpose", x, 0, 1)
        write.replace(y, write.method("add", y, write.method("sum", used)), lambda user: user.op == "output")
        turned = write.call(torch.einsum, "ij->ji", x)
        writes = [write.method("mul_", tensor, 2) for tensor in (own, used, view, turned, x)]
        writes[0] = write.method("add_", writes[0], 1)
    write.erase_dead(writes)
    assert own not in graph.nodes and used in graph.nodes and view in graph.nodes
    assert [node for node in writes if node in graph.nodes] == writes[1:]


def test_sizes_are_inputs_that_carry_them(graph):
    x, s, _, _ = graph.nodes
    size = shape(x)[1]
    assert size_node(graph, 3) == 3 and size_node(graph, size) is s
    with pytest.raises(KeyError, match="no input"):
        size_node(graph, size + 1)


def test_sizes_are_computed_from_inputs_that_carry_their_symbols(graph):
    _, s, _, _ = graph.nodes
    write, size = Writer(graph), example(s)
    with write.before(graph.output_node()):
        assert write.number(7) == 7 and write.number(size) is s
        longer = write.number(2 * size + 3)
        assert str(example(longer)) == str(2 * size + 3) and len(longer.all_input_nodes) == 1
        with pytest.raises(KeyError, match="no input of the graph is the size"):
            write.number(size // 2)


def test_a_size_of_a_symbol_that_no_input_has(graph):
    _, s, _, _ = graph.nodes
    size = example(s)
    graph.erase_node(s)
    before = names(graph)
    with pytest.raises(KeyError, match="no input of the graph is the size"):
        Writer(graph).number(size + 1)
    assert names(graph) == before


def test_outputs(graph):
    x, _, _, _ = graph.nodes
    Writer(graph).set_outputs([x, 3])
    assert outputs(graph) == (x, 3)


def test_examples_are_not_computed_from_unknown_ones(graph):
    x, _, _, _ = graph.nodes
    write = Writer(graph)
    bare = graph.placeholder("bare")
    node = write.call(operator.add, x, bare)
    assert not has_example(node)
    set_example(bare, example(x))
    assert has_example(write.call(operator.add, x, bare))
