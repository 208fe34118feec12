"""Let attentions over a dense buffer that is written in place read a quantized shadow of the buffer.

    buffer_k.index_copy_(2, at, k)                   buffer_k.index_copy_(2, at, k)            (the write is kept)
    buffer_v.index_copy_(2, at, v)                   buffer_v.index_copy_(2, at, v)
    out = attention(q, buffer_k, buffer_v, mask) ->  rewind_(shadow..., at[0])
                                                     append_(shadow..., k, v)
                                                     assert: the mask hides all tokens after at[-1]
                                                     out = decode_attention(q, shadow..., mask)

The shadow holds the tokens of the buffer up to the last one written. The runtime fills it from the buffer when a graph
first reads the buffer, and whenever anything but a rewritten graph has changed the buffer. `rewind_` sets the length of
the shadow to the position of the write, in case the program went back.

A full buffer whose oldest tokens new ones push out (``analysis/rolled_buffers.py``) has a shadow with the same tokens:

    full = cat([buffer_k[:, :, 1:], k], 2)           full = ...                                (kept, too)
    buffer_k.copy_(full[:, :, -W:])                  buffer_k.copy_(full[:, :, -W:])
    ...                                          ->  append_(shadow..., k, v, drop=1)
    out = attention(q, buffer_k, buffer_v, mask)     out = decode_attention(q, shadow..., mask)

The same pass rewrites attentions over buffers that are quantized themselves (``InnerQBuffer``): they have no shadow,
and the program's writes are replaced.
"""

from __future__ import annotations

import dataclasses
import operator

import torch
from torch.fx import GraphModule, Node

from ..kernels.formats import Role, shadow_capacity
from ..kernels.internals.dynamo_graphs import AttrSource, source_of
from ..kernels.internals.tensors import assert_async
from ..kernels.masks import MASKED
from ..kernels.schemas import arguments_of
from .analysis.buffer_writes import is_preallocated, same_position
from .analysis.buffers import is_step
from .analysis.centring import may_centre, obstacle
from .analysis.other_readers import share_one
from .analysis.shared_norm import shared_norm
from .analysis.windows import format_of
from .context import (
    AttentionMatch,
    BufferUse,
    CacheInput,
    CacheSource,
    PassContext,
    ShadowInput,
    StandardForm,
    wrong_roles,
)
from .emit.attention import attend, erase_replaced
from .emit.channels import with_zeros
from .emit.inputs import add_placeholders, cache_examples
from .emit.read_dequantized import early_reader
from .emit.writes import append, by_head_in_dtype, position_tensor, token_count, write_at
from .graph.aliases import Writes, possible_views
from .graph.values import dtype_of, example, made_equal, plain_size, same_size, sizes_of, tensor_of
from .graph.writing import Writer

_MESSAGE = "innerq: the mask shows tokens of a static cache that have not been written"

#: Batch, head, token and channel of a buffer in the order that caches have.
_ORDER = (0, 1, 2, 3)


