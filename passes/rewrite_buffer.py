"""Attention over a dense buffer that is written in place reads from a quantized shadow of the buffer.

    buffer_k.index_copy_(2, at, k)                   buffer_k.index_copy_(2, at, k)            (the user's, kept)
    buffer_v.index_copy_(2, at, v)                   buffer_v.index_copy_(2, at, v)
    out = attention(q, buffer_k, buffer_v, mask) ->  rewind_(shadow..., at[0])
                                                     append_(shadow..., k, v)
                                                     assert: the mask hides what lies behind at[-1]
                                                     out = decode_attention(q, shadow..., mask)

The shadow holds the tokens of the buffer up to the write. The backend imports it when it first sees the buffer and
whenever the buffer was changed by anything but this graph; `rewind_` follows a position that went back.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..kernels.formats import preallocated_capacity
from ..kernels.internals.dynamo_graphs import AttrSource, source_of
from ..kernels.internals.tensors import assert_async
from ..kernels.masks import MASKED
from .analysis.buffer_writes import is_preallocated, same_position
from .analysis.buffers import MAX_QUERY_TOKENS, BufferUse
from .analysis.read_dequantized import early_reader
from .context.context import AttentionMatch, CacheInput, PassContext, ShadowInput
from .fold_key_norm import shared_norm
from .graph.aliases import Writes, possible_views
from .graph.values import example, same_size, shape
from .graph.writing import erase_dead
from .rewrite_decode import append, attend, wrong_roles
from .unwrap_caches import add_placeholders, cache_examples

_MESSAGE = "innerq: the mask shows tokens of a static cache that have not been written"

_NOT_CONSECUTIVE = "innerq: tokens are written to a static cache at positions that do not follow one another"


def rewrite_buffer(gm: GraphModule, context: PassContext) -> GraphModule:
    checks: dict[Any, tuple[AttentionMatch, dict[Node, None]]] = {}
    sides: dict[tuple[Node, Node], tuple[CacheInput, CacheInput]] = {}
    positions: dict[tuple[Node, Node], Node] = {}
    writes: dict[Node, Node] = {}
    changes = Writes(gm.graph)
    for match, (key, value) in context.uses.items():
        if key.kind != "buffer":
            continue
        pair = (key.buffer.buffer, value.buffer.buffer)
        reason = _obstacle(match, key.buffer, value.buffer, changes, context)
        if reason is None and any(bool({*pair} & {*other}) and pair != other for other in sides):
            reason = "a buffer is paired with another one in another attention"
        last = max(key.buffer.write, value.buffer.write, key=changes.order.__getitem__)
        if reason is None and not context.config.rewrite:
            reason = early_reader(match, last, changes.order)
        if reason is not None:
            context.refuse(match, reason)
            continue
        if pair not in sides:
            with gm.graph.inserting_before(last.next):
                positions[pair] = position_tensor(gm, context, key.buffer)
                sides[pair] = _sides(gm, key.buffer, value.buffer, changes, context)
                known = changes.order[match.query] < changes.order[last]  # the query is there before the writes
                _follow(gm, context, match, *sides[pair], key.buffer, value.buffer, positions[pair], known)
        if key.buffer.whole:  # layers share a check, at the last of them, of a mask that nothing changes
            shared = (match.mask, key.buffer.count, match if changes.of(match.mask) else None)
            places = checks.get(shared, (match, {}))[1]
            checks[shared] = match, {**places, positions[pair]: None}
        attend(gm, context, match, *sides[pair], changes, (key.buffer.position, key.buffer.count))
        context.rewritten.append(match)
        for use in (key.buffer, value.buffer):
            if is_preallocated(use.buffer):
                writes[use.write] = use.buffer
    for (_, count, _), (match, places) in checks.items():
        with gm.graph.inserting_before(match.node):
            _check_mask(gm, match, list(places), count)
    erase_dead(gm.graph, [match.node for match in context.rewritten])
    for write, buffer in writes.items():  # the cache itself has been written
        write.replace_all_uses_with(buffer)
        gm.graph.erase_node(write)
    return gm


def _obstacle(
    match: AttentionMatch, key: BufferUse, value: BufferUse, changes: Writes, context: PassContext
) -> str | None:
    if match.is_causal:
        return "is_causal aligns the first query with the first key, which is not what a cache means; pass a mask"
    if key.buffer is value.buffer:
        return "keys and values are the same buffer"
    if not same_position(key.position, value.position) or key.count != value.count or key.whole != value.whole:
        return "the buffers of keys and values are written or read at different places"
    if is_preallocated(key.buffer) != is_preallocated(value.buffer):
        return "only one of keys and values is a quantized buffer"
    if is_preallocated(key.buffer) and key.dims != (0, 1, 2, 3):
        return "a quantized buffer has the order [batch, heads, tokens, head_dim]"
    if is_preallocated(key.buffer):
        reason = wrong_roles(context.caches[key.buffer], context.caches[value.buffer])
        if reason is not None:
            return reason
    if key.whole and match.mask is None:
        return "the attention reads a buffer to its end without a mask, so it reads what has not been written"
    if key.whole and not same_size(shape(match.mask)[-1], shape(match.key)[match.tokens_dims[0]]):
        return "the mask has no column for each token of the buffer"
    return _apart(key, value, changes)


def _apart(key: BufferUse, value: BufferUse, changes: Writes) -> str | None:
    """What keeps two writes, to keys and to values, from being made at once, at the later one."""
    order = changes.order
    first, last = sorted((key.write, value.write), key=order.__getitem__)
    for use in (key, value):
        sources = [use.new, *([use.position] if isinstance(use.position, Node) else [])]
        if any(changes.between(source, use.write, last) for source in sources if shape(source) is not None):
            return "what is written to a buffer is changed in place before the other buffer is written"
    if is_preallocated(key.buffer):
        earlier = key.buffer if first is key.write else value.buffer
        readers = {user for view in possible_views(earlier) for user in view.users} - {key.write, value.write}
        if any(order[first] < order[user] < order[last] for user in readers):
            return "a quantized buffer is read between the writes of keys and values"
    return None


def position_tensor(gm: GraphModule, context: PassContext, use: BufferUse) -> Node:
    """A tensor with one element: the position of the first token that is written."""
    position, call = use.position, gm.graph.call_function
    if isinstance(position, Node) and isinstance(example(position), torch.Tensor):
        first = call(operator.getitem, (position, slice(0, 1)))
        if not use.consecutive:
            steps = call(torch.arange, (use.count,), {"device": example(position).device})
            same = call(torch.eq, (position, call(operator.add, (first, steps))))
            call(assert_async, (gm.graph.call_method("all", (same,)), _NOT_CONSECUTIVE))
        return first
    device = example(use.buffer).device
    fill = (torch.full, ((1,), position), {"dtype": torch.int64, "device": device})
    if not isinstance(position, Node):
        return call(*fill)
    if (position, device) not in context.positions:  # one for all layers, where the number is known
        inputs = gm.graph.find_nodes(op="placeholder")
        with gm.graph.inserting_after(inputs[-1] if position.op == "placeholder" else position):
            node = context.positions[position, device] = call(*fill)
        node.meta["example_value"] = example(use.new).new_empty((1,), dtype=torch.int64)
    return context.positions[position, device]


def logical(gm: GraphModule, use: BufferUse) -> Node:
    """What is written, as ``[B, H, N, D]`` in the buffer's dtype."""
    new = use.new
    if example(new).dtype != example(use.buffer).dtype:
        new = gm.graph.call_method("to", (new, example(use.buffer).dtype))
        new.meta["example_value"] = example(use.new).to(example(use.buffer).dtype)
    if use.dims != (0, 1, 2, 3):
        permuted = gm.graph.call_method("permute", (new, use.dims))
        permuted.meta["example_value"] = example(new).permute(use.dims)
        new = permuted
    return new


