"""What a node calls and its arguments by name, for every spelling. A call that does not fit is not understood, and is no error."""

from __future__ import annotations

import operator
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

import innerq_compile.kernels.ops
from innerq_compile.passes.graph.constants import constant
from innerq_compile.passes.graph.dimensions import order_of
from innerq_compile.passes.graph.operations import OPERATIONS, Kind, of_attribute, of_function, of_method, of_operator
from innerq_compile.passes.graph.reading import is_pure, is_query, kinds, op_name, read, writes_to, written
from innerq_compile.passes.graph.signatures import Signature
from innerq_compile.passes.graph.values import set_example

PASSES = Path(__file__).parents[3] / "passes"
ATEN = torch.ops.aten


class Calls:
    """A graph with one input ``x``, and calls in it."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.x, self.y = self.graph.placeholder("x"), self.graph.placeholder("y")

    def function(self, target, /, *args, **kwargs) -> Node:
        return self.graph.call_function(target, args, kwargs)

    def method(self, name, /, *args, **kwargs) -> Node:
        return self.graph.call_method(name, args, kwargs)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.mark.parametrize(
    "spell",
    [
        lambda c: c.method("transpose", c.x, 1, 2),
        lambda c: c.method("swapdims", c.x, dim0=1, dim1=2),
        lambda c: c.function(torch.transpose, input=c.x, dim0=1, dim1=2),
        lambda c: c.function(torch.Tensor.transpose, c.x, 1, 2),
        lambda c: c.function(torch.swapaxes, c.x, axis0=1, axis1=2),
        lambda c: c.function(ATEN.transpose, c.x, 1, 2),
        lambda c: c.function(ATEN.transpose.int, self=c.x, dim0=1, dim1=2),
    ],
)
def test_transposes(calls, spell):
    call = read(spell(calls))
    assert call is not None and call.name == "transpose" and not call.in_place
    assert (call["input"], call["dim0"], call["dim1"]) == (calls.x, 1, 2)
    assert order_of(call, 4) == (0, 2, 1, 3)


@pytest.mark.parametrize("method", [torch.Tensor.split, torch.Tensor.__getitem__, torch.Tensor.index_copy_])
def test_methods_called_as_functions(calls, method):
    """Those that torch defines in Python, which are no function of its modules, and those in C++."""
    given = (calls.x, 1) if method is not torch.Tensor.index_copy_ else (calls.x, 0, calls.y, calls.y)
    by_name = calls.method(method.__name__, *given)
    found, expected = read(calls.function(method, *given)), read(by_name)
    assert found is not None and expected is not None
    assert (found.name, found.in_place, found.arguments) == (expected.name, expected.in_place, expected.arguments)


@pytest.mark.parametrize("name", ["le", "lt", "ge", "gt", "eq", "ne", "bitwise_and", "logical_and"])
def test_comparisons_and_conjunctions(calls, name):
    spellings = [calls.function(getattr(torch, name), calls.x, calls.y), calls.method(name, calls.x, other=calls.y)]
    if name != "logical_and":
        by_operator = getattr(operator, "and_" if name == "bitwise_and" else name)
        spellings.append(calls.function(by_operator, calls.x, calls.y))
    if len(name) == 2:
        spellings.append(calls.method(f"__{name}__", calls.x, calls.y))
    for node in spellings:
        call = read(node)
        assert call is not None and call.name == name and not call.in_place
        assert (call["input"], call["other"]) == (calls.x, calls.y)
    assert read(calls.function(getattr(torch, name), calls.x, calls.y, out=calls.y)) is None


@pytest.mark.parametrize(
    "spell",
    [
        lambda c: c.function(getattr, c.x, "mT"),
        lambda c: c.function(ATEN.mT, c.x),
        lambda c: c.function(ATEN.mT.default, c.x),
        lambda c: c.function(torch.Tensor.mT.__get__, c.x),
        lambda c: c.function(torch.adjoint, c.x),
        lambda c: c.method("transpose", c.x, -2, -1),
        lambda c: c.method("permute", c.x, (0, 1, 3, 2)),
        lambda c: c.method("permute", c.x, 0, 1, 3, 2),
        lambda c: c.method("permute", c.x, dims=[0, 1, 3, 2]),
        lambda c: c.function(torch.permute, input=c.x, dims=(0, 1, 3, 2)),
        lambda c: c.function(torch.movedim, c.x, source=3, destination=2),
    ],
)
def test_the_last_two_dimensions_swapped(calls, spell):
    call = read(spell(calls))
    assert call is not None and call.kinds & Kind.REORDERS
    assert order_of(call, 4) == (0, 1, 3, 2)


def test_order_of_what_does_not_fit(calls):
    for node in (calls.method("permute", calls.x, 0, calls.y), calls.method("transpose", calls.x, 5, 0)):
        call = read(node)
        assert call is not None and order_of(call, 2) is None


@pytest.mark.parametrize(
    ("spell", "name", "arguments"),
    [
        (lambda c: c.function(F.softmax, c.x, -1), "softmax", {"dim": -1, "dtype": None}),
        (lambda c: c.function(torch.softmax, c.x, -1, torch.float32), "softmax", {"dim": -1, "dtype": torch.float32}),
        (lambda c: c.method("softmax", c.x, axis=2), "softmax", {"dim": 2}),
        (lambda c: c.function(operator.iadd, c.x, 2), "add", {"other": 2}),
        (lambda c: c.method("expand", c.x, 2, -1), "expand", {"shape": (2, -1)}),
        (lambda c: c.method("repeat", c.x, repeats=(1, 2)), "repeat", {"repeats": (1, 2)}),
        (lambda c: c.function(torch.einsum, "ab,bc->ac", c.x, c.y), "einsum", {"equation": "ab,bc->ac"}),
        (lambda c: c.function(torch.where, condition=c.y, input=c.x, other=1.0), "where", {"other": 1.0}),
        (lambda c: c.method("where", c.x, c.y, 1.0), "where", {"other": 1.0}),
        (lambda c: c.method("to", c.x, torch.float16), "to", {"dtype": torch.float16}),
        (lambda c: c.method("to", c.x, "cpu", torch.float16), "to", {"dtype": torch.float16, "device": "cpu"}),
        (lambda c: c.method("float", c.x), "to", {"dtype": torch.float32}),
        (lambda c: c.method("index_copy_", c.x, dim=2, index=c.y, source=c.y), "index_copy", {"dim": 2}),
        (lambda c: c.function(torch.split, tensor=c.x, split_size_or_sections=2), "split", {"dim": 0}),
        (lambda c: c.method("split_with_sizes", c.x, [1, 2], -1), "split", {"dim": -1}),
        (lambda c: c.function(torch.max, c.x, 1), "max", {"dim": 1, "keepdim": False}),
        (lambda c: c.method("max", c.x), "max", {"dim": None}),
        (lambda c: c.function(torch.max, c.x, c.y), "maximum", {}),
        (lambda c: c.function(torch.maximum, c.x, other=c.y), "maximum", {}),
        (lambda c: c.method("clamp", c.x, max=1.0), "clamp", {"min": None, "max": 1.0}),
        (lambda c: c.method("clip_", c.x, 0.0), "clamp", {"min": 0.0, "max": None}),
        (lambda c: c.function(torch.clamp_min, c.x, 0.5), "clamp", {"min": 0.5, "max": None}),
        (lambda c: c.function(torch.special.expit, c.x), "sigmoid", {}),
        (lambda c: c.method("sigmoid", c.x), "sigmoid", {}),
        (lambda c: c.function(torch.special.logsumexp, c.x, -1, True), "logsumexp", {"dim": -1, "keepdim": True}),
        (lambda c: c.method("logsumexp", c.x, dim=(1,)), "logsumexp", {"dim": (1,), "keepdim": False}),
        (lambda c: c.function(operator.invert, c.x), "bitwise_not", {}),
        (lambda c: c.method("logical_not", c.x), "logical_not", {}),
        (lambda c: c.function(torch.arange, 3), "arange", {"end": 3}),
        (lambda c: c.function(torch.arange, 1, 3), "arange", {"start": 1, "end": 3, "step": 1}),
    ],
)
def test_arguments_by_name(calls, spell, name, arguments):
    call = read(spell(calls))
    assert call is not None and call.name == name
    assert {key: call[key] for key in arguments} == arguments
    if "input" in call.arguments:
        assert call.source() is calls.x


@pytest.mark.parametrize(
    "spell",
    [
        lambda c: c.method("transpose", c.x, 1, 2, 3),
        lambda c: c.method("transpose", c.x, 1),
        lambda c: c.method("transpose", c.x, 1, 2, dim0=1),
        lambda c: c.method("transpose", c.x, 1, 2, speed=3),
        lambda c: c.function(torch.add, c.x, 2, out=c.y),
        lambda c: c.method("view", c.x, torch.int16),
        lambda c: c.function(torch.special.erf, c.x),
        lambda c: c.method("no_method_of_tensors", c.x),
        lambda c: c.function(lambda x: x, c.x),
        lambda c: c.function(ATEN.transpose.int),
        lambda c: c.x,
    ],
)
def test_what_does_not_fit_is_not_understood(calls, spell):
    node = spell(calls)
    assert read(node) is None and op_name(node) is None
    assert not is_pure(node) and kinds(node) == Kind.NONE


def test_no_node_is_not_understood():
    assert read(None) is None and read(3) is None and op_name("x") is None


@pytest.mark.parametrize(
    ("spell", "changed"),
    [
        (lambda c: c.method("add_", c.x, c.y), ["x"]),
        (lambda c: c.method("a_method_", c.x, c.y), ["x"]),
        (lambda c: c.method("__and__", c.x, c.y), []),
        (lambda c: c.function(operator.imul, c.x, c.y), ["x"]),
        (lambda c: c.function(operator.setitem, c.x, 0, c.y), ["x"]),
        (lambda c: c.function(operator.and_, c.x, c.y), []),
        (lambda c: c.function(torch.add, c.x, c.y, out=c.y), ["y"]),
        (lambda c: c.function(F.dropout, c.x, inplace=True), ["x"]),
        (lambda c: c.function(F.relu, c.x, inplace=True), ["x"]),
        (lambda c: c.function(torch.relu_, c.x), ["x"]),
        (lambda c: c.function(torch.relu_, input=c.x), ["x"]),
        (lambda c: c.function(ATEN.copy_, c.x, c.y), ["x"]),
        (lambda c: c.function(ATEN.copy_.default, self=c.x, src=c.y), ["x"]),
        (lambda c: c.function(ATEN.add.out, c.x, c.x, out=c.y), ["y"]),
        (lambda c: c.function(ATEN.add.Tensor, c.x, c.y), []),
    ],
)
def test_what_is_written(calls, spell, changed):
    node = spell(calls)
    assert [str(target) for target in written(node)] == changed
    assert [str(target) for target in (calls.x, calls.y) if writes_to(target)] == changed
    assert not changed or not is_pure(node)


def test_operators_of_our_own_are_read_by_their_schema(calls):
    node = calls.function(torch.ops.innerq.open_from.default, calls.x, calls.y, 1)
    call = read(node)
    assert call is not None and call.name == "innerq::open_from" and call["mask"] is calls.x
    assert not is_pure(node)


def test_queries(calls):
    queries = [
        calls.method("size", calls.x, 0),
        calls.method("dim", calls.x),
        calls.function(getattr, calls.x, "shape"),
        calls.function(ATEN.sym_size.int, calls.x, 1),
    ]
    assert all(map(is_query, queries))
    assert not is_query(calls.function(getattr, calls.x, "mT"))


@pytest.mark.parametrize(
    ("spell", "number"),
    [
        (lambda c: c.function(torch.tensor, 8.0), 8.0),
        (lambda c: c.function(torch.tensor, data=8.0), 8.0),
        (lambda c: c.function(torch.full, (), fill_value=4.0), 4.0),
        (lambda c: c.function(torch.sqrt, input=c.function(torch.tensor, 16.0)), 4.0),
        (lambda c: c.function(torch.div, input=c.function(torch.tensor, 16.0), other=2), 8.0),
        (lambda c: c.function(torch.div, c.function(torch.tensor, 17.0), 2, rounding_mode="floor"), None),
        (lambda c: c.method("pow", c.function(torch.tensor, 16.0), exponent=-0.5), 0.25),
        (lambda c: c.function(torch.div, c.x, 2), None),
    ],
)
def test_constants(calls, spell, number):
    node = spell(calls)
    for each in calls.graph.nodes:
        set_example(each, torch.tensor(1.0))
    assert constant(node) == number


# --- the tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_spelling_is_one_of_torch(operation):
    for spelled in (*operation.spellings, *operation.in_place):
        signature = Signature.parse(spelled if isinstance(spelled, str) else spelled.signature)
        module, _, name = signature.name.removeprefix("@").rpartition(".")
        holders = {
            "": (torch, torch.Tensor),
            "F": (F,),
            "torch": (torch,),
            "operator": (operator,),
            "aten": (ATEN,),
            "linalg": (torch.linalg,),
            "special": (torch.special,),
        }
        assert any(hasattr(holder, name) for holder in holders[module]), signature.name
        found = [*of_method(name), *of_attribute(name), *of_operator(name)]
        for holder in holders[module]:
            found += of_function(getattr(holder, name, None))
        assert any(each.operation is operation for each in found), signature.name


def test_names_are_unique():
    names = [operation.name for operation in OPERATIONS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("raw", [r"\.args\b", r"\.kwargs\b", r"example_value", r"\.update_k?w?arg\("])
def test_passes_read_and_write_nodes_in_one_place(raw):
    """What a node calls is read, and nodes are put in, by ``passes/graph`` alone."""
    found = [
        f"{path.relative_to(PASSES)}:{number}: {line.strip()}"
        for path in sorted(PASSES.rglob("*.py"))
        if path.parent.name != "graph"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(raw, line.replace("failed.args", ""))  # of an exception
    ]
    assert not found


def test_example_values_are_read_in_one_place():
    """The rest of the package asks ``passes/graph/values.py`` for them."""
    folder = Path(innerq_compile.__file__).parent
    assert not [path for path in folder.glob("[!kp]*/*.py") if "example_value" in path.read_text()]
