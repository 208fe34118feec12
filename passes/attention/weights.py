"""Walks from the attention weights back to the product of query and key.

    scores = matmul(q, k^T)
    scores = tanh(scores * scale / cap) * cap         softcap
    scores = scores + mask, masked_fill, where        any number of masks
    logits = cat([scores, sinks]); logits - max       sinks; a shift that does not change the softmax
    weights = softmax(logits)[..., :-1]
    weights = weights.masked_fill(hidden, 0)          where the scores are masked
    weights = dropout(weights.to(dtype))
    out = matmul(weights, v)

:func:`find_scores` starts at ``weights`` and lists the operations up to the product; ``scores.py`` then combines them.
Both raise :class:`NoMatch` at the first operation that is not supported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..context import MaskKind, NoMatch
from ..graph.constants import constant
from ..graph.operations import Kind
from ..graph.reading import Call, describe, read
from ..graph.values import dtype_of, is_float, same_size, same_sizes, shape
from .lookahead import is_computed_product, leads_to_product, may_be_weights
from .products import is_product, product_of
from .steps import (
    Added,
    DroppedSinks,
    Factor,
    Filled,
    Order,
    Same,
    ScorePath,
    Shift,
    Sinks,
    Softmax,
    Step,
    Tanh,
    View,
    Zeroed,
)
from .views import split_factor, view_source

#: A step, and its input.
_Found = tuple[Step, Any]


def find_scores(node: Any, reader: Node, order: Order) -> ScorePath | None:
    """The operations that compute the attention weights ``node`` from a product of query and key.

    Args:
        node: possible attention weights.
        reader: the node that reads them.
        order: the order of the graph.

    Returns:
        The operations; None if ``node`` does not look like attention weights.

    Raises:
        NoMatch: if it looks like attention weights, but is not supported.
    """
    if not isinstance(node, Node) or not may_be_weights(node):
        return None
    steps: list[Step] = []
    inside = False  # whether the walk has passed the softmax
    while True:
        node = order.value(node, reader)
        if inside and is_product(node):
            product = product_of(node)
            if product is None:
                raise NoMatch("the scores are computed by a product that is not supported")
            return ScorePath(tuple(steps), product)
        step, source = _scores_step(node, order) if inside else _weights_step(node)
        if not isinstance(source, Node):
            raise NoMatch(f"{describe(node)} between query and values is not applied to a tensor")
        inside = inside or isinstance(step, Softmax)
        steps.append(step)
        node, reader = source, node


def _common_step(node: Node, call: Call | None) -> _Found | None:
    """A step that may be before or after the softmax."""
    if call is not None and call.name == "dropout":
        if constant(call["p"]) != 0.0 and call["training"] is not False:
            raise NoMatch("dropout is active")
        return Same(node), call["input"]
    source = view_source(node)
    if call is None or source is None:
        return None
    return Same(node) if call.kinds & (Kind.SAME | Kind.CASTS) else View(node), source


# --- after the softmax ----------------------------------------------------------------------------------------------


def _weights_step(node: Node) -> _Found:
    call = read(node)
    if call is not None and call.name == "softmax":
        return _softmax(call), call["input"]
    if (step := _common_step(node, call)) is not None:
        return step
    if call is not None and call.name == "nan_to_num" and not (call["nan"] or call["posinf"] or call["neginf"]):
        return Same(node), call["input"]  # changes only rows in which all tokens are hidden; the kernels give 0 there
    if call is not None and call.name == "getitem" and (column := _dropped(call)) is not None:
        return DroppedSinks(node, column), call["input"]
    if call is not None and call.name in ("masked_fill", "where"):
        filled, source = _fill_step(call)
        if filled.number == 0:
            return Zeroed(node, filled.condition, filled.kind), source
    raise NoMatch(f"the attention weights go through {describe(node)} after the softmax")


def _softmax(call: Call) -> Softmax:
    dim, dtype = call["dim"], call["dtype"]
    if isinstance(dtype, torch.dtype) and not dtype.is_floating_point:
        raise NoMatch("the dtype of the softmax is not a floating-point dtype")
    if not isinstance(dim, int):
        raise NoMatch("the softmax has no dimension")
    return Softmax(call.node, dim, dtype)


def _dropped(call: Call) -> int | None:
    """The column that ``x[..., :-1]`` or ``x[..., 1:]`` drops, -1 or 0; None for another index."""
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


# --- before the softmax ---------------------------------------------------------------------------------------------


def _scores_step(node: Node, order: Order) -> _Found:
    call = read(node)
    if (step := _common_step(node, call)) is not None:
        return step
    if (found := split_factor(node)) is not None:
        return Factor(node, found[1]), found[0]
    name = None if call is None else call.name
    if call is None or name is None:
        raise NoMatch(f"the scores go through {describe(node)}")
    if name == "tanh":
        return Tanh(node), call["input"]
    if name in ("add", "sub"):
        return _sum_step(call, order)
    if name in ("masked_fill", "where"):
        return _fill_step(call)
    if name == "cat":
        return _sink_step(call)
    if (source := _above_lowest(call)) is not None:
        return Same(node), source
    if name in ("mul", "div"):
        raise NoMatch("the scores are scaled by a factor that is not constant")
    raise NoMatch(f"the scores go through {describe(node)}")


def _sum_step(call: Call, order: Order) -> _Found:
    left, right = call["input"], call["other"]
    if not call.is_plain():
        raise NoMatch("alpha of add or sub is not supported in the scores")
    found = [_leads_through_steps(side, call.node, order) for side in (left, right)]
    if not any(found):  # an earlier operation is not supported, and the walk gets there
        found = [leads_to_product(side) for side in (left, right)]
    if found.count(True) != 1:
        raise NoMatch("the scores are a sum in which the product of query and key was not found")
    scores, other = (left, right) if found[0] else (right, left)
    sign = 1.0
    if call.name == "sub":
        if not found[0]:
            raise NoMatch("the scores are subtracted from another tensor")
        sign = -1.0
    if constant(other) is not None or _is_row_constant(other):
        return Shift(call.node), scores
    if not is_float(other):
        raise NoMatch("the mask added to the scores is not a floating-point tensor")
    return Added(call.node, other, sign), scores


def _is_row_constant(node: Any) -> bool:
    """Whether a tensor has the same number for all tokens of a query."""
    size = shape(node)
    return size is not None and is_float(node) and (not size or same_size(size[-1], 1))


def _leads_through_steps(node: Any, reader: Node, order: Order) -> bool:
    """Whether ``node`` is computed from a product of two computed tensors by supported operations only."""
    try:
        while isinstance(node, Node):
            node = order.value(node, reader)
            if is_product(node):
                return is_computed_product(node)
            reader, (_, node) = node, _scores_step(node, order)
    except NoMatch:
        return False
    return False


def _fill_step(call: Call) -> tuple[Filled, Node]:
    if call.name == "masked_fill":
        scores, condition, fill, kind = call["input"], call["mask"], call["value"], MaskKind.HIDDEN
    else:
        condition, yes, no = call["condition"], call["input"], call["other"]
        scores, fill, kind = (no, yes, MaskKind.HIDDEN) if constant(yes) is not None else (yes, no, MaskKind.VISIBLE)
    number = constant(fill)
    if number is None or not isinstance(scores, Node) or shape(condition) is None:
        raise NoMatch("scores or weights are replaced by a value that is not constant")
    if dtype_of(condition) != torch.bool:
        raise NoMatch("the mask of masked_fill or where is not boolean")
    return Filled(call.node, condition, kind, number), scores


def _above_lowest(call: Call) -> Node | None:
    """The scores that a call makes at least the lowest number of their dtype; None if it does something else.

    This changes nothing but minus infinity, with which a token is hidden as well.
    """
    if call.name == "maximum":
        pairs = ((call["input"], call["other"]), (call["other"], call["input"]))
    elif call.name == "clamp" and call["max"] is None:
        pairs = ((call["input"], call["min"]),)
    else:
        return None
    for scores, bound in pairs:
        number = constant(bound)
        if is_float(scores) and dtype_of(scores) == (dtype := dtype_of(call.node)) and number is not None:
            return scores if dtype is not None and number <= torch.finfo(dtype).min else None
    return None


def _sink_step(call: Call) -> _Found:
    tensors, dim, size = call["tensors"], call["dim"], shape(call.node)
    if not isinstance(tensors, (list, tuple)) or len(tensors) != 2 or size is None or dim not in (-1, len(size) - 1):
        raise NoMatch("the cat of the scores is not one with sink logits along the tokens")
    thin = [(own := shape(tensor)) is not None and same_size(own[-1], 1) for tensor in tensors]
    computed = [leads_to_product(tensor) for tensor in tensors]
    for sinks, scores, column in ((1, 0, -1), (0, 1, 0)):
        if thin[sinks] and computed[scores] and not computed[sinks] and isinstance(tensors[sinks], Node):
            return Sinks(call.node, tensors[sinks], column), tensors[scores]
    raise NoMatch("the scores are concatenated with a tensor that is not a column of sink logits")
