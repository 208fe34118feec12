"""Writes new tokens to a quantized cache."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from ...kernels.internals.tensors import assert_async
from ...kernels.schemas import arguments_of
from ..context import AttentionMatch, BufferUse, CacheInput, KeyNormUse, PassContext
from ..graph.values import example, tensor_of
from ..graph.writing import Writer
from .channels import with_zeros

_NOT_CONSECUTIVE = "innerq: tokens are written to a static cache at positions that are not consecutive"


def append(
    write: Writer,
    context: PassContext,
    match: AttentionMatch,
    key: CacheInput,
    value: CacheInput,
    new_key: Node,
    new_value: Node,
    drop: Node | int = 0,
) -> None:
    """Append new keys and values, each ``[B, H, N, D]``, to a cache, and drop ``drop`` tokens at its front.

    `fold_key_norm` normalizes the keys later, so ``new_key`` must not be normalized.
    """
    drops = () if isinstance(drop, int) and drop == 0 else (drop,)
    held = (with_zeros(write, new_key, key.format), with_zeros(write, new_value, value.format))
    arguments = arguments_of("append_", key.tensors, value.tensors, *held, *drops)
    op = write.call(torch.ops.innerq.append_.default, *arguments)
    context.key_norms.append(KeyNormUse.of(op, "key", held[0], new_key, key, match, is_key=True))


def write_at(write: Writer, cache: CacheInput, new: Node, position: Node, *moments: Node) -> None:
    """Write ``new [B, H, N, D]`` to a preallocated cache.

    Args:
        write: a writer of the graph.
        cache: the cache.
        new: the tokens to write.
        position: a tensor with the position of the first token.
        moments: the query moments of the prompt, if they were measured.
    """
    arguments = arguments_of("write_", cache.tensors, with_zeros(write, new, cache.format), position, *moments)
    write.call(torch.ops.innerq.write_.default, *arguments)


def position_tensor(write: Writer, context: PassContext, use: BufferUse) -> Node:
    """A tensor with one element: the position of the first token that is written to a buffer.

    If the positions are a tensor that is not known to be consecutive, an assertion is added that it is.
    """
    position = use.position
    if (positions := tensor_of(position)) is not None:
        first = write.call(operator.getitem, position, slice(0, 1))
        if not use.consecutive:
            steps = write.call(torch.arange, token_count(write, use), device=positions.device)
            same = write.call(torch.eq, position, write.call(operator.add, first, steps))
            write.call(assert_async, write.method("all", same), _NOT_CONSECUTIVE)
        return first
    device = example(use.buffer).device
    if not isinstance(position, Node):
        return _full(write, position, device)
    if (position, device) not in context.positions:  # shared by all layers, so inserted directly after the number
        inputs = write.graph.find_nodes(op="placeholder")
        with write.after(inputs[-1] if position.op == "placeholder" else position):
            context.positions[position, device] = _full(write, position, device)
    return context.positions[position, device]


def token_count(write: Writer, use: BufferUse) -> Node | int:
    """The number of tokens that are written to a buffer, as an argument of a node."""
    return write.size(use.new, use.dims[2])


def _full(write: Writer, number: Node | int, device: torch.device) -> Node:
    return write.call(torch.full, (1,), number, dtype=torch.int64, device=device)


def by_head_in_dtype(write: Writer, use: BufferUse) -> Node:
    """The tokens written to a buffer, as ``[B, H, N, D]`` and in the dtype of the buffer."""
    new = write.cast(use.new, example(use.buffer).dtype)
    return new if use.dims == (0, 1, 2, 3) else write.method("permute", new, use.dims)
