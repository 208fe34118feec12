"""Reading a node: what it calls, and the arguments by name, whatever the spelling. Passes read nodes here only.

    call = read(node)                    # x.transpose(1, 2), torch.swapaxes(x, axis0=1, axis1=2), x.mT, ...
    call.name                            # "transpose": the name in `operations.py`
    call["dim0"], call["dim1"]           # every argument has a value: the default where it was not given
    call.kinds & Kind.REORDERS           # what passes may take for granted of it
    call.in_place                        # whether it writes to call["input"]

A node is understood where its function, method, attribute or operator stands in the tables of ``operations.py`` and its
arguments bind to one of the signatures there; else ``read`` gives None and a pass leaves the node alone. It never
raises. Operators of our own (``innerq::...``) go by their full name, and their arguments by those of the schema.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from ...kernels.internals.graphs import HigherOrderOperator, OpOverload, OpOverloadPacket
from ...kernels.internals.tensors import schema_of
from .operations import VIEWS, Kind, Operation, Spelling, of_attribute, of_function, of_method, of_operator
from .signatures import Signature, of_schema

#: Functions whose names end with an underscore for another reason: without it they are words of Python.
_KEYWORDS = frozenset({"and_", "or_", "not_", "is_"})
#: Functions that write in place and whose names do not say so.
_WRITERS = frozenset({"setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"}) | {
    "iand",
    "ior",
    "ixor",
    "ilshift",
    "irshift",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A node that is understood.

    Attributes:
        node: the node.
        operation: what it computes.
        arguments: its arguments by name, those with a default that were not given among them.
        in_place: whether the result is written to the first argument.
        signature: of the spelling, see `writing.set_argument`.
    """

    node: Node
    operation: Operation
    arguments: Mapping[str, Any]
    in_place: bool
    signature: Signature

    @property
    def name(self) -> str:
        return self.operation.name

    @property
    def kinds(self) -> Kind:
        return self.operation.kinds

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument ``name``, where the spelling has one of that name."""
        return self.arguments.get(name, default)

    def is_plain(self) -> bool:
        """Whether a sum, difference or quotient is no more than that: no factor ``alpha``, no rounding."""
        return self.get("alpha", 1) == 1 and self.get("rounding_mode") is None

    def source(self) -> Node | None:
        """The tensor that the operation is applied to, its argument ``input``; None where that is no node."""
        found = self.get("input")
        return found if isinstance(found, Node) else None


def read(node: Any) -> Call | None:
    """What a node calls; None for anything that is not understood."""
    if not isinstance(node, Node):
        return None
    for spelling in _spellings(node):
        args = node.args[:1] if _is_attribute(node) else node.args
        values = spelling.signature.bind(args, node.kwargs)
        if values is not None:
            in_place = spelling.in_place or values.get("inplace") is True
            return Call(node, spelling.operation, {**values, **spelling.fixed}, in_place, spelling.signature)
    return None


def op_name(node: Any) -> str | None:
    """The name of the operation of a node, None for anything that is not understood."""
    call = read(node)
    return None if call is None else call.name


def kinds(node: Any) -> Kind:
    """What may be taken for granted of a node's operation; of one that works in place nothing."""
    call = read(node)
    return Kind.NONE if call is None or call.in_place else call.kinds


def possible_kinds(node: Node) -> Kind:
    """All that a node's function or method may be, whatever its arguments, in place or not."""
    found = Kind.NONE
    for spelling in _spellings(node):
        found |= spelling.operation.kinds
    return found


def may_restride(node: Node) -> bool:
    """Whether a node may change sizes or strides of a tensor in place, which is nothing that a device does."""
    kinds_ = VIEWS | Kind.RESTRIDES
    return any(spelling.in_place and spelling.operation.kinds & kinds_ for spelling in _spellings(node))


def source_of(node: Any) -> Node | None:
    """The tensor that a node is applied to, its argument ``input``; None where there is none, or it is not understood.

    Of a node that is not understood the first argument is no more than a guess, see `operand`.
    """
    call = read(node)
    return None if call is None else call.source()


def operand(node: Node) -> Node | None:
    """What a method is called on, or a function's first argument, understood or not."""
    if node.op not in ("call_function", "call_method"):
        return None
    found = node.args[0] if node.args else next((node.kwargs[n] for n in ("input", "self") if n in node.kwargs), None)
    return found if isinstance(found, Node) else None


