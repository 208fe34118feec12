"""The trained model of the demo generates with a quantized cache what it generates without."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from innerq_compile import InnerQConfig, InnerQTensor, innerq
from tests.helpers.models import assert_close_in_rms, generate, reference_logits

pytestmark = pytest.mark.slow
pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def smollm2():
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
    import smollm2

    model, tokenizer = smollm2.load(torch.float32)
    inputs = tokenizer([smollm2.prose()[:4000]], return_tensors="pt")
    return model, {name: inputs[name][:, :400] for name in ("input_ids", "attention_mask")}


def test_lossless_generates_what_eager_generates(smollm2):
    model, inputs = smollm2
    expected, expected_logits, _ = generate(model, inputs, 40)
    torch._dynamo.reset()
    innerq(model, preset="lossless")
    tokens, logits, cache = generate(model, inputs, 40)
    model._compiled_call_impl = None
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(logits, expected_logits, atol=2e-3, rtol=1e-3)
    assert all(isinstance(layer.keys, InnerQTensor) for layer in cache.layers)


def test_base_generates_what_the_reference_generates(smollm2):
    model, inputs = smollm2
    torch._dynamo.reset()
    innerq(model, preset="base")
    tokens, logits, cache = generate(model, inputs, 40)
    model._compiled_call_impl = None
    dense = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers) * 4
    assert sum(layer.keys.nbytes_held + layer.values.nbytes_held for layer in cache.layers) < 0.6 * dense
    expected = reference_logits(model, inputs, tokens, InnerQConfig.preset("base"))
    assert_close_in_rms(logits, expected)
