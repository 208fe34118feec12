"""warm_up: what it runs and reports, that it leaves nothing behind, and that a second process compiles nothing."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest
import torch

from innerq_compile import InnerQError, compiled_graphs, innerq, warm_up
from innerq_compile.cache.storage import CacheStorage
from tests.helpers.models import tiny_llama
from tests.helpers.programs import TinyAttention
from tests.helpers.scripts import ROOT
from tests.helpers.torchrun import environment


def storages() -> list[CacheStorage]:
    gc.collect()
    return [found for found in gc.get_objects() if isinstance(found, CacheStorage)]


@pytest.mark.usefixtures("no_inductor")
def test_a_model_is_ready_for_requests_and_otherwise_as_before():
    model = innerq(tiny_llama(layers=2).train())
    caches, random, attributes = storages(), torch.get_rng_state(), {*vars(model)}
    result = warm_up(model, prompt_tokens=(40, 50), batch_sizes=(1, 2), new_tokens=4)
    assert [request.name for request in result.requests] == [
        f"{batch} x {tokens} tokens" for batch in (1, 2) for tokens in (40, 50)
    ]
    assert {graph.kind for graph in result.graphs} == {"prefill", "decode"}
    assert all(graph.rewritten == graph.attentions == 2 for graph in result.graphs)
    assert [*result.requests[0].compiled][:2] == [graph.index for graph in result.graphs][:2]
    assert result.seconds == sum(request.seconds for request in result.requests) > 0

    assert model.training and all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()
    assert storages() == caches and {*vars(model)} - attributes <= {"_compiled_call", "_last_compile_config"}

    compiled = len(compiled_graphs())
    model.eval().generate(torch.ones(1, 40, dtype=torch.long), max_new_tokens=6, do_sample=False)
    assert len(compiled_graphs()) == compiled


@pytest.mark.usefixtures("graphs_as_they_are")
def test_arguments_of_generate_and_of_a_static_cache():
    model = innerq(tiny_llama(layers=1))
    result = warm_up(model, prompt_tokens=40, cache_implementation="static", num_beams=2)
    assert {layer.cache for layer in result.graphs[-1].layers} == {"dense buffer with a quantized shadow"}
    ids = torch.ones(1, 30, dtype=torch.long)
    (request,) = warm_up(model, ids, new_tokens=3).requests
    assert request.name == "the arguments given"


@pytest.mark.usefixtures("no_inductor")
def test_a_function_and_a_model_of_ones_own():
    model = innerq(TinyAttention(), preset="small")

    def run(tokens):
        _, cache = model(torch.randn(1, tokens, 32))
        return model(torch.randn(1, 1, 32), cache)

    result = warm_up(run, 20)
    assert [(graph.kind, graph.rewritten) for graph in result.graphs] == [("prefill", 1), ("decode", 1)]
    again = warm_up(run, tokens=20)
    assert again.requests[0].compiled == () and again.graphs == result.graphs
    assert warm_up(model, torch.randn(1, 20, 32)).graphs == result.graphs[:1]
    text = str(again)
    assert "the arguments given" in text and "none" in text and "0 compiled" in text
    assert json.loads(json.dumps(again.to_dict()))["graphs"][1]["kind"] == "decode"


def test_what_cannot_be_warmed_up():
    with pytest.raises(InnerQError, match="3 cannot be warmed up: it has to be a model or a function"):
        warm_up(3)
    with pytest.raises(
        InnerQError, match="nothing that is compiled with backend='innerq' ran: compile the model first"
    ):
        warm_up(TinyAttention(), torch.randn(1, 20, 32))
    with pytest.raises(InnerQError, match="are for random prompts of a model with a method generate"):
        warm_up(TinyAttention(), torch.randn(1, 20, 32), prompt_tokens=3)
    for wrong in (0, (), (3, -1), 2.5):
        with pytest.raises(InnerQError, match=r"prompt_tokens=.* is not allowed: it has to be whole numbers"):
            warm_up(tiny_llama(layers=1), prompt_tokens=wrong)


#: Warms up a decoder whose weights and inputs differ from process to process, then runs it, and counts.
PROGRAM = """
import json, os
import torch
from torch._dynamo.utils import counters
from innerq_compile import innerq, warm_up
from tests.helpers.programs import TinyAttention

torch.set_num_threads(1)
torch.manual_seed(os.getpid())
model = innerq(TinyAttention())

def run(tokens):
    _, cache = model(torch.randn(1, tokens, 32))
    for _ in range(2):
        _, cache = model(torch.randn(1, 1, 32), cache)

result = warm_up(run, 20)
with torch.no_grad():
    run(20)
    run(4200)
found = {"warm_up": [result.compiled, result.from_disk, result.not_kept], "new": result.folders[0].new_bytes}
stats = {"graphs": counters["stats"]["unique_graphs"], "operations": counters["stats"]["calls_captured"]}
print(json.dumps({**found, **stats, "traced": result.traced, "aot": dict(counters["aot_autograd"])}))
"""


def test_a_second_process_takes_everything_from_the_disk(tmp_path):
    def run() -> dict:
        folders = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        # the folder is new: Inductor would compile a program for each vector ISA to find out whether it can
        folders["TORCHINDUCTOR_VEC_ISA_OK"] = "1"
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**environment(), **folders})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    first, second = run(), run()
    pieces = first["warm_up"][0]
    assert first["warm_up"] == [pieces, 0, 0] and pieces >= first["graphs"] == 2
    assert first["traced"] == 2 and first["aot"].get("autograd_cache_hit", 0) == 0
    assert second["warm_up"] == [0, pieces, 0] and second["graphs"] == 2
    assert second["aot"].get("autograd_cache_miss", 0) == 0
    assert (second["traced"], second["operations"]) == (0, 0)
    assert first["new"] > 10_000 > second["new"]
