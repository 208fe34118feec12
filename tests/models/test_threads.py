"""Eight threads that generate at the same time: each gets the tokens that it gets alone."""

from __future__ import annotations

import threading

import pytest
import torch

from innerq_compile import compiled_graphs, innerq
from tests.helpers.generation import assert_all_rewritten, assert_quantized, run
from tests.helpers.models import prompt, tiny_llama
from tests.helpers.threads import at_once, generated, streamed

pytestmark = pytest.mark.usefixtures("one_thread")
THREADS, NEW = 8, 6
PRESET = "lossless"


def llama(seed: int = 0):
    return tiny_llama(head_dim=16, seed=seed)


def requests() -> list[dict[str, torch.Tensor]]:
    """Prompts of as many lengths."""
    return [prompt(1, 20 + 3 * index) for index in range(THREADS)]


def generate_in_threads(models, inputs, often: bool = False) -> None:
    """Each thread generates with one of the models, twice; all have what the models give alone and uncompiled."""
    expected = [run(llama(index % len(models)), one, NEW).sequences for index, one in enumerate(inputs)]

    def work(index: int):
        with torch.no_grad():
            return [generated(models[index % len(models)], inputs[index], NEW) for _ in range(2)]

    found = at_once(*[lambda index=index: work(index) for index in range(len(inputs))], often=often)
    for results, tokens in zip(found, expected, strict=True):
        for result in results:
            assert torch.equal(result.sequences, tokens)
            assert_quantized(result.past_key_values)
    assert_all_rewritten()


@pytest.mark.usefixtures("graphs_as_they_are")
@pytest.mark.parametrize("by_name", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["innerq", "by-name"])
def test_one_model(by_name):
    """Cold, where all threads arrive at the first compilation, and warm. There are fewer graphs than threads."""
    options = {"preset": PRESET}
    model = torch.compile(llama(), backend="innerq", options=options) if by_name else innerq(llama(), preset=PRESET)
    inputs = requests()
    for often in (False, True):
        generate_in_threads([model], inputs, often)
    assert len(compiled_graphs()) < THREADS, [str(report) for report in compiled_graphs()]


@pytest.mark.usefixtures("graphs_as_they_are")
def test_several_models():
    models, inputs = [innerq(llama(seed), preset=PRESET) for seed in range(2)], requests()
    for often in (False, True):
        generate_in_threads(models, inputs, often)


@pytest.mark.slow
@pytest.mark.usefixtures("no_inductor")
def test_a_thread_beside_those_that_compile():
    """One generates with graphs that it has, while others trace models that are new."""
    model, stop, inputs = innerq(llama(), preset=PRESET), threading.Event(), prompt(1, 30)
    expected = run(llama(), inputs, NEW).sequences
    for tokens in (20, 30):
        generated(model, prompt(1, tokens), NEW)

    def beside() -> list[bool]:
        same = []
        while not stop.is_set():
            same.append(torch.equal(generated(model, inputs, NEW).sequences, expected))
        return same

    def compiling() -> None:
        try:
            other = innerq(tiny_llama(heads=2, head_dim=32), preset=PRESET)
            generated(other, prompt(1, 24), NEW)
        finally:
            stop.set()

    same, _ = at_once(beside, compiling)
    assert len(same) > 1 and all(same)


@pytest.mark.usefixtures("graphs_as_they_are")
def test_a_streamer(tiny_model):
    """`generate` runs in a thread, and what it has written is read in another: the way of every server."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    inputs = prompt(1, 40)
    expected = tokenizer.decode(generated(LlamaForCausalLM.from_pretrained(tiny_model), inputs, NEW).sequences[0, 40:])
    model = innerq(LlamaForCausalLM.from_pretrained(tiny_model), preset=PRESET)

    def text() -> str:
        return streamed(model, tokenizer, inputs, NEW, timeout=60)

    for found in [text(), text(), *at_once(*[text] * 4)]:
        assert found.split() == expected.split()
    assert_all_rewritten()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_with_inductor():
    generate_in_threads([innerq(llama(), preset=PRESET)], requests()[1:5])
