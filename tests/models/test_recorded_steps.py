"""Recording and replay of the decode steps of whole models, with emulated CUDA graphs.

The same programs are recorded and played on a GPU in ``tests/gpu/test_cuda_graphs.py``.
"""

from __future__ import annotations

import threading

import pytest
import torch
from transformers import DynamicCache, FalconConfig, FalconForCausalLM, StaticCache

from innerq_compile import compiled_graphs, innerq
from innerq_compile.runtime.hoisted_inputs import HoistedInputs
from innerq_compile.runtime.recording import Recording
from tests.helpers.buffer_loop import BufferDecoder, compiled_loops
from tests.helpers.emulated_graphs import Stream, emulated  # noqa: F401
from tests.helpers.generation import assert_same_logits, compile_config, feed, tokens_of
from tests.helpers.models import prompt, tiny_llama, windowed_model

pytestmark = pytest.mark.usefixtures("no_inductor", "emulated")
OPTIONS = {"preset": "lossless"}


def recorded() -> int:
    return sum(report.recorded for report in compiled_graphs())


def pair(**kwargs):
    """A model, and the same one compiled."""
    eager, model = (tiny_llama(head_dim=16, **kwargs) for _ in range(2))
    return eager, innerq(model, **OPTIONS)


def test_a_cache_that_grows(monkeypatch):
    """More tokens than a new cache has room for; each capacity has a recording, and all steps but one are played."""
    eager, model = pair()
    ids, played, play = prompt(1, 460)["input_ids"], [], Recording.replay
    monkeypatch.setattr(Recording, "replay", lambda recording, inputs: played.append(1) or play(recording, inputs))
    sizes = [60, *[1] * 400]
    assert_same_logits(feed(model, ids, DynamicCache(), sizes), feed(eager, ids, DynamicCache(), [460]))
    assert 2 <= recorded() <= 4
    assert len(played) == 399


@pytest.mark.usefixtures("graphs_as_they_are")
def test_batch_sizes():
    eager, model = pair()
    for batch in (1, 2, 3, 2, 1):
        inputs = prompt(batch, 64, (0, 9, 5)[:batch])
        assert torch.equal(tokens_of(model, inputs, 8), tokens_of(eager, inputs, 8))
    assert recorded() == 5, "one for the caches of each"


@pytest.mark.usefixtures("graphs_as_they_are")
def test_beams():
    eager, model = pair()
    inputs = prompt(2, 64, (0, 7))
    options = {"num_beams": 3}
    assert torch.equal(tokens_of(model, inputs, 12, **options), tokens_of(eager, inputs, 12, **options))


@pytest.mark.usefixtures("graphs_as_they_are")
def test_two_conversations_by_turns():
    eager, model = pair()
    texts = [prompt(1, 100)["input_ids"] for _ in range(2)]
    expected = [feed(eager, text, DynamicCache(), [100]) for text in texts]
    caches, found = [DynamicCache(), DynamicCache()], [[], []]
    for begin, end in [(0, 80), *((at, at + 1) for at in range(80, 100))]:
        for text, cache, logits in zip(texts, caches, found, strict=True):
            logits.append(feed(model, text[:, begin:end], cache, [end - begin]))
    for logits, right in zip(found, expected, strict=True):
        assert_same_logits(torch.cat(logits, 1), right)
    assert recorded() == 2


@pytest.mark.usefixtures("graphs_as_they_are")
def test_a_cache_that_is_cropped():
    eager, model = pair()
    ids, cache = prompt(1, 90)["input_ids"], DynamicCache()
    expected = feed(eager, ids, DynamicCache(), [90])
    feed(model, ids[:, :80], cache, [70] + [1] * 10)
    for _ in range(3):
        assert_same_logits(feed(model, ids[:, 80:], cache, [1] * 10), expected[:, 80:])
        cache.crop(-10)
    assert recorded() == 1


@pytest.mark.sampled(2)
@pytest.mark.parametrize("padding", [(), (0, 9)], ids=["B1", "B2-padded"])
def test_static_cache_of_generate(padding):
    model = tiny_llama(head_dim=16, layers=2)
    inputs = prompt(max(1, len(padding)), 60, padding)
    expected = tokens_of(model, inputs, 8, cache_implementation="static")
    config = compile_config(**OPTIONS)
    for _ in range(2):
        found = tokens_of(model, inputs, 8, cache_implementation="static", compile_config=config)
        assert torch.equal(found, expected)
    assert recorded() >= 1


def test_static_cache_used_again():
    eager, model = pair()
    cache = StaticCache(config=model.config, max_cache_len=100)
    for tokens in (64, 40):
        ids, sizes = prompt(1, tokens)["input_ids"], [tokens - 6, *[1] * 6]
        cache.reset()
        assert_same_logits(feed(model, ids, cache, sizes), feed(eager, ids, DynamicCache(), [tokens]))
    assert recorded() == 1


