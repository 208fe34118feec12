"""Reads a node: which operation it calls, and its arguments by name, in any spelling. Passes read nodes only by this.

    call = read(node)                    # x.transpose(1, 2), torch.swapaxes(x, axis0=1, axis1=2), x.mT, ...
    call.name                            # "transpose": the name in `operations.py`
    call["dim0"], call["dim1"]           # every argument has a value, its default if it was not given
    call.kinds & Kind.REORDERS           # properties of the operation
    call.in_place                        # whether it writes to call["input"]

A node is recognized if its function, method, attribute or operator is in the table of ``operations.py`` and its
arguments bind to one of the signatures there. For any other node ``read`` returns None, and passes leave it alone.
``read`` never raises. Operators of this package (``innerq::...``) are named by their full name, and their arguments by
their schema.
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

#: Functions whose names end with an underscore because they would be Python keywords, not because they write in place.
_KEYWORDS = frozenset({"and_", "or_", "not_", "is_"})
#: Functions that write in place although their names do not end with an underscore.
_WRITERS = frozenset({"setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"}) | {
    "iand",
    "ior",
    "ixor",
    "ilshift",
    "irshift",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A recognized node.

    Attributes:
        node: the node.
        operation: the operation that it calls.
        arguments: all arguments by name, defaults included.
        in_place: whether the result is written to the first argument.
        signature: the signature of its spelling, see `writing.set_argument`.
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
        """The argument ``name``, or ``default`` if the spelling has no such parameter."""
        return self.arguments.get(name, default)

    def is_plain(self) -> bool:
        """Whether a sum, difference or quotient has neither a factor ``alpha`` nor a rounding mode."""
        return self.get("alpha", 1) == 1 and self.get("rounding_mode") is None

    def source(self) -> Node | None:
        """The argument ``input``, the tensor that the operation is applied to; None if it is not a node."""
        found = self.get("input")
        return found if isinstance(found, Node) else None


def read(node: Any) -> Call | None:
    """The call of a node; None for a node that is not recognized, and for anything else."""
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
    """The name of a node's operation; None for a node that is not recognized, and for anything else."""
    call = read(node)
    return None if call is None else call.name


def kinds(node: Any) -> Kind:
    """The properties of a node's operation; none if the call is in place or not recognized."""
    call = read(node)
    return Kind.NONE if call is None or call.in_place else call.kinds


def possible_kinds(node: Node) -> Kind:
    """The union of properties over all spellings of a node's function or method, whatever its arguments."""
    found = Kind.NONE
    for spelling in _spellings(node):
        found |= spelling.operation.kinds
    return found


def may_restride(node: Node) -> bool:
    """Whether a node may change sizes or strides of a tensor in place, which happens on the host only."""
    kinds_ = VIEWS | Kind.RESTRIDES
    return any(spelling.in_place and spelling.operation.kinds & kinds_ for spelling in _spellings(node))


def source_of(node: Any) -> Node | None:
    """The argument ``input`` of a node; None if it has none or is not recognized.

    See `operand` for the first argument of a node that may not be recognized.
    """
    call = read(node)
    return None if call is None else call.source()


def operand(node: Node) -> Node | None:
    """The tensor that a method is called on, or the first argument of a function, recognized or not."""
    if node.op not in ("call_function", "call_method"):
        return None
    found = node.args[0] if node.args else next((node.kwargs[n] for n in ("input", "self") if n in node.kwargs), None)
    return found if isinstance(found, Node) else None


def called_name(node: Node) -> str:
    """The name of the method, function or operator that a node calls; empty if it calls none."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    if isinstance(node.target, OpOverload):
        return _operator_name(node.target).rpartition("::")[2]
    return getattr(node.target, "__name__", "") or str(node.target)


def spelling(node: Node) -> tuple[Any, ...]:
    """A call exactly as the graph spells it, recognized or not: two nodes with equal spellings do the same."""
    return node.op, node.target, node.args, dict(node.kwargs)


def describe(node: Node) -> str:
    """A description of a node for messages."""
    return f"an input ({node.target})" if node.op == "placeholder" else called_name(node) or str(node.target)


def outputs(graph: Graph) -> tuple[Any, ...]:
    """The output values of a graph."""
    values: Any = graph.output_node().args[0]
    return tuple(values)


def is_output(node: Node) -> bool:
    """Whether the graph returns ``node``."""
    return any(user.op == "output" for user in node.users)


def grad_mode_of(node: Node) -> bool | None:
    """The grad mode that a node sets for the nodes after it; None if it sets none."""
    return bool(node.args[0]) if called_name(node) == "_set_grad_enabled" and node.args else None


# --- effects --------------------------------------------------------------------------------------------------------


def is_pure(node: Node) -> bool:
    """Whether a node is known to have no side effects."""
    call = read(node)
    return call is not None and not call.in_place and not isinstance(call.operation, _Operator)


def is_query(node: Node) -> bool:
    """Whether a node only reads sizes or other metadata of a tensor."""
    return bool(kinds(node) & Kind.QUERY)


def writes_to(node: Node) -> list[Node]:
    """The users of ``node`` that write to it in place."""
    return [user for user in node.users if node in written(user)]


def written(node: Node) -> list[Node]:
    """The arguments that a node writes to in place, recognized or not."""
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
        return False  # see _by_schema
    marked = name.endswith("_") and not name.endswith("__") and name not in _KEYWORDS
    return marked or (node.op == "call_function" and name in _WRITERS)


def _by_schema(node: Node) -> list[Node]:
    target: Any = node.target
    if isinstance(target, HigherOrderOperator):  # a user's Triton kernel may write to any of its arguments
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
        return list(node.all_input_nodes)  # it may write to any of them
    return []


def _flat(value: Any) -> list[Node]:
    return [item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, Node)]


# --- spellings ------------------------------------------------------------------------------------------------------


class _Operator(Operation):
    """An operator of this package. It is not in the table; only its schema is known."""


_OWN: dict[Any, Spelling] = {}


def _spellings(node: Node) -> list[Spelling]:
    """The spellings that the target of a node may be."""
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
    """``"mT"`` for ``torch.Tensor.mT.__get__``, which graphs may call in place of ``getattr``; else None."""
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
