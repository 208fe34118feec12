"""Which graphs are recorded from outside, and what is known of their inputs."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from innerq_compile import InnerQConfig
from innerq_compile.kernels import ops  # noqa: F401  (defines the operators)
from innerq_compile.kernels.cache import CacheTensors
from innerq_compile.passes.analysis.recordable import MAX_COPY, MAX_ROWS, is_on_device, recorded_inputs
from innerq_compile.passes.context import CacheInput, Reason

FORMAT = InnerQConfig().format_for("key", 64, torch.float16)


class Builder:
    """A graph as the passes leave it, on a GPU that need not be there."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.shapes = ShapeEnv()
        self.fakes = FakeTensorMode(shape_env=self.shapes)
        self.root = torch.nn.Module()

    def size(self, hint: int) -> torch.SymInt:
        source = ConstantSource(f"s{hint}")
        symbol = self.shapes.create_symbol(hint, source)
        return self.shapes.create_symintnode(symbol, hint=hint, source=source)

    def value(self, *shape, device="cuda", dtype=torch.float16) -> torch.Tensor:
        with self.fakes:
            return torch.empty(shape, device=device, dtype=dtype)

    def input(self, name: str, value, static: bool = False):
        node = self.graph.placeholder(name)
        node.meta["example_value"] = value
        if static:
            node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
        return node

    def call(self, target, *args, value=None, **kwargs):
        make = self.graph.call_method if isinstance(target, str) else self.graph.call_function
        node = make(target, args, kwargs)
        if value is not None:
            node.meta["example_value"] = value
        return node

    def found(self, *outputs, caches=(), **kwargs):
        self.graph.output(outputs)
        caches = [CacheInput(CacheTensors(FORMAT, *[codes] * 4)) for codes in caches]
        return recorded_inputs(GraphModule(self.root, self.graph), caches, **kwargs)


def test_inputs():
    build = Builder()
    batch, blocks = build.size(3), build.size(40)
    number, length = build.input("s0", batch), build.size(9)
    build.input("s1", length)  # only the prelude reads it
    build.call(torch.neg, number, value=-batch)
    ids = build.input("ids", build.value(batch, 1))
    weight = build.input("weight", build.value(8, 8), static=True)
    codes = build.input("codes", build.value(batch, 2, blocks, 8), static=True)
    buffer = build.input("buffer", build.value(batch, 8), static=True)
    build.call("add_", buffer, 1, value=buffer.meta["example_value"])
    build.call("add_", codes, 1, value=codes.meta["example_value"])
    out = build.call(torch.matmul, ids, weight, value=build.value(batch, 8))
    found = build.found(out, caches=[codes])
    assert (found.fixed, found.copied, found.written) == ([3, 5], [2], [5])
    assert found.sizes == [(0, None)], "each symbol is read at one place, and none is the room of a cache"
    assert found.device.type == "cuda" and found.cache == 4


def test_inputs_that_keep_their_address_without_a_mark():
    """Those that the graph writes, and those that the prelude writes."""
    build = Builder()
    written, hoisted, ids = (build.input(name, build.value(4)) for name in ("written", "hoisted", "ids"))
    build.call("add_", written, ids, value=build.value(4))
    found = build.found(ids, hoisted=[hoisted])
    assert (found.fixed, found.copied, found.written, found.cache) == ([0, 1], [2], [0], None)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("symbolic", [False, True])
def test_large_inputs_are_copied_on_request_only(asked, symbolic):
    build = Builder()
    rows = MAX_COPY // 2
    build.input("small", build.value(build.size(rows) if symbolic else rows))
    build.input("large", build.value(build.size(rows + 1) if symbolic else rows + 1))
    found = build.found(asked=asked)
    assert (found.fixed, found.copied) == (([], [0, 1]) if asked else ([1], [0]))


def _a_collective(build):
    return build.call(torch.ops._c10d_functional.all_reduce.default, build.x, "sum", "0", value=build.value(4))


