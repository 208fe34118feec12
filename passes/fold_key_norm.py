"""Apply the key normalization to query and new key, at their projections if RoPE allows it.

q = linear(x).view(...)                              q = linear(x).view(...) * norm
q = q * cos + rotate_half(q) * sin                   q = q * cos + rotate_half(q) * sin
k = linear(x).view(...)                         ->   k = linear(x).view(...) / norm
k = k * cos + rotate_half(k) * sin                   k = k * cos + rotate_half(k) * sin
append_(past..., k, v); decode_attention(q, ...)     append_(past..., k - mean / norm, v); decode_attention(q, ...)

At the projections it is free, because Inductor fuses it. A factor commutes with the rotary embedding if both channels
of each rotary pair have the same one. The format of the cache says which channels share a normalization
(``kernels/pairs.py``), and the graph which channels the rotary embedding mixes (``analysis/channel_paths.py``). Without
a rotary embedding no channels are mixed, and any normalization can be moved. If the operations between projection and
attention are not supported, or mix channels with different factors, the normalization is applied after the rotary
embedding, which is always correct: ``q * norm`` and ``(k - mean) / norm``.
"""

from __future__ import annotations

import dataclasses
import operator

import torch
from torch.fx import GraphModule, Node

from ..kernels.formats import compute_dtype
from ..kernels.pairs import Pairs, pairs_of
from .analysis.channel_paths import ChannelPath, find_path
from .attention.views import split_factor, view_source
from .context import KeyNormUse, NormPlace, NormPlaces, NormSite, PassContext, Reason
from .emit.channels import without_zeros
from .graph.aliases import Writes
from .graph.locations import source_line
from .graph.operations import Kind
from .graph.reading import op_name, read
from .graph.values import example, sizes_of
from .graph.writing import Writer, replace_argument

#: Operations that compute a projection, or a normalization after it.
_PRODUCERS = ("linear", "addmm", "matmul", "bmm", "einsum", "rms_norm", "layer_norm")

_UNKNOWN = "the operations after the projection are not supported, or something else reads their results"


def fold_key_norm(gm: GraphModule, context: PassContext) -> GraphModule:
    if not context.key_norms:
        return gm
    write, changes = Writer(gm.graph), Writes(gm.graph)
    for uses in _by_tensor(context.key_norms, changes):
        use, place = uses[0], _fold(write, uses, changes, context)
        for one in uses:
            places = context.norm_places.get(one.match, NormPlaces())
            places = dataclasses.replace(places, **{"key" if one.is_key else "query": place})
            context.norm_places[one.match] = places
        note = Reason(f"key normalization {place.site.value}: {place.reason}", source_line(use.match.node))
        if place.reason and note not in context.notes:
            context.notes.append(note)
    return gm


def _by_tensor(uses: list[KeyNormUse], changes: Writes) -> list[list[KeyNormUse]]:
    """The uses, those together in which several attentions to a cache have the same query with the same values."""
    found: list[list[KeyNormUse]] = []
    latest: dict[object, list[KeyNormUse]] = {}
    for use in uses:
        together = latest.get((use.tensor, use.cache))
        if use.is_key or together is None or changes.between(use.tensor, together[0].op, use.op):
            found.append([use])
            if not use.is_key:
                latest[use.tensor, use.cache] = found[-1]
        else:
            together.append(use)
    return found


def _fold(write: Writer, uses: list[KeyNormUse], changes: Writes, context: PassContext) -> NormPlace:
    use = uses[0]
    norm, target = use.cache.tensors.norm, use.tensor
    if norm is None:
        _apply(write, uses, target, None)
        return NormPlace(NormSite.NONE)
    if any(op_name(user) == "innerq::write_" for user in norm.users):
        # the norm is computed by the write, which comes after the projections
        _apply(write, uses, target, norm)
        return NormPlace(NormSite.AFTER_ROTARY, "the statistics of the cache are computed in this graph")
    longer = (user for user in target.users if user in context.appended or _is_replaced(user, context))
    readers = {*(one.op for one in uses), *longer}
    path = find_path(target, readers, changes)
    if path is None:
        _apply(write, uses, target, norm)
        return NormPlace(NormSite.PROJECTION) if _is_produced(target) else NormPlace(NormSite.AFTER_ROTARY, _UNKNOWN)
    shared = Pairs.parse(use.cache.format.norm).partners(len(path.partners))
    if any(other not in (channel, shared[channel]) for channel, other in enumerate(path.partners)):
        _apply(write, uses, target, norm)
        mixed = pairs_of(path.partners)
        return NormPlace(
            NormSite.AFTER_ROTARY,
            f"the rotary embedding mixes channels by {mixed.word if mixed else 'other pairs'}, but the channels of the "
            f"cache share their normalization by {use.cache.format.norm}",
        )
    _scale_source(write, use, path, norm)
    rotated = path.partners != tuple(range(len(path.partners)))
    if rotated or _is_produced(path.source):
        return NormPlace(NormSite.PROJECTION)
    return NormPlace(NormSite.AFTER_ROTARY, _UNKNOWN)


