"""The lowering of decode attention: the code that Inductor makes for a GPU, its text and what it computes.

Texts are in ``golden/``; ``EXPECTTEST_ACCEPT=1`` writes them anew. They are those of one torch version.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from torch._inductor.utils import fresh_cache

from innerq_compile.kernels import dispatch, layout, lowering
from innerq_compile.kernels import triton as triton_kernels
from innerq_compile.kernels.internals import templates
from innerq_compile.kernels.lowering import source
from innerq_compile.kernels.triton.attention_fields import decode_partial_fields_kernel
from innerq_compile.kernels.triton.attention_portable import decode_partial_portable_kernel
from innerq_compile.kernels.triton.combine import combined
from tests.helpers import inductor
from tests.helpers.lowering_cases import Layer
from tests.helpers.strategies import pair
from tests.helpers.triton_cases import Attention

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the real thing")
F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
GOLDEN = pathlib.Path(__file__).parent / "golden"
#: Dimensions of a Layer's inputs that hold the capacity.
CAPACITY = {4: [2], 5: [2], 8: [2], 9: [2]}

SHOWN = {
    "base-D128": (Attention(**pair(3, 3), head_dim=128, group=4, tokens=1200, batch=1), None),
    "base-D64-capacity": (Attention(**pair(3, 3), head_dim=64, group=4), CAPACITY),
    "int4-D128-mask": (Attention(**pair(4, 4), head_dim=128, mask="bool", padded=True), None),
    "two-D64-mask-capacity": (Attention(**pair(2, 2, dtype=BF16), mask="added", softcap=20.0, sinks=True), CAPACITY),
    "base-D96": (Attention(**pair(3, 3), head_dim=96), None),
    "portable-D80": (Attention(**pair(5, 3, group=16), head_dim=80), None),
}


def lowered(layer: Layer, dynamic=None, **options):
    with inductor.as_on_a_gpu(**options):
        return inductor.compile_for_gpu(layer.call, tuple(layer.inputs), dynamic)


def of_kind(code: str, kind: str) -> list[str]:
    return [name for name in inductor.kernels_of(code) if name.startswith(f"triton_{kind}_")]


@pytest.mark.parametrize("name", SHOWN)
def test_generated_code(name):
    """Three kernels: the query with RoPE and norm, the partial results, the combination with the transposition."""
    case, dynamic = SHOWN[name]
    layer = Layer(case)
    compiled = lowered(layer, dynamic, multiprocessors=8 if dynamic else 132)  # few splits, for the interpreter's sake
    layer.check(compiled.result)
    kernels = inductor.kernels_of(compiled.code)
    assert len(kernels) == 3 and "decode_attention.default(" not in compiled.code
    template, combination = of_kind(compiled.code, "tem")
    assert source.library(combined) in kernels[combination]
    kernel = decode_partial_portable_kernel if "portable" in name else decode_partial_fields_kernel
    assert source.library(kernel) in kernels[template]
    if not torch.__version__.startswith("2.13"):
        return
    text, path = inductor.outline(compiled.code), GOLDEN / f"{name}.txt"
    if os.environ.get("EXPECTTEST_ACCEPT"):
        path.write_text(text)
    assert text == path.read_text()


CASES = [
    Attention(**pair(8, 2), head_dim=64, group=16),
    Attention(**pair(3, 2, "hybrid", "asymmetric", BF16), head_dim=128, group=1, heads=2),
    Attention(**pair(3, 3), head_dim=64, rows=3, mask="bool"),
    Attention(**pair(3, 3), mask="nothing", sinks=True),
    Attention(**pair(3, 3), mask="open", padded=True, tokens=260),
    Attention(**pair(3, 3), mask="open-added", rows=2, softcap=20.0),
    Attention(**pair(3, 3, dtype=F32), mask="added-heads", rows=2),
    Attention(**pair(3, 4, "none", "signed"), padded=True),
    Attention(**pair(6, 5), head_dim=64, value_dim=96),
    Attention(**pair(3, 3), head_dim=64, value_dim=80, rows=2),
    Attention(**pair(3, 3), sinks=True, rows=3),
    Attention(**pair(3, 3), sinks="by-row", rows=3),
    Attention(**pair(8, 3, "hybrid", "anchored", scale="pair8"), value_dim=128, rows=2, mask="bool", latent=True),
    Attention(**pair(3, 3), heads=4, value_heads=(2, 2), mask="open"),
    Attention(**pair(5, 3, group=16), heads=4, value_heads=(1, 1), head_dim=80),
    Attention(**pair(3, 3), hide=60, dropped=1, tokens=200),
    Attention(**pair(3, 3), hide=60, dropped=-2, tokens=200, mask="bool", padded=True),
    Attention(**pair(6, 5), hide=60, tokens=200),
    Attention(**pair(3, 3, "rolling", "rolling", sink=0, recent=20), hide=150, dropped=1, tokens=200, mask="bool"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_compiled_attention_is_the_reference(case):
    layer = Layer(case)
    compiled = lowered(layer)
    assert of_kind(compiled.code, "tem")
    layer.check(compiled.result)


def test_one_graph_for_every_capacity_and_batch():
    """A storage that grows, and more sequences, call the same kernels with another grid."""
    case = Attention(**pair(3, 3), tokens=100)
    first = Layer(case)
    batch = {index: [0] for index in range(len(first.inputs))}
    with inductor.as_on_a_gpu(multiprocessors=8):
        dynamic = {index: batch[index] + CAPACITY.get(index, []) for index in batch}
        compiled = inductor.compile_for_gpu(first.call, tuple(first.inputs), dynamic)
        first.check(compiled.result)
        for changed in ({"tokens": 400, "room": 9}, {"batch": 3, "tokens": 233}):
            other = Layer(dataclasses.replace(case, **changed))
            other.check(compiled.call(*other.inputs))
        assert compiled.count() == 1


@pytest.mark.parametrize("mode", ["signed", "rolling"])
def test_one_graph_for_any_number_of_dropped_tokens(mode):
    """``dropped`` is an argument of the kernel where the graph has a symbol for it."""
    case = Attention(**pair(3, 3, mode, mode, sink=0, recent=40), tokens=200, hide=140)
    layer = Layer(case)

    def program(like, *inputs):
        return layer.call(*inputs, dropped=like.shape[0] - 10)

    with inductor.as_on_a_gpu(multiprocessors=8):
        compiled = inductor.compile_for_gpu(program, (torch.zeros(13), *layer.inputs), {0: [0]})
        template, _ = of_kind(compiled.code, "tem")
        assert "dropped=(-10) + ks" in inductor.kernels_of(compiled.code)[template]
        for dropped in (3, 1, 0, -7):
            layer.given.dropped = dropped
            layer.check(compiled.call(torch.zeros(10 + dropped), *layer.inputs))
        assert compiled.count() == 1


def test_appends_that_drop_a_symbolic_number_stay_calls(monkeypatch):
    monkeypatch.setattr(dispatch, "backend_for", lambda device: triton_kernels)
    case = Attention(**pair(3, 3, sink=0, recent=40), tokens=60)
    layer = Layer(case)
    keys, values, new = layer.given.keys, layer.given.values, torch.randn(case.batch, 1, 1, 64, dtype=F16)
    specs = (keys.format.spec, values.format.spec)

    def program(like, x, *tensors):
        torch.ops.innerq.append_(*tensors[:4], None, *tensors[4:], x, x, *specs, like.shape[0] - 10)
        return x + 1

    with inductor.as_on_a_gpu():
        inputs = [torch.zeros(13), new, *(tensor.clone() for tensor in (*keys, *values))]
        compiled = inductor.compile_for_gpu(program, tuple(inputs), {0: [0]})
        for drop in (0, 1, 5):
            compiled.call(torch.zeros(10 + drop), *inputs[1:])
        assert compiled.count() == 1
    for state in (inputs[5], inputs[9]):
        assert (state[..., layout.HIDDEN] == 3 + 0 + 1 + 5).all() and (state[..., layout.LENGTH] == 64).all()


def test_max_autotune_times_other_configurations():
    """Any of them may be chosen; the inputs to time them on are caches that are full."""
    layer = Layer(Attention(**pair(3, 3), tokens=150))
    seen, only = {}, templates.autotune_select_algorithm

    def select(name, choices, inputs, part, input_gen_fns):
        if name != "innerq_decode_attention":
            return only(name, choices, inputs, part)
        seen["choices"] = choices
        seen["inputs"] = [input_gen_fns[i](node) if i in input_gen_fns else None for i, node in enumerate(inputs)]
        return choices[len(choices) // 2].output_node(), None

    with mock.patch.object(templates, "autotune_select_algorithm", select):
        compiled = lowered(layer, max_autotune=True)
    layer.check(compiled.result)
    assert len({choice.description for choice in seen["choices"]}) == len(seen["choices"]) >= 5
    _, codes, scales, window, state, *_ = seen["inputs"]
    assert codes.dtype == torch.int32 and codes.shape == layer.inputs[4].shape and codes.min() < 0 < codes.max()
    assert scales.min() >= 0 and scales.max() < 0.1 and window is None
    fmt = layer.given.keys.format
    assert (state[..., layout.LENGTH] == fmt.sink + codes.shape[2] * 32 + fmt.recent).all()
    assert (state[..., layout.START] == 0).all() and (state[..., layout.HIDDEN] == 0).all()


def test_default_times_nothing():
    layer = Layer(Attention(**pair(3, 3)))
    with mock.patch("torch._inductor.select_algorithm.AlgorithmSelectorCache.do_autotuning") as timing:
        lowered(layer)
    assert not timing.called


def test_stays_an_operator_on_a_cpu():
    layer = Layer(Attention(**pair(3, 3), tokens=60))
    lowering.register()
    codes = []
    with fresh_cache(), mock.patch("torch._inductor.graph.GraphLowering.save_output_code", codes.append):
        torch._dynamo.reset()
        layer.check(torch.compile(layer.call, fullgraph=True)(*layer.inputs))
    assert "torch.ops.innerq.decode_attention.default(" in codes[0] and not inductor.kernels_of(codes[0])


def test_symbolic_query_tokens_stay_an_operator():
    layer = Layer(Attention(**pair(3, 3), rows=3))
    compiled = lowered(layer, {0: [2], 1: [2], 2: [2]})
    assert "torch.ops.innerq.decode_attention.default(" in compiled.code and not of_kind(compiled.code, "tem")
    layer.check(compiled.result)
