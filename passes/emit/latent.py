"""Applies the projections of a latent attention to query and output, so that the cache is read as it is.

    q_nope @ (latent @ W_k^T)^T  =  (q_nope @ W_k) @ latent^T
    weights @ (latent @ W_v^T)   =  (weights @ latent) @ W_v^T

One KV head, the latent, then serves all heads of the query. The products with the weights are sums over the heads'
channels, for each query token once instead of for each token of the cache.
"""

from __future__ import annotations

import operator

import torch
from torch.fx import Node

from ...kernels.internals.graphs import is_erased
from ..context import Latent, Projection
from ..graph.values import sizes_of
from ..graph.writing import Writer


def rotary_part(write: Writer, latent: Latent, query: Node) -> Node:
    """The part ``[B, H, N, P]`` of a query ``[B, H, N, D]`` that meets the rotary key."""
    return write.call(operator.getitem, query, (Ellipsis, slice(*latent.rotary)))


def absorbed_part(write: Writer, latent: Latent, query: Node) -> Node:
    """The part of a query ``[B, H, N, D]`` that meets the keys' other channels, as one that meets the latent."""
    part = write.call(operator.getitem, query, (Ellipsis, slice(*latent.projected)))
    return write.call(torch.einsum, "bhnd,hdr->bhnr", part, _weight(write, latent.keys))


def projected_output(write: Writer, latent: Latent, out: Node, like: Node) -> Node:
    """The output ``[B, H, N, v]`` of an attention whose values are the latent, ``out [B, H, N, R]``."""
    return write.call(torch.einsum, "bhnr,hvr->bhnv", out, _weight(write, latent.values), like=like)


def erase_computed(write: Writer, latent: Latent) -> None:
    """Erase the keys that were computed, if nothing reads them any more."""
    if any(is_erased(written) for written in latent.writes):
        return
    readers = {reader for user in latent.computed.users for reader in (user, *user.users)}
    parts = {node for written in latent.writes for node in written.all_input_nodes}
    if not latent.writes or any(reader not in parts and reader not in latent.writes for reader in readers):
        return
    for written in latent.writes:
        write.graph.erase_node(written)
    write.erase_dead(sorted(parts, key=lambda node: node.name))


def _weight(write: Writer, part: Projection) -> Node:
    """``[heads, channels, R]``: a view of the weight."""
    weight, rows = part.weight, part.heads * part.width
    if (part.first, rows) != (0, sizes_of(weight)[0]):
        weight = write.call(operator.getitem, weight, slice(part.first, part.first + rows))
    weight = write.method("view", weight, part.heads, part.width, sizes_of(part.weight)[1])
    if (part.start, part.stop) != (0, part.width):
        weight = write.call(operator.getitem, weight, (slice(None), slice(part.start, part.stop)))
    return weight