def rewrite_buffer(gm: GraphModule, context: PassContext) -> GraphModule:
    write = Writer(gm.graph)
    checks: dict[tuple[Node, str, AttentionMatch | None], tuple[AttentionMatch, dict[Node, None]]] = {}
    sides: dict[tuple[Node, Node], tuple[CacheInput, CacheInput]] = {}
    positions: dict[tuple[Node, Node], Node] = {}
    writes: dict[Node, Node] = {}
    changes = Writes(gm.graph)
    for match, (key_use, value_use) in context.uses.items():
        if key_use.source is not CacheSource.BUFFER:
            continue
        key, value, form = key_use.buffer, value_use.buffer, context.standard[match]
        pair = (key.buffer, value.buffer)
        last = max(key.write, value.write, key=changes.order.__getitem__)
        reason = _obstacle(match, form, key, value, changes, context)
        if reason is None and any(share_one(pair, other) for other in sides):
            reason = "another attention reads its key buffer with another value buffer, or the other way round"
        if reason is None and changes.order[form.node] < changes.order[last]:
            reason = "the attention comes before the writes to the buffers"
        if reason is None and not context.config.rewrite:
            reason = early_reader(match, form, last, changes.order)
        if reason is not None:
            context.refuse(match, reason)
            continue
        if pair not in sides:
            with write.after(last):
                if not key.rolls:
                    positions[pair] = position_tensor(write, context, key)
                sides[pair] = _sides(write, match, key, value, changes, context)
                known = changes.order[form.query] < changes.order[last]  # the query is computed before the writes
                query = form.query if known else None
                _write_caches(write, context, match, query, *sides[pair], key, value, positions.get(pair))
        if pair in positions and key.whole and form.mask is not None:  # layers share a check of a mask that stays
            shared = (form.mask, str(key.count), match if changes.of(form.mask) else None)
            checked = checks.get(shared, (match, {}))[1]
            checks[shared] = match, {**checked, positions[pair]: None}
        end = () if key.rolls else (key.position, key.count)
        attend(write, context, match, *sides[pair], changes, end, dropped=key.extra)
        context.rewritten.append(match)
        for use in (key, value):
            if is_preallocated(use.buffer):
                writes[use.write] = use.buffer
    for (mask, _, changed), (match, checked) in checks.items():
        # behind the last layer, which is like the others then, unless the program changes what is looked at
        here = changed is not None or any(changes.of(position) for position in checked)
        with write.before(context.standard[match].node if here else gm.graph.output_node()):
            _check_mask(write, mask, list(checked), token_count(write, context.uses[match][0].buffer))
    erase_replaced(write, context)
    for node, buffer in writes.items():  # replaced by writes to the quantized buffer
        write.replace(node, buffer)
        gm.graph.erase_node(node)
    return gm


def _obstacle(
    match: AttentionMatch, form: StandardForm, key: BufferUse, value: BufferUse, changes: Writes, context: PassContext
) -> str | None:
    if match.is_causal:
        return "is_causal aligns the first query with the first key, which is wrong with a cache; pass a mask"
    if key.buffer is value.buffer:
        return "keys and values are the same buffer"
    alike = same_position(key.position, value.position) and same_size(key.count, value.count)
    if not alike or (key.whole, key.rolls, key.extra) != (value.whole, value.rolls, value.extra):
        return "the buffers of keys and values are written or read at different positions"
    if is_preallocated(key.buffer) != is_preallocated(value.buffer):
        return "only one of keys and values is a quantized buffer"
    if is_preallocated(key.buffer) and key.dims != _ORDER:
        return "the quantized buffer is not read as [batch, heads, tokens, head_dim]"
    if is_preallocated(key.buffer):
        own_key, own_value = context.caches[key.buffer], context.caches[value.buffer]
        if (reason := wrong_roles(own_key, own_value) or obstacle(match, own_key)) is not None:
            return reason
    if key.whole:
        seen, tokens = sizes_of(match.key)[match.tokens_dims[0]], sizes_of(key.buffer)[key.dims[2]] + key.extra
        if form.mask is None and not key.rolls:
            if not same_size(seen, tokens):
                return "keys: the attention does not read the buffer up to the last token written"
            return "the attention reads the whole buffer without a mask, including tokens that have not been written"
        if not same_size(seen, tokens) and not made_equal(sizes_of(value.buffer)[value.dims[2]], tokens):
            return "parts of buffers are read of which one has more tokens"
        if form.mask is not None and not same_size(sizes_of(form.mask)[-1], tokens):
            return "the mask does not have one column for each token of the buffer"
    return _delay_obstacle(key, value, changes)


def _delay_obstacle(key: BufferUse, value: BufferUse, changes: Writes) -> str | None:
    """Why the earlier of the two writes, to keys and to values, cannot be delayed until the later; None if it can."""
    order = changes.order
    first, last = sorted((key.write, value.write), key=order.__getitem__)
    for use in (key, value):
        sources = [use.new, *([use.position] if isinstance(use.position, Node) else [])]
        if any(changes.between(source, use.write, last) for source in sources if tensor_of(source) is not None):
            return "the tokens written to one buffer are changed in place before the other buffer is written"
    if is_preallocated(key.buffer):
        earlier = key.buffer if first is key.write else value.buffer
        readers = {user for view in possible_views(earlier) for user in view.users} - {key.write, value.write}
        if any(order[first] < order[user] < order[last] for user in readers):
            return "a quantized buffer is read between the writes of keys and values"
    return None


