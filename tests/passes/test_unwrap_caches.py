"""Each quantized cache among the inputs gets placeholders for its inner tensors."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQConfig
from innerq_compile.kernels.internals.dynamo_graphs import source_of
from innerq_compile.passes import PassContext
from innerq_compile.passes.graph.values import example
from innerq_compile.passes.unwrap_caches import unwrap_caches
from tests.helpers.programs import LateTransposing, TinyAttention, capture

pytestmark = pytest.mark.usefixtures("no_inductor")


@pytest.mark.parametrize(("model", "tokens_dim"), [(TinyAttention(), 2), (LateTransposing(), 1)])
def test_a_step(model, tokens_dim):
    config = InnerQConfig.preset("base", normalize_keys=False)
    calls = (lambda _: (torch.randn(2, 5, 32),), lambda last: (torch.randn(2, 1, 32), last[1]))
    gm, inputs = capture(model, *calls, config=config)[-1]
    before = gm.graph.find_nodes(op="placeholder")
    context = PassContext(config)
    unwrap_caches(gm, context)
    (key, value) = context.caches.values()
    assert (key.format.role, value.format.role) == ("key", "value")
    assert {*key.tensors.present()} >= {"codes", "scales", "window", "state", "mean"} and key.tensors.norm is None
    assert [*value.tensors.present()] == ["codes", "scales", "window", "state"]
    for cache in (key, value):
        assert cache.tokens_dim == tokens_dim and before[cache.index] is cache.placeholder
        storage = inputs[cache.index]._storage
        for name, node in cache.tensors.present().items():
            held = getattr(storage.tensors, name)
            assert (tuple(example(node).shape), example(node).dtype) == (tuple(held.shape), held.dtype), name
            assert source_of(node) is not None
    added = gm.graph.find_nodes(op="placeholder")[len(before) :]
    assert added == [*key.tensors, *value.tensors]


def test_a_graph_without_caches_stays_as_it_is():
    config = InnerQConfig()
    ((gm, _),) = capture(TinyAttention(), lambda _: (torch.randn(2, 5, 32),), config=config)
    nodes, context = list(gm.graph.nodes), PassContext(config)
    assert list(unwrap_caches(gm, context).graph.nodes) == nodes and not context.caches
