"""Models with sliding windows: caches hold the window, in a ring or quantized, and tokens are right."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from transformers import DynamicCache

from innerq_compile import InnerQTensor, compiled_graphs, innerq
from tests.helpers.models import windowed_model

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")

WINDOW = 1040


def model_of(name: str, window: int = WINDOW, **others):
    return windowed_model(name, window, **others)


def quantized(cache: DynamicCache) -> list[bool]:
    return [isinstance(tensor, InnerQTensor) for layer in cache.layers for tensor in (layer.keys, layer.values)]


@pytest.mark.sampled(3)
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
def logits(model, pieces: list[torch.Tensor], mask: torch.Tensor | None = None) -> tuple[list[torch.Tensor], list[str]]:
    """Logits of each call, and how each layer's keys are held at the end: a mode, or ``dense``."""
    cache, found, seen = DynamicCache(config=model.config), [], 0
    for piece in pieces:
        seen += piece.shape[1]
        given = {} if mask is None else {"attention_mask": mask[:, :seen]}
        found.append(model(piece, past_key_values=cache, use_cache=True, **given).logits)
    held = [layer.keys.format.mode if isinstance(layer.keys, InnerQTensor) else "dense" for layer in cache.layers]
    return found, held


BORDERS = {
    "step by step": [-5, 1, 1, 1, 1, 1, 1, 1],
    "from just below": [-2, 1, 1, 1],
    "from just full": [-1, 1, 1],
    "from above": [0, 1, 1, 1],
    "far behind": [70, *[1] * 5],
    "chunks": [-8, 3, 2, 5, 4, 1],
    "a long chunk": [-9, 60, 1, 1],
    "many chunks": [-9, 40, 3, 50, 1],
}


def pieces_of(name: str, window: int) -> list[torch.Tensor]:
    first, *others = BORDERS[name]
    return [torch.randint(2, 61, (2, tokens)) for tokens in (window + first, *others)]


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", BORDERS)
@pytest.mark.parametrize("padding", [0, 7], ids=["whole", "padded"])
@pytest.mark.parametrize("window", [16, WINDOW], ids=["short", "long"])
def test_across_the_border(name, padding, window, caplog):
    torch.manual_seed(1)
    tokens = pieces_of(name, window)
    mask = torch.ones(2, sum(piece.shape[1] for piece in tokens), dtype=torch.int64)
    mask[1, :padding] = 0
    given = mask if padding else None
    expected, _ = logits(model_of("Phi3", window), tokens, given)
    with caplog.at_level(logging.WARNING, logger="innerq_compile"):
        found, held = logits(innerq(model_of("Phi3", window), preset="lossless"), tokens, given)
    for piece, wanted in zip(found, expected, strict=True):
        shown = mask[:, mask.shape[1] - piece.shape[1] :].bool() if piece is found[-1] else slice(None)
        torch.testing.assert_close(piece[shown], wanted[shown], atol=2e-4, rtol=1e-3)
    assert held == ["rolling" if window == 16 else "none"] * 2
    assert "caches dense" not in caplog.text
    assert all(graph.rewritten == graph.attentions for graph in compiled_graphs())


#: What differs from one window for all layers: full layers between, sink logits, soft-capping, no positions.
KINDS = {
    "Gemma3Text": {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "Gemma2": {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "Cohere2": {"layer_types": ["sliding_attention", "full_attention"]},
    "GptOss": {
        "head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", KINDS)
def test_generate_across_a_short_window(name):
    model = model_of(name, 16, **KINDS[name])
    ids = torch.randint(2, 61, (2, 11))
    arguments = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    expected = model.generate(ids, **arguments)
    found = innerq(model, preset="lossless").generate(ids, **arguments)
    torch.testing.assert_close(found.logits, expected.logits, atol=2e-4, rtol=1e-3)
    assert [layer.keys.format.mode for layer in found.past_key_values.layers] == ["rolling", "none"]
    # one graph below the window, one for the step that fills it, and one for all behind it
    kinds = [str(graph.kind) for graph in compiled_graphs()]
    assert kinds.count("decode") <= 3 and len(kinds) == kinds.count("decode") + 1


@pytest.mark.sampled(2)
@pytest.mark.parametrize("window", [16, WINDOW], ids=["short", "long"])
def test_a_quantized_window_forgets_what_left_it(window):
    """Far behind the border the storage is as large as the window, not as the context."""
    model = innerq(model_of("Mistral", window), preset="base")
    torch.manual_seed(3)
    cache = DynamicCache(config=model.config)
    held = []
    with torch.no_grad():
        model(torch.randint(2, 61, (1, window + 3)), past_key_values=cache, use_cache=True)
        for _ in range(12):
            model(torch.randint(2, 61, (1, 50)), past_key_values=cache, use_cache=True)
            held.append(sum(tensor.nbytes_held for layer in cache.layers for tensor in (layer.keys, layer.values)))
    assert held[-1] <= held[3] and all(quantized(cache))


def test_an_earlier_cache_lives_on():
    """A program that goes on from an older cache twice: what the first has appended is not seen by the second."""
    model = innerq(model_of("Mistral", 16), preset="lossless")
    plain = model_of("Mistral", 16)
    torch.manual_seed(4)
    prompt, steps = torch.randint(2, 61, (1, 30)), torch.randint(2, 61, (2, 1, 45))

    @torch.no_grad()
    def both(model):
        cache = DynamicCache(config=model.config)
        model(prompt, past_key_values=cache, use_cache=True)
        found = []
        for way in steps:
            again = copy.copy(cache)
            again.layers = [copy.copy(layer) for layer in cache.layers]
            for token in way.T[:, None]:
                out = model(token, past_key_values=again, use_cache=True)
            found.append(out.logits)
        return found

    torch.testing.assert_close(both(model), both(plain), atol=2e-4, rtol=1e-3)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("window", [16, WINDOW], ids=["short", "long"])
def test_beams_and_batch_selection(window):
    model = model_of("Mistral", window)
    torch.manual_seed(5)
    ids = torch.randint(2, 61, (2, window - 4))
    arguments = {"max_new_tokens": 9, "do_sample": False, "num_beams": 3}
    expected = model.generate(ids, **arguments)
    assert torch.equal(innerq(model, preset="lossless").generate(ids, **arguments), expected)


def test_cropped_with_a_recorded_past():
    """``activate_past_recording``: the cache keeps all tokens of a call until it is cropped."""
    torch.manual_seed(6)
    prompt, steps = torch.randint(2, 61, (1, 30)), torch.randint(2, 61, (6, 1, 4))

    @torch.no_grad()
    def run(model):
        cache, found = DynamicCache(config=model.config), []
        for layer in cache.layers:
            layer.activate_past_recording()
        model(prompt, past_key_values=cache, use_cache=True)
        cache.crop(0)
        for step in steps:
            found.append(model(step, past_key_values=cache, use_cache=True).logits)
            cache.crop(-2)
        return found, cache

    expected, _ = run(model_of("Mistral", 16))
    found, cache = run(innerq(model_of("Mistral", 16), preset="lossless"))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    assert all(quantized(cache))


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
