"""transformers' StaticCache with sliding windows: steps behind the window read a shadow, as those below it do.

``StaticSlidingWindowLayer`` asks in Python whether its buffer is full, so that there are two graphs of steps of one
token: below the border and behind it.
"""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

from innerq_compile import clear_reports, compiled_graphs, innerq
from tests.helpers.emulated_graphs import emulated  # noqa: F401
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


#: A window that is held in the format of the preset, not in a ring.
LONG = 1040
LONG_KINDS = {**KINDS, "Gemma2": MIXED}
#: Sizes of the calls, and how many graphs of steps there are.
LONG_BORDERS = {
    "step by step": ([LONG - 4, *[1] * 12], 2),
    "far behind": ([LONG - 3, *[1] * 350], 2),  # what was dropped is forgotten once
    "a longer prompt": ([LONG + 40, *[1] * 8], 1),
    "several tokens": ([LONG - 18, *[5] * 8, 1, 1, 1], 1),  # five of which cross the border
    "chunks": ([300, 300, 300, 300, *[1] * 6, 40, 1, 1, 200, 1, 1, LONG + 20, 1, 1], 1),
}


def fed(model, ids: torch.Tensor, mask: torch.Tensor, sizes: list[int], room: int | None = 4000) -> torch.Tensor:
    """Logits of all calls but the first, of what is no padding, in a cache of so much room; a growing one if None."""
    cache = DynamicCache(config=model.config) if room is None else StaticCache(config=model.config, max_cache_len=room)
    found, seen = [], 0
    with torch.no_grad():
        for piece in ids.split(sizes, dim=1):
            seen += piece.shape[1]
            shown = mask[:, :seen].clone()
            found.append(model(piece.clone(), attention_mask=shown, past_key_values=cache, use_cache=True).logits)
    return torch.cat(found, 1)[:, sizes[0] :][mask[:, sizes[0] :].bool()]


def text(sizes: list[int], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sequences, the second of which begins with padding, and their mask."""
    ids = torch.randint(2, 61, (2, sum(sizes)))
    mask = torch.ones_like(ids)
    ids[1, :padding] = mask[1, :padding] = 0
    return ids, mask


@pytest.mark.sampled(25)
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("padding", [0, 5], ids=["whole", "padded"])
@pytest.mark.parametrize("borders", LONG_BORDERS)
@pytest.mark.parametrize("name", LONG_KINDS)
def test_a_long_window(name, borders, padding):
    """It is a storage of fixed size like a short one, and its steps are recorded; lossless, it is the program's."""
    sizes, graphs = LONG_BORDERS[borders]
    ids, mask = text(sizes, padding)
    expected = fed(windowed_model(name, LONG, **LONG_KINDS[name]), ids, mask, sizes)
    compiled = innerq(windowed_model(name, LONG, **LONG_KINDS[name]), preset="lossless")
    assert_same_logits(fed(compiled, ids, mask, sizes), expected)
    # the number of columns of a mask is a constant in a first graph, and a symbol from the next call on
    assert {*map(tuple, steps())} == {("none", "none")} and graphs <= len(steps()) <= 2 * graphs
    again = [graph for graph in compiled_graphs() if graph.kind == "decode" and graph.calls > 2]
    assert again and all(graph.recorded for graph in again), [str(graph.cuda_graphs) for graph in again]


@pytest.mark.sampled(5)
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("prompt", [LONG - 4, LONG + 30], ids=["across", "behind"])
@pytest.mark.parametrize("name", LONG_KINDS)
def test_generate_with_a_long_window(name, prompt):
    model = windowed_model(name, LONG, **LONG_KINDS[name])
    ids, mask = text([prompt], 5)
    arguments = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "cache_implementation": "static"}
    expected = model.generate(ids, **arguments)
    innerq(model, preset="lossless")
    assert torch.equal(model.generate(ids, **arguments), expected)
    assert steps() == [["none", "none"]] * (2 if prompt < LONG else 1)
    held = [graph.index for graph in compiled_graphs()]
    assert torch.equal(model.generate(ids, **arguments), expected)  # another cache of the same size
    assert [graph.index for graph in compiled_graphs()] == held


@pytest.mark.sampled(15)
@pytest.mark.parametrize("borders", ["step by step", "far behind", "a longer prompt"])
@pytest.mark.parametrize("name", LONG_KINDS)
def test_presets_quantize_a_long_window(name, borders):
    """They lose what they lose of the same window in a cache that grows, not less and not more."""
    sizes, graphs = LONG_BORDERS[borders]
    ids, mask = text(sizes, 5)
    found = {}
    for preset in (None, "base"):
        for room in (4000, None):
            torch._dynamo.reset()
            clear_reports()
            model = windowed_model(name, LONG, **LONG_KINDS[name])
            found[preset, room] = fed(model if preset is None else innerq(model, preset=preset), ids, mask, sizes, room)
            if preset is not None and room is not None:
                assert {*map(tuple, steps())} == {("steered", "steered")} and graphs <= len(steps()) <= 2 * graphs
    static, growing = (float((found["base", room] - found[None, room]).square().mean()) ** 0.5 for room in (4000, None))
    assert 0.7 * growing < static < 1.3 * growing


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("window", "room"), [(LONG, LONG), (LONG + 400, LONG), (LONG, LONG + 1), (LONG + 400, 1200)])
def test_room_for_a_long_window(window, room):
    """A cache has as many tokens as the smaller of the two, and behind these keeps the last ones."""
    sizes = [LONG - 3, *[1] * 9]
    ids, mask = text(sizes, 5)
    expected = fed(windowed_model("Mistral", window), ids, mask, sizes, room)
    assert_same_logits(
        fed(innerq(windowed_model("Mistral", window), preset="lossless"), ids, mask, sizes, room), expected
    )
    assert {*map(tuple, steps())} == {("none", "none")}


@pytest.mark.parametrize(("window", "held"), [(1024, "rolling"), (1025, "steered")])
def test_which_window_is_held_exactly(window, held):
    compiled = innerq(windowed_model("Mistral", window, num_hidden_layers=1), preset="base")
    sizes = [window + 1, 1, 1]
    fed(compiled, *text(sizes, 0), sizes)
    assert {*map(tuple, steps())} == {(held,)}


@pytest.mark.parametrize("preset", ["lossless", "base"])
def test_a_long_window_stays_where_it_is(preset):
    """Far behind the border, where what was dropped is forgotten twice, no memory is taken that was not at first."""
    eager, compiled = (windowed_model("Mistral", LONG, num_hidden_layers=1) for _ in range(2))
    innerq(compiled, preset=preset)
    caches = [StaticCache(config=eager.config, max_cache_len=5000) for _ in range(2)]
    prompt, rest = torch.randint(2, 61, (2, LONG + 602)).split([LONG + 2, 600], dim=1)
    for model, cache in zip((eager, compiled), caches, strict=True):
        feed(model, prompt, cache, [LONG + 1, 1])
    shadow = caches[1].layers[0].keys._innerq_rolling_shadow

    def held():
        tensors = [tensor for side in (shadow.key, shadow.value) for tensor in side.tensors.present().values()]
        return [(tensor.data_ptr(), tensor.shape) for tensor in tensors]

    before = held()
    expected, found = (
        feed(model, rest, cache, [1] * 600) for model, cache in zip((eager, compiled), caches, strict=True)
    )
    assert caches[1].layers[0].keys._innerq_rolling_shadow is shadow and held() == before
    assert shadow.key.base == 512 and shadow.key.length - shadow.key.hidden == LONG
    if preset == "lossless":
        assert_same_logits(found, expected)


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
