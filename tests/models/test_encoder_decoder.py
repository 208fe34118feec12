"""Encoder-decoder models: self-attention appends to its cache, cross-attention reads one that never grows."""

from __future__ import annotations

import pytest
import torch
import transformers

from innerq_compile import compiled_graphs, innerq

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
