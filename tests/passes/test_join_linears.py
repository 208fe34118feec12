"""Linear layers of a single token, side by side: the graph, what may not be joined, and what it computes."""

from __future__ import annotations

import expecttest
import pytest
import torch
import torch.nn.functional as F

from innerq_compile import InnerQConfig
from innerq_compile.kernels.triton import support
from innerq_compile.passes import PassContext
from innerq_compile.passes.join_linears import join_linears
from tests.helpers.programs import TinyAttention, capture, changes_by_pass

pytest.importorskip("triton")


@pytest.fixture
def gpu(monkeypatch):
    """Everything is on a device that Triton runs on."""
    monkeypatch.setattr(support, "on_gpu", lambda tensor: True)


def joined(program, *inputs) -> tuple[str, torch.fx.GraphModule]:
    """What the pass makes of ``program``, as if it read a quantized cache; the code of its body."""
    graphs = []

    def backend(gm, examples):
        graphs.append((gm, examples))
        return gm.forward

    torch._dynamo.reset()
    with torch.no_grad():
        expected = torch.compile(program, backend=backend, fullgraph=True)(*inputs)
        ((gm, examples),) = graphs
        context = PassContext(InnerQConfig.preset("base"))
        context.caches["one"] = None
        gm = join_linears(gm, context)
        gm.graph.lint()
        gm.recompile()
        results = gm(*examples)
        torch.testing.assert_close(results if isinstance(expected, tuple) else results[0], expected)
    return "\n".join(line for line in gm.code.splitlines() if "row_linear" in line), gm


def row(width: int = 16, *lead: int) -> torch.Tensor:
    return torch.randn(*(lead or (1, 1)), width)


def weight(outputs: int = 8, inputs: int = 16) -> torch.Tensor:
    return torch.randn(outputs, inputs)


def test_shared_input(gpu):
    def program(x, w, v, u, b):
        return F.linear(x, w) + F.linear(x, v, b), F.linear(x * 2, u)

    code, _ = joined(program, row(), weight(), weight(), weight(), torch.randn(8))
    assert code.count("row_linear.default(") == 2
    assert "[None, l_b_]" in code


def test_no_more_than_four(gpu):
    def program(x, w):
        return sum(F.linear(x, w) for _ in range(6))

    code, _ = joined(program, row(), weight())
    assert code.count("row_linear.default(") == 2


def test_input_changed_between(gpu):
    def program(x, w, v):
        x = x + 1
        first = F.linear(x, w)
        x.mul_(2)
        return first + F.linear(x, v)

    code, _ = joined(program, row(), weight(), weight())
    assert code.count("row_linear.default(") == 2


def test_weight_made_between(gpu):
    def program(x, w):
        first = F.linear(x, w)
        return F.linear(x, first.reshape(8, 1) * torch.ones(8, 16))

    code, _ = joined(program, row(), weight())
    assert code.count("row_linear.default(") == 2


@pytest.mark.parametrize(
    ("x", "w"),
    [
        (row(16, 2, 1), weight()),  # two rows
        (row(), weight().to(torch.float64).float()[:, ::2].repeat(1, 2).t().contiguous().t()),  # a transposed weight
        (row().double(), weight().double()),
    ],
    ids=["rows", "layout", "dtype"],
)
def test_left_alone(gpu, x, w):
    code, _ = joined(lambda x, w: F.linear(x, w), x, w)
    assert code == ""


def test_left_alone_under_autocast(gpu):
    with torch.autocast("cpu", torch.bfloat16):
        code, _ = joined(lambda x, w: F.linear(x, w), row(), weight())
    assert code == ""


def test_left_alone_on_a_cpu():
    code, _ = joined(lambda x, w: F.linear(x, w), row(), weight())
    assert code == ""


class TestGraph(expecttest.TestCase):
    def test_decode_graph(self):
        torch.manual_seed(0)
        config = InnerQConfig.preset("base")
        mask = torch.ones(1, 1, 5, 5).tril().bool()
        captured = capture(
            TinyAttention(),
            lambda _: (torch.randn(1, 5, 32), None, mask),
            lambda last: (torch.randn(1, 1, 32), last[1]),
            config=config,
        )
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(support, "on_gpu", lambda tensor: True)
            prefill, decode = (changes_by_pass(gm, config) for gm, _ in captured)
        assert "join_linears" not in prefill
        self.assertExpectedInline(
            decode["join_linears"],
            """\
- linear = torch._C._nn.linear(l_x_, l_self_modules_q_parameters_weight_, None)
+ row_linear_default = torch.ops.innerq.row_linear.default(l_x_, [l_self_modules_q_parameters_weight_, l_self_modules_k_parameters_weight_, l_self_modules_v_parameters_weight_], [None, None, None])
+ split = torch.functional.split(row_linear_default, [32, 16, 16], -1)
+ getitem = split[0]
+ getitem_1 = split[1]
+ getitem_2 = split[2]
- view = linear.view(1, 1, 2, 16)
+ view = getitem.view(1, 1, 2, 16)
- linear_1 = torch._C._nn.linear(l_x_, l_self_modules_k_parameters_weight_, None)
- view_1 = linear_1.view(1, 1, 1, 16)
+ view_1 = getitem_1.view(1, 1, 1, 16)
- linear_2 = torch._C._nn.linear(l_x_, l_self_modules_v_parameters_weight_, None)
- view_2 = linear_2.view(1, 1, 1, 16)
+ view_2 = getitem_2.view(1, 1, 1, 16)""",
        )
