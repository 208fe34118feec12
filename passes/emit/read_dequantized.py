"""With ``rewrite=False``, lets the program's own attention read dequantized caches.

    append_(past_k..., past_v..., k', v)             append_(past_k..., past_v..., k', v)
    out = decode_attention(q * norm, ...)     ->     keys = dequantize(past_k..., length)
                                                     values = dequantize(past_v..., length)
                                                     out = attention(q, keys, values, mask)

The contents of the caches and the writes to them do not change. So an error that disappears with ``rewrite=False`` is
caused by the rewrite or by its kernel, and any other one by quantization.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from ..context import AttentionMatch, CacheInput, StandardForm
from ..graph.values import sizes_of
from ..graph.writing import Writer
from .dense import dequantized


def early_reader(match: AttentionMatch, form: StandardForm, last: Node, order: dict[Node, int]) -> str | None:
    """Why an attention cannot read a cache that the node ``last`` completes; None if it can."""
    for node in (match.key, match.value):
        if any(order[reader] < order[last] for reader in _readers(match, form, node) if reader is not last):
            return "with rewrite=False: keys or values are read before both have been written"
    return None


def read_dequantized(
    write: Writer,
    match: AttentionMatch,
    form: StandardForm,
    key: CacheInput,
    value: CacheInput,
    dropped: int | torch.SymInt = 0,
) -> None:
    """Let an attention read the dequantized caches. The new tokens have been appended to them before.

    ``dropped`` is that of `AttentionCall`.
    """
    readers = {node: _readers(match, form, node) for node in (match.key, match.value)}
    everyone = {reader for found in readers.values() for reader in found}
    first = next(node for node in write.graph.nodes if node in everyone)
    for cache, node, tokens_dim in zip((key, value), (match.key, match.value), match.tokens_dims, strict=True):
        with write.before(first):
            length = write.number(sizes_of(node)[tokens_dim])
            dense = dequantized(write, cache, length, write.number(dropped), like=node)
            if tokens_dim == 1:
                dense = write.method("transpose", dense, 1, 2, like=node)
        for reader in readers[node]:
            reader.replace_input_with(node, dense)


def _readers(match: AttentionMatch, form: StandardForm, node: Node) -> list[Node]:
    """The users of keys or values that are part of an attention."""
    ancestors: set[Node] = set()
    pending = [form.node, *(match.latent.writes if match.latent is not None else ())]
    while pending:
        current = pending.pop()
        if current not in ancestors and current is not node:
            ancestors.add(current)
            pending += current.all_input_nodes
    return [user for user in node.users if user in ancestors]
