"""warm_up on a GPU: decode steps are recorded, and nothing that is recorded or cached outlives it."""

from __future__ import annotations

import gc

import pytest
import torch

from innerq_compile import clear_reports, compiled_graphs, innerq, warm_up
from innerq_compile.cache.storage import CacheStorage
from innerq_compile.runtime.recording import Recording
from tests.helpers.models import prompt, tiny_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    clear_reports()
    yield
    torch._dynamo.reset()


def living() -> int:
    gc.collect()
    return sum(type(thing) in (Recording, CacheStorage) for thing in gc.get_objects())


def test_steps_are_recorded_and_nothing_is_left():
    plain = tiny_llama(layers=2, dtype=torch.float16).cuda()
    model = innerq(tiny_llama(layers=2, dtype=torch.float16).cuda(), preset="lossless")
    before, random = living(), torch.cuda.get_rng_state()
    result = warm_up(model, prompt_tokens=(40, 50), batch_sizes=(1, 2))
    decode = [graph for graph in result.graphs if graph.kind == "decode"]
    assert decode and all(str(graph.cuda_graphs).startswith("yes") and graph.recorded for graph in decode)
    assert living() == before and torch.equal(torch.cuda.get_rng_state(), random)

    compiled, recorded = len(compiled_graphs()), sum(graph.recorded for graph in decode)
    inputs = {name: value.cuda() for name, value in prompt(1, 40).items()}
    found, expected = (
        one.generate(**inputs, max_new_tokens=12, min_new_tokens=12, do_sample=False) for one in (model, plain)
    )
    assert torch.equal(found, expected)
    assert len(compiled_graphs()) == compiled and sum(graph.recorded for graph in decode) > recorded
