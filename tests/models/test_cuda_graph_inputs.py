"""A decode step can be one CUDA graph for all lengths: checked on the graphs that Inductor gets.

The same programs are recorded and replayed in ``tests/gpu/test_cuda_graphs.py``.
"""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

from innerq_compile import clear_reports, compiled_graphs, innerq
from tests.helpers.buffer_loop import BufferDecoder, compiled_loops
from tests.helpers.cuda_graphs import recordings
from tests.helpers.generation import assert_same_logits, compile_config, feed, tokens_of
from tests.helpers.models import prompt, tiny_llama
from tests.helpers.programs import TinyAttention

OPTIONS = {"preset": "lossless", "mode": "reduce-overhead"}


@pytest.fixture
def recorded():
    clear_reports()
    with recordings() as found:
        yield found


def assert_one_for_all(recorded) -> None:
    """One graph is recorded, with nothing in its way."""
    assert [graph.obstacles for graph in recorded] == [[]]
    assert [report.kind for report in compiled_graphs()].count("decode") >= 1


def test_dynamic_cache(recorded):
    eager, model = (tiny_llama(head_dim=16) for _ in range(2))
    innerq(model, **OPTIONS)
    ids = prompt(1, 64)["input_ids"]
    assert_same_logits(feed(model, ids, DynamicCache(), [60, 1, 1, 1, 1]), feed(eager, ids, DynamicCache(), [64]))
    assert_one_for_all(recorded)


@pytest.mark.parametrize(
    # padded batches of all sizes are recorded in test_recorded_steps.py
    "padding",
    [(0, 0, 0), pytest.param((0, 9, 5), marks=pytest.mark.slow)],
    ids=["whole", "padded"],
)
def test_batch_sizes(recorded, padding):
    """The batch size is a symbol if it is not 1, and the length is hoisted all the same.

    So are the capacities of keys and values, for whose change caches move to other memory anyway.
    """
    eager, model = (tiny_llama(head_dim=16) for _ in range(2))
    innerq(model, **OPTIONS)
    for batch in (1, 2, 3, 2):
        inputs = prompt(batch, 64, padding[:batch])
        assert torch.equal(tokens_of(model, inputs, 5), tokens_of(eager, inputs, 5))
    assert [len(graph.symbols) for graph in recorded] == [2, 3], "two capacities, and at most the batch size"
    assert not any(graph.moving or graph.copied or graph.waits for graph in recorded)
    assert all("graph can serve all lengths" not in str(report) for report in compiled_graphs())


@pytest.mark.parametrize("padding", [(), (0, 9)], ids=["B1", "B2-padded"])
def test_static_cache_of_generate(recorded, padding):
    model = tiny_llama(head_dim=16, layers=2)
    inputs = prompt(max(1, len(padding)), 60, padding)
    expected = tokens_of(model, inputs, 5, cache_implementation="static")
    config = compile_config(**OPTIONS)
    assert torch.equal(tokens_of(model, inputs, 5, cache_implementation="static", compile_config=config), expected)
    assert_one_for_all(recorded)
    assert recorded[0].targets.count("aten._assert_async.msg") <= 2, "one check of the mask for all layers"


def test_static_cache_made_in_a_compiled_prefill(recorded):
    """transformers does not mark its buffers there. Used again, the shadow stays where it is."""
    eager, model = (tiny_llama(head_dim=16) for _ in range(2))
    innerq(model, **OPTIONS)
    cache, addresses = StaticCache(config=model.config, max_cache_len=100), set()
    for tokens in (64, 40):
        ids, sizes = prompt(1, tokens)["input_ids"], [tokens - 3, 1, 1, 1]
        cache.reset()
        assert_same_logits(feed(model, ids, cache, sizes), feed(eager, ids, DynamicCache(), [tokens]))
        shadow = cache.layers[0].keys._innerq_shadow
        addresses.add(tuple(t.data_ptr() for side in (shadow.key, shadow.value) for t in side.tensors))
    assert len(addresses) == 1
    assert_one_for_all(recorded)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("kind", "where"),
    [("argument", "number"), ("registered", "tensor"), ("quantized", "tensor"), ("quantized", "number")],
)
def test_own_loop(recorded, kind, where):
    model = BufferDecoder(layers=2, heads=2, head_dim=16, where=where).eval()
    for found, right in compiled_loops(kind, model, (1, 2, 90, 16), (40, 30), 4, mode="reduce-overhead"):
        torch.testing.assert_close(found, right)
    assert_one_for_all(recorded)
    assert all("graph can serve all lengths" not in str(report) for report in compiled_graphs())


class Advancing(TinyAttention):
    """Advances the caller's position in place, and makes its mask from it; this must not be computed twice."""

    def forward(self, x, past, real, place):
        place += 1
        mask = (torch.arange(real.shape[1]) <= place[:, None, None, None]) & real[:, None, None]
        return super().forward(x + 0.01 * place, past, mask if x.shape[1] == 1 else None)


def test_a_position_that_is_advanced_in_place_is_so_once(recorded):
    torch.manual_seed(0)
    x = torch.randn(1, 70, 32)

    def run(model):
        place, outs, cache = torch.tensor([65]), [], None
        with torch.no_grad():
            for begin, end in [(0, 66), *((i, i + 1) for i in range(66, 70))]:
                out, cache = model(x[:, begin:end], cache, torch.ones(1, end, dtype=torch.bool), place)
                outs.append(out)
                place = place if begin else torch.tensor([65])
        return torch.cat(outs, 1), place

    model = Advancing()
    expected, place = run(model)
    out, moved = run(innerq(model, **OPTIONS))
    torch.testing.assert_close(out, expected)
    assert torch.equal(moved, place) and place.item() == 69
    assert not recorded, "the mask stays in the graph, behind the change"
    (said,) = [str(report.cuda_graphs) for report in compiled_graphs() if report.kind == "decode"]
    reason = "a tensor that depends on the length of the cache is changed in place, at "
    assert said.startswith(f"no: no CUDA graph can serve all lengths: {reason}")
    assert "test_cuda_graph_inputs.py" in said and said.count("no CUDA graph") == 1


class TellsPlaces(torch.nn.Module):
    """A decoder that returns numbers made from the length of its cache, one of them transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_llama(head_dim=16, layers=1)

    def forward(self, ids, mask, places, cache):
        out = self.model(ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
        length = mask.shape[1]
        return out.logits, places.transpose(0, 1) + length, torch.full((1,), 0) + length


@torch.no_grad()
def test_what_a_step_returns_of_the_length_stays_as_it_is(recorded):
    """It comes from a buffer that the next step writes anew."""
    model, cache, ids = TellsPlaces(), DynamicCache(), prompt(2, 60)["input_ids"]
    innerq(model, **OPTIONS)
    mask, places = torch.ones(2, 63, dtype=torch.long), torch.tensor([[60], [70]])
    model(ids, mask[:, :60], torch.arange(60).expand(2, 60), cache)
    found = [model(ids[:, :1], mask[:, : 61 + step], places + step, cache)[1:] for step in range(3)]
    for step, (moved, length) in enumerate(found):
        assert length.tolist() == [61 + step]
        assert moved.tolist() == [[121 + 2 * step, 131 + 2 * step]]
    assert recorded and not any(graph.obstacles for graph in recorded)
