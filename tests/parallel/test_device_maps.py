"""accelerate's device maps: hooks that move inputs, weights that are loaded at each call, caches that move."""

from __future__ import annotations

import io

import pytest
import torch
from torch._dynamo.utils import counters

from innerq_compile import InnerQTensor, compiled_graphs, innerq
from tests.helpers.models import assert_same_tokens, generate, prompt, tiny_llama

accelerate = pytest.importorskip("accelerate")
LAYERS, NEW = 2, 4


@pytest.fixture(autouse=True)
def fresh(graphs_as_they_are):
    pass


def mapped(model, **devices):
    """The model, dispatched by a map of its layers (``layer_N=device``), everything else on the CPU."""
    layers = {f"model.layers.{n}": devices.get(f"layer_{n}", "cpu") for n in range(LAYERS)}
    rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    return accelerate.dispatch_model(model, {**rest, **layers}, main_device="cpu", force_hooks=True)


def test_hooks_that_move_inputs_break_no_graph():
    inputs = prompt(2, 210, (0, 23))
    model = tiny_llama(layers=LAYERS)
    expected, logits, _ = generate(model, inputs, NEW)
    model = innerq(mapped(model), preset="lossless")
    tokens, ours, cache = generate(model, inputs, NEW)
    assert_same_tokens(tokens, ours, expected, logits, torch.float32)
    assert [(report.kind, report.rewritten) for report in compiled_graphs()] == [
        ("prefill", LAYERS),
        ("decode", LAYERS),
    ]
    assert all(isinstance(layer.keys, InnerQTensor) for layer in cache.layers)


def test_offloaded_weights_are_loaded_between_graphs():
    inputs = prompt(1, 170)
    model = tiny_llama(layers=1)
    expected, logits, _ = generate(model, inputs, NEW)
    accelerate.cpu_offload(model.model.layers[0].self_attn, execution_device=torch.device("cpu"))
    assert model.model.layers[0].self_attn.q_proj.weight.is_meta
    innerq(model, preset="lossless")
    tokens, ours, cache = generate(model, inputs, NEW)
    assert_same_tokens(tokens, ours, expected, logits, torch.float32)
    assert isinstance(cache.layers[0].keys, InnerQTensor)
    assert [r.kind for r in compiled_graphs() if r.rewritten] == ["prefill", "decode"]


@torch.no_grad()
def test_many_modules_are_offloaded():
    """One wrapper breaks the graph in each of them. None of them runs uncompiled, however many there are."""
    model = torch.nn.Sequential(*(torch.nn.Linear(2 + index, 3 + index) for index in range(10)))
    x = torch.randn(1, 2)
    expected = model(x)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    counters.clear()
    innerq(model)
    with torch._dynamo.config.patch(recompile_limit=4):
        torch.testing.assert_close(model(x), expected)
    assert len(compiled_graphs()) >= 10
    assert not any("limit" in reason for reason in counters["unimplemented"])


@torch.no_grad()
def test_a_cache_that_was_away_between_steps():
    """Layers of a cache go to a file and come back, as an offloading cache sends them to another device."""
    inputs = prompt(2, 210)
    model = innerq(tiny_llama(layers=LAYERS), preset="base")
    out = [model(**inputs, use_cache=True), model(**inputs, use_cache=True)]
    for _ in range(3):
        for layer in out[1].past_key_values.layers:
            file = io.BytesIO()
            torch.save((layer.keys, layer.values), file)
            layer.keys, layer.values = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
        token = out[0].logits[:, -1:].argmax(-1)
        out = [model(token, past_key_values=past.past_key_values, use_cache=True) for past in out]
        torch.testing.assert_close(out[0].logits, out[1].logits, rtol=0, atol=0)
        assert all(isinstance(layer.keys, InnerQTensor) for layer in out[1].past_key_values.layers)
