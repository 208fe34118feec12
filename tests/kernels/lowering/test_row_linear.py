"""Linear layers of one row: the kernel, and what Inductor makes of its template."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from hypothesis import given, settings
from hypothesis import strategies as st

from innerq_compile.kernels.triton import linear, support
from tests.helpers import inductor

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the real thing")
GOLDEN = pathlib.Path(__file__).parent / "golden"
#: Of the largest output: sums are float32 and rounded once.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-5}


def layers(widths, biased, inputs: int, dtype: torch.dtype, lead=(1, 1)):
    x = torch.randn(*lead, inputs, dtype=dtype)
    weights = [torch.randn(width, inputs, dtype=dtype) / inputs**0.5 for width in widths]
    biases = [torch.randn(width, dtype=dtype) if has else None for width, has in zip(widths, biased, strict=True)]
    return x, weights, biases


def reference(x, weights, biases) -> torch.Tensor:
    made = [
        F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        for weight, bias in zip(weights, biases, strict=True)
    ]
    return torch.cat(made, -1)


def check(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape and actual.dtype == dtype
    assert ((actual.double() - expected).abs().max() / expected.abs().max()).item() < TOLERANCE[dtype]


@pytest.mark.skipif(not support.interpreted(), reason="needs TRITON_INTERPRET=1")
@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=4),
    st.integers(1, 300),
    st.sampled_from(list(TOLERANCE)),
    st.sampled_from([linear.Launch(1, 64, 1), linear.Launch(2, 128, 4), linear.Launch(4, 32, 2), None]),
)
def test_kernel(sizes, inputs, dtype, launch):
    widths, biased = zip(*sizes, strict=True)
    x, weights, biases = layers(widths, biased, inputs, dtype)
    check(linear.row_linear(x, weights, biases, launch), reference(x, weights, biases), dtype)


def program(x, w0, w1, w2, bias, residual):
    y = torch.ops.innerq.row_linear(x, [w0, w1, w2], [None, bias, None])
    return residual + y


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_template(dtype):
    """One kernel computes the products and the addition behind them; sizes are not multiples of a tile."""
    x, weights, biases = layers((64, 17, 5), (False, True, False), 160, dtype)
    residual = torch.randn(1, 1, 86, dtype=dtype)
    inputs = (x, *weights, biases[1], residual)
    with inductor.as_on_a_gpu():
        compiled = inductor.compile_for_gpu(program, inputs)
    check(compiled.result, reference(x, weights, biases) + residual.double(), dtype)
    assert len(inductor.kernels_of(compiled.code)) == 1
    if dtype is torch.float16 and torch.__version__.startswith("2.13"):
        text, path = inductor.outline(compiled.code), GOLDEN / "row-linear.txt"
        if os.environ.get("EXPECTTEST_ACCEPT"):
            path.write_text(text)
        assert text == path.read_text()


def _inputs_of_graph(x, w):
    return torch.ops.innerq.row_linear(x, [w], [None])


def _row_computed(x, w):
    return torch.ops.innerq.row_linear(torch.nn.functional.softmax(x, -1), [w], [None])


def _weight_computed(x, w):
    return torch.ops.innerq.row_linear(torch.nn.functional.softmax(x, -1), [torch.softmax(w, 1)], [None])


def _weight_written(x, w):
    w.add_(x[0, 0])
    return torch.ops.innerq.row_linear(torch.nn.functional.softmax(x, -1), [w], [None])


def _row_of_weight_written(x, w):
    y = torch.nn.functional.softmax(x, -1)
    w[torch.tensor([3])] = y[0, 0].sigmoid()
    return torch.ops.innerq.row_linear(y, [w], [None])


@pytest.mark.parametrize(
    ("program", "ahead"),
    [
        (_inputs_of_graph, False),
        (_row_computed, True),
        (_weight_computed, False),
        (_weight_written, False),
        (_row_of_weight_written, False),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_weights_are_read_ahead_only_where_no_kernel_writes_them(program, ahead):
    """A kernel that is launched early may read, before it waits, only tensors that no kernel of the graph writes."""
    x, weights, _ = layers((64,), (False,), 160, torch.float16)
    with inductor.as_on_a_gpu():
        compiled = inductor.compile_for_gpu(program, (x.clone(), weights[0].clone()))
    check(compiled.result, program(x, weights[0]).double(), torch.float16)
    texts = inductor.kernels_of(compiled.code).values()
    assert sum(f"AHEAD : tl.constexpr = {ahead}\n" in text for text in texts) == 1


def test_max_autotune_has_other_launches():
    own = linear.choose_launch(4096)
    others = linear.other_launches(own, 4096)
    assert len(others) >= 5 and own not in others and len(set(others)) == len(others)


@pytest.mark.parametrize("kind", ["operator", "strided"])
def test_on_a_cpu(kind):
    """Without a kernel the operator computes the same, by the library's own products."""
    x, weights, biases = layers((8, 3), (True, False), 24, torch.float32)
    if kind == "strided":
        weights[0] = weights[0].t().contiguous().t()
    out = torch.ops.innerq.row_linear(x, weights, biases)
    check(out, reference(x, weights, biases), torch.float32)


def test_no_templates_where_plain_torch_is_asked_for():
    """``INNERQ_KERNELS=reference`` takes the templates of compiled graphs out, too."""
    program = "from innerq_compile.kernels import lowering; print(lowering.register())"
    environment = {**os.environ, "INNERQ_KERNELS": "reference"}
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert "done=False, reason='INNERQ_KERNELS=reference'" in found.stdout
