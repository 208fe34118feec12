"""Eight threads that generate at the same time on a GPU: each gets the tokens that it gets alone.

Recordings of CUDA graphs write to memory of their own, which no two threads may share.
"""

from __future__ import annotations

import pytest
import torch

from innerq_compile import clear_reports, compiled_graphs, innerq
from tests.helpers.generation import assert_all_rewritten, assert_quantized
from tests.helpers.models import prompt, tiny_llama
from tests.helpers.threads import at_once, generated, streamed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
THREADS, NEW = 8, 24


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    clear_reports()
    yield
    torch._dynamo.reset()


def llama(seed: int = 0):
    return tiny_llama(layers=2, seed=seed).cuda()


def requests():
    """Prompts of as many lengths, some of them with padding."""
    paddings = [(index,) if index % 3 == 0 else () for index in range(THREADS)]
    return [prompt(1 + n % 2, 60 + 3 * n, padding, device="cuda") for n, padding in enumerate(paddings)]


def generate_in_threads(models, inputs, streams: bool = False, often: bool = False) -> None:
    expected = [generated(llama(index % len(models)), one, NEW).sequences for index, one in enumerate(inputs)]
    torch.cuda.synchronize()

    def work(index: int):
        stream = torch.cuda.Stream() if streams else torch.cuda.current_stream()
        with torch.no_grad(), torch.cuda.stream(stream):
            results = [generated(models[index % len(models)], inputs[index], NEW) for _ in range(3)]
        stream.synchronize()
        return results

    found = at_once(*[lambda index=index: work(index) for index in range(len(inputs))], often=often)
    for results, tokens in zip(found, expected, strict=True):
        for result in results:
            assert torch.equal(result.sequences, tokens)
            assert_quantized(result.past_key_values)
    assert_all_rewritten()


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@pytest.mark.parametrize("count", [1, 4], ids=["one", "several"])
def test_models(count, mode):
    """Cold, where all threads arrive at the first compilation, and warm. With a mode, threads record beside others."""
    models = [innerq(llama(seed), preset="lossless", mode=mode) for seed in range(count)]
    inputs = requests()
    generate_in_threads(models, inputs)
    generate_in_threads(models, inputs, often=True)
    if mode is not None:
        assert any(report.recorded for report in compiled_graphs())


def test_streams_of_their_own():
    models, inputs = [innerq(llama(), preset="lossless")], requests()
    for _ in range(2):
        generate_in_threads(models, inputs, streams=True)


def test_one_thread_after_many():
    """It takes over what another thread has recorded."""
    model, inputs = innerq(llama(), preset="lossless", mode="reduce-overhead"), requests()
    generate_in_threads([model], inputs)
    for one in inputs:
        expected = generated(llama(), one, NEW).sequences
        (result,) = at_once(lambda one=one: generated(model, one, NEW))
        assert torch.equal(result.sequences, expected)


def test_a_streamer(tiny_model):
    """`generate` runs in a thread, and what it has written is read in another."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer, inputs = AutoTokenizer.from_pretrained(tiny_model), prompt(1, 60, device="cuda")
    eager = LlamaForCausalLM.from_pretrained(tiny_model).cuda()
    expected = tokenizer.decode(generated(eager, inputs, NEW).sequences[0, 60:])
    model = innerq(LlamaForCausalLM.from_pretrained(tiny_model).cuda(), preset="lossless")

    def text() -> str:
        return streamed(model, tokenizer, inputs, NEW, timeout=300)

    for found in [text(), text(), *at_once(*[text] * 4, often=False)]:
        assert found.split() == expected.split()
    assert_all_rewritten()
