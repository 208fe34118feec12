"""Everything that transformers' generate() does with a cache, compiled against the program as it stands.

``lossless`` is compared with eager transformers, token for token; ``base`` with :class:`ReferenceLayer`, the method
without a compiler. Inductor compiles no graph here (see ``test_generate_inductor.py``): those of the first two
go through AOTAutograd, and the others use the graphs of those before them, as the parts of a long program do.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

from innerq_compile import InnerQConfig, InnerQTensor, innerq
from tests.helpers.generation import (
    CASES,
    Case,
    Inputs,
    assert_all_rewritten,
    assert_quantized,
    assert_same_logits,
    feed,
    models,
    run,
    tokens_of,
)
from tests.helpers.models import attended, prompt, tiny_llama

BASE_CASES = ("return-sequences", "beams-early-stopping", "beams-sampling", "prompt-lookup", "chunked-prefill-padded")


# --- the method without a compiler ----------------------------------------------------------------------------------


class ReferenceLayer(DynamicLayer):
    """A cache layer that quantizes the prompt, after its own attention, and from then on appends to that."""

    def __init__(self, config: InnerQConfig, start: torch.Tensor, queries: torch.Tensor) -> None:
        super().__init__()
        self.config, self.start, self.queries = config, start, queries

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            start = self.start.clamp(max=key_states.shape[2])  # the padding may be longer than the first chunk
            queries = self.queries[:, :, : key_states.shape[2]]
            self.keys = InnerQTensor.from_dense(key_states, self.config, role="key", start=start, queries=queries)
            self.values = InnerQTensor.from_dense(value_states, self.config, role="value", start=start)
            return key_states, value_states
        self.keys = torch.cat((self.keys, key_states), 2)
        self.values = torch.cat((self.values, value_states), 2)
        return self.keys.dequantize(), self.values.dequantize()


def reference_cache(model: LlamaForCausalLM, config: InnerQConfig, inputs: Inputs, repeats: int = 1) -> DynamicCache:
    """A cache for eager generate(); every sequence is repeated as for beams."""
    start = inputs["attention_mask"].eq(0).sum(1).repeat_interleave(repeats)
    cache = DynamicCache()
    queries = [queries.repeat_interleave(repeats, 0) for queries, _ in attended(model, inputs)]
    cache.layers = [ReferenceLayer(config, start, each) for each in queries]
    return cache


# --- generate ---------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("no_inductor")
def test_lossless(case: Case):
    eager, compiled = models()
    inputs = prompt(case.batch, case.tokens, case.padding)
    out = run(compiled, inputs, **case.options)
    assert torch.equal(out.sequences, tokens_of(eager, inputs, **case.options))
    assert_quantized(out.past_key_values)
    assert_all_rewritten("prefill")
    assert_all_rewritten("decode")


@pytest.mark.sampled(10)
@pytest.mark.parametrize("case", [case for case in CASES if case.name in BASE_CASES], ids=str)
@pytest.mark.usefixtures("no_inductor")
def test_base(case: Case):
    eager, compiled = models("base")
    inputs = prompt(case.batch, case.tokens, case.padding)
    repeats = case.options.get("num_beams") or case.options.get("num_return_sequences") or 1
    reference = reference_cache(eager, InnerQConfig.preset("base"), inputs, repeats)
    expected = run(eager, inputs, past_key_values=reference, **case.options)
    out = run(compiled, inputs, **case.options)
    assert torch.equal(out.sequences, expected.sequences)
    for layer, other in zip(out.past_key_values.layers, expected.past_key_values.layers, strict=True):
        assert layer.keys.format == other.keys.format and layer.keys.shape == other.keys.shape


@pytest.mark.usefixtures("graphs_as_they_are_in_module")
def test_right_padding():
    """Padding behind the prompt is hidden in the middle of the cache, and stays so."""
    eager, compiled = models()
    inputs = prompt(2, 140)
    inputs["attention_mask"][1, 100:] = 0
    assert torch.equal(tokens_of(compiled, inputs), tokens_of(eager, inputs))
    assert_all_rewritten()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("assistant", ["plain", "compiled"])
@pytest.mark.parametrize("preset", ["lossless", "base"])
@pytest.mark.usefixtures("graphs_as_they_are_in_module")
def test_assisted_decoding(preset, assistant):
    """Several tokens are proposed, checked at once, and those that are wrong cropped, in both caches.

    The compiled prompt has the first proposed tokens behind it, whose queries the reference does not know: steering may
    choose otherwise by that, and under some seeds a token with it.
    """
    eager, compiled = models(preset, seed=2)
    helper, compiled_helper = models(preset, seed=1, heads=2, kv_heads=1)
    inputs = prompt(1, 140)
    options = {"new": 30, "assistant_model": helper}
    if preset == "base":
        options["past_key_values"] = reference_cache(eager, InnerQConfig.preset("base"), inputs)
    expected = tokens_of(eager, inputs, **options)
    if assistant == "compiled":
        options["assistant_model"] = compiled_helper
    out = run(compiled, inputs, **{**options, "past_key_values": None})
    assert torch.equal(out.sequences, expected)
    assert_quantized(out.past_key_values)
    assert_all_rewritten()


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("graphs_as_they_are_in_module")
def test_prompt_in_pieces():
    eager, compiled = models()
    ids, sizes = torch.randint(1, 61, (2, 181)), [100, 40, 17, 16, 5, 1, 1, 1]
    cache = DynamicCache()
    assert_same_logits(feed(compiled, ids, cache, sizes), feed(eager, ids, DynamicCache(), [181]))
    assert_quantized(cache)
    assert_all_rewritten()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("preset", ["lossless", "base"])
@pytest.mark.usefixtures("graphs_as_they_are_in_module")
def test_conversation(preset):
    """A returned cache and the longer text are given to the next generate(), several times."""
    eager, compiled = models(preset)
    first = prompt(1, 90)
    results = []
    for model in (eager, compiled):
        plain = preset == "lossless" or model is compiled
        cache = DynamicCache() if plain else reference_cache(model, InnerQConfig.preset(preset), first)
        text, turns = first["input_ids"], []
        for turn in range(3):
            out = run(model, {"input_ids": text, "attention_mask": torch.ones_like(text)}, 12, past_key_values=cache)
            cache = out.past_key_values
            turns.append(out.sequences)
            text = torch.cat((out.sequences, first["input_ids"][:, : 5 + 20 * turn]), 1)
        results.append(turns)
    assert all(map(torch.equal, *results))
    assert_quantized(cache)
    assert_all_rewritten()


@pytest.mark.usefixtures("graphs_as_they_are_in_module")
def test_prefix_reuse():
    """Copies of one cache go on with different questions; the original stays what it was."""
    eager, compiled = models()
    prefix = prompt(1, 120)["input_ids"]
    questions = [torch.randint(1, 61, (1, size)) for size in (9, 30)]
    results = []
    for model in (eager, compiled):
        cache, outs = DynamicCache(), []
        feed(model, prefix, cache, [120])
        for question in (*questions, questions[0]):
            text = torch.cat((prefix, question), 1)
            inputs = {"input_ids": text, "attention_mask": torch.ones_like(text)}
            outs.append(tokens_of(model, inputs, 20, past_key_values=copy.deepcopy(cache)))
        assert cache.get_seq_length() == 120
        results.append(outs)
    assert all(map(torch.equal, *results))
    assert torch.equal(results[1][0], results[1][2])
    assert_all_rewritten()


@pytest.mark.usefixtures("graphs_as_they_are_in_module")
def test_batch_operations():
    """A cache of one sequence becomes one of four, of which two are kept."""
    eager, compiled = models()
    ids, news = torch.randint(1, 61, (1, 120)), torch.randint(1, 61, (4, 6))
    results = []
    for model in (eager, compiled):
        cache, logits = DynamicCache(), []
        feed(model, ids, cache, [120])
        cache.batch_repeat_interleave(4)
        logits.append(feed(model, news, cache, [1] * 6))
        cache.batch_select_indices(torch.tensor([3, 1]))
        logits.append(feed(model, news[[3, 1]], cache, [2, 2, 2]))
        cache.reorder_cache(torch.tensor([1, 0]))
        cache.crop(-3)
        logits.append(feed(model, news[[1, 3]], cache, [1] * 6))
        results.append(torch.cat([x.flatten() for x in logits]))
    assert_same_logits(results[1], results[0])
    assert_quantized(cache)
    assert_all_rewritten()


@pytest.mark.usefixtures("graphs_as_they_are_in_module")
def test_offloading():
    """Layers that are moved away and back between steps.

    ``cache_implementation="offloaded"`` itself waits for streams of an accelerator, which a CPU does not have.
    """
    eager, compiled = models(layers=2)
    ids = torch.randint(1, 61, (1, 140))
    cache, logits = DynamicCache(), []
    for piece in ids.split([120, *[1] * 20], dim=1):
        logits.append(feed(compiled, piece, cache, [piece.shape[1]]))
        for layer in cache.layers:
            layer.offload()
            layer.keys, layer.values = (x.to("cpu", copy=True) for x in (layer.keys, layer.values))
            layer.prefetch()
    assert_same_logits(torch.cat(logits, 1), feed(eager, ids, DynamicCache(), [140]))
    assert_quantized(cache)
    assert_all_rewritten()


@pytest.mark.usefixtures("graphs_as_they_are_in_module")
def test_models_and_caches_alternate():
    """Two models and four caches of different lengths, dtypes of preset and layers, a token each in turn."""
    pairs = [models("lossless"), models("lossless", layers=2, seed=1)]
    state = []
    for eager, compiled in pairs:
        for tokens in (60, 140):
            ids = torch.randint(1, 61, (1, tokens + 12))
            state.append((compiled, ids, tokens, DynamicCache(), [], feed(eager, ids, DynamicCache(), [ids.shape[1]])))
    for compiled, ids, tokens, cache, logits, _ in state:
        logits.append(feed(compiled, ids[:, :tokens], cache, [tokens]))
    for step in range(12):
        for compiled, ids, tokens, cache, logits, _ in state:
            logits.append(feed(compiled, ids[:, tokens + step : tokens + step + 1], cache, [1]))
    for *_, cache, logits, expected in state:
        assert_same_logits(torch.cat(logits, 1), expected)
        assert_quantized(cache)
    assert_all_rewritten()


@pytest.mark.usefixtures("graphs_as_they_are_in_module")
def test_presets_alternate():
    """Models that differ in nothing but the preset do not get one another's graphs."""
    compiled = {preset: models(preset)[1] for preset in ("lossless", "base")}
    for _ in range(2):
        for preset, model in compiled.items():
            keys = run(model, prompt(1, 200), 4).past_key_values.layers[0].keys
            config = InnerQConfig.preset(preset)
            assert keys.format == config.format_for("key", 16, torch.float32)


