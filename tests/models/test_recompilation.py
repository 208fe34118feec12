"""How many graphs a program needs: few, and no new ones for calls like those before.

Lengths and batches, the room in a cache among them, are symbols from the first graph on.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch.torch_version import TorchVersion
from transformers import DynamicCache, StaticCache

from innerq_compile import InnerQTensor, innerq
from tests.helpers.generation import compile_config, feed, models, run
from tests.helpers.graph_counts import Graphs
from tests.helpers.models import prompt, tiny_llama


@pytest.fixture
def graphs(graphs_as_they_are) -> Graphs:
    """How many there are is Dynamo's affair, and that of the passes."""
    return Graphs()


def test_growth(graphs):
    """From 20 tokens to 420: the storage grows some ten times."""
    model = models()[1]
    out = run(model, prompt(1, 20), 400)
    assert graphs.new() == ["prefill", "decode"]
    keys = out.past_key_values.layers[0].keys
    assert isinstance(keys, InnerQTensor) and keys.shape[2] == 419


@pytest.mark.parametrize("padded", [False, True], ids=["B1", "B3-padded"])
def test_prompts_of_other_lengths(graphs, padded):
    model = models()[1]

    def inputs(tokens: int) -> dict[str, torch.Tensor]:
        return prompt(3, tokens, (0, 9, 4)) if padded else prompt(1, tokens)

    run(model, inputs(140), 60)
    assert graphs.new() == ["prefill", "decode"]
    for tokens in (50, 30, 301, 10, 50):
        run(model, inputs(tokens), 40)
        assert graphs.new() == []


def test_channels_that_are_held_wider(graphs):
    """Keys and values of head_dim 36 get zeros behind their channels, whatever the number of tokens."""
    eager, model = models(head_dim=36)
    for tokens, new in ((140, ["prefill", "decode"]), (50, []), (301, [])):
        inputs = prompt(1, tokens)
        assert torch.equal(run(model, inputs, 5).sequences, run(eager, inputs, 5).sequences)
        assert graphs.new() == new


def test_batches(graphs):
    """One sequence is a case of its own in Dynamo; any other number is the other."""
    model = models()[1]
    found = []
    for batch in (2, 3, 1, 5, 1, 4):
        run(model, prompt(batch, 60), 5)
        found.append(graphs.new())
    assert found == [["prefill", "decode"], [], ["prefill", "decode"], [], [], []]


def test_padding_comes_and_goes(graphs):
    """transformers passes a mask with padded batches alone, so these have graphs of their own; 5.17 with all."""
    own = [] if TorchVersion(transformers.__version__) < "5.18" else ["prefill", "decode"]
    model = models()[1]
    found = []
    for padding in ((), (0, 9), (4, 0), (), (0, 30)):
        run(model, prompt(2, 60 + 7 * len(found), padding), 5)
        found.append(graphs.new())
    assert found == [["prefill", "decode"], own, [], [], []]


def test_forms_of_generate(graphs):
    """Sampling takes the graphs of greedy search, and beams those of a batch."""
    model = models()[1]
    run(model, prompt(3, 60), 5)
    graphs.new()
    run(model, prompt(3, 80), 20, do_sample=True)
    run(model, prompt(1, 80), 20, num_beams=3)
    run(model, prompt(3, 80, (0, 0, 0)), 20)
    assert graphs.new() == []


def test_several_query_tokens(graphs):
    """One decode graph for one token, and one for any other number."""
    model, sizes = models()[1], [100, 1, 7, 9, 30, 1, 2, 5, 45]
    feed(model, prompt(1, 200)["input_ids"], DynamicCache(), sizes)
    assert graphs.new() == ["prefill", "decode", "decode"]
    feed(model, prompt(1, 200)["input_ids"], DynamicCache(), sizes)
    assert graphs.new() == []


@pytest.mark.sampled(2)
@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 4}, {"prefill_chunk_size": 40}], ids=str)
def test_lookup_and_chunks(graphs, options):
    """Three decode graphs: for one token, for the first number of several, and for any other.

    And three of prefill: a prompt of which lookup finds nothing asks for the logits of one token, which is a constant
    to Dynamo.
    """
    model, found = models()[1], []
    for tokens in (150, 70, 120, 210, 90, 60):
        run(model, prompt(1, tokens), 20, **options)
        found += graphs.new()
    assert found.count("prefill") <= 3
    assert found.count("decode") <= 3


def test_caches_of_any_origin(graphs):
    """Copied, cropped, reordered and restored caches need no graph of their own."""
    model = models()[1]
    ids = prompt(2, 160)["input_ids"]
    cache = DynamicCache()
    feed(model, ids[:, :151], cache, [150, 1])
    graphs.new()
    other = copy.deepcopy(cache)
    other.crop(-20)
    other.reorder_cache(torch.tensor([1, 0]))
    feed(model, ids[:, :3], other, [1, 1, 1])
    other.batch_select_indices(torch.tensor([0]))
    other.batch_repeat_interleave(2)
    feed(model, ids[:, :3], other, [1, 1, 1])
    feed(model, ids[:, 151:], cache, [1] * 9)
    assert graphs.new() == []


