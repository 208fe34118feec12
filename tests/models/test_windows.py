"""Models with sliding windows: within a long window caches are quantized, behind it dense, and tokens are right."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from transformers import DynamicCache

from innerq_compile import InnerQTensor, compiled_graphs, innerq

pytestmark = pytest.mark.usefixtures("no_inductor")

WINDOW = 1040
_SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}


def model_of(name: str):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**_SIZES, sliding_window=WINDOW)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def quantized(cache: DynamicCache) -> list[bool]:
    return [isinstance(tensor, InnerQTensor) for layer in cache.layers for tensor in (layer.keys, layer.values)]


@pytest.mark.parametrize("name", ["Phi3", "Mistral", "Starcoder2"])
@pytest.mark.parametrize("padding", [0, 5], ids=["whole", "padded"])
def test_generate_within_a_window(name, padding):
    model = model_of(name)
    ids = torch.randint(2, 61, (2, 40))
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    ids[1, :padding] = 0
    arguments = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    expected = model.generate(ids, **arguments)
    found = innerq(model, preset="lossless").generate(ids, **arguments)
    assert torch.equal(found.sequences, expected.sequences)
    assert all(quantized(found.past_key_values))
    assert [graph.kind for graph in compiled_graphs()] == ["prefill", "decode"]


@torch.no_grad()
def logits(model, pieces: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[bool]]:
    """Logits of each call, and whether all of the cache was quantized after it."""
    cache, found, held = DynamicCache(config=model.config), [], []
    for piece in pieces:
        found.append(model(piece, past_key_values=cache, use_cache=True).logits)
        held.append(all(quantized(cache)))
    return found, held


@pytest.mark.parametrize(
    ("pieces", "held"),
    [
        ([WINDOW - 5, 1, 1, 1, 1, 1, 1], [True, True, True, True, False, False, False]),
        ([WINDOW - 2, 1, 1], [True, False, False]),
        ([WINDOW - 1, 1, 1], [False, False, False]),  # full, though nothing was dropped
        ([1000, 30, 20, 1], [True, True, False, False]),  # chunks, the third across the border
        ([600, 600, 1], [True, False, False]),
        ([30, 1500, 1], [True, False, False]),  # a chunk that is longer than the window
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value[0], int) and value[0] > 1 else "",
)
def test_across_the_border(pieces, held, caplog):
    torch.manual_seed(1)
    tokens = [torch.randint(2, 61, (2, piece)) for piece in pieces]
    expected, _ = logits(model_of("Phi3"), tokens)
    with caplog.at_level(logging.WARNING, logger="innerq_compile"):
        found, were = logits(innerq(model_of("Phi3"), preset="lossless"), tokens)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    assert were == held
    warnings = [
        record.getMessage()
        for record in caplog.records
        if "caches dense that were quantized (4 of them)" in record.getMessage()
    ]
    assert len(warnings) == (1 if held[0] else 0)
    assert not warnings or "sliding window" in warnings[0]


def test_crop_within_a_window():
    model = model_of("Mistral")
    torch.manual_seed(2)
    prompt, steps = torch.randint(2, 61, (1, 60)), torch.randint(2, 61, (1, 4))

    @torch.no_grad()
    def run(model):
        cache = DynamicCache(config=model.config)
        model(prompt, past_key_values=cache, use_cache=True)
        cache.crop(-15)
        return model(steps, past_key_values=cache, use_cache=True).logits, cache

    expected, _ = run(model)
    found, cache = run(innerq(model, preset="lossless"))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    assert all(quantized(cache)) and cache.get_seq_length() == 49
