"""Differential attention: the same keys and queries attend to each half of the heads of values."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import StaticCache

from innerq_compile import InnerQTensor, clear_reports, compiled_graphs, innerq
from tests.helpers.families import ATTN, family
from tests.helpers.generation import assert_all_rewritten, assert_same_logits, feed
from tests.helpers.models import assert_same_tokens, generate, prompt

MODEL = "DiffLlamaForCausalLM"
#: KV heads, and heads of the query: halves of one head and of two, with and without grouped queries.
HEADS = [(2, 4), (4, 8), (4, 4)]

pytestmark = [
    pytest.mark.skipif(not hasattr(transformers, MODEL), reason="this transformers has no such family"),
    pytest.mark.usefixtures("graphs_as_they_are"),
]


def build(attn, heads=(4, 8)):
    return family(MODEL).build(attn, num_key_value_heads=heads[0], num_attention_heads=heads[1], head_dim=16)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("attn", ATTN)
def test_generates_what_the_uncompiled_model_does(attn, heads):
    model, inputs = build(attn, heads), prompt(2, 40, (0, 7))
    tokens, logits, _ = generate(model, inputs, 8)
    found, found_logits, cache = generate(innerq(model, preset="lossless"), inputs, 8)
    assert_same_tokens(found, found_logits, tokens, logits, torch.float32)
    assert all(isinstance(side, InnerQTensor) for layer in cache.layers for side in (layer.keys, layer.values))
    reports = compiled_graphs()
    assert {report.kind for report in reports} == {"prefill", "decode"}
    found = [(report.attentions, report.rewritten, [*report.reasons]) for report in reports]
    assert found == [(4, 4, [])] * len(reports)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("key_norm", ["pair", "channel"])
@pytest.mark.parametrize("preset", ["base", "int4", "tiny"])
def test_quantized_caches_give_what_the_model_computes_from_them_dequantized(preset, key_norm):
    inputs = prompt(2, 300, (0, 9))
    options = {"preset": preset, "key_norm": key_norm}
    _, expected, _ = generate(innerq(build("sdpa"), **options, rewrite=False), inputs, 4)
    torch._dynamo.reset()
    clear_reports()
    _, found, cache = generate(innerq(build("sdpa"), **options), inputs, 4)
    assert all(layer.values.format.quantized for layer in cache.layers)
    torch.testing.assert_close(found[:, :2], expected[:, :2], atol=1e-3 * float(expected.abs().max()), rtol=0)
    (decode,) = [report for report in compiled_graphs() if report.kind == "decode"]
    assert (decode.attentions, decode.rewritten) == (4, 4)
    # both attentions of a layer read the same normalized query
    assert key_norm == "channel" or all(layer.key_norm.query == "projection" for layer in decode.layers)


@pytest.mark.parametrize("attn", ATTN)
def test_static_cache(attn):
    eager, compiled, sizes = build(attn), innerq(build(attn), preset="lossless"), [9, 1, 1, 3, 1]
    ids = torch.randint(2, 61, (2, sum(sizes)))
    caches = [StaticCache(config=eager.config, max_cache_len=40) for _ in range(2)]
    expected, found = (feed(model, ids, cache, sizes) for model, cache in zip((eager, compiled), caches, strict=True))
    assert_same_logits(found, expected)
    assert_all_rewritten()
    for layer, other in zip(caches[1].layers, caches[0].layers, strict=True):  # the user's buffers stay right
        assert_same_logits(layer.values, other.values)
