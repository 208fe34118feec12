"""Bring attentions with a cache into one layout, with one mask, whatever layout and masks the program has.

    scores = bmm(q, k^T)            # [B*H, N, S]          q' = q.reshape(B, H, N, D)
    scores = scores + alibi                           ->   mask' = where(seen, alibi.reshape(B, H, 1, S), -inf)
    scores = scores.masked_fill(~seen, min)                ... (the program's own attention, [B*H, N, D])
    out = bmm(softmax(scores), v)   # [B*H, N, D]          out' = out.reshape(B, H, N, D)
                                                           out = out'.reshape(B*H, N, D)

The standard form consists of ``q'``, ``mask'`` and ``out'``; later passes support only this form. Tensors that have the
right layout already are used as they are.
"""

from __future__ import annotations

import dataclasses
import operator
from contextlib import nullcontext

import torch
from torch.fx import GraphModule, Node

from .analysis.several_caches import leave_incomplete
from .attention.axes import Dims, rearrange, resolve_dims, size_argument
from .attention.concatenated import align
from .context import (
    AttentionMatch,
    CacheSource,
    CacheUse,
    MaskKind,
    MaskTerm,
    NoMatch,
    PassContext,
    StandardForm,
    TokenPart,
)
from .emit.query import standard_query, standard_sinks
from .graph.aliases import Writes
from .graph.reading import read
from .graph.values import dtype_of, same_size, sizes_of
from .graph.writing import Writer, is_number_of_inputs


def standard_form(gm: GraphModule, context: PassContext) -> GraphModule:
    write, changes = Writer(gm.graph), Writes(gm.graph)
    merged: dict[object, Node] = {}
    padded: dict[tuple[Node, str], Node] = {}
    columns: dict[tuple[Node, int], Node] = {}
    forms: dict[Node, StandardForm] = {}  # of attentions that read several caches
    for match, (key, _) in list(context.uses.items()):
        try:
            form = _standard(write, match, key.source, merged, columns, forms.get(match.node), changes)
            forms[match.node] = form
            context.standard[match] = _for_all_of_buffer(write, match, form, key, padded, changes)
        except NoMatch as reason:
            del context.uses[match]
            context.refuse(match, str(reason))
    leave_incomplete(context)
    return gm


def _standard(
    write: Writer,
    match: AttentionMatch,
    source: CacheSource,
    merged: dict[object, Node],
    columns: dict[tuple[Node, int], Node],
    earlier: StandardForm | None,
    changes: Writes,
) -> StandardForm:
    with write.before(match.node):
        mask = _mask(write, match, merged, changes)
        if mask is not None and match.part is not None:
            mask = _columns(write, mask, match.part, columns, changes)
        if earlier is not None:
            return dataclasses.replace(earlier, mask=mask)
        if source.stays_dense:
            return StandardForm(match.node, match.query, mask, match.sink_logits)
        query, sink_logits = standard_query(write, match), standard_sinks(write, match)
    return StandardForm(_output(write, match), query, mask, sink_logits)


def _output(write: Writer, match: AttentionMatch) -> Node:
    axes = match.axes
    standard = (axes.batch, axes.heads, axes.rows, axes.value_dim)
    users = list(match.node.users)
    with write.after(match.node):
        out = rearrange(write, match.node, axes.out, standard)
        back = rearrange(write, out, standard, axes.out)
    for user in users if back is not match.node else ():
        user.replace_input_with(match.node, back)
    return out


# --- masks ----------------------------------------------------------------------------------------------------------


def _mask(write: Writer, match: AttentionMatch, merged: dict[object, Node], changes: Writes) -> Node | None:
    """All masks merged into one, shared with earlier layers that have the same masks; None for no mask.

    Masks that are written in place are merged for each layer, whose values they have at its attention.
    """
    if not match.terms:
        return None
    axes = match.axes
    standard = resolve_dims((axes.batch, axes.heads, axes.rows, axes.tokens))
    sizes = str([[axis.size for axis in dim] for dim in standard])
    key = (sizes, *((t.node, t.kind, t.factor, _layout(t, standard)) for t in match.terms))
    changed = any(changes.of(term.node) for term in match.terms)
    if changed or key not in merged:
        merged[key] = _merge(write, [(term, _arranged(write, term, standard)) for term in match.terms])
    return merged[key]