def _many_rows(build):
    """An attention; tensors of its caches do not matter here."""
    value = build.value(2, 8, MAX_ROWS // 2 + 1, 64)
    query, inner = build.input("query", value), build.input("inner", build.value(4), static=True)
    operator = torch.ops.innerq.decode_attention.default
    given = {"Tensor": inner, "Optional[Tensor]": None, "str": FORMAT.spec, "float": 1.0, "bool": False, "int": 0}
    given["Optional[List[int]]"] = None
    arguments = [given[str(argument.type)] for argument in operator._schema.arguments[1:]]
    return build.call(operator, query, *arguments, value=value)


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [(_a_collective, "a process group waits for"), (_many_rows, f"a step of {MAX_ROWS + 2} tokens keeps a GPU busy")],
)
def test_recorded_on_request_only(obstacle, reason):
    for asked in (False, True):
        build = Builder()
        build.x = build.input("x", build.value(4))
        found = build.found(obstacle(build), build.x, asked=asked)
        assert isinstance(found, Reason) != asked, found
        assert asked or reason in found.text


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_on_a_device_that_records(device):
    build = Builder()
    build.input("s0", build.size(3))
    build.input("x", build.value(4, device=device))
    build.graph.output(())
    assert is_on_device(GraphModule(build.root, build.graph)) == (device == "cuda")


def _on_the_host(build):
    return build.call(torch.arange, 4, value=build.value(4, device="cpu"))


def _input_on_the_host(build):
    return build.input("scale", build.value(device="cpu"))


def _number_of_the_host(build):
    return build.call(torch.tensor, 0.5, device="cuda", value=build.value())


def _of_a_size_that_depends(build):
    size = build.shapes.create_unbacked_symint()
    return build.call(torch.nonzero, build.x, value=build.value(size, 1))


def _number_that_waits(build):
    return build.call("item", build.x, value=build.shapes.create_unbacked_symint())


def _reshaped_in_place(build):
    return build.call("unsqueeze_", build.x, 0, value=build.value(1, 4))


def _unknown(build):
    return build.call(torch.neg, build.call(torch.rand, 4, device="cuda"), value=build.value(4))


def _with_a_graph_of_its_own(build):
    build.root.body = GraphModule(torch.nn.Module(), Graph())
    return build.graph.get_attr("body")


def _constant_of_the_host(build):
    build.root.constant = torch.ones(4)
    return build.graph.get_attr("constant")


def _higher_order(build):
    return build.call(torch.ops.higher_order.cond, build.x, value=build.value(4))


def _unsafe(build):
    return build.call(torch.ops.innerq_tests.unsafe.default, build.x, value=build.value(4))


def _no_tensor(build):
    return build.input("number", 2.5)


def _other_device(build):
    return build.call("to", build.x, "cuda:1", value=build.value(4, device="cuda:1"))


def _size_by_itself(build):
    return build.input("twice", build.value(2 * build.size(17)))


@torch.library.custom_op("innerq_tests::unsafe", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def unsafe(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        (_on_the_host, "it is on cpu"),
        (_input_on_the_host, "it is on cpu"),
        (_number_of_the_host, "it copies data from the host to the device"),
        (_of_a_size_that_depends, "its size depends on data"),
        (_number_that_waits, "it is a number that is read from the device"),
        (_reshaped_in_place, "it changes the shape or strides of a tensor in place"),
        (_unknown, "its value is not known"),
        (_with_a_graph_of_its_own, "it is a subgraph"),
        (_constant_of_the_host, "it is on cpu"),
        (_higher_order, "it calls a subgraph"),
        (_unsafe, "its operator is tagged cudagraph_unsafe"),
        (_no_tensor, "it is a float"),
        (_other_device, "its tensors are on 2 devices"),
        (_size_by_itself, "no input has the size"),
    ],
)
def test_not_recorded(obstacle, reason):
    build = Builder()
    build.x = build.input("x", build.value(4, device="cuda:0"))
    found = build.found(obstacle(build), build.x)
    assert isinstance(found, Reason) and reason in found.text


def test_deterministic_algorithms():
    build = Builder()
    x = build.input("x", build.value(4))
    torch.use_deterministic_algorithms(True)
    try:
        assert isinstance(build.found(x), Reason)
    finally:
        torch.use_deterministic_algorithms(False)
