"""Finds a gate on the output of an attention that is a sink logit in other words.

    lse = logsumexp(scores, -1)                                            [B, H, N]
    gate = sigmoid(lse - sinks.view(1, -1, 1))                             exp(lse) / (exp(lse) + exp(sink))
    out = matmul(softmax(scores), values) * gate.unsqueeze(-1)
        = matmul(softmax(cat([scores, sinks]))[..., :-1], values)

The attention is then the one with sink logits, whose output is the product with the gate.
"""

from __future__ import annotations

import dataclasses

from torch.fx import Node

from ..context import NoMatch
from ..graph.reading import is_query, op_name, read
from ..graph.values import same_size, same_sizes, sizes_of
from .axes import Dims, resolve
from .steps import Order, Same, ScorePath, Shift, Sinks, Step
from .views import view_dims, view_source


@dataclasses.dataclass(frozen=True, eq=False)
class Gate:
    """A gate on the output.

    Attributes:
        node: the product of output and gate.
        dims: its dimensions.
        sinks: the sink logits.
        sink_dims: the dimensions that ``sinks`` broadcasts to.
        nodes: what computes the gate, and the output before it.
    """

    node: Node
    dims: Dims
    sinks: Node
    sink_dims: Dims
    nodes: tuple[Node, ...]


def find_gate(path: ScorePath, dims: dict[Node, Dims], out: Node, out_dims: Dims, order: Order) -> Gate | None:
    """The gate on the output ``out`` that is computed from the scores; None if there is none that is a sink logit.

    Args:
        path: the operations between the product of query and key and the weights.
        dims: the dimensions of their results.
        out: the product of weights and values.
        out_dims: its dimensions.
        order: the order of the graph.

    Raises:
        NoMatch: if there is one, of scores that were shifted before.
    """
    inside = [path.product.node, *(step.node for step in path.steps)]
    sums = list(dict.fromkeys(user for node in inside for user in node.users if op_name(user) == "logsumexp"))
    if len(sums) != 1 or any(isinstance(step, Sinks) for step in path.steps):
        return None
    found = _sum_dims(sums[0], path, dims, order)
    if found is None:
        return None
    try:
        return _gate(sums[0], found, out, out_dims)
    except NoMatch:  # a view that is not followed
        return None


def _sum_dims(node: Node, path: ScorePath, dims: dict[Node, Dims], order: Order) -> Dims | None:
    """The dimensions of a ``logsumexp`` over the tokens of what the softmax is of; None if it is another one."""
    call = read(node)
    source = call.source() if call is not None else None
    if call is None or source is None:
        return None
    logits = order.value(source, node)
    before = _before(logits, path)
    if before is None:
        return None
    if any(isinstance(step, Shift) for step in before):
        raise NoMatch("a number is added to the scores, but not to the sink logits")
    summed = call["dim"] if isinstance(call["dim"], (tuple, list)) else (call["dim"],)
    own = dims[logits]
    if len(summed) != 1 or not isinstance(summed[0], int) or summed[0] % len(own) != path.softmax.dim % len(own):
        return None
    at = summed[0] % len(own)
    return (*own[:at], *(((),) if call["keepdim"] else ()), *own[at + 1 :])


def _before(logits: Node, path: ScorePath) -> list[Step] | None:
    """The steps that compute ``logits``, of which the softmax is but for a shift; None if it is of something else."""
    steps = [*path.steps[path.steps.index(path.softmax) + 1 :]]
    while steps and steps[0].node is not logits:
        if not isinstance(steps.pop(0), (Same, Shift)):
            return None
    return steps if steps or path.product.node is logits else None


def _gate(node: Node, dims: Dims, out: Node, out_dims: Dims) -> Gate | None:
    """Follow the sum of exponentials ``node``, whose dimensions are ``dims``, up to the product with the output."""
    nodes = [node]
    sinks: tuple[Node, Dims] | None = None
    gated = False
    while (user := _only_user(node)) is not None:
        call = read(user)
        if call is None or call.in_place:
            return None
        if view_source(user) is node:
            dims = view_dims(user, dims)
        elif call.name == "sub" and sinks is None and call["input"] is node and call.is_plain():
            if not isinstance(call["other"], Node) or not same_sizes(sizes_of(user), sizes_of(node)):
                return None
            sinks = call["other"], dims
        elif call.name == "sigmoid" and sinks is not None and not gated:
            gated = True
        elif call.name == "mul" and sinks is not None and gated:
            other = call["other"] if call["input"] is node else call["input"]
            output = _output(other, user, out, out_dims)
            if output is None or not _is_for_each_row(user, node, dims, *output):
                return None
            return Gate(user, output[1], *sinks, (*nodes, *output[0]))
        else:
            return None
        nodes.append(user)
        node = user
    return None


def _only_user(node: Node) -> Node | None:
    users = [user for user in node.users if not is_query(user)]
    return users[0] if len(users) == 1 else None


def _output(node: object, gated: Node, out: Node, dims: Dims) -> tuple[tuple[Node, ...], Dims] | None:
    """The views between ``out`` and ``node``, that the gate alone reads, and the latter's dimensions; else None."""
    views: list[Node] = []
    reader = gated
    while isinstance(node, Node) and _only_user(node) is reader:
        views.append(node)
        if node is out:
            for view in reversed(views[:-1]):
                dims = view_dims(view, dims)
            return tuple(views), dims
        reader, node = node, view_source(node)
    return None


def _is_for_each_row(node: Node, gate: Node, gate_dims: Dims, views: tuple[Node, ...], dims: Dims) -> bool:
    """Whether a product multiplies each row of the output by the gate of that row."""
    if not same_sizes(sizes_of(node), sizes_of(views[0])) or len(gate_dims) > len(dims):
        return False
    pairs = zip(sizes_of(gate), gate_dims, dims[len(dims) - len(gate_dims) :], strict=True)
    return all(same_size(size, 1) or resolve(own) == resolve(full) for size, own, full in pairs)
