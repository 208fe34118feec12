"""Bring the attentions that have a cache into one form, whatever layout and masks the program has.

    scores = bmm(q, k^T)            # [B*H, N, S]          q' = q.reshape(B, H, N, D)
    scores = scores + alibi                           ->   mask' = where(seen, alibi.reshape(B, H, 1, S), -inf)
    scores = scores.masked_fill(~seen, min)                ... (the program's own attention, [B*H, N, D])
    out = bmm(softmax(scores), v)   # [B*H, N, D]          out' = out.reshape(B, H, N, D)
                                                           out = out'.reshape(B*H, N, D)

The match then says ``q'``, ``mask'`` and ``out'``, and the passes behind need to know one form only. What the program
has in that form already is taken as it is.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

from .attention.axes import Dims, rearrange, resolve_dims
from .context.context import AttentionMatch, MaskTerm, NoMatch, PassContext
from .graph.values import example, same_sizes, shape
from .graph.writing import Writer


def standard_form(gm: GraphModule, context: PassContext) -> GraphModule:
    merged: dict[object, Node] = {}
    for match, (key, _) in list(context.uses.items()):
        try:
            with gm.graph.inserting_before(match.node):
                match.mask = _mask(gm, match, merged)
                if key.kind != "fresh":
                    match.query = standard_query(gm, match)
                    match.sink_logits = _sinks(gm, match)
            if key.kind != "fresh":
                _output(gm, match)
        except NoMatch as reason:
            del context.uses[match]
            context.refuse(match, str(reason))
    return gm


def standard_query(gm: GraphModule, match: AttentionMatch) -> Node:
    """The query of an attention as ``[B, Hq, N, D]``, whose heads follow those of the keys.

    Raises:
        NoMatch: if its dimensions cannot be brought into this order.
    """
    axes = match.axes
    return rearrange(Writer(gm.graph), match.query, axes.query, (axes.batch, axes.heads, axes.rows, axes.key_dim))


def _output(gm: GraphModule, match: AttentionMatch) -> None:
    axes, graph = match.axes, gm.graph
    standard = (axes.batch, axes.heads, axes.rows, axes.value_dim)
    with graph.inserting_after(match.node):
        anchor = graph.call_function(operator.pos, (match.node,))
    users = [user for user in match.node.users if user is not anchor]
    with graph.inserting_before(anchor):
        out = rearrange(Writer(graph), match.node, axes.out, standard)
        back = rearrange(Writer(graph), out, standard, axes.out)
    graph.erase_node(anchor)
    for user in users if back is not match.node else ():
        user.replace_input_with(match.node, back)
    match.node = out


def _sinks(gm: GraphModule, match: AttentionMatch) -> Node | None:
    if match.sink_logits is None:
        return None
    return rearrange(Writer(gm.graph), match.sink_logits, match.axes.sinks, (match.axes.heads,))


# --- masks ----------------------------------------------------------------------------------------------------------


def _mask(gm: GraphModule, match: AttentionMatch, merged: dict[object, Node]) -> Node | None:
    """All masks as one, shared with the layers before where these have the same."""
    if not match.terms:
        return None
    axes = match.axes
    standard = resolve_dims((axes.batch, axes.heads, axes.rows, axes.tokens))
    sizes = str([[axis.size for axis in dim] for dim in standard])
    key = (sizes, *((t.node, t.kind, t.factor, _layout(t, standard)) for t in match.terms))
    if key not in merged:
        merged[key] = _merge(gm, [(term, _arranged(gm, term, standard)) for term in match.terms])
    return merged[key]


def _layout(term: MaskTerm, standard: Dims) -> tuple[tuple[int, ...], ...]:
    """The dimensions of a mask as positions among the axes of the standard form, which are comparable by layer."""
    axes = [axis for dim in standard for axis in dim]
    return tuple(tuple(axes.index(axis) for axis in dim) for dim in resolve_dims(term.dims))


def _arranged(gm: GraphModule, term: MaskTerm, standard: Dims) -> Node:
    dims = resolve_dims(term.dims)
    if dims == standard:
        return term.node
    own = shape(term.node)
    dims = dims[len(dims) - len(own) :]
    dims = tuple(() if same_sizes((size,), (1,)) else dim for size, dim in zip(own, dims, strict=True))
    return rearrange(Writer(gm.graph), term.node, dims, standard, broadcast=True)


def _merge(gm: GraphModule, terms: list[tuple[MaskTerm, Node]]) -> Node:
    visible: Node | None = None
    bias: Node | None = None
    for term, node in terms:
        if term.kind == "add":
            if term.factor != 1.0:
                node = _call(gm, operator.mul, node, term.factor)
            bias = node if bias is None else _call(gm, operator.add, bias, node)
        else:
            if term.kind == "hidden":
                node = _call(gm, torch.logical_not, node)
            visible = node if visible is None else _call(gm, torch.logical_and, visible, node)
    if visible is None or bias is None:
        return bias if visible is None else visible
    return _call(gm, torch.where, visible, bias, -torch.inf)


def _call(gm: GraphModule, function, *args) -> Node:
    node = gm.graph.call_function(function, args)
    values = [example(arg) if isinstance(arg, Node) else arg for arg in args]
    with values[0].fake_mode:
        node.meta["example_value"] = function(*values)
    return node
