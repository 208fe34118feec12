"""transformers' StaticCache: its buffers stay the user's, and the compiled steps read quantized shadows of them.

Everything is compared with eager transformers in ``lossless``, and the buffers with those of the eager program.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache, StaticCache

from innerq_compile import clear_reports, compiled_graphs
from tests.helpers.generation import (
    Case,
    assert_all_rewritten,
    assert_same_logits,
    compile_config,
    feed,
    models,
    tokens_of,
)
from tests.helpers.models import prompt, tiny_llama

CASES = [
    Case("greedy", {}),
    Case("left-padded", {}, batch=3, padding=(0, 60, 7)),
    Case("sampling", {"do_sample": True}, batch=2),
    Case("beams", {"num_beams": 3}),
    Case("chunked-prefill", {"prefill_chunk_size": 40}),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("no_inductor_in_module")
def test_generate(case: Case):
    eager, compiled = models()
    inputs = prompt(case.batch, case.tokens, case.padding)
    options = {"cache_implementation": "static", **case.options}
    expected = tokens_of(eager, inputs, **options)
    assert torch.equal(tokens_of(compiled, inputs, **options), expected)
    assert_all_rewritten()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", [c for c in CASES if c.name != "beams"], ids=str)  # it runs beams eagerly
@pytest.mark.usefixtures("no_inductor")
def test_compile_config(case: Case):
    """The prefill runs eagerly, into the buffers; the first compiled step imports them."""
    model = tiny_llama(head_dim=16)
    clear_reports()
    inputs = prompt(case.batch, case.tokens, case.padding)
    options = {"cache_implementation": "static", **case.options}
    expected = tokens_of(model, inputs, **options)
    assert not compiled_graphs()
    assert torch.equal(tokens_of(model, inputs, compile_config=compile_config(), **options), expected)
    assert_all_rewritten()


@pytest.mark.usefixtures("no_inductor_in_module")
def test_uncompiled_where_asked():
    model = tiny_llama()
    clear_reports()
    tokens_of(
        model, prompt(1, 40), 4, cache_implementation="static", compile_config=compile_config(), disable_compile=True
    )
    assert not compiled_graphs()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", ["innerq", "compile_config"])
@pytest.mark.usefixtures("no_inductor")
def test_used_again(way):
    """After reset(), and with new caches of the same shape."""
    eager, compiled = models()
    options = {} if way == "innerq" else {"compile_config": compile_config()}
    model = compiled if way == "innerq" else eager
    texts = [prompt(1, tokens) for tokens in (140, 60, 100)]

    def cache() -> StaticCache:
        return StaticCache(config=eager.config, max_cache_len=200)

    expected = [tokens_of(eager, text, 20, past_key_values=cache()) for text in texts]
    same = cache()
    for text, tokens in zip(texts, expected, strict=True):
        same.reset()
        assert torch.equal(tokens_of(model, text, 20, past_key_values=same, **options), tokens)
    for text, tokens in zip(texts, expected, strict=True):
        assert torch.equal(tokens_of(model, text, 20, past_key_values=cache(), **options), tokens)
    assert_all_rewritten()


@pytest.mark.usefixtures("no_inductor_in_module")
def test_changed_from_outside():
    """Whoever writes to the buffers between steps finds the next step reading what was written."""
    eager, compiled = models(layers=2)
    ids = torch.randint(1, 61, (1, 160))
    results = []
    for model in (eager, compiled):
        cache = StaticCache(config=eager.config, max_cache_len=200)
        logits = [feed(model, ids[:, :142], cache, [140, 1, 1])]
        cache.layers[0].keys[:, :, 20:40] *= 0.3
        cache.layers[1].values[:, :, 130:].neg_()
        logits.append(feed(model, ids[:, 142:150], cache, [1, 1, 4, 2]))
        cache.layers[1].values.copy_(cache.layers[1].values.roll(1, 1))
        for layer in cache.layers:
            layer.cumulative_length.sub_(3)  # what is behind is written again
        logits.append(feed(model, ids[:, 150:], cache, [1] * 10))
        results.append((torch.cat(logits, 1), cache))
    (expected, right), (logits, buffers) = results
    assert_same_logits(logits, expected)
    for layer, other in zip(buffers.layers, right.layers, strict=True):  # the user's buffers hold what they should
        assert_same_logits(layer.keys, other.keys)
        assert_same_logits(layer.values, other.values)
    assert_all_rewritten()


@pytest.mark.usefixtures("graphs_as_they_are")
def test_in_inference_mode(caplog):
    """generate makes the cache itself, of tensors that do not count what is written to them: it stays dense."""
    eager, compiled = models()
    inputs, options = prompt(1, 140), {"cache_implementation": "static"}
    expected = tokens_of(eager, inputs, 8, **options)
    clear_reports()
    with torch.inference_mode():
        assert torch.equal(tokens_of(compiled, inputs, 8, **options), expected)
    assert not any(report.rewritten for report in compiled_graphs())
    assert "a buffer made under torch.inference_mode()" in caplog.text


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
@pytest.mark.usefixtures("no_inductor_in_module")
def test_copied(copied):
    """A copy has buffers of its own, and a shadow of its own."""
    eager, compiled = models()
    ids, other = torch.randint(1, 61, (1, 150)), torch.randint(1, 61, (1, 150))
    cache = StaticCache(config=eager.config, max_cache_len=200)
    feed(compiled, ids[:, :142], cache, [140, 1, 1])
    second = copied(cache)
    feed(compiled, other[:, 142:], second, [1] * 8)
    expected = feed(eager, ids, DynamicCache(), [150])[:, 142:]
    assert_same_logits(feed(compiled, ids[:, 142:], cache, [1] * 8), expected)


@pytest.mark.usefixtures("no_inductor_in_module")
def test_caches_alternate():
    eager, compiled = models()
    texts = [torch.randint(1, 61, (1, 150)) for _ in range(3)]
    caches = [StaticCache(config=eager.config, max_cache_len=200) for _ in texts]
    logits = [[feed(compiled, ids[:, :140], cache, [140])] for ids, cache in zip(texts, caches, strict=True)]
    for step in range(140, 150):
        for ids, cache, own in zip(texts, caches, logits, strict=True):
            own.append(feed(compiled, ids[:, step : step + 1], cache, [1]))
    for ids, own in zip(texts, logits, strict=True):
        assert_same_logits(torch.cat(own, 1), feed(eager, ids, DynamicCache(), [150]))
    assert_all_rewritten()
