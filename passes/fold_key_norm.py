"""Put the key normalization where it costs nothing: on the projections of query and key, where RoPE allows it.

q = linear(x).view(...)                              q = linear(x).view(...) * norm
q = q * cos + rotate_half(q) * sin                   q = q * cos + rotate_half(q) * sin
k = linear(x).view(...)                         ->   k = linear(x).view(...) / norm
k = k * cos + rotate_half(k) * sin                   k = k * cos + rotate_half(k) * sin
append_(past..., k, v); decode_attention(q, ...)     append_(past..., k - mean / norm, v); decode_attention(q, ...)

A factor moves through the rotary embedding if both channels of each pair have it: the normalization of the cache says
which channels share it (``kernels/pairs.py``), the graph which it mixes (``channel_paths.py``). Without a rotary
embedding nothing is mixed, and any normalization moves. Where the way to the projection is not understood, or mixes
what does not share, the factor stands behind the rotary embedding, which is right for any normalization:
``q * norm`` and ``(k - mean) / norm``.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import GraphModule, Node

from ..kernels.formats import CacheFormat
from ..kernels.pairs import Pairs, pairs_of
from .analysis.channel_paths import ChannelPath, find_path
from .attention.sides import behind_factor, behind_view
from .context.context import Config, KeyNormUse, NormPlace, PassContext, Reason
from .graph.aliases import Writes
from .graph.locations import source_line
from .graph.reading import op_name
from .graph.values import example, shape

PROJECTION, AFTER_ROTARY, NONE = "projection", "after rotary", "none"

#: What a projection, or the normalization behind it, is computed by.
_PRODUCERS = ("linear", "addmm", "matmul", "bmm", "einsum", "rms_norm", "layer_norm")
_PIECES = ("getitem", "chunk", "split", "unbind")

_UNKNOWN = "the way from the projection is not understood, or something else reads it"


def fold_key_norm(gm: GraphModule, context: PassContext) -> GraphModule:
    if not context.key_norms:
        return gm
    changes = Writes(gm.graph)
    for use in context.key_norms:
        place = _fold(gm, use, changes, context)
        setattr(use.match, "key_norm" if use.is_key else "query_norm", place)
        note = Reason(f"key normalization {place.where}: {place.reason}", source_line(use.match.node))
        if place.reason and note not in context.notes:
            context.notes.append(note)
    return gm


def shared_norm(key: Node, fmt: CacheFormat, config: Config, changes: Writes) -> str:
    """``CacheFormat.norm`` for a cache of ``key [B, H, N, D]``: which of its channels are to share a normalization."""
    if not config.normalize_keys or config.key_norm != "pair":
        return fmt.norm
    path = find_path(key, None, changes)
    pairs = None if path is None else pairs_of(path.partners)
    return fmt.norm if pairs is None else pairs.word


def _fold(gm: GraphModule, use: KeyNormUse, changes: Writes, context: PassContext) -> NormPlace:
    cache, target = use.cache, use.tensor
    if cache.norm is None:
        _apply(gm, use, target, None)
        return NormPlace(NONE)
    if any(user.target is torch.ops.innerq.write_.default for user in cache.norm.users):
        # it has to be read behind the write, and the projections stand before it
        _apply(gm, use, target, cache.norm)
        return NormPlace(AFTER_ROTARY, "the statistics of the cache are taken in this graph")
    readers = {use.op, *(user for user in target.users if user in context.appended)}
    path = find_path(target, readers, changes)
    if path is None:
        _apply(gm, use, target, cache.norm)
        return NormPlace(PROJECTION) if _is_produced(target) else NormPlace(AFTER_ROTARY, _UNKNOWN)
    shared = Pairs.parse(cache.format.norm).partners(len(path.partners))
    if any(other not in (channel, shared[channel]) for channel, other in enumerate(path.partners)):
        _apply(gm, use, target, cache.norm)
        mixed = pairs_of(path.partners)
        return NormPlace(
            AFTER_ROTARY,
            f"the rotary embedding mixes channels by {mixed.word if mixed else 'other pairs'}, and those of the cache "
            f"share their normalization by {cache.format.norm}",
        )
    _scale_source(gm, use, path)
    rotated = path.partners != tuple(range(len(path.partners)))
    return NormPlace(PROJECTION) if rotated or _is_produced(path.source) else NormPlace(AFTER_ROTARY, _UNKNOWN)


def _is_produced(node: Node) -> bool:
    """Whether a node is a projection or a normalization, up to views and pieces of it."""
    while True:
        source = behind_view(node)
        name = op_name(node) or getattr(node.target, "__name__", node.target)
        if source is None and name in _PIECES and isinstance(node.args[0], Node):
            source = node.args[0]
        if source is None:
            break
        node = source
    if (scaled := behind_factor(node)) is not None:
        return _is_produced(scaled[0])
    if name == "mul":  # a normalization written out
        return any(op_name(operand) == "rsqrt" for operand in node.all_input_nodes)
    if name == "add":  # a bias
        inputs = node.all_input_nodes
        return any(i.op == "placeholder" for i in inputs) and any(_is_produced(i) for i in inputs)
    return name in _PRODUCERS


# --- changing the graph ---------------------------------------------------------------------------------------------


def _apply(gm: GraphModule, use: KeyNormUse, tensor: Node, norm: Node | None) -> None:
    """The normalization right before what reads the query or key: ``q * norm``, ``(k - mean) / norm``."""
    mean = use.cache.mean if use.is_key else None
    if mean is None and norm is None:
        return
    graph, order = gm.graph, (0, 1, 2, 3)
    with graph.inserting_before(use.op):
        x = graph.call_method("to", (tensor, torch.float32))
        if mean is not None:
            x = graph.call_function(operator.sub, (x, _column(gm, mean, order)))
        if norm is not None:
            x = _scale(gm, use, x, order)
        x = graph.call_method("to", (x, example(tensor).dtype))
    use.op.update_arg(use.position, x)


def _scale_source(gm: GraphModule, use: KeyNormUse, path: ChannelPath) -> None:
    """The factor on the source of a path, and what is left to do behind the rotary embedding: ``k - mean / norm``."""
    graph, source = gm.graph, path.source
    with graph.inserting_after(source):
        anchor = graph.call_function(operator.pos, (source,))
    with graph.inserting_before(anchor):
        x = graph.call_method("to", (source, torch.float32))
        scaled = graph.call_method("to", (_scale(gm, use, x, path.order), example(source).dtype))
    graph.erase_node(anchor)
    scaled.meta = {**source.meta}
    source.replace_all_uses_with(scaled, lambda user: user not in (x, scaled))
    if not use.is_key or use.cache.mean is None:
        return
    tensor = use.op.args[use.position]
    with graph.inserting_before(use.op):
        mean = graph.call_function(operator.truediv, (use.cache.mean, use.cache.norm))
        x = graph.call_method("to", (tensor, torch.float32))
        x = graph.call_function(operator.sub, (x, _column(gm, mean, (0, 1, 2, 3))))
        x = graph.call_method("to", (x, example(tensor).dtype))
    use.op.update_arg(use.position, x)


def _scale(gm: GraphModule, use: KeyNormUse, x: Node, order: tuple[int, int, int, int]) -> Node:
    norm, function = use.cache.norm, operator.truediv if use.is_key else operator.mul
    groups = 1 if use.is_key else shape(use.tensor)[1] // shape(norm)[1]
    if groups > 1:
        norm = gm.graph.call_method("repeat_interleave", (norm, groups, 1))
    return gm.graph.call_function(function, (x, _column(gm, norm, order)))


def _column(gm: GraphModule, statistic: Node, order: tuple[int, int, int, int]) -> Node:
    """A statistic ``[B, H, D]`` for a tensor whose batch, heads, tokens and channels are the dimensions ``order``."""
    batch, heads, tokens, channels = order
    if batch < heads < channels:
        return gm.graph.call_method("unsqueeze", (statistic, tokens))
    column = gm.graph.call_method("unsqueeze", (statistic, 2))
    return gm.graph.call_method("permute", (column, tuple(order.index(dim) for dim in range(4))))
