"""The first prompt runs before its graph is compiled, computes the same, and later ones are compiled."""

from __future__ import annotations

import gc
import logging
import threading
import weakref

import pytest
import sympy
import torch
from torch._dynamo.utils import counters
from torch.fx import GraphModule
from transformers import DynamicCache

from innerq_compile import compiled_graphs, dump_graphs, innerq, warm_up
from innerq_compile.compiler import deferred
from innerq_compile.kernels.internals import inductor
from innerq_compile.passes.graph.values import example
from tests.helpers.models import prompt, tiny_llama

LATER = "compiled after its first call"


@pytest.fixture
def compiled(monkeypatch) -> list[int]:
    """The number of nodes of each graph that Inductor is given, in order."""
    found, original = [], inductor.compile_graph

    def noting(gm, inputs, options):
        found.append(len(gm.graph.nodes))
        return original(gm, inputs, options)

    monkeypatch.setattr(inductor, "compile_graph", noting)
    return found


def model_of(layers: int = 3, **options):
    """A model that is compiled, and another one that is not."""
    models = [tiny_llama(layers=layers, head_dim=32) for _ in range(2)]
    return innerq(models[0], **{"preset": "lossless", "compile_prompt_first": False, **options}), models[1]


@torch.no_grad()
def logits_of(model, inputs, steps: int = 0) -> torch.Tensor:
    """Logits of a prompt, or of the last of some steps behind it."""
    cache = DynamicCache()
    found = model(**inputs, past_key_values=cache, use_cache=True).logits
    mask, token = inputs["attention_mask"], inputs["input_ids"][:, :1].clone()
    for _ in range(steps):
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        found = model(token, attention_mask=mask, past_key_values=cache, use_cache=True).logits
    return found


def same(found, expected) -> None:
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_the_first_prompt_is_compiled_with_the_steps(no_inductor, compiled):
    model, plain = model_of()
    inputs, before = prompt(2, 70, (0, 9)), []
    model.register_forward_hook(lambda *_: before.append((len(compiled), compiled_graphs()[0].regions)))
    same(logits_of(model, inputs, 2), logits_of(plain, inputs, 2))
    assert before[0] == (0, f"5 regions of 3 kinds, {LATER}")
    known = len(compiled)
    assert known and [one.regions for one in compiled_graphs()] == ["5 regions of 3 kinds"] * 2
    for tokens in (70, 33):
        inputs = prompt(2, tokens)
        same(logits_of(model, inputs, 2), logits_of(plain, inputs, 2))
    assert len(compiled) == known and len(compiled_graphs()) == 2


def test_the_second_prompt_is_compiled_if_no_step_was(no_inductor, compiled):
    model, plain = model_of()
    counts = []
    for tokens in (50, 60, 70):
        inputs = prompt(1, tokens)
        same(logits_of(model, inputs), logits_of(plain, inputs))
        counts.append(len(compiled))
    assert counts == [0, 3, 3] and len(compiled_graphs()) == 1


def test_compiled_by_inductor(monkeypatch, tmp_path):
    """What it leaves on the disk is found by a process that has the trace of the graph, and compiles it at once."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("INNERQ_TRACES", raising=False)
    inputs, found = prompt(2, 60, (0, 7)), []
    for _ in range(2):
        torch._dynamo.reset()
        counters.clear()
        model, plain = model_of()
        for _ in range(2):
            same(logits_of(model, inputs, 2), logits_of(plain, inputs, 2))
        found.append([counters["aot_autograd"][f"autograd_cache_{what}"] for what in ("hit", "miss")])
    assert found == [[0, 6], [6, 0]]


def test_in_inference_mode(compiled):
    model, plain = model_of()
    inputs = prompt(1, 60)
    with torch.inference_mode():
        for _ in range(2):
            same(logits_of(model, inputs, 2), logits_of(plain, inputs, 2))
    assert compiled and not deferred._WAITING


def test_a_compilation_that_fails(no_inductor, monkeypatch, caplog):
    model, plain = model_of()
    inputs = prompt(1, 50)
    logits_of(model, inputs)
    monkeypatch.setattr(inductor, "compile_graph", lambda *args: 1 / 0)
    with caplog.at_level(logging.WARNING, "innerq_compile.compiler.deferred"):
        for _ in range(2):
            same(logits_of(model, inputs), logits_of(plain, inputs))
    (record,) = [one for one in caplog.records if one.name == "innerq_compile.compiler.deferred"]
    assert "stays uncompiled and is slower than it could be" in record.getMessage()


@pytest.mark.parametrize(
    ("options", "tokens"),
    [({"compile_prompt_first": True}, 50), ({"compile_prompt_first": None}, 50), ({"regions": False}, 50), ({}, 90)],
)
def test_compiled_first(options, tokens, no_inductor, compiled, monkeypatch):
    monkeypatch.setattr(deferred, "MAX_TOKENS", 80)
    model, plain = model_of(**options)
    inputs = prompt(1, tokens)
    same(logits_of(model, inputs), logits_of(plain, inputs))
    assert compiled and LATER not in compiled_graphs()[0].regions


def test_a_dump_shows_compiled_code(no_inductor, compiled, tmp_path):
    model, _ = model_of()
    with dump_graphs(tmp_path):
        logits_of(model, prompt(1, 50))
    assert compiled


def test_while_another_thread_compiles(no_inductor, compiled):
    model, plain = model_of()
    inputs = prompt(1, 50)
    logits_of(model, inputs)
    taken, done = threading.Event(), threading.Event()

    def compiling():
        with deferred.compiling_alone() as alone:
            assert alone
            taken.set()
            done.wait(60)

    thread = threading.Thread(target=compiling)
    thread.start()
    taken.wait(60)
    try:
        same(logits_of(model, inputs), logits_of(plain, inputs))
        assert not compiled
    finally:
        done.set()
        thread.join()
    same(logits_of(model, inputs), logits_of(plain, inputs))
    assert compiled


def test_it_does_not_keep_a_model_alive(no_inductor):
    model, _ = model_of()
    logits_of(model, prompt(1, 50))
    weight = weakref.ref(model.lm_head.weight)
    (waiting,) = deferred._WAITING
    assert waiting._compile is not None
    del model
    gc.collect()
    assert weight() is None


def test_warming_up_compiles_all(no_inductor, compiled):
    model, _ = model_of()
    warm_up(lambda: logits_of(model, prompt(1, 50)))
    assert compiled and not deferred._WAITING


def test_conditions_of_the_compiler():
    """What was compiled is not called where a condition on sizes does not hold that no guard of Dynamo checks."""
    held: list[GraphModule] = []

    def backend(gm, inputs):
        held.append(gm)
        return gm.forward

    torch.compile(lambda x: x + 1, backend=backend, dynamic=True)(torch.rand(6, 6))
    size, tensor = (example(node) for node in held[0].graph.find_nodes(op="placeholder"))
    assert isinstance(size, torch.SymInt) and isinstance(tensor, torch.Tensor)
    symbol = size.node.expr
    fits = deferred._check(held[0], [sympy.Eq(sympy.Mod(symbol, 16), 0), symbol < 100])
    for rows, expected in ((32, True), (33, False), (128, False)):
        assert fits([rows, torch.empty(rows, rows)]) is expected
