"""Models whose layers are compiled one by one, by ``torch.compile``, ``innerq`` or accelerate's ``compile_regions``.

Each layer has graphs of its own: its place in the cache is a constant of its graph.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch._dynamo.utils import counters

from innerq_compile import InnerQTensor, compiled_graphs, innerq
from tests.helpers.generation import run
from tests.helpers.models import prompt, tiny_llama

LAYERS = 32
#: torch 2.11 and 2.12 cannot keep the graphs of layers apart.
ISOLATED = {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}


def by_innerq(model):
    for layer in model.model.layers:
        innerq(layer, preset="lossless")
    return model


def by_torch(model):
    for layer in model.model.layers:
        layer.compile(backend="innerq", options={"preset": "lossless"}, **ISOLATED)
    return model


def by_accelerate(model):
    utils = pytest.importorskip("accelerate.utils")
    return utils.compile_regions(model, backend="innerq", options={"preset": "lossless"}, **ISOLATED)


def quantized(cache) -> int:
    return sum(isinstance(layer.keys, InnerQTensor) for layer in cache.layers)


@pytest.mark.skipif(not ISOLATED, reason="this torch has one limit for all layers")
@pytest.mark.parametrize("way", [by_innerq, pytest.param(by_torch, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layers", [10, pytest.param(LAYERS, marks=pytest.mark.slow)])
def test_each_layer(layers, way, graphs_as_they_are):
    """A graph of the prompt and one of decode for each layer, and none for later prompts beyond a second length."""
    model, inputs = tiny_llama(layers=layers, head_dim=16), prompt(1, 40)
    expected = run(model, inputs, 6).sequences
    way(model)
    out = run(model, inputs, 6)
    assert torch.equal(out.sequences, expected)
    assert quantized(out.past_key_values) == layers
    kinds = [str(report.kind) for report in compiled_graphs()]
    assert kinds.count("prefill") == kinds.count("decode") == layers
    assert quantized(run(model, prompt(1, 25), 4).past_key_values) == layers
    known = len(compiled_graphs())
    assert known <= 3 * layers
    assert quantized(run(model, prompt(1, 33), 4).past_key_values) == layers
    assert len(compiled_graphs()) == known


@pytest.mark.slow
@pytest.mark.skipif(not ISOLATED, reason="this torch has one limit for all layers")
def test_regions_of_accelerate(graphs_as_they_are):
    model, inputs = tiny_llama(layers=LAYERS, head_dim=16), prompt(1, 40)
    expected = run(model, inputs, 6).sequences
    out = run(by_accelerate(model), inputs, 6)
    assert torch.equal(out.sequences, expected)
    assert quantized(out.past_key_values) == LAYERS


def test_layers_that_share_graphs(graphs_as_they_are):
    """More of them than Dynamo's own limit: all have quantized caches."""
    model, inputs = tiny_llama(layers=12, head_dim=16), prompt(1, 40)
    expected = run(model, inputs, 6).sequences
    for layer in model.model.layers:
        layer.compile(backend="innerq", options={"preset": "lossless"})
    counters.clear()
    out = run(model, inputs, 6)
    assert torch.equal(out.sequences, expected)
    assert quantized(out.past_key_values) == 12 > torch._dynamo.config.recompile_limit
    assert not any("limit" in reason for reason in counters["unimplemented"])