@pytest.mark.parametrize("origin", ["one storage", "two storages"])
def test_one_of_two_caches_grows(graphs, origin):
    """Views of one storage are one size to the graph when it is made, and stay so. Separate storages grow apart."""

    def step(query, new, *caches):
        caches = [torch.cat([cache, new], dim=2) for cache in caches]
        attention = torch.nn.functional.scaled_dot_product_attention
        return attention(query, *caches[:2]), attention(query, *caches[2:]), *caches

    def pair(tokens: int) -> list[InnerQTensor]:
        return [InnerQTensor.from_dense(torch.randn(1, 2, tokens, 64), role=role) for role in ("key", "value")]

    full = pair(200)
    room, capacity = full[0]._storage.room, full[0]._storage.capacity
    full = [torch.cat([cache, torch.randn(1, 2, room - 200, 64)], dim=2) for cache in full]
    short = [cache[:, :, :250] for cache in full] if origin == "one storage" else pair(250)
    for cache in short:
        cache._storage.resize(capacity)
    query = new = torch.randn(1, 2, 1, 64)
    attention, other, *caches = torch.compile(step, backend="innerq")(query, new, *full, *short)
    assert graphs.new() == ["decode"]
    assert [cache.shape[2] for cache in caches] == [room + 1] * 2 + [251] * 2
    grown, kept = caches[0]._storage.capacity, caches[2]._storage.capacity
    assert grown > capacity and kept == (grown if origin == "one storage" else capacity)
    for found, both in ((attention, caches[:2]), (other, caches[2:])):
        dense = [cache.dequantize() for cache in both]
        torch.testing.assert_close(found, torch.nn.functional.scaled_dot_product_attention(query, *dense))


def test_models_alike_share_graphs(graphs):
    for seed in range(3):
        run(models(seed=seed)[1], prompt(1, 60), 5)
        assert graphs.new() == ([] if seed else ["prefill", "decode"])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_models_that_differ_in_the_scale_of_scores(graphs, attn, caplog):
    """A number of a module is a constant of the graph, though it was another one in the model before.

    Of a graph in which it is not, which Dynamo makes first and throws away, nothing is said.
    """
    for head_dim in (16, 32, 48):
        eager, model = (tiny_llama(head_dim=head_dim, attn=attn) for _ in range(2))
        inputs = prompt(1, 60)
        found = run(innerq(model, preset="lossless", strict=True), inputs, 5)
        assert torch.equal(found.sequences, run(eager, inputs, 5).sequences)
        assert graphs.new() == ["prefill", "decode"]
        assert isinstance(found.past_key_values.layers[0].keys, InnerQTensor)
    assert not [record for record in caplog.records if record.name.startswith("innerq_compile")]


def test_many_models(graphs):
    """All models of transformers share a code object; Dynamo's limit of 8 graphs applies to each alone."""
    for heads in (1, 2, 3, 4, 5):
        model = innerq(tiny_llama(heads=heads, kv_heads=1, head_dim=16), preset="lossless")
        cache = run(model, prompt(1, 60), 3).past_key_values
        assert graphs.new() == ["prefill", "decode"]
        assert isinstance(cache.layers[0].keys, InnerQTensor)


# --- static caches ----------------------------------------------------------------------------------------------------


def test_static_cache(graphs):
    """One graph for all sizes of the buffers."""
    eager, model = models()
    found = []
    for tokens, size in ((140, 200), (60, 200), (100, 200), (30, 200), (60, 150), (60, 300), (20, 90)):
        cache = StaticCache(config=eager.config, max_cache_len=size)
        run(model, prompt(1, tokens), 20, past_key_values=cache)
        found.append(graphs.new())
    assert found == [["plain", "decode"], *[[]] * 6]  # the prompt's keys go into the buffers as they are


def test_static_cache_with_compile_config(graphs):
    """The prefill is not compiled, and one graph serves all steps of all requests."""
    model = tiny_llama(head_dim=16)
    cache = StaticCache(config=model.config, max_cache_len=200)
    options: dict[str, Any] = {"past_key_values": cache, "compile_config": compile_config()}
    run(model, prompt(1, 140), 40, **options)
    assert graphs.new() == ["decode"]
    for tokens in (60, 100):
        cache.reset()
        run(model, prompt(1, tokens), 40, **options)
        assert graphs.new() == []


# --- compiled by Inductor ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_inductor():
    """By default `test_generate_llama.py` finds that a second request has the graphs that Inductor compiled before."""
    graphs = Graphs()
    model = models()[1]
    run(model, prompt(2, 140, (0, 9)), 60)
    assert graphs.new() == ["prefill", "decode"]
    run(model, prompt(2, 60, (3, 0)), 60)
    run(model, prompt(3, 100, (3, 0, 1)), 60)
    assert graphs.new() == []
