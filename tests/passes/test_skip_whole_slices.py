"""Slices that take everything are skipped; a window that is not reached is one of them."""

from __future__ import annotations

import expecttest
import pytest
import torch

from innerq_compile import InnerQConfig
from innerq_compile.passes import PIPELINE, PassContext
from innerq_compile.passes.analysis.windows import SHORT_WINDOW
from innerq_compile.passes.graph.reading import op_name
from innerq_compile.passes.skip_whole_slices import skip_whole_slices
from tests.helpers.programs import TinyAttention, brief_code_of, capture, changes_by_pass

pytestmark = pytest.mark.usefixtures("no_inductor")

PLAIN = InnerQConfig.preset("base", centre_keys=False, normalize_keys=False, key_mode="hybrid", value_mode="hybrid")


class Windowed(TinyAttention):
    """Keeps the last tokens of its cache, as ``DynamicSlidingWindowLayer`` does."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, x, past=None, mask=None):
        out, (k, v) = super().forward(x, past, mask)
        return out, (k[:, :, -self.window + 1 :, :], v[:, :, -self.window + 1 :, :])


def graphs_of(window: int, *lengths: int):
    first, *others = lengths
    calls = [lambda _: (torch.randn(1, first, 32),)]
    calls += [lambda last, tokens=tokens: (torch.randn(1, tokens, 32), last[1]) for tokens in others]
    return [gm for gm, _ in capture(Windowed(window), *calls, config=PLAIN)]


class TestSkipWholeSlices(expecttest.TestCase):
    def test_a_step_within_the_window(self):
        *_, step = graphs_of(SHORT_WINDOW + 2, 5, 1)
        changes = changes_by_pass(step, PLAIN, read=brief_code_of)
        self.assertExpectedInline(
            changes["skip_whole_slices"],
            """\
+ return (out_1, k_1, v_1)
- getitem = k_1[(slice(None, None, None), slice(None, None, None), slice(-1025, None, None), slice(None, None, None))]
- getitem_1 = v_1[(slice(None, None, None), slice(None, None, None), slice(-1025, None, None), slice(None, None, None))]
- return (out_1, getitem, getitem_1)""",
        )


@pytest.mark.parametrize(
    ("window", "lengths"),
    [
        (SHORT_WINDOW + 2, (5, 1)),
        (SHORT_WINDOW + 2, (SHORT_WINDOW + 1, 1)),  # the step reads what it no longer returns
        (SHORT_WINDOW + 2, (SHORT_WINDOW + 2, 1)),
        (SHORT_WINDOW, (5, 1)),
    ],
    ids=["within", "at the border", "behind", "short"],
)
def test_windows(window, lengths):
    contexts = [PIPELINE.rewrite(gm, PLAIN).context for gm in graphs_of(window, *lengths)]
    assert [len(context.rewritten) for context in contexts] == [1, 1]
    assert not any(context.made_dense for context in contexts)


def slices_left(fn) -> int:
    """How many slices of a captured function of ``x [2, 3, n, 8]`` are left."""
    graphs = []

    def backend(gm, inputs):
        graphs.append(skip_whole_slices(gm, PassContext(PLAIN)))
        gm.recompile()
        return gm.forward

    torch._dynamo.reset()
    x = torch.randn(2, 3, 7, 8)
    torch._dynamo.mark_dynamic(x, 2)
    torch.testing.assert_close(torch.compile(fn, backend=backend)(x), fn(x))
    names = [op_name(node) for node in graphs[0].graph.nodes]
    return names.count("getitem") + names.count("narrow")


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.sin()[:, :, -2000:, :],
        lambda x: x.sin()[:, :, -2000:],
        lambda x: x.sin()[..., 0:, :],
        lambda x: x.sin()[..., : x.shape[2], :],
        lambda x: x.sin()[:, :, : x.shape[2]],
        lambda x: x.sin()[:, :, 0 : x.shape[2] : 1],
        lambda x: x.sin()[:],
        lambda x: x.sin()[...],
        lambda x: x.sin().narrow(2, 0, x.shape[2]),
        lambda x: x.sin().narrow(1, 0, 3),
        lambda x: x[:, :, -2000:] + 1,
    ],
)
def test_skipped(fn):
    assert slices_left(fn) == 0


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.sin()[:, :, 1:, :],
        lambda x: x.sin()[:, :, : x.shape[2] - 1],
        lambda x: x.sin()[:, :, -20:, :],  # a short window
        lambda x: x.sin()[::2],
        lambda x: x.sin()[:, :, ::2],
        lambda x: x.sin()[:, :, None].sum(2),
        lambda x: x.sin()[torch.arange(1, -1, -1)],  # as large as the tensor, in another order
        lambda x: x.sin().narrow(2, 1, 2),
        lambda x: x[:, :, -2000:],  # a tensor of its own for the program, not its input
    ],
)
def test_kept(fn):
    assert slices_left(fn) == 1


def _written(x):
    y = x.sin()
    y[:, :, : x.shape[2]].copy_(x)
    return y


def _written_by_a_view(x):
    y = x.sin()
    part = y[:, :, : x.shape[2]]
    part.transpose(1, 2).mul_(0.5)
    return y, part + 1


def _with_sizes_of_its_own(x):
    y = x.sum(2, keepdim=True).expand(2, 3, 3, 8).clone()
    part = y[:]
    y.transpose_(1, 2)
    return part * 1, y * 1


def _returned_beside_its_source(x):
    y = x.sin()
    return y, y[:]


@pytest.mark.parametrize("fn", [_written, _written_by_a_view, _with_sizes_of_its_own, _returned_beside_its_source])
def test_two_tensors_of_the_program(fn):
    assert slices_left(fn) == 1


@torch.no_grad()
def test_a_slice_of_a_quantized_cache_that_is_written():
    """Its slice is a dense tensor of its own."""

    def program(q, past):
        keys, values = (cache[:, :, : cache.shape[2]] for cache in past)
        keys.transpose(1, 2).mul_(0.5)
        return torch.nn.functional.scaled_dot_product_attention(q, keys, values)

    cache = torch.compile(TinyAttention(), backend="innerq", options={"preset": "lossless"})(torch.randn(1, 40, 32))[1]
    query = torch.randn(1, 1, 5, 16)
    expected = program(query, [part.dequantize() for part in cache])
    compiled = torch.compile(program, backend="innerq", options={"preset": "lossless"})
    torch.testing.assert_close(compiled(query, cache), expected)
