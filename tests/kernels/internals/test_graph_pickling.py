"""Graphs as bytes: with the graphs that were made of them, and values that hold nodes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.fx import GraphModule, Node

from innerq_compile.kernels.internals.graph_pickling import Loaded, NotPicklable, dump, load
from innerq_compile.kernels.internals.graphs import as_size


@dataclasses.dataclass
class Found:
    """What passes may leave: nodes of a copy, a node that is erased from it, and the copy itself."""

    copy: GraphModule
    inputs: list[Node]
    erased: Node
    length: Any


@pytest.fixture
def loaded(fresh_dynamo) -> tuple[GraphModule, Found, Loaded]:
    """A graph of Dynamo with a copy of it, and both again."""
    results: list[Any] = []

    def backend(gm: GraphModule, inputs: list[Any]) -> Any:
        copy = GraphModule(torch.nn.Module(), torch.fx.Graph())
        nodes: dict[Node, Any] = {}
        copy.graph.output(copy.graph.graph_copy(gm.graph, nodes))
        for old, new in nodes.items():
            new.meta = dict(old.meta)
        erased = next(node for node in copy.graph.nodes if node.target is torch.cos)
        (used,) = erased.args
        erased.replace_all_uses_with(used)
        copy.graph.erase_node(erased)
        size = next(
            node.meta["example_value"]
            for node in gm.graph.nodes
            if isinstance(node.meta.get("example_value"), torch.SymInt)
        )
        found = Found(copy, copy.graph.find_nodes(op="placeholder"), erased, as_size(size.node.expr, size) * 2)
        results.extend((gm, found, load(dump(gm, inputs, [copy], found))))
        return gm.forward

    torch.compile(lambda x: (torch.cos(torch.sin(x)), x.sum()), backend=backend, dynamic=True)(torch.ones(3, 4))
    return tuple(results)


def test_graphs_that_were_made_of_a_graph(loaded):
    gm, found, again = loaded
    value = again.value
    assert str(again.gm.graph) == str(gm.graph)
    assert value.copy is not again.gm and str(value.copy.graph) == str(found.copy.graph) != str(gm.graph)
    assert [node.graph for node in value.inputs] == [value.copy.graph] * len(found.inputs)
    assert [node.name for node in value.inputs] == [node.name for node in found.inputs]
    for node in (*again.gm.graph.nodes, *value.copy.graph.nodes):
        example = node.meta.get("example_value")
        assert not isinstance(example, torch.Tensor) or example.fake_mode is again.mode
    assert str(value.length.node.expr) == str(found.length.node.expr)
    assert value.length.node.shape_env is again.mode.shape_env


def test_a_node_that_was_erased_has_a_name_and_a_value(loaded):
    _, found, again = loaded
    erased = again.value.erased
    assert (erased.name, erased.target, erased.args) == (found.erased.name, torch.cos, ())
    assert erased not in again.value.copy.graph.nodes
    assert tuple(erased.meta["example_value"].shape) == tuple(found.erased.meta["example_value"].shape)


def test_only_graphs_of_dynamo_are_marked_as_such(loaded):
    """AOTAutograd expects the inputs of those to have sources, which other graphs lack."""
    _, _, again = loaded
    assert hasattr(again.gm, "_param_name_to_source") and "dynamo_compile_id" in again.gm.meta
    assert not hasattr(again.value.copy, "_param_name_to_source")
    assert "dynamo_compile_id" not in again.value.copy.meta


def test_attributes_in_the_order_that_they_had(loaded):
    """AOTAutograd's key is a pickle of the module's attributes; Dynamo's modules write their code later than others."""
    _, found, again = loaded

    def attributes(gm: GraphModule) -> list[str]:
        return list(gm.__reduce__()[1][0])

    assert attributes(again.value.copy) == attributes(found.copy) != attributes(again.gm)


@pytest.mark.parametrize(
    "value", [torch.ones(1), GraphModule(torch.nn.Module(), torch.fx.Graph())], ids=["tensor", "graph"]
)
def test_what_cannot_be_kept(value, fresh_dynamo):
    raised = []

    def backend(gm, inputs):
        with pytest.raises(NotPicklable) as error:
            dump(gm, inputs, (), value)
        raised.append(error)
        return gm.forward

    torch.compile(lambda x: x + 1, backend=backend, dynamic=True)(torch.ones(3))
    assert raised
