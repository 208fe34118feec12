"""From the attention weights back to the product of query and key.

    scores = matmul(q, k^T)
    scores = tanh(scores * scale / cap) * cap         soft-cap
    scores = scores + mask, masked_fill, where        masks, any number of them
    logits = cat([scores, sinks]); logits - max       sinks; whatever does not change a softmax
    weights = softmax(logits)[..., :-1]
    weights = dropout(weights.to(dtype))
    out = matmul(weights, v)

:func:`find_weights` walks from ``weights`` to the product and keeps the way; :func:`read_scores` then reads it, from
the outside in, as ``softmax(softcap(scale * product) + masks)``. Both raise :class:`NoMatch` at the first thing that
they do not know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from ...kernels.masks import MASKED
from ..context.context import MaskTerm, NoMatch
from ..graph.constants import constant
from ..graph.operations import Kind
from ..graph.reading import argument, is_pure, is_query, kinds, op_name, writes_to
from ..graph.values import example, is_float, same_size, same_sizes, shape
from .axes import Dims
from .products import Product, is_product, product_of
from .sides import behind_factor, behind_view, source_of_all, view_dims


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One operation on the way from the product to the weights.

    Attributes:
        node: the operation.
        kind: ``same``, ``view``, ``factor``, ``add``, ``shift``, ``fill``, ``tanh``, ``sinks``, ``drop_sinks`` or
            ``softmax``.
        value: what belongs to it: the factor, the tensor that is added, ...
    """

    node: Node
    kind: str
    value: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Way:
    """The way from a product of query and key to attention weights: the steps from last to first."""

    steps: tuple[Step, ...]
    product: Product

    @property
    def softmax(self) -> Node:
        return next(step.node for step in self.steps if step.kind == "softmax")


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """What the way computes: ``softmax(softcap * tanh(scale * product / softcap) + terms)``, sinks included."""

    scale: float
    softcap: float
    terms: tuple[MaskTerm, ...]
    sinks: Node | None
    sink_dims: Dims | None


class Order:
    """The order of the nodes of a graph, and what was last written to a tensor before a node reads it."""

    def __init__(self, graph: Graph) -> None:
        self._index = {node: index for index, node in enumerate(graph.nodes)}

    def __getitem__(self, node: Node) -> int:
        return self._index[node]

    def value(self, node: Node, reader: Node) -> Node:
        """The operation that made the value of ``node`` that ``reader`` sees: itself, or a later one in place."""
        writers = [user for user in writes_to(node) if self[user] < self[reader]]
        return max(writers, key=lambda user: self[user], default=node)


def find_weights(node: Any, reader: Node, order: Order) -> Way | None:
    """The way behind ``node``, if it is the result of a softmax of something that a product leads to; else None.

    Raises:
        NoMatch: if it looks like attention weights, and is not understood.
    """
    if not isinstance(node, Node) or not _may_be_weights(node):
        return None
    return _walk(node, reader, order)


# --- looking ahead: is this attention at all? -----------------------------------------------------------------------


def _may_be_weights(node: Node) -> bool:
    """Whether a softmax, and a product of two computed tensors behind it, lead to a tensor, elementwise.

    The router of a mixture of experts is a softmax too, of a product with a parameter, and it is no attention.
    """
    softmax = _search(node, lambda n: op_name(n) == "softmax")
    return softmax is not None and _search(argument(softmax, "input"), _is_computed_product) is not None


def _is_computed_product(node: Node) -> bool:
    if not is_product(node):
        return False
    product = product_of(node)
    return product is not None and not any(_is_parameter(operand) for operand in product.operands)


def _is_parameter(node: Node) -> bool:
    return isinstance(source_of_all(node).meta.get("example_value"), torch.nn.Parameter)


