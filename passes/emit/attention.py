"""An attention over a quantized cache, in place of the program's own."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from ...kernels.attention_call import AttentionCall
from ..context import AttentionMatch, CacheInput, KeyNormUse, PassContext
from ..graph.aliases import Writes
from ..graph.values import example, same_size, sizes_of, tensor_of
from ..graph.writing import Writer
from .read_dequantized import read_dequantized

#: As `open_from`: no token is known to be open.
_READ_ALL = 1 << 30


def attend(
    write: Writer,
    context: PassContext,
    match: AttentionMatch,
    key: CacheInput,
    value: CacheInput,
    changes: Writes,
    end: tuple[Any, ...] = (),
) -> None:
    """Replace an attention by one over a quantized cache.

    Args:
        write: of the graph.
        context: of the pipeline.
        match: an attention that has a standard form.
        key, value: the cache, to which the new tokens have been written.
        changes: of the graph.
        end: what the length of the cache depends on where the mask is not as long as it.
    """
    form = context.standard[match]
    if not context.config.rewrite:
        read_dequantized(write, match, form, key, value)
        return
    sources = [node for node in (form.mask, *end) if isinstance(node, Node)]
    with write.before(form.node):
        opened = None
        if form.mask is not None and not same_size(sizes_of(form.mask)[-1], 1):
            changed = any(changes.of(source) for source in sources)
            opened = _opened(write, context, match, form.mask, key, end, changed)
        call = AttentionCall(
            form.query, key.tensors, value.tensors, form.mask, opened, form.sink_logits, match.scale, match.softcap
        )
        attention = write.call(torch.ops.innerq.decode_attention.default, *call.arguments(), like=form.node)
        out = attention
        if example(form.node).dtype != example(form.query).dtype:
            out = write.method("to", attention, example(form.node).dtype, like=form.node)
    write.replace(form.node, out)
    context.key_norms.append(KeyNormUse(attention, "query", form.query, key, match, is_key=False))


def _opened(
    write: Writer,
    context: PassContext,
    match: AttentionMatch,
    mask: Node,
    key: CacheInput,
    end: tuple[Any, ...],
    changed: bool,
) -> Node:
    """`open_from` of the mask of an attention, computed once for all attentions between which nothing changes."""
    query = context.standard[match].query
    rows = str(sizes_of(query)[2])
    at: tuple[Any, ...] = (mask, rows, *map(str, end))
    at = (match, *at) if changed else at
    if at in context.opened:
        return context.opened[at][0]
    position = end[0] if end and tensor_of(end[0]) is not None else None
    # layers that count for themselves, each in a tensor of its own
    alike = (mask, "written at a tensor", rows, *map(str, end[1:]))
    if position is not None and not changed and alike in context.opened:
        opened = _where_same(write, position, *context.opened[alike])
    else:
        opened = write.call(torch.ops.innerq.open_from.default, mask, key.tensors.state, write.size(query, 2))
        if position is not None and not changed:
            context.opened[alike] = opened, position
    context.opened[at] = opened, position
    return opened


def _where_same(write: Writer, position: Node, opened: Node, other: Node | None) -> Node:
    """``opened``, of a cache that is written at ``other``, for one that is written at ``position``.

    They are the same in all programs that there are; where they are not, the mask is read everywhere.
    """
    first, same = (write.call(operator.getitem, node, slice(0, 1)) for node in (position, other))
    return write.call(torch.where, write.call(torch.eq, first, same), opened, _READ_ALL)
