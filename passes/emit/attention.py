"""Replaces an attention of the program by decode attention over a quantized cache."""

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
from .centred import share_of_mean
from .channels import contiguous_without_zeros, with_zeros
from .concatenated import added_up
from .latent import absorbed_part, erase_computed, projected_output, rotary_part
from .read_dequantized import read_dequantized

#: A result of `open_from` with which the mask is read for all tokens.
_READ_ALL = 1 << 30


def attend(
    write: Writer,
    context: PassContext,
    match: AttentionMatch,
    key: CacheInput,
    value: CacheInput,
    changes: Writes,
    end: tuple[Any, ...] = (),
    dropped: int | torch.SymInt = 0,
    parts: list[tuple[Node, Node]] | None = None,
) -> None:
    """Replace an attention by decode attention over a quantized cache.

    Args:
        write: a writer of the graph.
        context: the context of the pipeline.
        match: an attention that has a standard form.
        key, value: the cache; the new tokens have already been written to it.
        changes: the in-place writes of the graph.
        end: the position and number of new tokens, if the mask covers a whole buffer rather than the tokens so far.
        dropped: as of `AttentionCall`.
        parts: for an attention that reads several caches, the results for those before this one, to which that for
            this one is added. The attention is replaced with the last one.
    """
    form = context.standard[match]
    if not context.config.rewrite:
        read_dequantized(write, match, form, key, value, dropped)
        return
    sources = [node for node in (form.mask, *end) if isinstance(node, Node)]
    with write.before(form.node):
        opened = None
        if form.mask is not None and not same_size(sizes_of(form.mask)[-1], 1):
            changed = any(changes.of(source) for source in sources)
            # of a mask that no earlier layer has, the columns are not those of the state while tokens are dropped
            if same_size(dropped, 0) or (form.mask, str(sizes_of(form.query)[2])) in context.opened:
                opened = _opened(write, context, match, form.mask, key, end, changed)
        latent, heads, plain, other = match.latent, match.value_heads, form.query, None
        if example(form.node).dtype == torch.float64:  # of a query in float32, the operator would return that
            plain = write.cast(plain, torch.float64)
        if latent is not None:
            other = with_zeros(write, absorbed_part(write, latent, form.query), value.format)
            plain = rotary_part(write, latent, form.query)
        query = with_zeros(write, plain, key.format)
        weighed = match.part is not None or form.sink_logits is not None
        share = share_of_mean(write, plain, key, match.scale) if weighed else None
        sinks = form.sink_logits
        if sinks is not None and share is not None:
            by_row = sinks if len(sizes_of(sinks)) == 3 else write.method("unsqueeze", sinks, -1)
            sinks = write.call(operator.sub, by_row, share)
        call = AttentionCall(
            query,
            key.tensors,
            value.tensors,
            form.mask,
            opened,
            sinks,
            match.scale,
            match.softcap,
            dropped=write.number(dropped),
            value_query=other,
            value_heads=None if heads is None else (heads.first, heads.count),
        )
        ops = torch.ops.innerq
        if match.part is None:
            attention = out = write.call(ops.decode_attention.default, *call.arguments(), like=form.node)
        else:
            attention = write.call(ops.decode_attention_lse.default, *call.arguments(), like=form.node)
            out, sums = (write.call(operator.getitem, attention, index) for index in (0, 1))
        out, is_last = contiguous_without_zeros(write, out, value.format, form.node), match.part is None
        if match.part is not None:
            assert parts is not None, "the caller collects them"
            if share is not None:
                sums = write.call(operator.add, sums, share)
            parts.append((out, sums))
            is_last = len(parts) == len(match.part.sizes)
            if is_last:
                out = added_up(write, parts, form.node)
        if latent is not None:
            out = projected_output(write, latent, out, form.node)
        if example(form.node).dtype != example(plain).dtype:
            out = write.method("to", out, example(form.node).dtype, like=form.node)
        out = _laid_out(write, out, form.node)
    if is_last:
        write.replace(form.node, out)
    context.key_norms.append(KeyNormUse.of(attention, "query", query, plain, key, match, is_key=False))


def open_before_append(
    write: Writer, context: PassContext, match: AttentionMatch, key: CacheInput, last: Node, changes: Writes
) -> None:
    """Insert `open_from` for the mask of an attention whose new tokens are not appended yet, right behind the mask.

    There it is in front of all layers, which are then the same. Behind the append it would be a part of the first one.

    Args:
        write: a writer of the graph.
        context: the context of the pipeline.
        match: an attention that has a standard form.
        key: the cache of its keys, to which the graph has not appended anything yet.
        last: the node behind which the tokens are appended.
        changes: the in-place writes of the graph.
    """
    mask, query = context.standard[match].mask, context.standard[match].query
    if not context.config.rewrite or mask is None or same_size(sizes_of(mask)[-1], 1):
        return
    at = (mask, str(sizes_of(query)[2]))
    if at in context.opened or changes.of(mask) or changes.order[mask] > changes.order[last]:
        return
    with write.behind(mask):
        opened = write.call(torch.ops.innerq.open_from.default, mask, key.tensors.state, 0)
    context.opened[at] = opened, None


def _laid_out(write: Writer, out: Node, program: Node) -> Node:
    """The output with the heads of a token side by side in memory, where the ``program`` has it so.

    PyTorch's fused attention does, and programs view such an output as ``[B, N, H * D]`` without a copy.
    """
    _, heads, rows, dim = sizes_of(program)
    strides = example(program).stride()
    if same_size(rows, 1) or not (same_size(strides[1], dim) and same_size(strides[2], heads * dim)):
        return out
    tokens_first = write.method("contiguous", write.method("transpose", out, 1, 2))
    return write.method("transpose", tokens_first, 1, 2, like=program)


def _opened(
    write: Writer,
    context: PassContext,
    match: AttentionMatch,
    mask: Node,
    key: CacheInput,
    end: tuple[Any, ...],
    changed: bool,
) -> Node:
    """The result of `open_from` for the mask of an attention.

    It is shared by all attentions with the same mask, unless the mask is changed in place.
    """
    query = context.standard[match].query
    rows = str(sizes_of(query)[2])
    at: tuple[Any, ...] = (mask, rows, *map(str, end))
    at = (match, *at) if changed else at
    if at in context.opened:
        return context.opened[at][0]
    position = end[0] if end and tensor_of(end[0]) is not None else None
    # for programs in which each layer has its own tensor with the position
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
    """``opened`` of a cache written at ``other``, reused for a cache written at ``position``.

    The positions are expected to be equal; if they are not, the mask is read for all tokens.
    """
    first, same = (write.call(operator.getitem, node, slice(0, 1)) for node in (position, other))
    return write.call(torch.where, write.call(torch.eq, first, same), opened, _READ_ALL)


def erase_replaced(write: Writer, context: PassContext) -> None:
    """Erase the program's own operations of all attentions that were rewritten, if nothing reads them any more."""
    write.erase_dead([context.standard[match].node for match in context.rewritten])
    for match in context.rewritten:
        if match.latent is not None:
            erase_computed(write, match.latent)