@pytest.mark.usefixtures("graphs_as_they_are_in_module")
def test_saved_cache():
    """A cache that was pickled goes on where it was."""
    eager, compiled = models()
    ids = torch.randint(1, 61, (1, 150))
    cache = DynamicCache()
    logits = feed(compiled, ids[:, :140], cache, [135, 5])
    restored = pickle.loads(pickle.dumps(cache))
    both = [torch.cat((logits, feed(compiled, ids[:, 140:], c, [5, 5])), 1) for c in (restored, cache)]
    for each in both:
        assert_same_logits(each, feed(eager, ids, DynamicCache(), [150]))


@pytest.mark.parametrize("way", ["guarded", "reset"])
@pytest.mark.usefixtures("graphs_as_they_are")
def test_hooks_that_come_and_go(way):
    """Both ways of which the README says that they are seen."""

    def story(model) -> list[torch.Tensor]:
        found = []
        for layer, factor in ((0, None), (0, 3.0), (1, 0.1), (0, None)):
            mlp = model.model.layers[layer].mlp
            hook = None if factor is None else mlp.register_forward_hook(lambda *call, factor=factor: factor * call[-1])
            if way == "reset":
                torch._dynamo.reset()
            found.append(tokens_of(model, inputs, 6))
            if hook is not None:
                hook.remove()
        return found

    inputs = prompt(1, 140)
    expected = story(tiny_llama(layers=2, head_dim=16))
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=way != "guarded"):
        found = story(innerq(tiny_llama(layers=2, head_dim=16), preset="lossless"))
    assert all(map(torch.equal, found, expected))
    assert len({tuple(tokens.flatten().tolist()) for tokens in expected}) == 3