def called_name(node: Node) -> str:
    """The name of the method, function or operator that a node calls, empty where it calls none."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    if isinstance(node.target, OpOverload):
        return _operator_name(node.target).rpartition("::")[2]
    return getattr(node.target, "__name__", "") or str(node.target)


def words(node: Node) -> str:
    """What a node is, for a reason that users read."""
    return f"an input ({node.target})" if node.op == "placeholder" else called_name(node) or str(node.target)


def outputs(graph: Graph) -> tuple[Any, ...]:
    """What a graph returns."""
    values: Any = graph.output_node().args[0]
    return tuple(values)


def is_output(node: Node) -> bool:
    """Whether a graph returns a node."""
    return any(user.op == "output" for user in node.users)


# --- effects --------------------------------------------------------------------------------------------------------


def is_pure(node: Node) -> bool:
    """Whether an operation is known to have no effect but its result."""
    call = read(node)
    return call is not None and not call.in_place and not isinstance(call.operation, _Operator)


def is_query(node: Node) -> bool:
    """Whether a node only asks for sizes or other metadata of a tensor."""
    return bool(kinds(node) & Kind.QUERY)


def writes_to(node: Node) -> list[Node]:
    """The users that change the value of a node in place."""
    return [user for user in node.users if node in written(user)]


def written(node: Node) -> list[Node]:
    """The tensors that a node changes in place, understood or not."""
    if node.op not in ("call_function", "call_method"):
        return []
    found = _flat(node.kwargs.get("out"))
    if _ends_in_place(node) or node.kwargs.get("inplace") is True or ((call := read(node)) and call.in_place):
        found += _flat(operand(node))
    if node.op == "call_function":
        found += _by_schema(node)
    return list(dict.fromkeys(found))


def _ends_in_place(node: Node) -> bool:
    name = called_name(node)
    if isinstance(node.target, (OpOverload, OpOverloadPacket)):
        return False  # its schema says
    marked = name.endswith("_") and not name.endswith("__") and name not in _KEYWORDS
    return marked or (node.op == "call_function" and name in _WRITERS)


def _by_schema(node: Node) -> list[Node]:
    target: Any = node.target
    if isinstance(target, HigherOrderOperator):  # a user's Triton kernel may write to all that it gets
        return [argument for argument in node.all_input_nodes if "mutation" in target.name()]
    operators = [target] if isinstance(target, OpOverload) else []
    if isinstance(target, OpOverloadPacket):
        operators = [getattr(target, name) for name in target.overloads()]
    for operator in operators:
        values = of_schema(schema_of(operator)).bind(node.args, node.kwargs)
        if values is None:
            continue
        aliases = {argument.name: argument.alias_info for argument in schema_of(operator).arguments}
        changed = [name for name, alias in aliases.items() if alias is not None and alias.is_write and name in values]
        return [item for name in changed for item in _flat(values[name])]
    if operators and any(schema_of(operator).is_mutable for operator in operators):
        return list(node.all_input_nodes)  # it may be any of them
    return []


def _flat(value: Any) -> list[Node]:
    return [item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, Node)]


# --- spellings ------------------------------------------------------------------------------------------------------


class _Operator(Operation):
    """An operator that stands in no table: nothing but its schema is known."""


_OWN: dict[Any, Spelling] = {}


def _spellings(node: Node) -> list[Spelling]:
    """What the target of a node may be."""
    target: Any = node.target
    if node.op == "call_method":
        return of_method(target)
    if node.op != "call_function":
        return []
    if target is getattr:
        known = of_attribute(node.args[1]) if len(node.args) == 2 and isinstance(node.args[1], str) else []
        return known or _ATTRIBUTE
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        namespace, _, name = _operator_name(target).partition("::")
        if namespace == "aten":
            return of_operator(name)
        return [_own(target)] if namespace == "innerq" else []
    if (name := _getter(target)) is not None:
        return of_attribute(name)
    return of_function(target)


_ATTRIBUTE = [Spelling(Operation("getattr", Kind.NONE), Signature.parse("getattr(input)"), False, {})]


def _is_attribute(node: Node) -> bool:
    return node.op == "call_function" and (node.target is getattr or _getter(node.target) is not None)


def _getter(target: Any) -> str | None:
    """The attribute that ``torch.Tensor.mT.__get__`` reads, as a graph may call it in place of ``getattr``."""
    if getattr(target, "__name__", None) != "__get__":
        return None
    descriptor = getattr(target, "__self__", None)
    owner = getattr(descriptor, "__objclass__", None)
    if descriptor is None or not isinstance(owner, type) or not issubclass(torch.Tensor, owner):
        return None
    return descriptor.__name__


def _operator_name(target: OpOverload | OpOverloadPacket) -> str:
    """The name of an operator without its overload, as ``aten::add``."""
    return schema_of(target if isinstance(target, OpOverload) else _first_overload(target)).name


def _first_overload(packet: OpOverloadPacket) -> OpOverload:
    return getattr(packet, packet.overloads()[0])


def _own(target: OpOverload | OpOverloadPacket) -> Spelling:
    if target not in _OWN:
        overload = target if isinstance(target, OpOverload) else _first_overload(target)
        schema = schema_of(overload)
        operation = _Operator(_operator_name(target), Kind.NONE)
        _OWN[target] = Spelling(operation, of_schema(schema), schema.is_mutable, {})
    return _OWN[target]
