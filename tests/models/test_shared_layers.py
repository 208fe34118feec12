"""Layers that read the cache of an earlier one, with and without a sliding window."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQTensor, clear_reports, compiled_graphs, innerq
from tests.helpers.models import assert_same_tokens, generate, prompt, windowed_model

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")

_LAYERS = {
    "head_dim": 16,
    "num_hidden_layers": 5,
    "num_kv_shared_layers": 2,
    "layer_types": [*["sliding_attention"] * 2, "full_attention", "sliding_attention", "full_attention"],
    "vocab_size_per_layer_input": 61,
    "hidden_size_per_layer_input": 16,
}
#: What differs, by model.
MODELS = {"Gemma3n": {"laurel_rank": 8, "activation_sparsity_pattern": [0.0] * 5}, "Gemma4": {"global_head_dim": 32}}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", MODELS)
def test_generate(name):
    model = windowed_model(f"{name}Text", 16, **_LAYERS, **MODELS[name])
    inputs = prompt(1, 12)
    tokens, logits, _ = generate(model, inputs, 16)
    clear_reports()
    innerq(model, preset="lossless")
    found, found_logits, cache = generate(model, inputs, 16)
    assert_same_tokens(found, found_logits, tokens, logits, torch.float32)
    assert [isinstance(layer.keys, InnerQTensor) for layer in cache.layers] == [True] * 3 + [False] * 2
    assert all(graph.rewritten == graph.attentions == 5 for graph in compiled_graphs())
    windows = [layer.window for layer in compiled_graphs()[-1].layers]
    assert [bool(window) for window in windows] == [True, True, False, True, False]