def _search(node: Any, wanted: Callable[[Node], bool], limit: int = 60) -> Node | None:
    """The first node that is ``wanted``, backwards from ``node`` through tensors with as many elements."""
    pending, seen = [node], set()
    while pending and len(seen) < limit:
        node = pending.pop(0)
        if not isinstance(node, Node) or node in seen or node.op in ("placeholder", "get_attr"):
            continue
        seen.add(node)
        if wanted(node):
            return node
        if is_product(node) or shape(node) is None:
            continue
        for source in node.all_input_nodes:
            sliced = op_name(node) in ("cat", "getitem") and shape(source) is not None
            if sliced or (shape(source) is not None and same_size(_numel(source), _numel(node))):
                pending.append(source)
    return None


def _numel(node: Node) -> Any:
    return example(node).numel()


# --- walking --------------------------------------------------------------------------------------------------------


def _walk(node: Node, reader: Node, order: Order) -> Way:
    steps: list[Step] = []
    inside = False  # of the softmax
    while True:
        node = order.value(node, reader)
        if inside and is_product(node):
            product = product_of(node)
            if product is None:
                raise NoMatch("the scores are a product that is not understood")
            return Way(tuple(steps), product)
        step, source = _scores_step(node, order) if inside else _weights_step(node)
        inside = inside or step.kind == "softmax"
        steps.append(step)
        node, reader = source, node


def _common_step(node: Node) -> tuple[Step, Node] | None:
    name = op_name(node)
    if name == "dropout":
        if constant(argument(node, "p", 0.5)) != 0.0 and argument(node, "training", True) is not False:
            raise NoMatch("dropout is on")
        return Step(node, "same"), argument(node, "input")
    source = behind_view(node)
    if source is None:
        return None
    return Step(node, "same" if kinds(node) & (Kind.SAME | Kind.CASTS) else "view"), source


def _weights_step(node: Node) -> tuple[Step, Node]:
    name = op_name(node)
    if name == "softmax":
        return Step(node, "softmax"), argument(node, "input")
    if (step := _common_step(node)) is not None:
        return step
    if name == "nan_to_num" and not node.args[1:] and not node.kwargs:  # rows that see nothing: zero here and there
        return Step(node, "same"), node.args[0]
    if name == "getitem" and (first := _cut(node)) is not None:
        return Step(node, "drop_sinks", first), node.args[0]
    raise NoMatch(f"the attention weights go through {_words(node)} after the softmax")


def _cut(node: Node) -> int | None:
    """For ``x[..., :-1]`` and ``x[..., 1:]``: which column is left out, -1 or 0."""
    whole, part = shape(node.args[0]), shape(node)
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if whole is None or part is None or len(whole) != len(part) or not index or not isinstance(index[-1], slice):
        return None
    *front, last = index
    if any(item is not ... and item != slice(None) for item in front) or last.step not in (None, 1):
        return None
    if not same_sizes(whole[:-1], part[:-1]) or not same_size(whole[-1], part[-1] + 1):
        return None
    if len(index) != len(whole) and ... not in front:
        return None
    return 0 if last.start == 1 else -1 if last.start in (None, 0) else None


def _scores_step(node: Node, order: Order) -> tuple[Step, Node]:
    name = op_name(node)
    if (step := _common_step(node)) is not None:
        return step
    if (found := behind_factor(node)) is not None:
        return Step(node, "factor", found[1]), found[0]
    if name == "tanh":
        return Step(node, "tanh"), node.args[0]
    if name in ("add", "sub"):
        return _sum_step(node, name, order)
    if name in ("masked_fill", "where"):
        return _fill_step(node, name)
    if name == "cat":
        return _sink_step(node)
    if name in ("mul", "div"):
        raise NoMatch("the scores are scaled by something that is not a constant")
    raise NoMatch(f"the scores go through {_words(node)}")