def _follow(
    gm: GraphModule,
    context: PassContext,
    match: AttentionMatch,
    key: CacheInput,
    value: CacheInput,
    key_use: BufferUse,
    value_use: BufferUse,
    position: Node,
    known: bool,
) -> None:
    """Write what the program writes to the buffers to the quantized caches; ``known``: the query may be asked there."""
    new_key, new_value = logical(gm, key_use), logical(gm, value_use)
    if key_use.count > MAX_QUERY_TOKENS:  # a prompt, of which the key statistics are taken
        asked = ()
        if key.format.mode == "steered" and known:
            batch = gm.graph.call_method("size", (new_key, 0))
            start = gm.graph.call_method("new_zeros", (new_key, (batch,)), {"dtype": torch.int32})
            asked = (gm.graph.call_function(torch.ops.innerq.query_statistics.default, (match.query, new_key, start)),)
        write_cache(gm, key, new_key, position, *asked)
        write_cache(gm, value, new_value, position)
        return
    gm.graph.call_function(
        torch.ops.innerq.rewind_.default, (*key.four, *value.four, position, key.format.spec, value.format.spec)
    )
    append(gm, context, match, key, value, new_key, new_value)


def write_cache(gm: GraphModule, cache: CacheInput, new: Node, position: Node, *asked: Node) -> None:
    """Insert a write of ``new [B, H, N, D]`` into a preallocated cache; ``asked`` is what `query_statistics` gives."""
    gm.graph.call_function(
        torch.ops.innerq.write_.default, (*cache.four, cache.mean, cache.norm, new, position, cache.format.spec, *asked)
    )


