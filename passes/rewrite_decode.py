"""Cache write and attention of a decode step, on the quantized cache.

    keys = cat([past_k, k], 2)                  append_(past_k..., past_v..., k, v)
    values = cat([past_v, v], 2)            ->  opened = open_from(mask, past_k_state, N)      once for all layers
    out = attention(q, keys, values, mask)      out = decode_attention(q, past_k..., past_v..., mask, opened)
    return keys, values                         return (the same caches, longer)

Query and key are what the program has: `fold_key_norm` puts the key normalization on them. ``open_from`` finds out what
of a mask hides nothing, so that no layer reads it there, and fails loudly where a mask shows tokens in front of the
first that the cache stores.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from .analysis.read_dequantized import early_reader, read_dequantized
from .context.context import Appended, AttentionMatch, CacheInput, CacheUse, KeyNormUse, PassContext
from .graph.aliases import Writes
from .graph.values import example, same_size, shape
from .graph.writing import by_head, erase_dead

#: As `open_from`: no token is known to be open.
_READ_ALL = 1 << 30


def rewrite_decode(gm: GraphModule, context: PassContext) -> GraphModule:
    written: set[tuple[Node, Node]] = set()
    changes = Writes(gm.graph)
    growing = {use.cache for uses in context.uses.values() for use in uses if use.kind == "append"}
    for match, (key, value) in context.uses.items():
        if key.kind not in ("append", "read"):
            continue
        reason = _obstacle(match, key, value, changes)
        if reason is None and key.kind == "read" and (key.cache in growing or value.cache in growing):
            reason = "it reads a cache without the tokens that the same graph appends to it"
        pair = (key.node, value.node)
        last = max(pair, key=changes.order.__getitem__)
        if reason is None and key.kind == "append" and not context.config.rewrite:
            reason = early_reader(match, last, changes.order)
        if reason is None and any(bool({*pair} & {*other}) and pair != other for other in written):
            reason = "keys or values are paired with others in another attention"
        if reason is not None:
            context.refuse(match, reason)
            continue
        if key.kind == "append" and pair not in written:
            written.add(pair)
            with gm.graph.inserting_before(last.next):
                news = (by_head(gm.graph, use.new, use.tokens_dim) for use in (key, value))
                append(gm, context, match, key.cache, value.cache, *news)
            for use in (key, value):
                context.appended[use.node] = Appended(use.cache, shape(use.new)[use.tokens_dim])
        attend(gm, context, match, key.cache, value.cache, changes)
        context.rewritten.append(match)
    erase_dead(gm.graph, [match.node for match in context.rewritten])
    return gm


def _obstacle(match: AttentionMatch, key: CacheUse, value: CacheUse, changes: Writes) -> str | None:
    if match.is_causal:
        return "is_causal aligns the first query with the first key, which is not what a cache means; pass a mask"
    if key.cache is value.cache:
        return "keys and values are the same cache"
    if (reason := wrong_roles(key.cache, value.cache)) is not None:
        return reason
    if key.cache.format.sink != value.cache.format.sink or key.cache.format.ring != value.cache.format.ring:
        return "the caches of keys and values have different windows"
    if key.kind != "append":
        return None
    if not same_size(*(shape(use.new)[use.tokens_dim] for use in (key, value))):
        return "there are not as many new keys as new values"
    last = max(key.node, value.node, key=changes.order.__getitem__)
    for use, what in ((key, "keys"), (value, "values")):
        if example(use.new).dtype != example(use.cache.window).dtype:
            return (
                f"new {what} of dtype {example(use.new).dtype} for a cache of dtype {example(use.cache.window).dtype}"
            )
        if changes.between(use.new, use.node, last):
            return f"new {what} are changed in place right behind the append"
    return None


def wrong_roles(key: CacheInput, value: CacheInput) -> str | None:
    """Why a cache of keys and one of values are not what they are read as, or None."""
    if key.format.role == "key" and value.format.role == "value":
        return None
    return "a cache of values is read as keys, or a cache of keys as values"


def append(
    gm: GraphModule,
    context: PassContext,
    match: AttentionMatch,
    key: CacheInput,
    value: CacheInput,
    new_key: Node,
    new_value: Node,
) -> None:
    """Insert the append of new keys and values, ``[B, H, N, D]``, to a cache."""
    caches = (*key.four, *value.four)
    op = gm.graph.call_function(
        torch.ops.innerq.append_.default, (*caches, new_key, new_value, key.format.spec, value.format.spec)
    )
    context.key_norms.append(KeyNormUse(op, len(caches), new_key, key, match, is_key=True))


def attend(
    gm: GraphModule,
    context: PassContext,
    match: AttentionMatch,
    key: CacheInput,
    value: CacheInput,
    changes: Writes,
    end: tuple[Any, ...] = (),
) -> None:
    """Replace an attention by one over a quantized cache.

    ``end`` is what the length of the cache depends on where the mask is not as long as it.
    """
    if not context.config.rewrite:
        read_dequantized(gm, match, key, value)
        return
    sources = [match.mask, *(item for item in end if isinstance(item, Node))]
    with gm.graph.inserting_before(match.node):
        opened = None
        if match.mask is not None and not same_size(shape(match.mask)[-1], 1):
            opened = _opened(gm, context, match, key, end, any(changes.of(source) for source in sources))
        formats = (key.format.spec, value.format.spec)
        attention = gm.graph.call_function(
            torch.ops.innerq.decode_attention.default,
            (
                *(match.query, *key.four, *value.four, match.mask, opened),
                *(match.sink_logits, match.scale, match.softcap, False, *formats),
            ),
        )
        out = attention
        if example(match.node).dtype != example(match.query).dtype:
            out = gm.graph.call_method("to", (attention, example(match.node).dtype))
    for node in {attention, out}:
        node.meta = {**match.node.meta}
    match.node.replace_all_uses_with(out)
    context.key_norms.append(KeyNormUse(attention, 0, match.query, key, match, is_key=False))


def _opened(
    gm: GraphModule,
    context: PassContext,
    match: AttentionMatch,
    key: CacheInput,
    end: tuple[Any, ...],
    changed: bool,
) -> Node:
    """`open_from` of the mask of an attention, computed once for all attentions between which nothing changes."""
    at = (match.mask, *map(str, (shape(match.query)[2], *end)))
    at = (match, *at) if changed else at
    if at in context.opened:
        return context.opened[at]
    position = end[0] if end and isinstance(end[0], Node) and shape(end[0]) is not None else None
    # layers that count for themselves, each in a tensor of its own
    alike = (match.mask, "written at a tensor", *map(str, (shape(match.query)[2], *end[1:])))
    if position is not None and not changed and alike in context.opened:
        opened = _where_same(gm, position, *context.opened[alike])
    else:
        opened = _open_from(gm, match, key)
        if position is not None and not changed:
            context.opened[alike] = opened, position
    context.opened[at] = opened
    return opened


def _where_same(gm: GraphModule, position: Node, opened: Node, other: Node) -> Node:
    """``opened``, of a cache that is written at ``other``, for one that is written at ``position``.

    They are the same in all programs that there are; where they are not, the mask is read everywhere.
    """
    call = gm.graph.call_function
    first, same = (call(operator.getitem, (node, slice(0, 1))) for node in (position, other))
    node = call(torch.where, (call(torch.eq, (first, same)), opened, _READ_ALL))
    node.meta["example_value"] = example(opened).clone()
    return node


def _open_from(gm: GraphModule, match: AttentionMatch, key: CacheInput) -> Node:
    count = rows = shape(match.query)[2]
    if isinstance(rows, torch.SymInt):
        count = gm.graph.call_method("size", (match.query, 2))
        count.meta["example_value"] = rows
    node = gm.graph.call_function(torch.ops.innerq.open_from.default, (match.mask, key.state, count))
    state = example(key.state)
    node.meta["example_value"] = state.new_empty(state.shape[:1])
    return node
