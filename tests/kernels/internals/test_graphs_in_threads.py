"""A graph that several threads call at the same time, the first time that it is called."""

from __future__ import annotations

import pytest
import torch
from torch.fx import symbolic_trace

from innerq_compile.compiler.backend import innerq_backend
from innerq_compile.kernels.internals.graphs import LazyGraphModule
from tests.helpers.small_caches import lossless, random_cache
from tests.helpers.threads import at_once

THREADS = 4


def lazy() -> LazyGraphModule:
    def computed(past):
        x = past.sum(-1)
        for number in range(60):
            x = x * 2 - number - x
        return x

    traced = symbolic_trace(computed)
    return LazyGraphModule(traced, traced.graph)


@pytest.mark.passes_fail
def test_a_graph_that_runs_as_it_was_captured():
    """One whose passes have failed, because of an input that they do not expect."""
    cache = lossless(random_cache(40))
    expected = lazy()(cache.dequantize())
    for _ in range(5):
        gm = lazy()
        gm.graph.find_nodes(op="placeholder")[0].meta["example_value"] = cache
        call = innerq_backend(gm, [cache])
        for found in at_once(*[lambda call=call: call(cache) for _ in range(THREADS)]):
            torch.testing.assert_close(found, expected)