def _sides(
    gm: GraphModule, key: BufferUse, value: BufferUse, changes: Writes, context: PassContext
) -> tuple[CacheInput, CacheInput]:
    """The quantized caches behind two buffers: themselves, or their shadow."""
    if is_preallocated(key.buffer):
        return context.caches[key.buffer], context.caches[value.buffer]
    shadow = context.shadows[key.buffer, value.buffer] = _shadow(gm, key, value, changes, context)
    return shadow.key, shadow.value


def _shadow(gm: GraphModule, key: BufferUse, value: BufferUse, changes: Writes, context: PassContext) -> ShadowInput:
    config = context.config
    sides = []
    for role, use in (("key", key), ("value", value)):
        dense = example(use.buffer)
        batch, heads, tokens, head_dim = (dense.shape[dim] for dim in use.dims)
        fmt = config.format_for(role, head_dim, dense.dtype)
        if role == "key" and use.dims == (0, 1, 2, 3):  # else what is written is not [B, H, N, D]
            fmt = dataclasses.replace(fmt, norm=shared_norm(use.new, fmt, config, changes))
        statistics = {
            "mean": role == "key" and config.centre_keys,
            "norm": role == "key" and config.normalize_keys,
        }
        capacity = preallocated_capacity(fmt, tokens)
        examples = cache_examples(fmt, (batch, heads), head_dim, capacity, dense.dtype, dense, **statistics)
        source = source_of(use.buffer)
        name = f"{use.buffer.name}_shadow"
        nodes = add_placeholders(gm.graph, name, examples, source and AttrSource(source, "_innerq_shadow"))
        sides.append(CacheInput(placeholder=None, index=None, format=fmt, **nodes))
    return ShadowInput(*sides, key, value)


def _check_mask(gm: GraphModule, match: AttentionMatch, positions: list[Node], count: int) -> None:
    """Fail loudly where the mask shows a token behind those that were written, to any of the caches."""
    call, method, mask = gm.graph.call_function, gm.graph.call_method, match.mask
    position = positions[0]
    if len(positions) > 1:
        position = method("amin", (call(torch.cat, (positions,)), 0, True))
    visible = mask
    if example(mask).dtype != torch.bool:
        visible = call(operator.gt, (mask, MASKED))
    tokens = shape(mask)[-1]
    if not isinstance(tokens, int):
        tokens = method("size", (mask, -1))
    column = call(torch.arange, (tokens,), {"device": example(mask).device})
    behind = call(operator.ge, (column, call(operator.add, (position, count))))
    wrong = method("any", (call(operator.and_, (visible, behind)),))
    call(assert_async, (call(torch.logical_not, (wrong,)), _MESSAGE))
