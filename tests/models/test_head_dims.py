"""Models whose layers differ in head_dim, and one with a head_dim that no kernel supports."""

from __future__ import annotations

import pytest
import torch
import transformers

from innerq_compile import InnerQTensor, clear_reports, compiled_graphs, innerq
from tests.helpers.models import assert_same_tokens, generate, prompt

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")

_SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "eos_token_id": None,
    "bos_token_id": 1,
    "pad_token_id": 0,
}


def gemma4(full: int) -> torch.nn.Module:
    """A sliding layer of head_dim 256, as the published models have, and a full one of head_dim ``full``."""
    config = transformers.Gemma4TextConfig(
        **_SIZES,
        global_head_dim=full,
        layer_types=["sliding_attention", "full_attention"],
        vocab_size_per_layer_input=61,
        hidden_size_per_layer_input=16,
    )
    torch.manual_seed(0)
    return transformers.Gemma4ForCausalLM(config).eval()


@pytest.mark.parametrize(("full", "quantized"), [(512, [True, True]), (500, [True, False])])
def test_layers_that_differ(full, quantized):
    """Of layers that no kernel supports the caches stay dense; the others' do not."""
    model, inputs = gemma4(full), prompt(2, 40)
    tokens, logits, _ = generate(model, inputs, 6)
    clear_reports()
    innerq(model, preset="lossless")
    found, found_logits, cache = generate(model, inputs, 6)
    assert_same_tokens(found, found_logits, tokens, logits, torch.float32)
    assert [isinstance(layer.keys, InnerQTensor) for layer in cache.layers] == quantized
    reports = compiled_graphs()
    assert {report.kind for report in reports} == {"prefill", "decode"}
    assert all(report.rewritten == sum(quantized) for report in reports)
    reasons = {reason.text for report in reports for reason in report.reasons}
    refused = "a key cache of head_dim 500 cannot be quantized: allowed are multiples of 16 up to 576"
    assert reasons == (set() if all(quantized) else {refused})


def test_base_in_a_head_dim_of_512():
    model, inputs = gemma4(512), prompt(1, 300)
    _, logits, _ = generate(model, inputs, 4)
    innerq(model, preset="base")
    _, found, cache = generate(model, inputs, 4)
    assert cache.layers[1].keys.shape[-1] == 512 and cache.layers[1].keys.format.quantized
    assert (found[:, 1] - logits[:, 1]).norm() < 0.05 * logits[:, 1].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_model_that_cannot_be_quantized_is_left_as_it_is(dtype, caplog):
    """That of open_llama_3b, head_dim 100; and any model in float64."""
    head_dim = 100 if dtype == torch.float32 else 32
    config = transformers.LlamaConfig(**{**_SIZES, "head_dim": head_dim})
    model, inputs = transformers.LlamaForCausalLM(config).eval().to(dtype), prompt(1, 20)
    tokens, logits, _ = generate(model, inputs, 4)
    innerq(model)
    found, found_logits, cache = generate(model, inputs, 4)
    assert_same_tokens(found, found_logits, tokens, logits, torch.float32)
    assert not isinstance(cache.layers[0].keys, InnerQTensor)
    assert "nothing was rewritten" in caplog.text and "cannot be quantized: allowed are" in caplog.text
