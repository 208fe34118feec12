"""Which calls of operators are made ahead, with tensors of which sizes. They run on a GPU: ``tests/gpu``."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from innerq_compile.compiler import kernels_ahead
from innerq_compile.passes.graph.values import example
from innerq_compile.passes.graph.writing import Writer

KEY, VALUE = "key:3:steered:32:32:96:pair8", "value:3:anchored:32:32:96:pair8"


def prompt_of(device: str, layers: int = 2) -> GraphModule:
    """The part of a prompt's graph that makes the caches of some layers, ``[2, 4, S, 64]``."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    sizes = StatelessSymbolicContext([DimDynamic.STATIC, DimDynamic.STATIC, DimDynamic.DYNAMIC, DimDynamic.STATIC])
    meta = mode.from_tensor(torch.empty(2, 4, 100, 64, device="meta"), symbolic_context=sizes)
    with mode:
        keys = torch.empty(meta.shape, device=device, dtype=torch.bfloat16)
        start, profile = (torch.empty(*s, device=device, dtype=torch.int8) for s in ((2,), (2, 4, 2, 64)))
    graph = Graph()
    write = Writer(graph)
    first, queries = write.placeholder("start", start), write.placeholder("queries", profile)
    made = []
    for layer in range(layers):
        for role, spec, more in (("k", KEY, (queries,)), ("v", VALUE, ())):
            x = write.placeholder(f"{role}{layer}", keys)
            made.append(write.call(torch.ops.innerq.prefill.default, x, first, None, None, 8, spec, *more))
    graph.output(tuple(made))
    return GraphModule({}, graph)


def test_each_kind_once_and_small():
    calls = list(kernels_ahead._calls(prompt_of("cuda")))
    assert [call.arguments[5] for call in calls] == [KEY, VALUE]
    assert {call.arguments[0].shape for call in calls} == {(2, 4, 16, 64)}


def test_strides_are_those_without_an_empty_cache():
    """``DynamicCache`` joins the first keys, ``[B, S, H, D]`` in memory, to an empty tensor; Inductor does not."""
    gm = prompt_of("cuda", layers=1)
    write, (prefill, _) = Writer(gm.graph), (node for node in gm.graph.nodes if node.op == "call_function")
    joined = prefill.args[0]
    batch, heads, tokens, dim = example(joined).shape
    with example(joined).fake_mode:
        nothing = torch.empty(0, device="cuda", dtype=torch.bfloat16)
        by_token = nothing.new_empty_strided(
            (batch, heads, tokens, dim), (tokens * heads * dim, dim, heads * dim, 1), dtype=torch.bfloat16
        )
    parts = [write.placeholder("nothing", nothing), write.placeholder("by_token", by_token)]
    with write.before(prefill):
        joined = write.call(torch.cat, parts, dim=-2, value=example(joined))
    prefill.update_arg(0, joined)
    assert next(kernels_ahead._calls(gm)).arguments[0].strides == (4 * 16 * 64, 64, 4 * 64, 1)


def test_nothing_on_a_cpu():
    assert not list(kernels_ahead._calls(prompt_of("cpu")))


def test_a_failing_call_is_left_to_the_graph(monkeypatch):
    monkeypatch.setattr(kernels_ahead._Prefill, "__call__", lambda self: 1 / 0)
    with kernels_ahead.compiling_kernels(prompt_of("cuda")):
        pass
