"""transformers' StaticCache with sliding windows: steps behind the window read a shadow, as those below it do.

``StaticSlidingWindowLayer`` asks in Python whether its buffer is full, so that there are two graphs of steps of one
token: below the border and behind it.
"""

from __future__ import annotations

import pytest
import torch
from transformers import StaticCache

from innerq_compile import compiled_graphs, innerq
from tests.helpers.generation import assert_same_logits, feed
from tests.helpers.models import windowed_model

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")

WINDOW = 16
MIXED = {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}
KINDS = {
    "Gemma3Text": MIXED,
    "GptOss": {**MIXED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Phi3": {},
    "Mistral": {},
}


def steps() -> list[list[str]]:
    """How the keys of each layer are held in each graph of a step, all of whose attentions are rewritten."""
    graphs = [graph for graph in compiled_graphs() if graph.kind == "decode"]
    assert all(graph.rewritten == graph.attentions for graph in graphs), [str(graph) for graph in graphs]
    return [[layer.key.split(":")[2] for layer in graph.layers] for graph in graphs]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("padding", [0, 5], ids=["whole", "padded"])
@pytest.mark.parametrize("name", KINDS)
def test_generate_across_the_border(name, padding):
    model = windowed_model(name, WINDOW, **KINDS[name])
    ids = torch.randint(2, 61, (2, 12))
    mask = torch.ones_like(ids)
    ids[1, :padding] = mask[1, :padding] = 0
    arguments = {
        "attention_mask": mask,
        "max_new_tokens": 24,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "cache_implementation": "static",
    }
    expected = model.generate(ids, **arguments)
    found = innerq(model, preset="lossless").generate(ids, **arguments)
    torch.testing.assert_close(found.logits, expected.logits, atol=2e-4, rtol=1e-3)
    second = "none" if name in ("Gemma3Text", "GptOss") else "rolling"
    assert steps() == [["none", "none"], ["rolling", second]]


#: Sizes of the calls, and what the graphs of steps hold the keys in.
BORDERS = {
    "just full": ([WINDOW, *[1] * 5], ["rolling"]),
    "one below": ([WINDOW - 1, *[1] * 5], ["none", "rolling"]),
    "a longer prompt": ([WINDOW + 9, *[1] * 20], ["rolling"]),
    "a chunk across": ([10, 9, 1, 1, 1, 5, 1, 1], ["rolling"]),
    "chunks": ([5, 1, 4, 1, 1, 10, 30, 1, 1], ["none", "rolling"]),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", BORDERS)
def test_borders(name):
    sizes, held = BORDERS[name]
    eager, compiled = (windowed_model("Mistral", WINDOW, num_hidden_layers=1) for _ in range(2))
    innerq(compiled, preset="lossless")
    ids = torch.randint(2, 61, (2, sum(sizes)))
    caches = [StaticCache(config=eager.config, max_cache_len=100) for _ in range(2)]
    expected = feed(eager, ids, caches[0], sizes)
    assert_same_logits(feed(compiled, ids, caches[1], sizes), expected)
    assert steps() == [[mode] for mode in held]
    for layer, other in zip(caches[1].layers, caches[0].layers, strict=True):  # the user's buffers stay right
        assert_same_logits(layer.keys, other.keys)
        assert_same_logits(layer.values, other.values)
    reasons = {reason.text for graph in compiled_graphs() for reason in graph.reasons}
    known = (
        "keys: their last tokens are copied to a buffer",
        "keys: they are a buffer that this graph writes in place",
        "keys: different numbers of tokens are written at once",
    )
    assert all(reason.startswith(known) for reason in reasons)


def test_a_long_window():
    sizes = [1036, *[1] * 8]
    eager, compiled = (windowed_model("Mistral", 1040, num_hidden_layers=1) for _ in range(2))
    innerq(compiled, preset="lossless")
    ids = torch.randint(2, 61, (1, sum(sizes)))
    expected, found = (
        feed(model, ids, StaticCache(config=eager.config, max_cache_len=2000), sizes) for model in (eager, compiled)
    )
    assert_same_logits(found, expected)
    assert steps() == [["none"], ["none"]]


def test_used_again_and_changed_from_outside():
    """Texts of several lengths in one cache, which is reset between them and changed behind the border."""
    eager, compiled = (windowed_model("Mistral", WINDOW, num_hidden_layers=1) for _ in range(2))
    innerq(compiled, preset="lossless")
    texts = [torch.randint(2, 61, (1, tokens)) for tokens in (30, 14, 24)]

    def run(model):
        cache, found = StaticCache(config=eager.config, max_cache_len=64), []
        for text in texts:
            cache.reset()
            found.append(feed(model, text, cache, [8, *[1] * (text.shape[1] - 8)]))
            cache.layers[0].keys[:, :, 3:9] *= 0.3
            found.append(feed(model, text[:, :2], cache, [1, 1]))
        return torch.cat(found, 1)

    assert_same_logits(run(compiled), run(eager))
    assert steps() == [["none"], ["rolling"]]


def test_presets_hold_a_short_window_exactly():
    """Behind the border nothing is quantized that the program has not had quantized below it."""
    eager, compiled = (windowed_model("Mistral", WINDOW, num_hidden_layers=1) for _ in range(2))
    innerq(compiled, preset="tiny")
    sizes = [WINDOW + 4, *[1] * 40]
    ids = torch.randint(2, 61, (1, sum(sizes)))
    expected, found = (
        feed(model, ids, StaticCache(config=eager.config, max_cache_len=100), sizes) for model in (eager, compiled)
    )
    assert_same_logits(found, expected)
    assert steps() == [["rolling"]]
