"""Writes the calls of a graph in other ways that mean the same to torch.

    x.transpose(1, 2)      ->      torch.swapaxes(x, axis0=1, axis1=2), torch.ops.aten.transpose.int(x, 1, 2), ...

The tables of operations and signatures give the ways to spell a call. A spelling is tried on fake tensors here; tests
compare the numbers.
"""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from innerq_compile.passes.graph import operations, signatures
from innerq_compile.passes.graph.operations import Fixed, Operation
from innerq_compile.passes.graph.reading import Call, read
from innerq_compile.passes.graph.signatures import Signature
from innerq_compile.passes.graph.values import example, has_example, set_example, shape

#: Tries to find another spelling of a call.
_TRIES = 6


def respell(gm: GraphModule, random: Random) -> set[str]:
    """Spell the calls of ``gm`` anew, in place. Returns the names of the operations that were."""
    changed = set()
    for node in list(gm.graph.nodes):
        call = read(node)
        if call is None or not has_example(node) or not all(map(has_example, node.all_input_nodes)):
            continue
        for _ in range(_TRIES):
            spelled = _spelling(call, random)
            if spelled is not None and _is_same(node, *spelled):
                _replace(gm.graph, node, *spelled)
                changed.add(call.name)
                break
    return changed


def _spelling(call: Call, random: Random) -> tuple[str, Any, tuple[Any, ...], dict[str, Any]] | None:
    """A way to spell a call, as op, target and arguments of a node; None where the choice does not fit."""
    operation = call.operation
    spelled = random.choice(operation.in_place if call.in_place else operation.spellings)
    fixed = spelled if isinstance(spelled, Fixed) else Fixed(spelled)
    signature = Signature.parse(fixed.signature)
    if signature.name.endswith("mm") and call.name == "matmul" and len(shape(call["input"]) or ()) != 2:
        return None  # fake tensors log an error
    values = _arguments(call, signature, fixed)
    if values is None:
        return None
    found = _targets(signature.name, operation)
    if not found:
        return None
    op, target = random.choice(found)
    if target is getattr:
        return op, target, (values["input"], signature.name[1:]), {}
    if signature.anything:  # nothing is known of the arguments but that the first is the tensor
        return op, target, call.node.args, dict(call.node.kwargs)
    by_position = random.randint(1 if op == "call_method" else 0, len(signature.positional))
    leading = list(itertools.takewhile(values.__contains__, signature.positional[:by_position]))
    args = [values.pop(name) for name in leading]
    star = signature.star
    if star is not None and len(args) == len(signature.positional) and star in values and random.random() < 0.7:
        rest = values.pop(star)
        args += rest if random.random() < 0.5 and signature.name != "einsum" else (rest,)
        if signature.name == "einsum":
            args[1:] = rest
    return op, target, tuple(args), {_keyword(name, signature, random): value for name, value in values.items()}


def _arguments(call: Call, signature: Signature, fixed: Fixed) -> dict[str, Any] | None:
    """The arguments that a spelling needs, without some of those that have their default; None where others do."""
    if signature.anything:
        return {} if call.signature.anything else None
    if call.name == "reshape" and {*signature.defaults} != {*call.signature.defaults}:
        return None
    values = {}
    for name, value in call.arguments.items():
        own = signature.defaults.get(name, fixed.arguments.get(name))
        if name in fixed.arguments:
            if not _same_dim(fixed.arguments[name], value, shape(call["input"])):
                return None
        elif name in signature.defaults and (own is signatures._REQUIRED or own != value):
            values[name] = value
        elif name not in signature.defaults and call.signature.defaults.get(name) != value:
            return None
    missing = [n for n, own in signature.defaults.items() if own is signatures._REQUIRED and n not in values]
    return None if missing or not {*fixed.arguments} <= {*call.arguments} else values


def _same_dim(fixed: Any, value: Any, sizes: Any) -> bool:
    if isinstance(fixed, int) and isinstance(value, int) and sizes:
        return fixed % len(sizes) == value % len(sizes)
    return fixed == value


def _targets(name: str, operation: Operation) -> list[tuple[str, Any]]:
    """Functions, methods and operators of the name that stands in a signature."""
    module, _, bare = name.rpartition(".")
    if name.startswith("@"):
        return [("call_function", getattr)]
    found: list[tuple[str, Any]] = []
    if "." not in name or module == "aten":
        packet = getattr(torch.ops.aten, bare, None)
        found += [("call_function", packet)] if packet is not None else []
        found += [("call_function", getattr(packet, each)) for each in packet.overloads()] if packet is not None else []
    if not module and hasattr(torch.Tensor, bare) and module != "aten":
        found += [("call_method", bare)] * 2 + [("call_function", getattr(torch.Tensor, bare))]
    for holder in operations._MODULES.get(module or "torch", ()) if "." not in name or module else ():
        if hasattr(holder, bare):
            found += [("call_function", getattr(holder, bare))] * 2
    return found


def _keyword(name: str, signature: Signature, random: Random) -> str:
    """A keyword for a parameter: its name, or another one that torch takes."""
    others = [other for other, names in signatures._OTHER_NAMES.items() if name in names]
    return random.choice([name, name, *others])


def _is_same(node: Node, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a spelling, tried on fake tensors, gives what the node gives, or seems to."""
    modes = [value.fake_mode for value in map(example, node.all_input_nodes) if isinstance(value, FakeTensor)]
    if not modes:
        return False
    wanted = example(node)
    try:
        fake_args, fake_kwargs = map_arg((args, kwargs), example)
        with modes[0]:
            found = (
                getattr(fake_args[0], target)(*fake_args[1:], **fake_kwargs)
                if op == "call_method"
                else target(*fake_args, **fake_kwargs)
            )
    except Exception:  # not a spelling that torch accepts
        return False
    if isinstance(wanted, torch.Tensor):
        return isinstance(found, torch.Tensor) and (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    return type(found) is type(wanted) or isinstance(wanted, (tuple, list)) == isinstance(found, (tuple, list))


def _replace(graph: Graph, node: Node, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with graph.inserting_before(node):
        new = graph.create_node(op, target, args, kwargs)
    value = example(node)
    new.meta = {**node.meta}
    set_example(new, value)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
