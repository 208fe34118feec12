"""Which module runs a frame, and that Dynamo sees no other stack frames than its own between it and its caller."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

from innerq_compile import compiled_graphs
from innerq_compile.kernels.internals.dynamo_frames import module_of

pytestmark = pytest.mark.usefixtures("graphs_as_they_are")


def frame(*, closure=None, **given):
    return types.SimpleNamespace(f_locals=given, closure=closure)


def test_the_module_that_runs_a_frame():
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    assert module_of(frame(x=other, self=one)) is one
    assert module_of(frame(args=(1, (one.forward, other)))) is one
    assert module_of(frame(x=1)) is None
    assert module_of(frame(closure=(types.CellType(), types.CellType(one.forward)))) is one


@pytest.mark.parametrize("backend", ["innerq", "eager"])
def test_functions_that_are_not_compiled_but_those_they_call(backend):
    """``torch._dynamo.disable(recursive=False)``: ``y`` is not part of a graph."""
    seen = []

    def inner(x):
        seen.append(torch.compiler.is_compiling())
        return x * 3

    @torch._dynamo.disable(recursive=False)
    def outer(x):
        seen.append(torch.compiler.is_compiling())
        return inner(x + 1)

    x = torch.ones(2)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = torch.compile(lambda x: outer(x * 2), backend=backend)(x)
    assert torch.equal(found, (x * 2 + 1) * 3)
    assert seen == [False, True]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 2
    assert len(compiled_graphs()) == (2 if backend == "innerq" else 0)
