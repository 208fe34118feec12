"""Tensors of constant numbers are made on their device, where the graph is to be recorded."""

from __future__ import annotations

import expecttest
import pytest
import torch

from innerq_compile import InnerQConfig
from innerq_compile.passes import PassContext
from innerq_compile.passes.fill_constants import fill_constants
from tests.helpers.programs import brief_code_of

pytestmark = pytest.mark.usefixtures("no_inductor")


def filled(fn, static_lengths: bool = True) -> torch.fx.GraphModule:
    """The graph of a function of ``x [2, 3]`` behind the pass; it computes the same."""
    graphs = []

    def backend(gm, inputs):
        graphs.append(fill_constants(gm, PassContext(InnerQConfig.preset("base"), static_lengths=static_lengths)))
        gm.recompile()
        return gm.forward

    torch._dynamo.reset()
    x = torch.randn(2, 3)
    torch.testing.assert_close(torch.compile(fn, backend=backend)(x), fn(x))
    return graphs[0]


class TestFillConstants(expecttest.TestCase):
    def test_a_mask(self):
        graph = filled(lambda x: torch.where(x > 0, torch.tensor(0.0, device=x.device, dtype=x.dtype), -1e9))
        self.assertExpectedInline(
            brief_code_of(graph),
            """\
    gt = l_x_ > 0
    full = torch.full((), 0.0, dtype = torch.float32, device = device(type='cpu'))
    where = torch.where(gt, full, -1000000000.0)
    return (where,)""",
        )

    def test_an_index(self):
        graph = filled(lambda x: x[torch.tensor([-1], device=x.device)])
        self.assertExpectedInline(
            brief_code_of(graph),
            """\
    full = torch.full((1,), -1, dtype = torch.int64, device = device(type='cpu'))
    getitem = l_x_[full]
    return (getitem,)""",
        )


@pytest.mark.parametrize("number", [1, True, -2.5, float("inf")])
def test_the_dtype_stays(number):
    graph = filled(lambda x: x + torch.tensor(number, device=x.device))
    assert "torch.full" in graph.code and "torch.tensor" not in graph.code


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=x.device),
        lambda x: x + torch.tensor(1.0, device=x.device).add_(x.sum()),
    ],
    ids=["several numbers", "written"],
)
def test_others_stay(fn):
    assert "torch.full(" not in filled(fn).code


def test_only_where_the_graph_is_to_be_recorded():
    assert "torch.full" not in filled(lambda x: x + torch.tensor(1, device=x.device), static_lengths=False).code
