"""How the outputs of the program are made from those of the new graph."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import InnerQConfig
from innerq_compile.passes import PIPELINE
from innerq_compile.passes.context import Appended, Number, ProgramCache, Quantized
from innerq_compile.passes.graph.reading import outputs
from tests.helpers.programs import TinyAttention, capture

pytestmark = pytest.mark.usefixtures("no_inductor")

CONFIG = InnerQConfig.preset("base")


class Outputs(TinyAttention):
    def forward(self, x, past=None):
        out, (k, v) = super().forward(x, past)
        return out, k, v, out.sum()


def results(program, *calls):
    return [PIPELINE.rewrite(gm, CONFIG) for gm, _ in capture(program, *calls, config=CONFIG)]


def test_a_prompt_and_a_step():
    calls = (lambda _: (torch.randn(1, 5, 32),), lambda last: (torch.randn(1, 1, 32), last[1:3]))
    prefill, decode = results(Outputs(), *calls)
    out, keys, values, total = prefill.context.outputs
    assert isinstance(keys.what, Quantized) and isinstance(values.what, Quantized)
    assert (out.what, total.what) == (None, None)
    made = outputs(prefill.gm.graph)
    for plan in (keys, values):
        tensors = [*plan.what.tensors]
        assert list(made[plan.at : plan.at + len(tensors)]) == tensors
    assert len(made) == 2 + len(keys.what.tensors.present()) + len(values.what.tensors.present())

    out, keys, values, total = decode.context.outputs
    for plan in (keys, values):
        assert isinstance(plan.what, Appended) and (plan.what.count, plan.at) == (1, None)
    assert keys.what.cache.format.role == "key"
    assert (out.at, total.at) == (0, 1) and len(outputs(decode.gm.graph)) == 2
    left = {node.name for node in decode.gm.graph.find_nodes(op="placeholder")}
    assert not left & {cache.placeholder.name for cache in decode.context.caches.values()}


def test_a_cache_that_is_handed_on():
    def program(x, past=None):
        return TinyAttention.forward(model, x) if past is None else (x + 1, past)

    model = TinyAttention()
    calls = (lambda _: (torch.randn(1, 5, 32),), lambda last: (torch.randn(1, 1, 32), last[1]))
    _, hands_on = results(program, *calls)
    kinds = [type(plan.what) for plan in hands_on.context.outputs]
    assert kinds in ([type(None), ProgramCache, ProgramCache], [type(None)])  # Dynamo may hand inputs on by itself


def test_numbers_are_computed_by_the_host():
    """A CUDA graph would return those of the call in which it was recorded."""

    class Counts(TinyAttention):
        def forward(self, x, past=None, seen_len=0):
            out, cache = super().forward(x, past)
            return out, cache, seen_len + x.shape[1]

    calls = [lambda last, at=at: (torch.randn(1, 1, 32), last[1], at) for at in (5, 6)]
    *_, step = results(Counts(), lambda _: (torch.randn(1, 5, 32),), *calls)
    numbers = [plan for plan in step.context.outputs if isinstance(plan.what, Number)]
    assert all(plan.at is None for plan in numbers)
    values = [node.meta.get("example_value") for node in outputs(step.gm.graph)]
    assert not any(isinstance(value, torch.SymInt) for value in values)


def test_all_of_a_cache_beside_it():
    """A prompt makes one cache of both, and a step returns two tensors of it."""

    class Twice(TinyAttention):
        def forward(self, x, past=None):
            out, (k, v) = super().forward(x, past)
            return out, (k[..., 0:, :], v[:, :]), k, v

    calls = (lambda _: (torch.randn(1, 5, 32),), lambda last: (torch.randn(1, 1, 32), last[1]))
    for result in results(Twice(), *calls):
        assert len(result.context.rewritten) == 1 and not result.context.made_dense
        _, *plans = result.context.outputs
        whats = [plan.what for plan in plans]
        assert whats[0] is whats[2] and whats[1] is whats[3] and isinstance(whats[0], (Quantized, Appended))
        assert (plans[0].at, plans[1].at) == (plans[2].at, plans[3].at)
