"""Models of any head_dim, whose layers may differ in it, and models that no kernel supports."""

from __future__ import annotations

import pytest
import torch
import transformers

from innerq_compile import InnerQTensor, clear_reports, compiled_graphs, innerq
from innerq_compile.compiler.backend import innerq_backend
from innerq_compile.kernels.formats import MAX_HEAD_DIM
from innerq_compile.presets import PRESETS
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


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("full", "quantized"), [(512, [True, True]), (500, [True, True]), (600, [True, False])])
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
    refused = "a key cache of head_dim 600 cannot be quantized: allowed are 1 to 576"
    assert reasons == (set() if all(quantized) else {refused})


@pytest.mark.slow
def test_base_in_a_head_dim_of_512():
    model, inputs = gemma4(512), prompt(1, 300)
    _, logits, _ = generate(model, inputs, 4)
    innerq(model, preset="base")
    _, found, cache = generate(model, inputs, 4)
    assert cache.layers[1].keys.shape[-1] == 512 and cache.layers[1].keys.format.quantized
    assert (found[:, 1] - logits[:, 1]).norm() < 0.05 * logits[:, 1].norm()


def llama(head_dim: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**_SIZES, "head_dim": head_dim, "initializer_range": 0.2})
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("padding", [(), (0, 9)], ids=["whole", "padded"])
@pytest.mark.parametrize("head_dim", [36, 40, 100, 120, 464, MAX_HEAD_DIM])
def test_head_dims_that_are_no_power_of_two(head_dim, padding):
    """Some are no multiple of 16 either, as moonshine (36) and open_llama_3b (100) have them."""
    model, inputs = llama(head_dim), prompt(2, 150, padding)
    tokens, logits, _ = generate(model, inputs, 8)
    clear_reports()
    innerq(model, preset="lossless")
    found, found_logits, cache = generate(model, inputs, 8)
    assert_same_tokens(found, found_logits, tokens, logits, torch.float32)
    assert all(
        type(x) is InnerQTensor and x.shape[3] == head_dim for x in (cache.layers[0].keys, cache.layers[1].values)
    )
    assert all(report.rewritten == report.attentions == 2 for report in compiled_graphs())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"cache_implementation": "static"}], ids=lambda o: next(iter(o)))
def test_beams_and_static_caches(options):
    model, inputs = llama(100), prompt(1, 140)
    tokens, _, _ = generate(model, inputs, 6, **options)
    innerq(model, preset="lossless")
    found, _, _ = generate(model, inputs, 6, **options)
    assert torch.equal(found, tokens)


def test_an_attention_computed_in_a_wider_dtype():
    """Its output has the program's channels in the program's dtype, and its precision."""

    def program(q, k, v, keys, values):
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        weights = (q.double() @ keys.double().mT).softmax(-1)
        return weights @ values.double(), keys, values

    def run(step):
        torch.manual_seed(0)
        caches, outputs = (torch.zeros(2, 2, 0, 36), torch.zeros(2, 2, 0, 40)), []
        for tokens in (20, 1, 1):
            q, k, v = (torch.randn(2, 2, tokens, width) for width in (36, 36, 40))
            out, *caches = step(q, k, v, *caches)
            outputs.append(out)
        return outputs, caches

    expected, _ = run(program)
    torch._dynamo.reset()
    found, caches = run(torch.compile(program, backend=innerq_backend, options={"preset": "lossless"}))
    assert all(isinstance(cache, InnerQTensor) for cache in caches)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("key_norm", ["channel", "pair", "paper"])
def test_a_quantized_cache_with_zeros(key_norm):
    """Kernels find what the program's own attention finds on dequantized keys and values."""
    inputs = prompt(1, 300)
    _, expected, _ = generate(innerq(llama(100), preset="base", key_norm=key_norm, rewrite=False), inputs, 4)
    clear_reports()
    _, found, cache = generate(innerq(llama(100), preset="base", key_norm=key_norm), inputs, 4)
    fmt = cache.layers[0].keys.format
    assert fmt.quantized and fmt.zeros == 28
    assert fmt.norm == {"pair": "half100"}.get(key_norm, key_norm)
    assert all(report.rewritten == report.attentions == 2 for report in compiled_graphs())
    torch.testing.assert_close(found[:, :2], expected[:, :2], atol=1e-3 * float(expected.abs().max()), rtol=0)
    if key_norm == "pair":
        (decode,) = [report for report in compiled_graphs() if report.kind == "decode"]
        assert all(layer.key_norm.query == "projection" for layer in decode.layers)


@pytest.mark.sampled(16)
@pytest.mark.parametrize("head_dim", [36, 40, 100, 120, 464, 512])
@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - {"lossless"}))
def test_presets(preset, head_dim):
    """As above, in the formats of each preset, some of which hold other groups of channels."""
    model, inputs = llama(head_dim), prompt(2, 180, (0, 9))
    _, expected, _ = generate(innerq(model, preset=preset, rewrite=False), inputs, 4)
    torch._dynamo.reset()
    clear_reports()
    _, found, cache = generate(innerq(model, preset=preset), inputs, 4)
    sides = [side for layer in cache.layers for side in (layer.keys, layer.values)]
    assert all(isinstance(side, InnerQTensor) and side.format.quantized for side in sides)
    assert all(side.shape[-1] == head_dim for side in sides)
    assert all(report.rewritten == report.attentions == 2 for report in compiled_graphs())
    torch.testing.assert_close(found[:, :2], expected[:, :2], atol=1e-3 * float(expected.abs().max()), rtol=0)


def test_a_model_that_cannot_be_quantized_is_left_as_it_is(caplog):
    model, inputs = llama(MAX_HEAD_DIM + 8), prompt(1, 20)
    tokens, logits, _ = generate(model, inputs, 4)
    innerq(model)
    found, found_logits, cache = generate(model, inputs, 4)
    assert_same_tokens(found, found_logits, tokens, logits, torch.float32)
    assert not isinstance(cache.layers[0].keys, InnerQTensor)
    assert "nothing was rewritten" in caplog.text and "cannot be quantized: allowed are" in caplog.text