def _sum_step(node: Node, name: str, order: Order) -> tuple[Step, Node]:
    left, right = argument(node, "input"), argument(node, "other")
    if set(node.kwargs) - {"input", "other"} or len(node.args) > 2:
        raise NoMatch("the scores are a sum with a factor")
    found = [_leads_to_product(side, node, order) for side in (left, right)]
    if not any(found):  # the reason is further on
        found = [_search(side, _is_computed_product) is not None for side in (left, right)]
    if found.count(True) != 1:
        raise NoMatch("the scores are a sum in which the product of query and key was not found")
    scores, other = (left, right) if found[0] else (right, left)
    sign = 1.0
    if name == "sub":
        if not found[0]:
            raise NoMatch("the scores are subtracted from something")
        sign = -1.0
    if constant(other) is not None or (shape(other) is not None and _is_row_constant(other)):
        return Step(node, "shift", other), scores
    if not is_float(other):
        raise NoMatch("what is added to the scores is not a floating-point mask")
    return Step(node, "add", (other, sign)), scores


def _is_row_constant(node: Node) -> bool:
    size = shape(node)
    return is_float(node) and (not size or same_size(size[-1], 1))


def _leads_to_product(node: Any, reader: Node, order: Order) -> bool:
    try:
        return isinstance(node, Node) and _walk_scores(node, reader, order)
    except NoMatch:
        return False


def _walk_scores(node: Node, reader: Node, order: Order) -> bool:
    while True:
        node = order.value(node, reader)
        if is_product(node):
            return _is_computed_product(node)
        _, source = _scores_step(node, order)
        node, reader = source, node


def _fill_step(node: Node, name: str) -> tuple[Step, Node]:
    if name == "masked_fill":
        scores, condition, fill = (argument(node, part) for part in ("input", "mask", "value"))
        kind = "hidden"
    else:
        if len(node.args) != 3 or node.kwargs:
            raise NoMatch("the scores go through a where that is not understood")
        condition, yes, no = node.args if node.op == "call_function" else (node.args[1], node.args[0], node.args[2])
        scores, fill, kind = (no, yes, "hidden") if constant(yes) is not None else (yes, no, "visible")
    number = constant(fill)
    if number is None or not isinstance(scores, Node) or shape(condition) is None:
        raise NoMatch("the scores are replaced by something that is not a constant")
    if example(condition).dtype != torch.bool:
        raise NoMatch("the scores are masked by something that is not boolean")
    return Step(node, "fill", (condition, kind, number)), scores


def _sink_step(node: Node) -> tuple[Step, Node]:
    tensors, dim = argument(node, "tensors"), argument(node, "dim", 0)
    size = shape(node)
    if not isinstance(tensors, (list, tuple)) or len(tensors) != 2 or dim not in (-1, len(size) - 1):
        raise NoMatch("the scores are concatenated with something")
    thin = [same_size(shape(tensor)[-1], 1) for tensor in tensors]
    computed = [_search(tensor, _is_computed_product) is not None for tensor in tensors]
    for sinks, scores, first in ((1, 0, -1), (0, 1, 0)):
        if thin[sinks] and computed[scores] and not computed[sinks]:
            return Step(node, "sinks", (tensors[sinks], first)), tensors[scores]
    raise NoMatch("the scores are concatenated with something that is not a column of sink logits")


def _words(node: Node) -> str:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"an input ({name})" if node.op == "placeholder" else name


# --- reading --------------------------------------------------------------------------------------------------------


def dims_on_the_way(way: Way, dims: Dims) -> dict[Node, Dims]:
    """The dimensions of each result on the way, of a product with dimensions ``dims``.

    With the column of sinks the last dimension keeps the axes of the tokens, although it is one longer.
    """
    found = {way.product.node: dims}
    last, extended = way.product.node, False
    for step in reversed(way.steps):
        if step.kind == "view":
            if extended:
                raise NoMatch("logits with sinks are viewed in another shape")
            dims = view_dims(step.node, dims)
        elif step.kind in ("sinks", "drop_sinks"):
            extended = step.kind == "sinks"
        elif not same_sizes(shape(step.node), shape(last)):
            raise NoMatch("the scores are broadcast to a larger shape")
        found[step.node] = dims
        last = step.node
    if extended:
        raise NoMatch("the weights of the sinks are not dropped")
    return found


