"""Threads that run one compiled graph at the same time, on views of the same caches or on caches of their own."""

from __future__ import annotations

import pytest
import torch

from innerq_compile import innerq
from tests.helpers.programs import TinyAttention
from tests.helpers.small_caches import assert_equal
from tests.helpers.threads import at_once

pytestmark = pytest.mark.usefixtures("no_inductor_in_module")
PROMPT, THREADS, ROUNDS = 70, 3, 25


@pytest.fixture(scope="module")
def models(no_inductor_in_module):
    """A decoder as it is, and compiled, with its graphs of a prompt and of a step."""
    torch.manual_seed(0)
    eager, compiled = TinyAttention(), TinyAttention()
    compiled.load_state_dict(eager.state_dict())
    innerq(compiled, preset="lossless")
    past = None
    for tokens in (PROMPT, 1, 1):
        _, past = step(compiled, torch.randn(1, tokens, 32), past)
    return eager, compiled


@torch.no_grad()
def step(model, x, past):
    return model(x, past)


def assert_same(results, expected):
    (out, past), (expected_out, expected_past) = results, expected
    torch.testing.assert_close(out, expected_out, atol=1e-5, rtol=1e-5)
    for side, expected_side in zip(past, expected_past, strict=True):
        assert_equal(side, expected_side, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 2], ids=["first", "known"])
def test_views_of_the_same_caches(models, steps):
    """The caches of the call are known from the last one (`NextCall`) for at most one of the threads."""
    eager, compiled = models
    for _ in range(ROUNDS):
        pasts = [None, None]
        for tokens in [PROMPT] + [1] * steps:
            x = torch.randn(1, tokens, 32)
            pasts = [step(model, x, past)[1] for model, past in zip(models, pasts, strict=True)]
        dense, caches = pasts
        news = [torch.randn(1, 1, 32) for _ in range(THREADS)]
        results = at_once(*[lambda x=x, caches=caches: step(compiled, x, caches) for x in news])
        for x, result in zip(news, results, strict=True):
            assert_same(result, step(eager, x, dense))
        storages = [cache._storage for _, past in results for cache in past]
        assert len({*map(id, storages)}) == len(storages)
        assert sum(storage is past._storage for storage in storages for past in caches) == len(caches)


def test_caches_of_their_own(models):
    eager, compiled = models

    def run(model, xs):
        past, outs = None, []
        for x in xs:
            out, past = step(model, x, past)
            outs.append(out)
        return torch.cat(outs, 1), past

    programs = [[torch.randn(1, tokens, 32) for tokens in (PROMPT, *[1] * 10)] for _ in range(THREADS)]
    results = at_once(*[lambda xs=xs: run(compiled, xs) for xs in programs])
    for xs, result in zip(programs, results, strict=True):
        assert_same(result, run(eager, xs))


def test_a_thread_that_appends_by_itself(models):
    """`torch.cat` outside of the graph, at the time of a call."""
    eager, compiled = models
    for _ in range(ROUNDS):
        x, new, extra = torch.randn(1, PROMPT, 32), torch.randn(1, 1, 32), torch.randn(1, 1, 3, 16)
        dense, past = (step(model, x, None)[1] for model in models)
        result, *longer = at_once(
            lambda new=new, past=past: step(compiled, new, past),
            *[lambda side=side, extra=extra: torch.cat([side, extra], 2) for side in past],
        )
        assert_same(result, step(eager, new, dense))
        for side, exact in zip(longer, dense, strict=True):
            assert_equal(side, torch.cat([exact, extra], 2), atol=1e-5)
