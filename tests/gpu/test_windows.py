"""Steps of models with sliding windows are recorded, below the window, at its border and behind it."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQTensor, clear_reports, compiled_graphs, innerq
from tests.helpers.models import windowed_model

pytestmark = pytest.mark.gpu

_ALTERNATING = {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}
#: By name: window, what else is set, and how the sliding layer is held.
MODELS = {
    "Gemma3Text": (48, _ALTERNATING, "rolling"),
    "GptOss": (48, {**_ALTERNATING, "num_local_experts": 4, "num_experts_per_tok": 2}, "rolling"),
    "Mistral": (1100, {"head_dim": 16}, "none"),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("before", [6, -30], ids=["across the border", "behind it"])
def test_generate(name, before):
    torch._dynamo.reset()
    clear_reports()
    window, others, held = MODELS[name]
    model = windowed_model(name, window, "cuda", **others)
    ids = torch.randint(2, 61, (1, window - before), device="cuda")
    arguments = {"max_new_tokens": 50, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(ids, **arguments)
    innerq(model, preset="lossless")
    for _ in range(2):
        found = model.generate(ids, **arguments)
        torch.testing.assert_close(found.logits, expected.logits, atol=2e-3, rtol=1e-2)
    assert found.past_key_values.layers[0].keys.format.mode == held
    assert all(isinstance(layer.keys, InnerQTensor) for layer in found.past_key_values.layers)
    decode = [graph for graph in compiled_graphs() if graph.kind == "decode"]
    assert all(graph.rewritten == graph.attentions for graph in decode)
    assert all(0 < graph.recorded < 8 for graph in decode if graph.calls > 8), [str(g.cuda_graphs) for g in decode]


@pytest.mark.parametrize("name", MODELS)
def test_generate_with_a_static_cache(name):
    torch._dynamo.reset()
    clear_reports()
    window, others, _ = MODELS[name]
    model = windowed_model(name, window, "cuda", **others)
    ids = torch.randint(2, 61, (1, window - 12), device="cuda")
    arguments = {"max_new_tokens": 50, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    arguments["cache_implementation"] = "static"
    expected = model.generate(ids, disable_compile=True, **arguments)
    innerq(model, preset="lossless")
    for _ in range(2):
        found = model.generate(ids, **arguments)
        torch.testing.assert_close(found.logits, expected.logits, atol=2e-3, rtol=1e-2)
    decode = [graph for graph in compiled_graphs() if graph.kind == "decode"]
    assert len(decode) == 2 and all(graph.rewritten == graph.attentions for graph in decode)
    assert all(0 < graph.recorded < 8 for graph in decode if graph.calls > 8), [str(g.cuda_graphs) for g in decode]