def read_scores(way: Way, dims: dict[Node, Dims]) -> Scores:
    """Read the way from the softmax inwards: what each operation means in the end.

    ``factor`` is what a number at the present place is multiplied by before it reaches the softmax.
    """
    factor, softcap, sinks, sink_dims, dropped = 1.0, 0.0, None, None, None
    terms: list[MaskTerm] = []
    for step in way.steps:
        if softcap and step.kind not in ("same", "view", "factor"):
            raise NoMatch("the scores are masked before they are soft-capped")
        if step.kind == "drop_sinks":
            dropped = step.value
        elif step.kind == "softmax":
            _check_softmax(step.node)
        elif step.kind == "factor":
            factor *= step.value
        elif step.kind == "tanh":
            if factor == 0:
                raise NoMatch("the scores are multiplied by zero")
            softcap, factor = factor, 1.0
        elif step.kind == "shift":
            if sinks is not None:
                raise NoMatch("a number is added to the scores, but not to the sinks")
        elif step.kind == "sinks":
            if sinks is not None or dropped != step.value[1] or factor != 1.0 or terms:
                raise NoMatch("the sinks of the softmax are not understood")
            sinks, sink_dims = step.value[0], dims[step.node]
        elif step.kind == "add":
            terms.append(_term(step.value[0], "add", factor * step.value[1], dims[step.node], step.node))
        elif step.kind == "fill":
            condition, kind, number = step.value
            if number * factor > MASKED or number != number:
                raise NoMatch(f"scores are replaced by {number}, which is too large for a mask")
            terms.append(_term(condition, kind, 1.0, dims[step.node], step.node))
    if dropped is not None and sinks is None:
        raise NoMatch("a part of the attention weights is left out")
    if way.product.added is not None:
        if softcap:
            raise NoMatch("the scores are masked before they are soft-capped")
        terms.append(_added(way, factor, dims))
    scale = factor * way.product.alpha * (softcap or 1.0)
    return Scores(scale, abs(softcap), tuple(reversed(terms)), sinks, sink_dims)


def _added(way: Way, factor: float, dims: dict[Node, Dims]) -> MaskTerm:
    product = way.product
    if not is_float(product.added):
        raise NoMatch("what is added to the scores is not a floating-point mask")
    return _term(product.added, "add", factor * product.beta, dims[product.node], product.node)


def _term(node: Node, kind: str, factor: float, dims: Dims, reader: Node) -> MaskTerm:
    if writes_to(node):
        raise NoMatch("a mask is changed in place")
    size, whole = shape(node), shape(reader)
    if len(size) > len(whole):
        raise NoMatch("a mask has more dimensions than the scores")
    for own, full in zip(size, whole[len(whole) - len(size) :], strict=True):
        # symbols that are not known to be equal are: the sum with the scores has the shape of the scores
        if isinstance(own, int) and own != 1 and isinstance(full, int) and own != full:
            raise NoMatch("a mask does not have the shape of the scores")
    return MaskTerm(node, kind, factor, dims)


def _check_softmax(node: Node) -> None:
    dtype = argument(node, "dtype")
    if dtype is not None and not dtype.is_floating_point:
        raise NoMatch("the softmax has no floating-point dtype")
    if not isinstance(argument(node, "dim"), int):
        raise NoMatch("the softmax has no dimension")


def check_only_used_here(way: Way, out: Node) -> None:
    """Scores and weights have to have no other reader: an attention over a quantized cache does not compute them.

    Raises:
        NoMatch: naming what reads them.
    """
    inside = {step.node for step in way.steps} | {way.product.node, out}
    for node in inside - {out}:
        for user in node.users:
            if not _is_harmless(user, inside, 3):
                raise NoMatch("the attention scores or weights are also used elsewhere" + _reader(user))


def _reader(user: Node) -> str:
    return " (they are returned)" if user.op == "output" else f", by {_words(user)}"


def _is_harmless(user: Node, inside: set[Node], depth: int) -> bool:
    if user in inside or is_query(user):
        return True
    if user.op == "output" or not depth:
        return False
    return is_pure(user) and all(_is_harmless(later, inside, depth - 1) for later in user.users)