def test_static_cache_of_a_window_used_again():
    """Below the window and behind it, a recording each, which serves the next text as well."""
    eager, model = (windowed_model("Mistral", 16, num_hidden_layers=1) for _ in range(2))
    innerq(model, **OPTIONS)
    ids, sizes = prompt(1, 40)["input_ids"], [8, *[1] * 32]
    right, cache = (StaticCache(config=model.config, max_cache_len=100) for _ in range(2))
    expected = feed(eager, ids, right, sizes)
    for _ in range(2):
        cache.reset()
        assert_same_logits(feed(model, ids, cache, sizes), expected)
    assert recorded() == 2


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("kind", "where"),
    [("argument", "number"), ("registered", "tensor"), ("quantized", "tensor"), ("quantized", "number")],
)
def test_own_loop(kind, where):
    model = BufferDecoder(layers=2, heads=2, head_dim=16, where=where).eval()
    for found, right in compiled_loops(kind, model, (1, 2, 90, 16), prompts=(40, 30), steps=8):
        torch.testing.assert_close(found, right)
    assert recorded() == 1


class WithTokens(torch.nn.Module):
    """A decoder that also returns its input tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_llama(head_dim=16)

    def forward(self, ids, cache):
        return self.model(ids, past_key_values=cache, use_cache=True).logits, ids[:, -1]


@torch.no_grad()
def test_a_view_of_the_tokens():
    model, ids, cache = WithTokens(), prompt(1, 80)["input_ids"], DynamicCache()
    innerq(model, **OPTIONS)
    model(ids[:, :70], cache)
    for at in range(70, 80):
        assert model(ids[:, at : at + 1], cache)[1].tolist() == ids[:, at].tolist()
    assert recorded() == 1


def test_another_stream_is_done_with_hoisted_masks(emulated, monkeypatch):  # noqa: F811
    eager, model = pair()
    ids, cache, made = prompt(1, 90)["input_ids"], DynamicCache(), []
    expected = feed(eager, ids, DynamicCache(), [90])
    real, other = HoistedInputs.__call__, Stream()

    def hoist(self, args, blocks):
        made.append(real(self, args, blocks))
        return made[-1]

    monkeypatch.setattr(HoistedInputs, "__call__", hoist)
    found = [feed(model, ids[:, :84], cache, [80] + [1] * 4)]
    assert made and not emulated.keeps
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: other)
    found.append(feed(model, ids[:, 84:], cache, [1] * 6))
    assert_same_logits(torch.cat(found, 1), expected)
    assert {buffer.data_ptr() for buffer in made[-1]} <= set(other.keeps)


@torch.no_grad()
def test_two_threads():
    """Each has a cache of its own, and the step of one runs between the prelude and the recording of the other."""
    eager, model = pair()
    texts = [prompt(1, 100)["input_ids"] for _ in range(2)]
    expected = [feed(eager, text, DynamicCache(), [100]) for text in texts]
    caches, found, turns = [DynamicCache(), DynamicCache()], [[], []], [[80], [90]]
    for text, cache, logits, (begin,) in zip(texts, caches, found, turns, strict=True):
        logits.append(feed(model, text[:, :begin], cache, [begin]))
    real, failures = HoistedInputs.__call__, []

    def work():
        try:
            with torch.no_grad():
                found[1].append(feed(model, texts[1][:, at + 10 : at + 11], caches[1], [1]))
        except BaseException as error:
            failures.append(error)

    def hoist(self, args, blocks):
        buffers = real(self, args, blocks)
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        return buffers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HoistedInputs, "__call__", hoist)
        for at in range(80, 90):
            found[0].append(feed(model, texts[0][:, at : at + 1], caches[0], [1]))
    assert not failures
    for logits, right in zip(found, expected, strict=True):
        logits = torch.cat(logits, 1)
        assert_same_logits(logits, right[:, : logits.shape[1]])


@pytest.mark.usefixtures("graphs_as_they_are")
def test_rows_of_a_mask_that_have_a_symbol_of_their_own():
    """A bias is made for the rows of the attention mask, and has as many as the queries once it is reshaped."""
    sizes = {"vocab_size": 61, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}
    config = FalconConfig(
        **sizes, multi_query=False, new_decoder_architecture=False, pad_token_id=0, bos_token_id=1, eos_token_id=None
    )
    torch.manual_seed(0)
    eager, model = (FalconForCausalLM(config).eval() for _ in range(2))
    model.load_state_dict(eager.state_dict())
    innerq(model, **OPTIONS)
    for batch in (2, 3, 1):
        inputs = prompt(batch, 24, (5, 0, 9)[:batch])
        inputs["input_ids"] %= 61
        assert torch.equal(tokens_of(model, inputs, 8), tokens_of(eager, inputs, 8))
    steps = [graph for graph in compiled_graphs() if graph.kind == "decode"]
    assert steps and all(graph.recorded for graph in steps), [str(graph.cuda_graphs) for graph in steps]
