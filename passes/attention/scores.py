"""Combines the operations between the product of query and key and the attention weights.

    steps, from last to first      ->      softmax(softcap * tanh(scale * product / softcap) + masks), with sinks

The steps were found by ``weights.py``. :class:`NoMatch` is raised if they do not combine to this form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch.fx import Node

from ...kernels.masks import MASKED
from ..context import MaskKind, MaskTerm, NoMatch
from ..graph.aliases import Writes
from ..graph.equality import have_same_value
from ..graph.reading import describe, is_pure, is_query, op_name, source_of, writes_to
from ..graph.values import dtype_of, is_float, same_sizes, shape, sizes_of
from .axes import Dims, resolve_dims
from .steps import Added, DroppedSinks, Factor, Filled, Same, ScorePath, Shift, Sinks, Tanh, View, Zeroed
from .views import view_dims


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """The weights are ``softmax(softcap * tanh(scale * product / softcap) + terms)``.

    Attributes:
        scale: the factor of the product.
        softcap: 0 for no softcap.
        terms: masks and biases, in the order of application.
        sinks: logits that take part in the softmax without a value, or None.
        sink_dims: the dimensions of the scores that ``sinks`` broadcasts to, or None.
    """

    scale: float
    softcap: float
    terms: tuple[MaskTerm, ...]
    sinks: Node | None
    sink_dims: Dims | None


def path_dims(path: ScorePath, dims: Dims) -> dict[Node, Dims]:
    """The dimensions of the product, which are ``dims``, and of the result of each step.

    Between the steps that add and drop sink logits, the last dimension keeps the axes of the tokens although it is
    longer by one.
    """
    found = {path.product.node: dims}
    last, extended = path.product.node, False
    for step in reversed(path.steps):
        if isinstance(step, View):
            if extended:
                raise NoMatch("the shape of logits with sinks is changed")
            dims = view_dims(step.node, dims)
        elif isinstance(step, (Sinks, DroppedSinks)):
            extended = isinstance(step, Sinks)
        elif not same_sizes(sizes_of(step.node), sizes_of(last)):
            raise NoMatch("the scores are broadcast to a larger shape")
        found[step.node] = dims
        last = step.node
    if extended:
        raise NoMatch("the weights of the sinks are not dropped")
    return found


def read_scores(path: ScorePath, dims: dict[Node, Dims], changes: Writes) -> Scores:
    """Combine the steps, from the softmax back to the product.

    Args:
        path: the steps.
        dims: the dimensions of their results, see `path_dims`.
        changes: the in-place writes of the graph.
    """
    _check_masked_alike(path, dims, changes)
    # the factor that a number at the current step is multiplied by until it reaches the softmax
    factor, softcap = 1.0, 0.0
    sinks: Sinks | None = None
    dropped: DroppedSinks | None = None
    terms: list[MaskTerm] = []
    for step in path.steps:
        if softcap and not isinstance(step, (Same, View, Factor)):
            raise NoMatch("the scores are masked before they are soft-capped")
        if isinstance(step, DroppedSinks):
            dropped = step
        elif isinstance(step, Factor):
            factor *= step.number
        elif isinstance(step, Tanh):
            if factor == 0:
                raise NoMatch("the scores are multiplied by zero")
            softcap, factor = factor, 1.0
        elif isinstance(step, Shift):
            if sinks is not None:
                raise NoMatch("a number is added to the scores, but not to the sink logits")
        elif isinstance(step, Sinks):
            if sinks is not None or dropped is None or dropped.column != step.column or factor != 1.0 or terms:
                raise NoMatch("the sink logits are not used in a supported path")
            sinks = step
        elif isinstance(step, Added):
            terms.append(_term(step.term, MaskKind.ADDED, factor * step.sign, dims[step.node], step.node))
        elif isinstance(step, Filled):
            if step.number * factor > MASKED or step.number != step.number:
                raise NoMatch(f"scores are replaced by {step.number}, which is too large for a mask")
            terms.append(_term(step.condition, step.kind, 1.0, dims[step.node], step.node))
    if dropped is not None and sinks is None:
        raise NoMatch("a column of the attention weights is dropped that is not a sink")
    product = path.product
    if product.added is not None:
        if softcap:
            raise NoMatch("the scores are masked before they are soft-capped")
        if not is_float(product.added):
            raise NoMatch("the mask added to the scores is not a floating-point tensor")
        terms.append(_term(product.added, MaskKind.ADDED, factor * product.beta, dims[product.node], product.node))
    scale = factor * product.alpha * (softcap or 1.0)
    sink_logits, sink_dims = (None, None) if sinks is None else (sinks.logits, dims[sinks.node])
    return Scores(scale, abs(softcap), tuple(reversed(terms)), sink_logits, sink_dims)


def _check_masked_alike(path: ScorePath, dims: dict[Node, Dims], changes: Writes) -> None:
    """Check that weights are replaced by zero only where their scores are masked, which have no weight anyway.

    Where nothing is visible to a row, this makes all of its weights zero, as they are in the kernels.
    """
    filled = [step for step in path.steps if isinstance(step, Filled)]
    for again in (step for step in path.steps if isinstance(step, Zeroed)):
        if not any(
            resolve_dims(dims[first.node]) == resolve_dims(dims[again.node]) and _hides_same(first, again, changes)
            for first in filled
        ):
            raise NoMatch("the attention weights are masked behind the softmax, and the scores not by the same mask")


def _hides_same(first: Filled, again: Zeroed, changes: Writes) -> bool:
    """Whether two steps are known to replace the same elements of tensors of one shape."""
    (mask, negated), (other, other_negated) = (_without_not(step.condition, changes) for step in (first, again))
    opposite = first.kind is not again.kind
    return opposite == (negated != other_negated) and have_same_value(mask, other, changes)


def _without_not(condition: Node, changes: Writes) -> tuple[Node, bool]:
    """A boolean tensor and whether ``condition`` is its negation."""
    negated = False
    while op_name(condition) in ("logical_not", "bitwise_not") and (source := source_of(condition)) is not None:
        if dtype_of(source) != torch.bool or changes.of(condition):
            break
        condition, negated = source, not negated
    return condition, negated


def _term(node: Node, kind: MaskKind, factor: float, dims: Dims, reader: Node) -> MaskTerm:
    if writes_to(node):
        raise NoMatch("a mask is changed in place")
    size, whole = shape(node), sizes_of(reader)
    if size is None:
        raise NoMatch("a mask is not a tensor")
    if len(size) > len(whole):
        raise NoMatch("a mask has more dimensions than the scores")
    for own, full in zip(size, whole[len(whole) - len(size) :], strict=True):
        # symbolic sizes are equal even if that is not known: the sum with the scores has the shape of the scores
        if isinstance(own, int) and own != 1 and isinstance(full, int) and own != full:
            raise NoMatch("a mask does not have the shape of the scores")
    return MaskTerm(node, kind, factor, dims)


def check_only_used_here(path: ScorePath, out: Node, gate: Iterable[Node] = ()) -> None:
    """Check that nothing else reads scores or weights, because decode attention does not return them.

    Args:
        path: the operations between the product of query and key and the weights.
        out: the output of the attention.
        gate: what else computes it, see ``gates.py``.

    Raises:
        NoMatch: if something does; the message names it.
    """
    nodes = [
        *(step.node for step in path.steps),
        path.product.node,
        *gate,
    ]  # in order, so that the reason is deterministic
    inside = {*nodes, out}
    for node in nodes:
        for user in node.users:
            if not _is_harmless(user, inside, 3):
                raise NoMatch("the attention scores or weights are also used elsewhere" + _reader(user))


def _reader(user: Node) -> str:
    return " (they are returned)" if user.op == "output" else f", by {describe(user)}"


def _is_harmless(user: Node, inside: set[Node], depth: int) -> bool:
    if user in inside or is_query(user):
        return True
    if user.op == "output" or not depth:
        return False
    return is_pure(user) and all(_is_harmless(later, inside, depth - 1) for later in user.users)
