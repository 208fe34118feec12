"""Families whose attention is not rewritten: dense caches, tokens of the uncompiled model, and a reason in words."""

from __future__ import annotations

import pytest
import torch
import transformers

from innerq_compile import InnerQTensor, compiled_graphs, innerq
from tests.helpers.families import _HEAD_DIM, Family
from tests.helpers.models import assert_same_tokens, generate, prompt

DIFFERENTIAL = Family("DiffLlama", "DiffLlamaForCausalLM", _HEAD_DIM)


@pytest.mark.skipif(not hasattr(transformers, DIFFERENTIAL.model), reason="this transformers has no such family")
@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("attn", DIFFERENTIAL.attn)
def test_values_in_halves_of_their_heads(attn):
    """All heads of keys are read with each half of the heads of values."""
    model, inputs = DIFFERENTIAL.build(attn), prompt(2, 40, (0, 7))
    tokens, logits, _ = generate(model, inputs, 8)
    found, found_logits, cache = generate(innerq(model, preset="lossless"), inputs, 8)
    assert_same_tokens(found, found_logits, tokens, logits, torch.float32)
    assert not any(isinstance(side, InnerQTensor) for layer in cache.layers for side in (layer.keys, layer.values))
    reports = compiled_graphs()
    assert reports and not any(report.rewritten for report in reports)
    reasons = {reason.text for report in reports for reason in report.reasons}
    assert reasons == {"keys and values are not read by the same heads of the query"}
