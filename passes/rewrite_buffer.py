"""Attention over a dense buffer that is written in place reads from a quantized shadow of the buffer.

    buffer_k.index_copy_(2, at, k)                   buffer_k.index_copy_(2, at, k)            (the user's, kept)
    buffer_v.index_copy_(2, at, v)                   buffer_v.index_copy_(2, at, v)
    out = attention(q, buffer_k, buffer_v, mask) ->  rewind_(shadow..., at[0])
                                                     append_(shadow..., (k - mean) / norm, v)
                                                     assert: the mask hides what lies behind at[-1]
                                                     out = decode_attention(q * norm, shadow..., mask)

The shadow holds the tokens of the buffer up to the write. The backend imports it when it first sees the buffer and
whenever the buffer was changed by anything but this graph; `rewind_` follows a position that went back.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch._dynamo.source import AttrSource
from torch.fx import GraphModule, Node

from ..kernels.formats import blocks_for
from .context import AttentionMatch, CacheInput, PassContext, Reason, ShadowInput
from .graph_utils import erase_dead, example, same_sizes, shape, source_line
from .match_buffer import BufferUse
from .rewrite_decode import append, attend
from .unwrap_caches import add_placeholders, cache_examples

_MESSAGE = "innerq: the mask shows tokens of a static cache that have not been written"


def rewrite_buffer(gm: GraphModule, context: PassContext) -> GraphModule:
    checked: set[tuple[Node, Any]] = set()
    for match, (key, value) in context.uses.items():
        if key.kind != "buffer":
            continue
        reason = _obstacle(match, key.buffer, value.buffer)
        if reason is not None:
            context.reasons.append(Reason(reason, source_line(match.node)))
            continue
        pair = (key.buffer.buffer, value.buffer.buffer)
        with gm.graph.inserting_before(match.node):
            position = _position_tensor(gm, key.buffer)
            if pair not in context.shadows:
                context.shadows[pair] = _shadow(gm, key.buffer, value.buffer, context)
                _follow(gm, context.shadows[pair], position)
            if key.buffer.whole and (match.mask, key.buffer.position) not in checked:
                checked.add((match.mask, key.buffer.position))
                _check_mask(gm, match, position, key.buffer.count)
        attend(gm, match, context.shadows[pair].key, context.shadows[pair].value)
        context.rewritten.append(match)
    erase_dead(gm.graph, [match.node for match in context.rewritten])
    return gm


def _obstacle(match: AttentionMatch, key: BufferUse, value: BufferUse) -> str | None:
    if match.is_causal:
        return "is_causal aligns the first query with the first key, which is not what a cache means; pass a mask"
    if key.position is not value.position or key.count != value.count or key.whole != value.whole:
        return "the buffers of keys and values are written or read at different places"
    if key.whole and match.mask is None:
        return "the attention reads a buffer to its end without a mask, so it reads what has not been written"
    if key.whole and not same_sizes(shape(match.mask)[-1:], shape(match.key)[2:3]):
        return "the mask has no column for each token of the buffer"
    return None


def _position_tensor(gm: GraphModule, use: BufferUse) -> Node:
    """A tensor with one element: the position of the first token that is written."""
    position = use.position
    if isinstance(position, Node) and isinstance(example(position), torch.Tensor):
        return gm.graph.call_function(operator.getitem, (position, slice(0, 1)))
    return gm.graph.call_function(
        torch.full, ((1,), position), {"dtype": torch.int64, "device": example(use.buffer).device}
    )


def _logical(gm: GraphModule, use: BufferUse) -> Node:
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


def _follow(gm: GraphModule, shadow: ShadowInput, position: Node) -> None:
    key, value = shadow.key, shadow.value
    gm.graph.call_function(
        torch.ops.innerq.rewind_.default, (*key.four, *value.four, position, key.format.spec, value.format.spec)
    )
    append(gm, key, value, _logical(gm, shadow.key_use), _logical(gm, shadow.value_use))


def _shadow(gm: GraphModule, key: BufferUse, value: BufferUse, context: PassContext) -> ShadowInput:
    config = context.config
    sides = []
    for role, use in (("key", key), ("value", value)):
        dense = example(use.buffer)
        batch, heads, tokens, head_dim = (dense.shape[dim] for dim in use.dims)
        fmt = config.format_for(role, head_dim, dense.dtype)
        statistics = {
            "mean": role == "key" and config.centre_keys,
            "norm": role == "key" and config.normalize_keys,
        }
        capacity = blocks_for(fmt, tokens) + 1
        examples = cache_examples(fmt, (batch, heads), head_dim, capacity, dense.dtype, dense, **statistics)
        source = getattr(use.buffer, "_dynamo_source", None)
        name = f"{use.buffer.name}_shadow"
        nodes = add_placeholders(gm.graph, name, examples, source and AttrSource(source, "_innerq_shadow"))
        sides.append(CacheInput(placeholder=None, index=None, format=fmt, **nodes))
    return ShadowInput(*sides, key, value)


def _check_mask(gm: GraphModule, match: AttentionMatch, position: Node, count: int) -> None:
    """Fail loudly where the mask shows a token behind those that were written."""
    call, method, mask = gm.graph.call_function, gm.graph.call_method, match.mask
    visible = mask
    if example(mask).dtype != torch.bool:
        visible = call(operator.gt, (mask, torch.finfo(example(mask).dtype).min))
    tokens = shape(mask)[-1]
    if not isinstance(tokens, int):
        tokens = method("size", (mask, -1))
    column = call(torch.arange, (tokens,), {"device": example(mask).device})
    behind = call(operator.ge, (column, call(operator.add, (position, count))))
    wrong = method("any", (call(operator.and_, (visible, behind)),))
    call(torch._assert_async, (call(torch.logical_not, (wrong,)), _MESSAGE))
