"""Encoder-decoder models: self-attention appends to its cache, cross-attention reads one that never grows."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from innerq_compile import InnerQTensor, compiled_graphs, innerq

COMMON = {"vocab_size": 61, "d_model": 32, "pad_token_id": 0, "eos_token_id": None}


def t5():
    config = transformers.T5Config(**COMMON, d_kv=16, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config), {"input_ids": torch.randint(1, 61, (2, 12))}


def whisper():
    config = transformers.WhisperConfig(
        **COMMON,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=20,
        max_target_positions=60,
        bos_token_id=1,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return transformers.WhisperForConditionalGeneration(config), {"input_features": torch.randn(2, 8, 40)}


def prophetnet():
    heads = {"num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2}
    sizes = {"vocab_size": 61, "hidden_size": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 2, "max_position_embeddings": 64}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "decoder_start_token_id": 1}
    config = transformers.ProphetNetConfig(**sizes, **heads, **layers, **tokens)
    return transformers.ProphetNetForConditionalGeneration(config), {"input_ids": torch.randint(2, 61, (2, 12))}


def t5gemma2(window=64):
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 16, "sliding_window": window}
    text = {**sizes, **heads, "pad_token_id": 0, "eos_token_id": None, "bos_token_id": 1}
    text["layer_types"] = ["sliding_attention", "full_attention"]
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = {"text_config": text, "vision_config": {**vision, "image_size": 32, "patch_size": 8}}
    config = transformers.T5Gemma2Config(encoder=encoder, decoder=text, image_token_index=60, eoi_token_index=59)
    model = transformers.T5Gemma2ForConditionalGeneration(config)
    model.generation_config.decoder_start_token_id = 1
    return model, {"input_ids": torch.randint(2, 57, (2, 12)), "attention_mask": torch.ones(2, 12, dtype=torch.long)}


@pytest.mark.sampled(2)
@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("make", [t5, whisper])
def test_self_and_cross_attention_are_rewritten(make):
    model, inputs = make()
    model = model.eval().requires_grad_(False)
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    innerq(model, preset="lossless")
    assert torch.equal(model.generate(**inputs, max_new_tokens=12, do_sample=False), expected)
    reports = compiled_graphs()
    assert {report.kind for report in reports} == {"prefill", "decode"}
    assert all((report.attentions, report.rewritten) == (4, 4) for report in reports), [str(r) for r in reports]


def compiled_as_eager(make, new_tokens=8):
    """The caches of a model that generates compiled what it generates eagerly."""
    model, inputs = make()
    model = model.eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    options = {"max_new_tokens": new_tokens, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(**inputs, **options)
    found = innerq(model, preset="lossless").generate(**inputs, **options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=2e-4, rtol=1e-4)
    caches = found.past_key_values
    return [
        [isinstance(layer.keys, InnerQTensor) for layer in cache.layers]
        for cache in (caches.self_attention_cache, caches.cross_attention_cache)
    ]


@pytest.mark.usefixtures("graphs_as_they_are")
def test_prophetnet_caches_only_what_is_rewritten():
    """Its steps read keys twice, once in an attention that is not known, for which they would be dequantized."""
    assert compiled_as_eager(prophetnet) == [[False, False], [True, True]]
    reports = compiled_graphs()
    assert not any(report.rewritten for report in reports if report.kind == "plain")
    reasons = {reason.text for report in reports for reason in report.reasons}
    assert any(reason.startswith("an attention that is not rewritten reads the same") for reason in reasons)
    assert any("also used elsewhere (they are returned)" in reason for reason in reasons)
    assert not any("returns its quantized cache" in reason for reason in reasons)


needs_t5gemma2 = pytest.mark.skipif(
    not hasattr(transformers, "T5Gemma2Config"), reason="this transformers has no such family"
)


@needs_t5gemma2
@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [64, 6], ids=["below the window", "behind the window"])
@pytest.mark.parametrize("padding", [slice(0), slice(9, 12), slice(0, 3)], ids=["none", "right", "left"])
def test_t5gemma2_attends_to_two_caches_at_once(attn, window, padding):
    def make():
        model, inputs = t5gemma2(window)
        model.set_attn_implementation(attn)
        inputs["attention_mask"][1, padding] = 0
        return model, inputs

    assert compiled_as_eager(make, 12) == [[True, True], [True, True]]
    reports = compiled_graphs()
    assert {report.kind for report in reports} == {"prefill", "decode"}
    found = [(report.attentions, report.rewritten, [*report.reasons]) for report in reports]
    assert found == [(4, 4, [])] * len(reports)  # two caches in each of two layers


@needs_t5gemma2
@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("preset", ["base", "int4"])
def test_two_quantized_caches_at_once_give_what_the_model_computes_from_them_dequantized(preset):
    model, inputs = t5gemma2()
    model = model.eval().requires_grad_(False)
    inputs = {"input_ids": torch.randint(2, 57, (2, 200)), "attention_mask": torch.ones(2, 200, dtype=torch.long)}
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.2)
    options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    outputs = []
    for rewrite in (False, True):
        torch._dynamo.reset()
        outputs.append(innerq(copy.deepcopy(model), preset=preset, rewrite=rewrite).generate(**inputs, **options))
    expected, found = (torch.stack(output.logits[:3]) for output in outputs)
    cross = outputs[1].past_key_values.cross_attention_cache.layers
    assert all(side.format.quantized for layer in cross for side in (layer.keys, layer.values))
    torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)