def _write_caches(
    write: Writer,
    context: PassContext,
    match: AttentionMatch,
    query: Node | None,
    key: CacheInput,
    value: CacheInput,
    key_use: BufferUse,
    value_use: BufferUse,
    position: Node | None,
) -> None:
    """Write to the quantized caches what the program writes to the buffers.

    Args:
        query: the query of the attention; None if it is computed after the writes, so that its moments cannot be used.
        position: a tensor with the position of the first new token; None if the buffers roll.
    """
    new_key, new_value = by_head_in_dtype(write, key_use), by_head_in_dtype(write, value_use)
    if position is None:
        append(write, context, match, key, value, new_key, new_value, write.number(key_use.count))
        return
    if not is_step(key_use.count):  # at 0 it is a prompt, from which the key statistics are computed
        moments = ()
        if key.format.uses_queries and query is not None:
            start = write.method("new_zeros", new_key, (write.method("size", new_key, 0),), dtype=torch.int32)
            held = (with_zeros(write, tensor, key.format) for tensor in (query, new_key))
            moments = (write.call(torch.ops.innerq.query_moments.default, *held, start),)
        write_at(write, key, new_key, position, *moments)
        write_at(write, value, new_value, position)
        return
    write.call(torch.ops.innerq.rewind_.default, *arguments_of("rewind_", key.tensors, value.tensors, position))
    append(write, context, match, key, value, new_key, new_value)


def _sides(
    write: Writer, match: AttentionMatch, key: BufferUse, value: BufferUse, changes: Writes, context: PassContext
) -> tuple[CacheInput, CacheInput]:
    """The quantized caches of two buffers: the buffers themselves if they are quantized, or a new shadow of them."""
    if is_preallocated(key.buffer):
        return context.caches[key.buffer], context.caches[value.buffer]
    shadow = context.shadows[key.buffer, value.buffer] = ShadowInput(
        _shadow(write, match, "key", key, changes, context),
        _shadow(write, match, "value", value, changes, context),
        key,
        value,
    )
    return shadow.key, shadow.value


def _shadow(
    write: Writer, match: AttentionMatch, role: Role, use: BufferUse, changes: Writes, context: PassContext
) -> CacheInput:
    config, dense = context.config, example(use.buffer)
    batch, heads, tokens, head_dim = (plain_size(dense.shape[dim]) for dim in use.dims)
    window = tokens if use.rolls else None  # `rolled_use` has made it a constant
    fmt = format_of(context, role, head_dim, dense.dtype, window, latent=match.latent is not None)
    if role == "key" and not fmt.rolls and use.dims == _ORDER:  # otherwise the written tokens are not [B, H, N, D]
        fmt = dataclasses.replace(fmt, norm=shared_norm(use.new, fmt, config, changes))
    examples = cache_examples(
        fmt,
        (batch, heads),
        head_dim,
        shadow_capacity(fmt, tokens, use.rolls),
        dense.dtype,
        dense,
        mean=role == "key" and may_centre(use.buffer, context) and not fmt.rolls,
        norm=role == "key" and config.normalize_keys and not fmt.rolls,
    )
    source = source_of(use.buffer)
    source = source and AttrSource(source, use.shadow)
    return CacheInput(add_placeholders(write, f"{use.buffer.name}_shadow", examples, source))


def _check_mask(write: Writer, mask: Node, positions: list[Node], count: Node | int) -> None:
    """Add an assertion that the mask hides all tokens after those written at the smallest of ``positions``."""
    position = positions[0]
    if len(positions) > 1:
        position = write.method("amin", write.call(torch.cat, positions), 0, True)
    visible = mask
    if dtype_of(mask) != torch.bool:
        visible = write.call(operator.gt, mask, MASKED)
    column = write.call(torch.arange, write.size(mask, -1), device=example(mask).device)
    unwritten = write.call(operator.ge, column, write.call(operator.add, position, count))
    wrong = write.method("any", write.call(operator.and_, visible, unwritten))
    write.call(assert_async, write.call(torch.logical_not, wrong), _MESSAGE)
