"""Keys and values that leave a prefill graph leave it quantized. Its attention stays exact, on the fresh ones.

out = attention(q, k, v, mask)                   out = attention(q, k, v, mask)
return k, v, out                            ->   start = padding tokens, from the mask
                                                 asked = query_statistics(q, k, start)
                                                 mean, norm = key_statistics(k, start, query_weight(asked))
                                                 k4 = prefill(k, start, mean, norm, query_rows(asked, norm, 32))
                                                 v4 = prefill(v, start)
                                                 return (k4, mean, norm), v4, out
"""

from __future__ import annotations

import dataclasses
import operator

import torch
from torch.fx import GraphModule, Node, Proxy
from torch.fx.proxy import GraphAppendingTracer

from ..kernels.formats import CacheFormat, grown_capacity
from .attention.products import is_product
from .attention.sides import behind_factor, behind_view
from .context.context import AttentionMatch, CacheUse, NoMatch, PassContext, Quantized
from .fold_key_norm import shared_norm
from .graph.aliases import Writes
from .graph.reading import is_query, op_name
from .graph.values import example, same_size, shape
from .graph.writing import by_head
from .standard_form import standard_query


def quantize_prefill(gm: GraphModule, context: PassContext) -> GraphModule:
    starts: dict[Node | None, Node] = {}
    changes = Writes(gm.graph)
    for match, (key, value) in context.uses.items():
        if key.kind != "fresh":
            continue
        if key.node in context.quantized and value.node in context.quantized:  # layers that share a cache
            context.rewritten.append(match)
            continue
        with gm.graph.inserting_before(match.node.next):  # early, so that dense keys and values die early
            mask = match.mask if _tells_padding(match, context) else None
            if mask not in starts:
                starts[mask] = _padding_start(gm, match, mask)
            for use, role in ((key, "key"), (value, "value")):
                if use.node not in context.quantized:
                    context.quantized[use.node] = _quantize(gm, match, use, role, starts[mask], changes, context)
        context.rewritten.append(match)
    return gm


def _quantize(
    gm: GraphModule,
    match: AttentionMatch,
    use: CacheUse,
    role: str,
    start: Node,
    changes: Writes,
    context: PassContext,
) -> Quantized:
    dense = by_head(gm.graph, use.node, use.tokens_dim)
    value, config = example(dense), context.config
    fmt = config.format_for(role, value.shape[3], value.dtype)
    if role == "key":
        fmt = dataclasses.replace(fmt, norm=shared_norm(dense, fmt, config, changes))
    ops = torch.ops.innerq
    mean = norm = asked = None
    weight, rows = (), ()
    query = _query(gm, match) if fmt.mode == "steered" else None
    if query is not None:
        asked = gm.graph.call_function(ops.query_statistics.default, (query, dense, start))
        weight = (gm.graph.call_function(ops.query_weight.default, (asked, fmt.norm)),)
    if role == "key" and (config.centre_keys or config.normalize_keys):
        statistics = gm.graph.call_function(
            ops.key_statistics.default, (dense, start, config.centre_keys, config.normalize_keys, fmt.norm, *weight)
        )
        mean = gm.graph.call_function(operator.getitem, (statistics, 0)) if config.centre_keys else None
        norm = gm.graph.call_function(operator.getitem, (statistics, 1)) if config.normalize_keys else None
    if asked is not None:
        rows = (gm.graph.call_function(ops.query_rows.default, (asked, norm, fmt.group_size)),)
    capacity = _capacity(gm, dense, fmt)
    packed = gm.graph.call_function(ops.prefill.default, (dense, start, mean, norm, capacity, fmt.spec, *rows))
    tensors = tuple(gm.graph.call_function(operator.getitem, (packed, index)) for index in range(4))
    return Quantized(fmt, tensors, mean, norm, value.shape[2], use.tokens_dim)


def _query(gm: GraphModule, match: AttentionMatch) -> Node | None:
    """The query in the standard form, which a prompt's attention keeps to itself; None where it has none."""
    try:
        return standard_query(gm, match)
    except NoMatch:
        return None


def _capacity(gm: GraphModule, node: Node, fmt: CacheFormat) -> Node | int:
    """Blocks to allocate, as arithmetic in the graph where the length is a symbol."""
    length = shape(node)[2]
    if isinstance(length, int):
        return grown_capacity(fmt, length)
    length = Proxy(gm.graph.call_method("size", (node, 2)), GraphAppendingTracer(gm.graph))
    return grown_capacity(fmt, length).node


def _tells_padding(match: AttentionMatch, context: PassContext) -> bool:
    """Whether the mask has a column for each key, and a key that it hides from every query is one that nobody reads."""
    size = shape(match.mask) if match.mask is not None else None
    if size is None or len(size) != 4 or not same_size(size[3], shape(match.key)[match.tokens_dims[0]]):
        return False
    readers = [other for other in context.attentions if other.key is match.key or other.value is match.value]
    if any(other.mask is not match.mask for other in readers):
        return False
    return all(_only_attended(node, cached=True) for node in (match.key, match.value))


def _only_attended(node: Node, cached: bool = False) -> bool:
    """Whether nothing but attentions reads keys or values, through views and repetitions of them, which do not leave
    the graph; what is cached itself does."""
    for user in node.users:
        if (cached and user.op == "output") or is_query(user) or is_product(user) or op_name(user) == "sdpa":
            continue
        same = behind_view(user) is node or op_name(user) in ("expand", "repeat", "repeat_interleave")
        same = same or behind_factor(user) is not None
        if not same or not _only_attended(user):
            return False
    return True


def _padding_start(gm: GraphModule, match: AttentionMatch, mask: Node | None) -> Node:
    """``[B]`` int32: how many of the first keys no query of any head sees."""
    call, method = gm.graph.call_function, gm.graph.call_method
    batch = method("size", (match.key, 0)) if not isinstance(shape(match.key)[0], int) else shape(match.key)[0]
    if mask is None:
        return method("new_zeros", (match.key, (batch,)), {"dtype": torch.int32})
    visible = mask
    if example(mask).dtype != torch.bool:
        visible = call(operator.gt, (mask, torch.finfo(example(mask).dtype).min))
    seen = method("any", (method("any", (visible, 1)), 1))  # [B or 1, S]
    hidden = call(operator.eq, (method("cumsum", (seen, -1)), 0))
    start = method("sum", (hidden, -1), {"dtype": torch.int32})
    return method("expand", (start, batch))