def _columns(write: Writer, mask: Node, part: TokenPart, found: dict[tuple[Node, int], Node], changes: Writes) -> Node:
    """The columns of a mask that belong to one of several caches, which layers with the same mask share."""
    if same_size(sizes_of(mask)[-1], 1):
        return mask
    call, changed = read(mask), bool(changes.of(mask))
    pieces = call["tensors"] if call is not None and call.name == "cat" else ()
    if call is not None and pieces and call["dim"] in (-1, len(sizes_of(mask)) - 1) and not changed:
        widths = tuple(sizes_of(piece)[-1] for piece in pieces)
        alike = all(dtype_of(piece) == dtype_of(mask) for piece in pieces)  # the cat makes numbers of a boolean mask
        if alike and align(widths, part.sizes) and not any(changes.of(piece) for piece in pieces):
            return pieces[part.index]
    at = (mask, part.index)
    if changed or at not in found:
        with nullcontext() if changed else write.behind(mask):
            first = size_argument(write, sum(part.sizes[: part.index]))
            last = part.index == len(part.sizes) - 1
            end = None if last else size_argument(write, sum(part.sizes[: part.index + 1]))
            found[at] = write.call(operator.getitem, mask, (Ellipsis, slice(first, end)))
    return found[at]


def _layout(term: MaskTerm, standard: Dims) -> tuple[tuple[int, ...], ...]:
    """The dimensions of a mask as indices of axes of the standard form, which are comparable between layers."""
    axes = [axis for dim in standard for axis in dim]
    return tuple(tuple(axes.index(axis) for axis in dim) for dim in resolve_dims(term.dims))


def _arranged(write: Writer, term: MaskTerm, standard: Dims) -> Node:
    dims = resolve_dims(term.dims)
    if dims == standard:
        return term.node
    own = sizes_of(term.node)
    dims = dims[len(dims) - len(own) :]
    dims = tuple(() if same_size(size, 1) else dim for size, dim in zip(own, dims, strict=True))
    return rearrange(write, term.node, dims, standard, broadcast=True)


def _merge(write: Writer, terms: list[tuple[MaskTerm, Node]]) -> Node:
    visible: Node | None = None
    bias: Node | None = None
    for term, node in terms:
        if term.kind is MaskKind.ADDED:
            added = write.call(operator.mul, node, term.factor) if term.factor != 1.0 else node
            bias = added if bias is None else write.call(operator.add, bias, added)
        else:
            seen = write.call(torch.logical_not, node) if term.kind is MaskKind.HIDDEN else node
            visible = seen if visible is None else write.call(torch.logical_and, visible, seen)
    if visible is None:
        assert bias is not None, "terms must not be empty"
        return bias
    return visible if bias is None else write.call(torch.where, visible, bias, -torch.inf)


def _for_all_of_buffer(
    write: Writer,
    match: AttentionMatch,
    form: StandardForm,
    key: CacheUse,
    padded: dict[tuple[Node, str], Node],
    changes: Writes,
) -> StandardForm:
    """The form with a mask that has a column for each token of a buffer, of which the attention reads the first ones.

    attention(q, buffer[:, :, :end], ..., mask)    ->    attention(q, buffer, ..., cat([mask, hidden], -1))
    """
    use, mask = key.of_buffer, form.mask
    if use is None or not use.whole or use.rolls or mask is None:
        return form
    columns, room = sizes_of(mask)[-1], sizes_of(use.buffer)[use.dims[2]]
    read = same_size(columns, sizes_of(match.key)[match.tokens_dims[0]])
    if not read or same_size(columns, room) or not is_number_of_inputs(write.graph, room - columns):
        return form
    if changes.of(mask):  # what is copied here may not be what the attention reads
        return form
    at = (mask, str(room))
    if at not in padded:
        hidden = False if dtype_of(mask) == torch.bool else -torch.inf
        with write.behind(mask):
            sizes = *(write.size(mask, dim) for dim in range(len(sizes_of(mask)) - 1)), write.number(room - columns)
            padded[at] = write.call(torch.cat, [mask, write.method("new_full", mask, sizes, hidden)], -1)
    return dataclasses.replace(form, mask=padded[at])