def _is_replaced(cat: Node, context: PassContext) -> bool:
    """Whether a node is only read by what the graph returns as a cache that it appends to."""
    return bool(cat.users) and all(user in context.appended for user in cat.users)


def _is_produced(node: Node) -> bool:
    """Whether a node is the result of a projection or a normalization, or a view or a part of it."""
    while True:
        source, call = view_source(node), read(node)
        if source is None and call is not None and (call.name == "getitem" or call.kinds & Kind.PIECES):
            source = call.source()
        if source is None:
            break
        node = source
    if (scaled := split_factor(node)) is not None:
        return _is_produced(scaled[0])
    name, inputs = op_name(node), node.all_input_nodes
    if name == "mul":  # a normalization in single operations
        return any(op_name(operand) == "rsqrt" for operand in inputs)
    if name == "add":  # a bias
        return any(i.op == "placeholder" for i in inputs) and any(_is_produced(i) for i in inputs)
    return name in _PRODUCERS


# --- changing the graph ---------------------------------------------------------------------------------------------


def _apply(write: Writer, uses: list[KeyNormUse], tensor: Node, norm: Node | None) -> None:
    """Normalize ``tensor`` directly before the first of what reads it: ``q * norm`` or ``(k - mean) / norm``."""
    use = uses[0]
    mean = use.cache.tensors.mean if use.is_key else None
    if mean is None and norm is None:
        return
    order = (0, 1, 2, 3)
    with write.before(use.op):
        x = write.method("to", tensor, _computed_in(tensor))
        if mean is not None:
            x = write.call(operator.sub, x, _column(write, without_zeros(write, mean, use.cache.format), order))
        if norm is not None:
            x = _scale(write, use, x, norm, order)
        x = write.method("to", x, example(tensor).dtype)
    for one in uses:
        replace_argument(one.op, one.argument, x)


def _scale_source(write: Writer, use: KeyNormUse, path: ChannelPath, norm: Node) -> None:
    """Apply the factor to the source of ``path``; for a key, subtract ``mean / norm`` directly before ``use.op``."""
    source = path.source
    with write.after(source):
        x = write.method("to", source, _computed_in(source))
        scaled = write.method("to", _scale(write, use, x, norm, path.order), example(source).dtype, like=source)
    write.replace(source, scaled, lambda user: user is not x)
    mean = use.cache.tensors.mean
    if not use.is_key or mean is None:
        return
    tensor = scaled if use.tensor is source else use.tensor
    with write.before(use.op):
        # of float64 keys as well: a quotient of float32 numbers would be rounded to float32
        share = write.call(operator.truediv, write.cast(mean, _computed_in(tensor)), norm)
        share = without_zeros(write, share, use.cache.format)
        x = write.method("to", tensor, _computed_in(tensor))
        x = write.call(operator.sub, x, _column(write, share, (0, 1, 2, 3)))
        x = write.method("to", x, example(tensor).dtype)
    replace_argument(use.op, use.argument, x)


def _computed_in(tensor: Node) -> torch.dtype:
    """The dtype in which a query or key is normalized."""
    return compute_dtype(example(tensor).dtype)


def _scale(write: Writer, use: KeyNormUse, x: Node, norm: Node, order: tuple[int, int, int, int]) -> Node:
    function = operator.truediv if use.is_key else operator.mul
    norm = without_zeros(write, norm, use.cache.format)
    groups = 1 if use.is_key else sizes_of(use.tensor)[1] // sizes_of(norm)[1]
    if groups > 1:
        norm = write.method("repeat_interleave", norm, groups, 1)
    return write.call(function, x, _column(write, norm, order))


def _column(write: Writer, statistic: Node, order: tuple[int, int, int, int]) -> Node:
    """A view of a statistic ``[B, H, D]`` that broadcasts to a tensor.

    Args:
        order: the dimensions of that tensor that are batch, heads, tokens and channels.
    """
    batch, heads, tokens, channels = order
    if batch < heads < channels:
        return write.method("unsqueeze", statistic, tokens)
    column = write.method("unsqueeze", statistic, 2)
    return write.method("permute", column, tuple(order.index(dim) for dim in range(4)))
