"""From the attention weights back to the product of query and key.

    scores = matmul(q, k^T)
    scores = tanh(scores * scale / cap) * cap         soft-cap
    scores = scores + mask, masked_fill, where        masks, any number of them
    logits = cat([scores, sinks]); logits - max       sinks; whatever does not change a softmax
    weights = softmax(logits)[..., :-1]
    weights = dropout(weights.to(dtype))
    out = matmul(weights, v)

:func:`find_weights` walks from ``weights`` to the product and keeps the way, whose steps ``scores.py`` reads. Both
raise :class:`NoMatch` at the first thing that they do not know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..context import MaskKind, NoMatch
from ..graph.constants import constant
from ..graph.operations import Kind
from ..graph.reading import Call, read, words
from ..graph.values import dtype_of, is_float, same_size, same_sizes, shape
from .lookahead import is_computed_product, leads_to_product, may_be_weights
from .products import is_product, product_of
from .steps import Added, DroppedSinks, Factor, Filled, Order, Same, Shift, Sinks, Softmax, Step, Tanh, View, Way
from .views import behind_factor, behind_view

#: A step, and what it is applied to.
_Found = tuple[Step, Any]


def find_weights(node: Any, reader: Node, order: Order) -> Way | None:
    """The way behind ``node``, if it is the result of a softmax of something that a product leads to; else None.

    Raises:
        NoMatch: if it looks like attention weights, and is not understood.
    """
    if not isinstance(node, Node) or not may_be_weights(node):
        return None
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
        if not isinstance(source, Node):
            raise NoMatch(f"{words(node)} between query and values is not applied to a tensor")
        inside = inside or isinstance(step, Softmax)
        steps.append(step)
        node, reader = source, node


def _common_step(node: Node, call: Call | None) -> _Found | None:
    """A step that may stand on either side of the softmax."""
    if call is not None and call.name == "dropout":
        if constant(call["p"]) != 0.0 and call["training"] is not False:
            raise NoMatch("dropout is on")
        return Same(node), call["input"]
    source = behind_view(node)
    if call is None or source is None:
        return None
    return Same(node) if call.kinds & (Kind.SAME | Kind.CASTS) else View(node), source


# --- behind the softmax ---------------------------------------------------------------------------------------------


def _weights_step(node: Node) -> _Found:
    call = read(node)
    if call is not None and call.name == "softmax":
        return _softmax(call), call["input"]
    if (step := _common_step(node, call)) is not None:
        return step
    if call is not None and call.name == "nan_to_num" and not (call["nan"] or call["posinf"] or call["neginf"]):
        return Same(node), call["input"]  # a row that sees nothing has weights of zero here, and none there
    if call is not None and call.name == "getitem" and (column := _dropped(call)) is not None:
        return DroppedSinks(node, column), call["input"]
    raise NoMatch(f"the attention weights go through {words(node)} after the softmax")


def _softmax(call: Call) -> Softmax:
    dim, dtype = call["dim"], call["dtype"]
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise NoMatch("the softmax has no floating-point dtype")
    if not isinstance(dim, int):
        raise NoMatch("the softmax has no dimension")
    return Softmax(call.node, dim, dtype)


def _dropped(call: Call) -> int | None:
    """For ``x[..., :-1]`` and ``x[..., 1:]``: which column is left out, -1 or 0."""
    whole, part = shape(call["input"]), shape(call.node)
    index = call["index"] if isinstance(call["index"], tuple) else (call["index"],)
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


# --- in front of the softmax ----------------------------------------------------------------------------------------


def _scores_step(node: Node, order: Order) -> _Found:
    call = read(node)
    if (step := _common_step(node, call)) is not None:
        return step
    if (found := behind_factor(node)) is not None:
        return Factor(node, found[1]), found[0]
    name = None if call is None else call.name
    if call is None or name is None:
        raise NoMatch(f"the scores go through {words(node)}")
    if name == "tanh":
        return Tanh(node), call["input"]
    if name in ("add", "sub"):
        return _sum_step(call, order)
    if name in ("masked_fill", "where"):
        return _fill_step(call)
    if name == "cat":
        return _sink_step(call)
    if name in ("mul", "div"):
        raise NoMatch("the scores are scaled by something that is not a constant")
    raise NoMatch(f"the scores go through {words(node)}")


def _sum_step(call: Call, order: Order) -> _Found:
    left, right = call["input"], call["other"]
    if not call.is_plain():
        raise NoMatch("the scores are a sum with a factor")
    found = [_leads_through_steps(side, call.node, order) for side in (left, right)]
    if not any(found):  # the reason is further on
        found = [leads_to_product(side) for side in (left, right)]
    if found.count(True) != 1:
        raise NoMatch("the scores are a sum in which the product of query and key was not found")
    scores, other = (left, right) if found[0] else (right, left)
    sign = 1.0
    if call.name == "sub":
        if not found[0]:
            raise NoMatch("the scores are subtracted from something")
        sign = -1.0
    if constant(other) is not None or _is_row_constant(other):
        return Shift(call.node), scores
    if not is_float(other):
        raise NoMatch("what is added to the scores is not a floating-point mask")
    return Added(call.node, other, sign), scores


def _is_row_constant(node: Any) -> bool:
    """Whether a tensor has one number for all tokens."""
    size = shape(node)
    return size is not None and is_float(node) and (not size or same_size(size[-1], 1))


def _leads_through_steps(node: Any, reader: Node, order: Order) -> bool:
    """Whether steps that are understood lead from a product of query and key to ``node``."""
    try:
        while isinstance(node, Node):
            node = order.value(node, reader)
            if is_product(node):
                return is_computed_product(node)
            reader, (_, node) = node, _scores_step(node, order)
    except NoMatch:
        return False
    return False


def _fill_step(call: Call) -> _Found:
    if call.name == "masked_fill":
        scores, condition, fill, kind = call["input"], call["mask"], call["value"], MaskKind.HIDDEN
    else:
        condition, yes, no = call["condition"], call["input"], call["other"]
        scores, fill, kind = (no, yes, MaskKind.HIDDEN) if constant(yes) is not None else (yes, no, MaskKind.VISIBLE)
    number = constant(fill)
    if number is None or not isinstance(scores, Node) or shape(condition) is None:
        raise NoMatch("the scores are replaced by something that is not a constant")
    if dtype_of(condition) != torch.bool:
        raise NoMatch("the scores are masked by something that is not boolean")
    return Filled(call.node, condition, kind, number), scores


def _sink_step(call: Call) -> _Found:
    tensors, dim, size = call["tensors"], call["dim"], shape(call.node)
    if not isinstance(tensors, (list, tuple)) or len(tensors) != 2 or size is None or dim not in (-1, len(size) - 1):
        raise NoMatch("the scores are concatenated with something")
    thin = [(own := shape(tensor)) is not None and same_size(own[-1], 1) for tensor in tensors]
    computed = [leads_to_product(tensor) for tensor in tensors]
    for sinks, scores, column in ((1, 0, -1), (0, 1, 0)):
        if thin[sinks] and computed[scores] and not computed[sinks] and isinstance(tensors[sinks], Node):
            return Sinks(call.node, tensors[sinks], column), tensors[scores]
    raise NoMatch("the scores are concatenated with something that is not a column of sink logits")
